"""Break-glass: the console's data is destroyed, the source is dark, and the target's host is all there is.

The runbook beside the replica is followed literally, by its own words ("a line that begins with four spaces is a
command"); then `vapor-site failover` on the host; then a fresh console that pairs with the target alone.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from vapor_desktop.lab import guests
from vapor_desktop.lab.keyring_session import KeyringSession
from vapor_desktop.lab.lab import Lab, Site
from vapor_desktop.lab.processes import wait_until
from vapor_desktop.lab.stage import Stage, remove_guests
from vapor_desktop.model.manifest import Manifest
from vapor_desktop.model.policy import Mappings
from vapor_desktop.model.states import Phase
from vapor_desktop.model.view import SettingsEdit

pytestmark = [pytest.mark.lab, pytest.mark.timeout(360)]
NAME = "glass"
REPLICAS = "/var/lib/libvirt/images/vapor"


@dataclass
class Dark:
    """The source is off, the console's data is gone; this is what was known before."""

    lab: Lab
    vm: str
    written: str  # the runbook as the target held it when the source went dark
    records: int  # the last record in the newest point


def held(b: Site, vm: str) -> str:
    path = b.path(f"{REPLICAS}/{vm}/runbook/runbook.txt")
    return path.read_text() if path.exists() else ""


def manifest(b: Site, vm: str) -> Manifest:
    return Manifest.model_validate_json(b.path(f"{REPLICAS}/{vm}/manifest.json").read_bytes())


def typed(b: Site, text: str, title: str) -> None:
    """What a person does: the commands under that title, in order, as root, each after the one before succeeded."""
    part = text.split(f"\n{title}\n")[1]
    part = re.split(r"\n[A-Z ?]+\n-+\n", part.split("\n", 1)[1])[0]
    lines = [line.removeprefix("    ") for line in part.splitlines() if line.startswith("    ")]
    assert lines, part
    for line in lines:
        b.exec(["sh", "-c", line])


@pytest.fixture(scope="module")
def dark(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dark]:
    """One small guest, protected, a runbook after each change; then a power cut at A and no console any more."""
    remove_guests(lab)
    a, b = lab.sites["a"], lab.sites["b"]
    assert a.network != b.network, "the VM's network must have another name at the target"
    home = tmp_path_factory.mktemp("lost")
    guests.add(a, guests.GuestSpec(NAME, rate=5, scratch=0), lab.cache)
    guests.wait_for(a, NAME, "VAPOR-DIARY ", timeout_s=90)
    with KeyringSession(home):
        stage = Stage(lab, home)
        stage.open()
        try:
            site_a, site_b = stage.pair()
            [key] = stage.protect(site_a, site_b, [NAME], rpo_target_s=10)
            stage.wait_for_point(NAME, 2)
            vm = stage.row(NAME).protection.vm_uuid
            follows_each_change(stage, key, b, vm)
            stage.backend.pause(key)
            wait_until(lambda: is_of_newest(b, vm), "a runbook of the newest point", timeout_s=10)
            assert stage.backend.runbook(key).seq == manifest(b, vm).points[-1].seq
            records = stage.newest_record(NAME)
        finally:
            stage.close()
    lab.kill_site("a")
    shutil.rmtree(home)
    yield Dark(lab, vm, held(b, vm), records)
    if not a.runs("libvirtd"):
        lab.revive_site("a")
    remove_guests(lab)
    os.environ.pop("VAPOR_DATABASE_URL", None)


def is_of_newest(b: Site, vm: str) -> bool:
    newest = manifest(b, vm).newest
    return newest is not None and f"\nRecovery point {newest.seq}:" in held(b, vm)


def follows_each_change(stage: Stage, key: str, b: Site, vm: str) -> None:
    """A new point, and another mapping: the text says it within seconds."""
    before = manifest(b, vm).next_seq
    stage.wait_for_point(NAME, before)
    wait_until(lambda: is_of_newest(b, vm), "a runbook of the new point", timeout_s=10)
    now = stage.backend.settings(key)
    more = Mappings(networks={**now.mappings.networks, "spare": b.network})
    stage.backend.edit(key, SettingsEdit(now.version, now.policy, more))
    wait_until(lambda: "spare)" in held(b, vm), "a runbook with the new mapping", timeout_s=10)


