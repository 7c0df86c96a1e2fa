"""The same job by ``vaporctl`` alone, as a script would do it: real processes, exit codes, JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vapor_desktop.lab import guests
from vapor_desktop.lab.keyring_session import KeyringSession
from vapor_desktop.lab.lab import Lab
from vapor_desktop.lab.stage import remove_guests

pytestmark = [pytest.mark.lab, pytest.mark.timeout(420)]
NAME, SECOND = "ctl", "ctl-second"


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

    edit_and_read_back(lab, home)
    assert error_code(ctl("failover", NAME, "--reason", "proof", "--confirm", "other", code=1)) == "INVALID-REQUEST"
    fail_over_two(lab, mapped)


def fail_over_two(lab: Lab, mapped: str) -> None:
    """Both with one confirmation while their source answers: it is fenced first, and nothing runs twice."""
    a, b = lab.sites["a"], lab.sites["b"]
    guests.add(a, guests.GuestSpec(SECOND), lab.cache, start=False)
    ctl("protect", SECOND, "--from", "site-a", "--to", "site-b", "--rpo", "60s", "--map", mapped, "--wait")
    asked = ("failover", NAME, SECOND, "--reason", "proof", "--source", "force off")
    assert error_code(ctl(*asked, "--confirm", NAME, code=1)) == "INVALID-REQUEST"
    done = ctl(*asked, "--confirm", "fail over 2")
    assert isinstance(done, dict)
    results = {fact["vm"]: fact for fact in done["results"]}
    assert set(results) == {NAME, SECOND}
    for name, fact in results.items():
        assert fact["ok"] is True
        assert fact["running_after_s"] > 0
        assert fact["state"] in {"provisional", "split-brain risk"}  # its source is back already: off and fenced
        assert fact["rpo_now_s"] is None
        assert (a.virsh("domstate", name), b.virsh("domstate", name)) == ("shut off", "running")
        start = a.exec(["virsh", "-c", "qemu:///system", "start", name], check=False)
        assert start.returncode != 0
    again = ctl("failover", NAME, "nobody", "--reason", "proof", "--confirm", "fail over 2", code=1)
    assert error_code(again) == "NOT-FOUND"
    ctl("commit", NAME, "--reason", "it works")
    rows = {row["vm"]: row["state"] for row in ctl("status")}  # type: ignore[attr-defined]
    assert rows[NAME] == "failed over"
    assert ctl("kept", NAME) == []


def edit_and_read_back(lab: Lab, home: Path) -> None:
    """A policy changed while cycles run: it is in the manifest on the target's disk, and in a fresh console."""
    a, b = lab.sites["a"], lab.sites["b"]
    before = ctl("settings", NAME)
    assert isinstance(before, dict)
    assert (before["version"], before["policy"]["rpo_target_s"]) == (1, 10)
    wanted = ("--rpo", "20s", "--retention", "4", "2", "1", "--bandwidth", "64M", "--window", "00:00-23:59=32M")
    after = ctl("edit", NAME, *wanted)
    assert isinstance(after, dict)
    assert after.pop("ok") is True
    assert (after["version"], after["points_kept"]) == (2, 7)
    assert error_code(ctl("edit", NAME, "--rpo", "30s", "--if-version", "1", code=1)) == "EDIT-OUTDATED"
    assert error_code(ctl("edit", NAME, "--keep", "24", "24", "24", code=1)) == "INVALID-REQUEST"
    assert error_code(ctl("edit", NAME, "--map", f"{a.network}=nowhere", code=1)) == "INVALID-REQUEST"

    [row] = ctl("status")  # type: ignore[misc]
    manifest = json.loads(b.path(f"/var/lib/libvirt/images/vapor/{row['uuid']}/manifest.json").read_text())
    assert manifest["settings_version"] == 2
    assert manifest["policy"] == after["policy"]
    assert manifest["policy"]["retention"] == {"newest": 4, "hourly": 2, "daily": 1}
    ctl("sync", NAME, "--wait")  # an engine's cycle works by them, and does not write its old ones back
    assert ctl("settings", NAME) == after
    assert row["rpo_target_s"] == 20

    [vda, *_others] = ctl("disks", NAME)["disks"]  # type: ignore[index,call-overload]
    assert (vda["target"], vda["format"], vda["last_mode"], vda["in_point"]) == ("vda", "qcow2", "delta", True)
    assert vda["replica_bytes"] > 0
    assert vda["scrub_reached_bytes"] > 0
    with another_console(home):
        token = b.token_new("--scope", "admin")
        ctl("site", "add", b.api_url, given=token + "\n")
        assert len(ctl("adopt", "site-b")["protections"]) == 1  # type: ignore[index,call-overload]
        assert ctl("settings", NAME) == after
        assert ctl("status")[0]["rpo_target_s"] == 20  # type: ignore[index]
        assert ctl("edit", NAME, "--rpo", "15s")["version"] == 3  # type: ignore[index,call-overload]
    assert error_code(ctl("edit", NAME, "--rpo", "12s", "--if-version", "2", code=1)) == "EDIT-OUTDATED"
    ctl("sync", NAME, "--wait")
    assert ctl("status")[0]["rpo_target_s"] == 15  # type: ignore[index]
    newest = ctl("points", NAME)[0]["seq"]  # type: ignore[index]
    ctl("pin", NAME, str(newest), "--note", "before the move")
    assert ctl("points", NAME)[0]["pins"] == ["user:before the move"]  # type: ignore[index]
    ctl("unpin", NAME, str(newest))
    assert ctl("points", NAME)[0]["pins"] == []  # type: ignore[index]
    assert {e["kind"] for e in ctl("history", NAME)["events"]} >= {"protected", "edited"}  # type: ignore[index,call-overload]


@contextmanager
def another_console(home: Path) -> Iterator[None]:
    """Another database, which knows nothing; the keyring is shared."""
    known = os.environ["VAPOR_DATABASE_URL"]
    os.environ["VAPOR_DATABASE_URL"] = f"sqlite:///{home / 'other.db'}"
    yield
    os.environ["VAPOR_DATABASE_URL"] = known


def test_no_token_is_written_in_clear(home: Path, lab: Lab) -> None:
    """Not in the database, not in any file of the user but the keyring's own (encrypted) one."""
    for file in home.rglob("*"):
        if file.is_file():
            assert b"vapor1." not in file.read_bytes(), file
