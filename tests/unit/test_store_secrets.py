"""systemd credentials as secrets."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest

from vapor_desktop.model.errors import KeyringMissing, NotAllowed
from vapor_desktop.store import FileSecrets
from vapor_desktop.store.sealed import SealedSecrets


def test_credentials_are_read_and_never_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / "site-token.a").write_text("vapor1.x\n")
    secrets = FileSecrets()
    assert secrets.get("site-token.a") == "vapor1.x"
    assert secrets.get("site-token.b") is None
    for name in ("../etc/passwd", "", "..", "/etc/passwd"):
        with pytest.raises(NotAllowed):
            secrets.get(name)
    with pytest.raises(NotAllowed, match="vaporctl --credentials"):
        secrets.put("site-token.b", "x")
    with pytest.raises(NotAllowed):
        secrets.forget("site-token.a")
    assert [path.name for path in tmp_path.iterdir()] == ["site-token.a"]


@pytest.mark.parametrize("given", [None, "", "/nonexistent"])
def test_without_systemd_there_is_no_silent_fallback(given: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    if given is not None:
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", given)
    with pytest.raises(KeyringMissing):
        FileSecrets()


def test_credentials_of_a_folder_have_its_id_before_their_names(tmp_path: Path) -> None:
    (tmp_path / "vapor_console-ssh-key").write_text("key")
    assert FileSecrets(tmp_path).get("console-ssh-key") == "key"


def test_sealed_secrets_come_back_and_lie_nowhere_in_plain_text(tmp_path: Path) -> None:
    folder = tmp_path / "credentials"
    secrets = SealedSecrets(folder)
    assert secrets.get("site-token.a") is None
    for name in ("../x", "", ".x"):
        with pytest.raises(NotAllowed):
            secrets.get(name)
    if os.geteuid() != 0 or shutil.which("systemd-creds") is None:
        with pytest.raises(KeyringMissing):  # only root can seal for a unit: it is said, and nothing is written
            secrets.put("site-token.a", "geheim")
        assert list(folder.iterdir()) == []
        return
    secrets.put("site-token.a", "geheim")
    secrets.put("site-token.a", "geheimer")
    assert SealedSecrets(folder).get("site-token.a") == "geheimer"
    assert stat.S_IMODE((folder / "site-token.a").stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.rglob("*")] == ["credentials", "site-token.a"]
    assert b"geheim" not in (folder / "site-token.a").read_bytes()
    (folder / "site-token.b").write_bytes((folder / "site-token.a").read_bytes())
    with pytest.raises(KeyringMissing):  # one secret does not pass for another
        secrets.get("site-token.b")
    secrets.forget("site-token.a")
    secrets.forget("site-token.a")
    assert secrets.get("site-token.a") is None