def test_the_runbook_followed_literally_brings_it_up(dark: Dark) -> None:
    b = dark.lab.sites["b"]
    assert f"Networks it needs here: {b.network} (at site-a: " in dark.written
    said = len(b.serial(NAME)) if NAME in b.virsh("list", "--all", "--name").split() else 0
    typed(b, dark.written, "BRING IT UP")
    typed(b, dark.written, "LOOK")
    assert b.virsh("domstate", NAME) == "running"
    assert b.network in b.virsh("domiflist", NAME)
    assert "Autostart:      disable" in b.virsh("dominfo", NAME)
    verdict = b.wait_boot(NAME, timeout_s=120, after=said)
    assert (verdict.gaps, verdict.torn) == (0, 0)
    assert verdict.last >= dark.records
    files = {p: p.stat().st_mtime_ns for p in b.path(f"{REPLICAS}/{dark.vm}/disks").iterdir()}
    typed(b, dark.written, "UNDO")
    assert NAME not in b.virsh("list", "--all", "--name").split()
    assert {p: p.stat().st_mtime_ns for p in b.path(f"{REPLICAS}/{dark.vm}/disks").iterdir()} == files
    assert manifest(b, dark.vm).epoch.number == 1, "nothing of it moved the epoch"


def test_vapor_site_fails_over_on_the_host_itself(dark: Dark) -> None:
    b = dark.lab.sites["b"]
    printed = b.exec(["vapor-site", "runbook", NAME]).stdout
    newest = manifest(b, dark.vm).newest
    assert newest is not None
    assert f"Recovery point {newest.seq}:" in printed
    bad = b.exec(["vapor-site", "failover", "nobody", "--reason", "x"], check=False)
    assert (bad.returncode, f"Replicas here: {NAME}" in bad.stderr) == (1, True)
    said = len(b.serial(NAME))
    began = time.monotonic()
    done = json.loads(b.exec(["vapor-site", "failover", NAME, "--reason", "site a is dark", "--json"]).stdout)
    print(f"vapor-site failover: {time.monotonic() - began:.1f} s, running after {done['running_after_s']:.1f} s")
    assert (done["seq"], done["epoch"]) == (newest.seq, 2)
    assert "does not answer" in done["source"]
    assert b.virsh("domstate", NAME) == "running"
    verdict = b.wait_boot(NAME, timeout_s=120, after=said)
    assert (verdict.gaps, verdict.torn) == (0, 0)
    assert verdict.last >= dark.records
    after = manifest(b, dark.vm)
    assert (after.epoch.number, after.epoch.owner, after.provisional) == (2, after.target_site, 2)
    again = json.loads(b.exec(["vapor-site", "failover", NAME, "--reason", "again", "--json"]).stdout)
    assert (again["seq"], again["epoch"]) == (newest.seq, 2), "done again, it changes nothing"
    assert manifest(b, dark.vm) == after
    assert "site a is dark" in b.path("/var/lib/vapor/audit.log").read_text()
    assert '"taken-over"' in b.path("/var/lib/vapor/guardian-events.jsonl").read_text()
    owned = b.exec(["stat", "-c", "%U", f"{REPLICAS}/{dark.vm}/run", f"/var/lib/vapor/leases/{dark.vm}.json"]).stdout
    assert set(owned.split()) == {"vapor"}


def test_a_fresh_console_shows_the_truth(dark: Dark, tmp_path: Path) -> None:
    """It pairs with B alone, and does not fight what was done without it."""
    b = dark.lab.sites["b"]
    with KeyringSession(tmp_path):
        stage = Stage(dark.lab, tmp_path)
        stage.open()
        try:
            [site_b] = stage.add_sites(["b"])
            [adopted] = stage.backend.adopt_replicas(site_b.site_id)
            row = stage.row(NAME).protection
            assert row.phase is Phase.PROVISIONAL
            assert (row.epoch_number, row.epoch_owner) == (2, site_b.site_id)
            text = stage.backend.runbook(adopted.protection_id).text
            assert "Epoch 2: it belongs to site-b." in text
            assert "It was taken over here already" in text
            wait_until(lambda: "Epoch 2: it belongs to site-b." in held(b, dark.vm), "the kept runbook", timeout_s=10)
            assert b.virsh("domstate", NAME) == "running"
        finally:
            stage.close()
