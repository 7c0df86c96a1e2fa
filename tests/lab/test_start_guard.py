"""The start guard on two real hosts: a returning host holds a VM that was failed over, whatever starts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from vapor_desktop.lab import guests
from vapor_desktop.lab.keyring_session import KeyringSession
from vapor_desktop.lab.lab import Lab, Site
from vapor_desktop.lab.processes import wait_until
from vapor_desktop.lab.stage import Stage, remove_guests

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]
HELD, DARING = "guarded", "daring"


def ctl(*words: str) -> Any:
    """``vaporctl … --json``, as a person's script would."""
    done = subprocess.run(
        [sys.executable, "-m", "vapor_desktop.cli.main", *words, "--json"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, f"{words}: {done.stdout}\n{done.stderr}"
    return json.loads(done.stdout.splitlines()[-1])


def record(lab: Lab, vm: str, site: str = "a") -> dict[str, Any]:
    """What that host's guard says of the VM."""
    return dict(json.loads(lab.sites[site].exec(["vapor-site", "guard", "show", vm], user="vapor").stdout))


def events(lab: Lab, what: str) -> list[str]:
    """What A wrote down of these guests; others had the lab before."""
    ours = {guests.GuestSpec(name).uuid for name in (HELD, DARING)}
    path = lab.sites["a"].path("/var/lib/vapor/guardian-events.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [item["why"] for item in lines if item["what"] == what and item["vm_uuid"] in ours]


def autostart(site: Site) -> str:
    """Of the held VM, as libvirt says; the guard settles it at its next look."""
    return site.virsh("dominfo", HELD).split("Autostart:")[1].split()[0]


def doctor(site: Site) -> dict[str, Any]:
    """Its line about the start guard; the doctor tries the hook anew."""
    done = site.exec(["vapor-site", "doctor", "--json"], user="vapor", check=False)
    assert done.stdout, f"exit code {done.returncode}: {done.stderr}"
    return dict(next(check for check in json.loads(done.stdout) if check["name"] == "start guard"))


def refused(lab: Lab, vm: str) -> str:
    """What `virsh start` says; the test fails when it starts."""
    a = lab.sites["a"]
    done = a.exec(["virsh", "-q", "-c", "qemu:///system", "start", vm], check=False)
    assert done.returncode != 0
    assert a.virsh("domstate", vm) == "shut off"
    return done.stderr


@pytest.fixture(scope="module")
def guarded(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Two guests of A with autostart, protected at B by a console that is closed by now: only the hosts are left."""
    remove_guests(lab)
    home = tmp_path_factory.mktemp("console")
    a = lab.sites["a"]
    for name in (HELD, DARING):
        guests.add(a, guests.GuestSpec(name, rate=2, scratch=0), lab.cache, start=False)
        a.virsh("autostart", name)
    settings = a.path("/etc/vapor/site.toml")
    before = settings.read_text()
    settings.write_text(before + "guard_patience_s = 3.0\n")  # read by the next `serve`: A boots before it matters
    with KeyringSession(home):
        stage = Stage(lab, home)
        stage.open()
        try:
            site_a, site_b = stage.pair()
            stage.protect(site_a, site_b, [HELD])
            stage.protect(site_a, site_b, [DARING], start_guard="start")
            for name in (HELD, DARING):
                stage.wait_for_point(name, 1)
                wait_until(lambda n=name: record_there(lab, n), f"the guard of {name}", timeout_s=20)
        finally:
            stage.close()
        yield lab
        remove_guests(lab)
        settings.write_text(before)
        del os.environ["VAPOR_DATABASE_URL"]


def record_there(lab: Lab, vm: str) -> bool:
    return lab.sites["a"].exec(["vapor-site", "guard", "show", vm], user="vapor", check=False).returncode == 0


def test_the_hook_is_proven_by_a_refused_vm(guarded: Lab) -> None:
    for site in guarded.sites.values():
        line = doctor(site)
        assert line["ok"], line
        assert site.virsh("list", "--all", "--name").count("proof") == 0
    assert [row["start_guard"] for row in ctl("site", "list")] == [True, True]


def test_after_a_plain_reboot_autostart_comes_when_the_peer_said_yours(guarded: Lab) -> None:
    a = guarded.sites["a"]
    before = record(guarded, HELD)
    assert (before["state"], before["may_start"], before["policy"]) == ("own", True, "hold")
    guarded.kill_site("a")
    guarded.revive_site("a")
    for name in (HELD, DARING):
        wait_until(lambda n=name: a.virsh("domstate", n) == "running", f"{name}'s autostart", timeout_s=40)
    after = record(guarded, HELD)
    assert after["confirmed_boot_id"] not in (None, before["confirmed_boot_id"])
    assert after["epoch"] == before["epoch"]
    assert not after["at_risk"]
    # It was off when the peer answered: libvirt's own autostart had been refused.
    assert any(HELD in why for why in events(guarded, "guard-started"))


def test_with_the_peer_unreachable_the_policy_decides(guarded: Lab) -> None:
    a = guarded.sites["a"]
    guarded.kill_site("a")
    guarded.cut_link()
    guarded.revive_site("a")
    wait_until(lambda: a.virsh("domstate", DARING) == "running", "the daring one's start", timeout_s=60)
    assert record(guarded, DARING)["at_risk"] is True
    [risk] = events(guarded, "guard-risk")
    assert DARING in risk
    assert "split-brain risk" in risk
    held = record(guarded, HELD)
    assert held["may_start"] is False
    assert "the policy is hold" in held["refusal"]
    assert "the policy is hold" in refused(guarded, HELD)
    assert any(HELD in why for why in events(guarded, "guard-held"))
    guarded.mend_link()
    wait_until(lambda: a.virsh("domstate", HELD) == "running", "the start after the peer's word", timeout_s=80)
    wait_until(lambda: not record(guarded, DARING)["at_risk"], "the end of the risk", timeout_s=20)


def test_a_failed_over_vm_stays_off_on_the_host_that_returns(guarded: Lab) -> None:
    a, b = guarded.sites["a"], guarded.sites["b"]
    guarded.kill_site("a")
    done = ctl("failover", HELD, "--reason", "site a is dark", "--confirm", HELD)
    assert done["state"] == "provisional"
    guarded.revive_site("a")
    wait_until(lambda: record(guarded, HELD)["state"] == "other's", "B's word", timeout_s=40)
    now = record(guarded, HELD)
    assert now["epoch"]["number"] == 2
    assert "site-b owns it since epoch 2" in now["refusal"]
    assert "site-b owns it since epoch 2" in refused(guarded, HELD)
    wait_until(lambda: autostart(a) == "disable", "the end of its autostart here", timeout_s=20)
    wait_until(lambda: a.virsh("domstate", DARING) == "running", "the other guest", timeout_s=40)
    assert b.virsh("domstate", HELD) == "running"
    assert a.virsh("domstate", HELD) == "shut off"
    assert any("site-b owns it" in why for why in events(guarded, "guard-held"))
    listed = a.exec(["vapor-site", "guard", "list"], user="vapor").stdout
    assert "HELD" in next(line for line in listed.splitlines() if line.startswith(HELD))


def test_only_a_person_on_the_host_overrides_under_a_new_epoch(guarded: Lab) -> None:
    a, b = guarded.sites["a"], guarded.sites["b"]
    b.virsh("destroy", HELD)
    bad = a.exec(["vapor-site", "guard", "override", HELD], check=False)
    assert bad.returncode != 0
    said = a.exec(["vapor-site", "guard", "override", HELD, "--reason", "b was a mistake"]).stdout
    assert "site-b holds epoch 2" in said
    now = record(guarded, HELD)
    assert (now["state"], now["epoch"]["number"], now["may_start"]) == ("own", 3, True)
    a.virsh("start", HELD)
    assert a.virsh("domstate", HELD) == "running"
    wait_until(lambda: autostart(a) == "enable", "its autostart being given back", timeout_s=20)
    [told] = events(guarded, "guard-override")
    assert "b was a mistake" in told
    audit = a.path("/var/lib/vapor/audit.log").read_text()
    assert '"act": "guard-override"' in audit
