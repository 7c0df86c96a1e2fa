"""The same job by ``vaporctl`` alone, as a script would do it: real processes, exit codes, JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vapor_desktop.lab import guests
from vapor_desktop.lab.keyring_session import KeyringSession
from vapor_desktop.lab.lab import Lab
from vapor_desktop.lab.stage import remove_guests

pytestmark = [pytest.mark.lab, pytest.mark.timeout(420)]
NAME = "ctl"


@pytest.fixture(scope="module")
def home(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A user with a keyring and an empty database, and one guest to protect."""
    remove_guests(lab)
    path = tmp_path_factory.mktemp("user")
    guests.add(lab.sites["a"], guests.GuestSpec(NAME, rate=5, scratch=1), lab.cache)
    guests.wait_for(lab.sites["a"], NAME, "VAPOR-DIARY ", timeout_s=90)
    with KeyringSession(path):
        os.environ["VAPOR_DATABASE_URL"] = f"sqlite:///{path / 'vapor.db'}"
        yield path
        del os.environ["VAPOR_DATABASE_URL"]
    remove_guests(lab)


def ctl(*words: str, given: str = "", code: int = 0) -> object:
    """Run it with --json; the parsed answer. Fails the test on any other exit code."""
    done = subprocess.run(
        [sys.executable, "-m", "vapor_desktop.cli.main", *words, "--json"],
        input=given,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return json.loads(done.stdout.splitlines()[-1])


def error_code(answer: object) -> str:
    assert isinstance(answer, dict)
    assert answer["ok"] is False
    return str(answer["error"]["code"])


def test_the_whole_job_from_the_shell(lab: Lab, home: Path) -> None:
    a, b = lab.sites["a"], lab.sites["b"]
    assert ctl("status") == []
    wrong = b.token_new("--scope", "admin")
    assert error_code(ctl("site", "add", a.api_url, given=wrong + "\n", code=1)) in {
        "CERTIFICATE-CHANGED",
        "TOKEN-INVALID",
    }
    for site in (a, b):
        token = site.token_new("--scope", "admin")
        ctl("site", "add", site.api_url, given=token + "\n")
        assert error_code(ctl("site", "add", site.api_url, given=token + "\n", code=1)) == "TOKEN-INVALID"
    listed = ctl("site", "list")
    assert isinstance(listed, list)
    assert [s["reachable"] for s in listed] == [True, True]
    assert ctl("pair", "site-a", "site-b") == {"ok": True, "route": "direct"}
    vms = ctl("vms", "site-a")
    assert isinstance(vms, list)
    assert next(v for v in vms if v["vm"] == NAME)["protectable"] is True

    refused = ctl("protect", NAME, "--from", "site-a", "--to", "site-b", "--rpo", "10s", code=1)
    assert error_code(refused) == "INVALID-REQUEST"  # lan-a does not exist there: map it
    mapped = f"{a.network}={b.network}"
    ctl("protect", NAME, "--from", "site-a", "--to", "site-b", "--rpo", "10s", "--map", mapped, "--wait")
    [row] = ctl("status")  # type: ignore[misc]
    assert row["vm"] == NAME
    assert row["last_point"] >= 1
    assert row["epoch"] == 1
    assert {"uuid", "state", "rpo_target_s", "rpo_now_s", "last_point_taken_at", "source", "target"} <= set(row)
    after = ctl("sync", NAME, "--wait")
    assert isinstance(after, dict)
    assert after["last_point"] > row["last_point"]
    ctl("pause", NAME)
    assert ctl("status")[0]["state"] == "paused"  # type: ignore[index]
    ctl("resume", NAME)
    points = ctl("points", NAME)
    assert isinstance(points, list)
    assert [p["seq"] for p in points] == sorted((p["seq"] for p in points), reverse=True)

    assert error_code(ctl("failover", NAME, "--reason", "proof", "--confirm", "other", code=1)) == "INVALID-REQUEST"
    done = ctl("failover", NAME, "--reason", "proof", "--confirm", NAME)
    assert isinstance(done, dict)
    assert done["state"] == "failed over"
    assert done["rpo_now_s"] is None
    assert b.virsh("domstate", NAME) == "running"


def test_no_token_is_written_in_clear(home: Path, lab: Lab) -> None:
    """Not in the database, not in any file of the user but the keyring's own (encrypted) one."""
    for file in home.rglob("*"):
        if file.is_file():
            assert b"vapor1." not in file.read_bytes(), file
