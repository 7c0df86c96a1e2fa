"""There and home again on two real hosts: only deltas travel after the first copy; nothing is lost, nothing grows."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from lxml import etree

from vapor_desktop.lab import guests
from vapor_desktop.lab.diary import DiaryReport
from vapor_desktop.lab.guests import GuestSpec
from vapor_desktop.lab.keyring_session import KeyringSession
from vapor_desktop.lab.lab import Lab, Site
from vapor_desktop.lab.processes import wait_until
from vapor_desktop.lab.stage import Stage, remove_guests
from vapor_desktop.model.domain_xml.mark import NAMESPACE
from vapor_desktop.model.domain_xml.parse import parse_domain, parse_root
from vapor_desktop.model.domain_xml.target import build_target
from vapor_desktop.model.operations import Operation, OperationKind, OperationState
from vapor_desktop.model.states import Phase
from vapor_desktop.model.wire import GuardState

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]
NAME = "shop"
SPEC = GuestSpec(NAME)
STORE = "/var/lib/libvirt/images/vapor"


@pytest.fixture(scope="module")
def stage(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """One protected guest under load."""
    remove_guests(lab)
    home = tmp_path_factory.mktemp("console")
    guests.add(lab.sites["a"], SPEC, lab.cache)
    guests.wait_for(lab.sites["a"], NAME, "VAPOR-DIARY ", timeout_s=90)
    lab.sites["a"].virsh("autostart", NAME)
    with KeyringSession(home):
        made = Stage(lab, home)
        made.open()
        try:
            a, b = made.pair()
            made.protect(a, b, [NAME], rpo_target_s=10)
            made.wait_for_point(NAME, 1)
            yield made
        finally:
            made.close()
            remove_guests(lab)


def operate(stage: Stage, kind: OperationKind, **args: object) -> Operation:
    backend, key = stage.backend, stage.row(NAME).key
    done = backend.wait_operation(backend.begin_operation(kind, key, args, "a round trip"), 240)
    assert done.state is OperationState.DONE, (done.question, done.error, done.steps)
    return done


def move(stage: Stage, source: Site, target: Site) -> Operation:
    """A planned migration under load: every record that was written at the source is there after the boot."""
    said = len(target.serial(NAME)) if target.path(f"/var/log/libvirt/qemu/{NAME}-serial.log").exists() else 0
    done = operate(stage, OperationKind.MIGRATION)
    old = source.diary(source.disks_of(NAME))
    verdict = target.wait_boot(NAME, timeout_s=120, after=said)
    assert (verdict.gaps, verdict.torn, verdict.last) == (0, 0, last_of(old)), "not one record is missing"
    return done


def last_of(report: DiaryReport) -> int:
    return max(disk.last for disk in report.per_disk)


def chain(site: Site, image: str) -> list[str]:
    asked = site.exec(["qemu-img", "info", "-U", "--backing-chain", "--output=json", image]).stdout
    return [str(link["filename"]) for link in json.loads(asked)]


def plain(xml: str) -> list[str]:
    """A definition as it is made for another host, its disks where they are, without our mark."""
    disks = {d.target: d.source for d in parse_domain(xml).disks if d.source is not None}
    root = parse_root(
        build_target(xml, disks=disks, networks={}, nvram=None, kvm=True, fresh_genid=False).xml, compact=True
    )
    for metadata in root.findall("./metadata"):
        for mark in metadata.findall(f"./{{{NAMESPACE}}}replica"):
            metadata.remove(mark)
        if len(metadata) == 0:
            root.remove(metadata)
    etree.indent(root)
    return etree.tostring(root, encoding="unicode").splitlines()


def stamp(site: Site, path: str) -> tuple[int, int, int]:
    found = site.path(path).stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def replica_files(site: Site, vm_uuid: str) -> dict[str, list[str]]:
    top = site.path(f"{STORE}/{vm_uuid}")
    return {part: sorted(p.name for p in (top / part).iterdir()) for part in ("disks", "points", "incoming", "run")}


def by_shell() -> dict[str, Any]:
    """``vaporctl``, in a process of its own beside the console's engine: nothing without --yes."""
    words = [sys.executable, "-m", "vapor_desktop.cli.main", "reprotect", NAME, "--reason", "home again", "--json"]
    asked = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert asked.returncode != 0, asked.stdout
    assert json.loads(asked.stdout.splitlines()[0])["method"] == "bitmap"
    done = subprocess.run([*words, "--yes"], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1])["result"])


def reprotect(stage: Stage, source: Site, *, vaporctl: bool = False) -> None:
    """By the bitmap, so that what travels is what was written; the price said so before."""
    seen = stage.backend.reprotect_preview(stage.row(NAME).key)
    assert (seen.method, seen.blockers) == ("bitmap", ()), seen
    assert seen.send_bytes is not None
    result = by_shell() if vaporctl else operate(stage, OperationKind.REPROTECT).result
    stage.wait_for_point(NAME, result["first_seq"])
    assert result["mode"] == "delta"
    # While the price was told and paid the guest went on writing: its diary and its scratch, 64 KiB a write.
    assert result["first_bytes"] <= seen.send_bytes + (16 << 20)
    assert result["first_bytes"] < SPEC.size_bytes // 8
    row = stage.row(NAME).protection
    assert row.phase is Phase.PROTECTED
    assert row.epoch_owner == row.source_site
    assert result["flat"] is True
    [disk] = source.disks_of(NAME)
    assert chain(source, disk) == [disk], "one file again"


