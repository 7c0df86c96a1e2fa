"""``vapor-site guard`` as a person on the host runs it, beside the running service."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from site_server import SiteServer, running_site

from vapor_desktop.lab.processes import wait_until
from vapor_desktop.model import wire
from vapor_desktop.model.manifest import Epoch

VM = "8f1d6f0e-2c0b-4f7a-9d52-0a3b6f1f2a11"
PEER = "22222222-2222-4222-8222-222222222222"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[SiteServer]:
    with running_site(tmp_path, libvirt_hook_dir=str(tmp_path / "qemu.d")) as server:
        yield server


def arm(site: SiteServer, state: wire.GuardState, owner: str, number: int = 2) -> None:
    client, _ = site.paired()
    with client:
        lease = wire.LeaseRequest(holder="engine", holder_name="desk", purpose="guard", takeover_reason="test")
        fence = client.post(f"/leases/{VM}", json=lease.model_dump(mode="json")).json()["fence"]
        request = wire.GuardRequest(
            fence=fence, epoch=Epoch(number=number, owner=owner), state=state, vm_name="web01", peer_site=PEER,
            reason="failed over to beta", by="desk",
        )  # fmt: skip
        assert client.put(f"/guard/{VM}", json=request.model_dump(mode="json")).status_code == 200


def fails(site: SiteServer, *words: str) -> str:
    """What it says on stderr when it refuses."""
    done = subprocess.run(
        [sys.executable, "-m", "vapor_desktop.site.dispatch", "guard", *words],
        env={**os.environ, "VAPOR_SITE_CONFIG": str(site.config)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_held_vm_is_listed_with_its_reason(site: SiteServer) -> None:
    assert json.loads(site.admin("guard", "list", "--json")) == []
    arm(site, wire.GuardState.OTHERS, PEER)
    said = site.admin("guard", "list")
    assert "start guard is OFF" in said
    line = next(line for line in said.splitlines() if line.startswith("web01"))
    assert "HELD" in line
    assert "another site owns it since epoch 2 (failed over to beta)" in line
    [row] = json.loads(site.admin("guard", "list", "--json"))
    assert row == json.loads(site.admin("guard", "show", "web01")) == json.loads(site.admin("guard", "show", VM))
    assert (row["may_start"], row["state"]) == (False, "other's")
    assert "No VM" in fails(site, "show", "web02")


def test_override_needs_a_reason_takes_the_next_epoch_and_is_told(site: SiteServer) -> None:
    arm(site, wire.GuardState.OTHERS, PEER)
    assert "--reason" in fails(site, "override", "web01")
    assert "needs a reason" in fails(site, "override", "web01", "--reason", "  ")
    assert "No VM" in fails(site, "override", "web02", "--reason", "x")
    said = site.admin("guard", "override", "web01", "--reason", "beta burnt down")
    assert "could not be asked" in said
    shown = json.loads(site.admin("guard", "show", "web01"))
    assert (shown["state"], shown["epoch"]["number"], shown["may_start"]) == ("own", 3, True)
    acts = [json.loads(line) for line in (site.state / "audit.log").read_text().splitlines()]
    [act] = [item for item in acts if item["act"] == "guard-override"]
    assert "beta burnt down" in act["after"]["reason"]
    assert act["before"]["epoch"]["number"] == 2
    client, _ = site.paired()
    with client:  # the running service knows at once, and passes it on
        events = [wire.GuardianEvent.model_validate(item) for item in client.get("/guardian/events").json()]
        assert [event.what for event in events] == ["guard-override"]
        assert client.get(f"/guard/{VM}").json()["epoch"]["number"] == 3
    wait_until(lambda: any("guard-override: VM" in line for line in site.log), "the journal", timeout_s=10)
    site.admin("guard", "override", "web01", "--reason", "again")
    assert json.loads(site.admin("guard", "show", "web01"))["epoch"]["number"] == 4


def test_install_writes_the_hook_and_does_not_call_it_proven(site: SiteServer) -> None:
    """libvirt's test driver runs no hooks: it is in place, and it is off."""
    said = fails(site, "install")
    if os.geteuid() != 0:
        assert "belong to root" in said
        assert not (site.directory / "qemu.d").exists()
        return
    assert "reload" in said
    hook = site.directory / "qemu.d" / "vapor"
    assert hook.stat().st_mode & 0o777 == 0o755
    assert str(site.state / "guard") in hook.read_text()
    assert not (site.state / "guard-proof.json").exists()
    assert list((site.state / "guard").glob("*.json")) == []
    arm(site, wire.GuardState.OTHERS, PEER)
    xml = f"<domain type='kvm'><name>web01</name><uuid>{VM}</uuid></domain>"
    done = subprocess.run([hook, "web01", "prepare", "begin", "-"], input=xml, capture_output=True, text=True)
    assert done.returncode == 1
    assert "another site owns it since epoch 2" in done.stderr
