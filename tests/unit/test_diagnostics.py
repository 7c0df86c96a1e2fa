"""The diagnostics bundle: what is in it, and above all what is not."""

from __future__ import annotations

import json
import logging
import stat
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

from vapor_desktop import program_log
from vapor_desktop.cli.main import vaporctl
from vapor_desktop.engine import diagnostics
from vapor_desktop.model import redaction
from vapor_desktop.site.tokens import token_text

NOW = datetime(2026, 11, 23, 10, 0, tzinfo=UTC)
TOKEN = token_text(b"\x07" * 32)
_KIND = "OPENSSH PRIVATE KEY-----"
PEM = f"-----BEGIN {_KIND}\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQ\n-----END {_KIND}"
CUT = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC"
SECRETS = (
    "hunter2-db",
    "hunter2-mail",
    "hunter2-cli",
    "hunter2-json",
    "hunter2-nested",
    "hunter2-space here",
    "c2VjcmV0",
)


@pytest.mark.parametrize(
    "line",
    [
        f"exchanged {TOKEN} for ours",
        f"POST /api/v1/tokens Authorization: Bearer {TOKEN}",
        "connecting to postgresql+psycopg://vapor:hunter2-db@db.example:5432/vapor",
        "connecting to postgresql+psycopg://vapor:a/b@hunter2-db@db.example/vapor",
        "smtp password=hunter2-mail host=mail",
        "run --token hunter2-cli --host a",
        '{"site_token": "hunter2-json", "x": 1}',
        '{"log": "{\\"password\\": \\"hunter2-nested\\"}"}',
        "passphrase: 'hunter2-space here' and more",
        "Authorization: Basic c2VjcmV0OmhlcmU=",
        PEM,
        PEM.replace("\n", "\\n"),
        CUT,
    ],
)
def test_a_secret_does_not_survive(line: str) -> None:
    cleaned = redaction.text(f"2026-11-23 10:00 before {line}")
    assert redaction.OUT in cleaned
    assert cleaned.startswith("2026-11-23 10:00 before ")
    for secret in (TOKEN, TOKEN[7:40], *SECRETS, "b3BlbnNzaC1rZXk", "MIIEvQIBADANBg"):
        assert secret not in cleaned


@pytest.mark.parametrize(
    "line",
    [
        "cycle of web01: 212 MiB in 9 s, point 41, checkpoint vapor-6f1f5f0e-0d5a-4c6c-9f0b-0f5b1f6a7b8c-3-41",
        "certificate " + "ab12" * 16,
        "https://192.168.122.129:7770/api/v1 did not answer: timed out",
        "/var/lib/libvirt/images/vapor/6f1f5f0e-0d5a-4c6c-9f0b-0f5b1f6a7b8c/points/000041/point.json",
        "vapor_desktop.engine.operations.registry.SomeLongClassNameThatIsNotASecret1",
    ],
)
def test_what_helps_is_kept(line: str) -> None:
    assert redaction.text(line) == line


def test_long_texts_are_cleaned_in_good_time() -> None:
    began = time.monotonic()
    redaction.text("a" * 500_000 + "-" * 1000 + "tokentoken" * 1000)
    assert time.monotonic() - began < 10


def test_values_lose_what_is_called_a_secret_and_stay_json() -> None:
    @dataclass
    class Made:
        at: datetime
        api_token: str
        note: str
        parts: tuple[Path, ...]

    found = redaction.plain({"made": Made(NOW, "x", f"used {TOKEN}", (Path("/a"),)), "token_count": 3})
    assert found["made"]["api_token"] == redaction.OUT
    assert TOKEN not in json.dumps(found)
    assert found["made"]["at"] == NOW.isoformat()
    assert found["token_count"] == 3