def cycles_go_on(stage: Stage) -> None:
    """Two more points in the new direction, by delta."""
    seq = stage.row(NAME).last_seq or 0
    stage.wait_for_point(NAME, seq + 2)
    modes = {c.mode for c in stage.backend.cycles(stage.row(NAME).key, 2)}
    assert modes == {"delta"}


def test_a_round_trip_sends_deltas_only_and_ends_as_it_began(stage: Stage) -> None:
    a, b = stage.lab.sites["a"], stage.lab.sites["b"]
    vm = stage.row(NAME).protection.vm_uuid
    before_xml = a.virsh("dumpxml", NAME, "--inactive")
    [original] = a.disks_of(NAME)
    names = (stage.row(NAME).protection.source_site, stage.row(NAME).protection.target_site)

    move(stage, a, b)
    left = stamp(a, original)
    reprotect(stage, b)
    row = stage.row(NAME).protection
    assert (row.source_site, row.target_site) == names[::-1]
    assert stamp(a, original) == left, "the original disk is only stood on"
    assert replica_files(b, vm)["points"] == [], "the points of the old direction went with the fold"
    assert len(replica_files(b, vm)["disks"]) == 1
    assert "Autostart:      enable" in b.virsh("dominfo", NAME)
    cycles_go_on(stage)
    newest = stage.row(NAME)
    files = stage.program.engine.gateway.api(stage.backend._site(row.target_site)).replica(vm).manifest.newest.files  # type: ignore[union-attr]
    assert chain(a, f"{STORE}/{vm}/disks/{files['vda']}")[-1] == original, newest
    refused = a.exec(["virsh", "-c", "qemu:///system", "start", NAME], check=False)
    assert refused.returncode != 0, "the guard where it came from"

    move(stage, b, a)
    reprotect(stage, a, vaporctl=True)
    assert a.disks_of(NAME) == [original], "the original disk, at its original path"
    assert (stage.row(NAME).protection.source_site, stage.row(NAME).protection.target_site) == names
    cycles_go_on(stage)
    assert plain(a.virsh("dumpxml", NAME, "--inactive")) == plain(before_xml)
    wait_until(lambda: "Autostart:      enable" in a.virsh("dominfo", NAME), "its autostart", timeout_s=30)
    assert "Autostart:      disable" in b.virsh("dominfo", NAME)
    assert len(replica_files(b, vm)["run"]) == 0
    own = replica_files(a, vm)
    assert (own["disks"], own["points"], own["incoming"]) == ([], [], [])
    cycles = stage.backend.cycles(stage.row(NAME).key, 100)
    assert [(c.error_code, c.error) for c in cycles if c.outcome == "failed"] == []
    assert stage.program is not None
    for site, state in ((names[0], GuardState.OWN), (names[1], GuardState.OTHERS)):
        record = stage.program.engine.gateway.api(stage.backend._site(site)).guard(vm)
        assert record is not None
        assert record.state is state


def test_after_an_emergency_the_old_disk_is_compared_and_what_it_wrote_is_kept(stage: Stage) -> None:
    """Site A loses its power; its VM runs at B and is committed; A comes back, and the VM goes home."""
    lab, backend = stage.lab, stage.backend
    a, b = lab.sites["a"], lab.sites["b"]
    key, vm = stage.row(NAME).key, stage.row(NAME).protection.vm_uuid
    [original] = a.disks_of(NAME)
    said = len(b.serial(NAME))
    lab.kill_site("a")
    backend.failover(key, None, "site a has no power")
    verdict = b.wait_boot(NAME, timeout_s=120, after=said)
    assert (verdict.gaps, verdict.torn) == (0, 0)
    operate(stage, OperationKind.COMMIT)
    lab.revive_site("a")
    wait_until(lambda: not blockers(stage), "site a answers", timeout_s=90, every_s=0.5)
    refused = a.exec(["virsh", "-c", "qemu:///system", "start", NAME], check=False)
    assert refused.returncode != 0, "the guard of the returning host"
    wrote = last_of(a.diary([original]))
    assert verdict.last <= wrote, "what was written after the point is A's alone"

    seen = backend.reprotect_preview(key)
    assert seen.method == "compare"
    assert seen.price.startswith("compare: read ")
    done = operate(stage, OperationKind.REPROTECT)
    assert done.result["mode"] == "compare"
    assert done.result["diverged"] == ["vda"]
    assert done.result["first_bytes"] < SPEC.size_bytes // 4, "what is the same did not travel"
    kept = next(point for point in backend.points(key) if point.seq == done.result["base_seq"])
    assert any(pin.startswith("user:what ") for pin in kept.pins), kept.pins
    cycles_go_on(stage)
    assert last_of(a.diary([original])) == wrote, "A's own last records are there still"
    move(stage, b, a)
    files = a.disks_of(NAME)
    assert files[0].startswith(f"{STORE}/{vm}/run/"), "the kept state is not written into"
    assert chain(a, files[0])[-1] == original

    seen = backend.reprotect_preview(key)
    assert seen.method == "bitmap"
    assert operate(stage, OperationKind.REPROTECT).result["flat"] is False, "while it is kept"
    backend.unpin(key, kept.seq)
    wait_until(lambda: a.disks_of(NAME) == [original], "flat, in a gap between cycles", timeout_s=150, every_s=0.5)
    assert chain(a, original) == [original]
    cycles_go_on(stage)


def blockers(stage: Stage) -> tuple[str, ...]:
    return stage.backend.reprotect_preview(stage.row(NAME).key).blockers