def test_the_zip_holds_no_planted_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAPOR_DATABASE_URL", "postgresql://vapor:hunter2-db@db/vapor")
    monkeypatch.setenv("VAPOR_SOME_TOKEN", "hunter2-cli")
    log = tmp_path / "console.log"
    filler = "2026-11-23 cycle of web01 ended\n"
    log.write_text(f"{filler * 40_000}{TOKEN}\n{PEM}\npassword=hunter2-mail\nthe last line\n")
    settings = {"theme": "dark", "mail_password": "hunter2-json", "note": f"Bearer {TOKEN}"}
    files = diagnostics.collect(
        None, NOW, settings, {"console.log": log, "engine.log": tmp_path / "no"}, "E7: closed"
    )
    path = tmp_path / "bundle.zip"
    diagnostics.write(path, files)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with zipfile.ZipFile(path) as made:
        texts = {name: made.read(name).decode() for name in made.namelist()}
    told = {name for name, _text in diagnostics.CONTENTS}
    assert {name if not name.startswith("log/") else "log/" for name in texts} == told | {"README.txt"}
    for name, text in texts.items():
        for secret in (TOKEN, TOKEN[7:60], "b3BlbnNzaC1rZXk", *SECRETS):
            assert secret not in text, name
        if name.endswith(".json"):
            json.loads(text)
    assert texts["log/console.log"].endswith("the last line\n")
    assert len(texts["log/console.log"]) <= diagnostics.LOG_TAIL_BYTES
    assert texts["log/console.log"].startswith("2026-11-23 cycle")  # a line that was cut through is left out
    assert texts["log/engine.log"].startswith("(cannot be read")
    assert "E7: closed" in texts["state.json"]
    assert json.loads(texts["settings.json"])["theme"] == "dark"


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(diagnostics.InvalidRequest, match="cannot be written"):
        diagnostics.write(tmp_path / "no" / "such" / "folder.zip", {})


def test_vaporctl_diagnostics_with_a_real_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAPOR_DATABASE_URL", f"sqlite:///{tmp_path / 'vapor.db'}")
    told = CliRunner().invoke(vaporctl, ["diagnostics"])
    assert told.exit_code == 0
    assert "tokens, keys, passwords" in told.output
    assert list(tmp_path.iterdir()) == []  # only told
    path = tmp_path / "bundle.zip"
    done = CliRunner().invoke(vaporctl, ["diagnostics", str(path)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert done.output.index("state.json") < done.output.index("Written:")
    with zipfile.ZipFile(path) as made:
        versions, state = made.read("versions.txt").decode(), json.loads(made.read("state.json"))
    assert "libvirt client: " in versions
    assert "Database: SQLite " in versions
    assert ", schema " in versions
    assert state["sites"] == []


def test_diagnostics_when_the_database_does_not_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "vapor.db"
    broken.write_bytes(b"this is no database" * 1000)
    monkeypatch.setenv("VAPOR_DATABASE_URL", f"sqlite:///{broken}")
    path = tmp_path / "bundle.zip"
    done = CliRunner().invoke(vaporctl, ["diagnostics", str(path)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    with zipfile.ZipFile(path) as made:
        assert "unknown" in json.loads(made.read("state.json"))
        assert "The rest is unknown" in made.read("versions.txt").decode()


@pytest.fixture
def loggers() -> Iterator[None]:
    names = ("", "vapor_desktop", "structured")
    kept = [(logging.getLogger(n), logging.getLogger(n).level, list(logging.getLogger(n).handlers)) for n in names]
    yield
    for logger, level, handlers in kept:
        logger.setLevel(level)
        for handler in [h for h in logger.handlers if h not in handlers]:
            logger.removeHandler(handler)
            handler.close()


def test_the_log_goes_to_a_file_of_its_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loggers: None, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    stream = program_log.open_log("console.log")
    print("\x1b[32mcycle ended\x1b[0m", file=stream, flush=True)
    logging.getLogger("vapor_desktop.gui.x").info("told quietly")
    logging.getLogger("vapor_desktop.gui.x").warning("told aloud")
    path = program_log.log_file("console.log")
    lines = path.read_text().splitlines()
    assert lines[0] == "cycle ended"
    assert lines[1].endswith("[INFO] vapor_desktop.gui.x: told quietly")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    err = capsys.readouterr().err
    assert "\x1b[32mcycle ended" in err
    assert "told aloud" in err
    assert "told quietly" not in err
    assert err.count("cycle ended") == 1
