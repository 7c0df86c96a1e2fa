"""Space runs out, data rots, a stale engine writes: the last point stays good and the trouble is told."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime

import proofs
import pytest

from vapor_desktop.engine import cycle
from vapor_desktop.lab import disks, guests
from vapor_desktop.lab.keyring_session import KeyringSession
from vapor_desktop.lab.lab import Lab
from vapor_desktop.lab.processes import wait_until
from vapor_desktop.lab.stage import Stage, remove_guests
from vapor_desktop.model.errors import StaleLease
from vapor_desktop.model.wire import CurrentAsOf, LeaseRequest, WriteGrant

pytestmark = [pytest.mark.lab, pytest.mark.timeout(420)]
ROOT = proofs.REPLICAS
NAME = "small"
NEWEST, POINTS = 3, 40
DD = ["dd", "if=/dev/urandom", "bs=1", "count=16", "conv=notrunc"]


@pytest.fixture(scope="module")
def stage(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """One guest whose replica lies on a small file system of its own."""
    remove_guests(lab)
    home = tmp_path_factory.mktemp("console")
    a, b = lab.sites["a"], lab.sites["b"]
    guests.add(a, guests.GuestSpec(NAME, rate=5, scratch=1), lab.cache)
    guests.wait_for(a, NAME, "VAPOR-DIARY ", timeout_s=90)
    b.exec(["mount", "-t", "tmpfs", "-o", "size=900m,mode=2770,uid=vapor,gid=libvirt-qemu", "tmpfs", ROOT])
    settings = b.path("/etc/vapor/site.toml")
    before = settings.read_text()
    settings.write_text(before + "replica_reserve_bytes = 67108864\n")
    restart_service(lab)
    with KeyringSession(home):
        made = Stage(lab, home)
        made.open()
        try:
            site_a, site_b = made.pair()
            made.protect(site_a, site_b, [NAME], rpo_target_s=10, newest=NEWEST)
            made.wait_for_point(NAME, 2)
            yield made
        finally:
            made.close()
            remove_guests(lab)
            settings.write_text(before)
            restart_service(lab)
            b.exec(["umount", "-l", ROOT])


def restart_service(lab: Lab) -> None:
    import signal

    b = lab.sites["b"]
    for name in ("serve", "helper"):
        pid = b.pid_of(name)
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda p=pid: p not in b.processes(), f"the end of {name}", timeout_s=20)  # type: ignore[misc]
    b.start_site_service()


def compares(stage: Stage) -> int:
    """How many points were made by comparing."""
    done = stage.backend.cycles(stage.row(NAME).key, 500)
    return sum(c.mode == "compare" and c.outcome == "point" for c in done)


def replica_paths(stage: Stage) -> list[str]:
    """Files of the newest point's chain at the target, newest first."""
    assert stage.program is not None
    site = stage.program.engine.repository.site(stage.row(NAME).protection.target_site)
    assert site is not None
    manifest = stage.program.engine.gateway.api(site).replica(stage.row(NAME).protection.vm_uuid).manifest
    return [f"{ROOT}/{manifest.vm_uuid}/disks/{p.files['vda']}" for p in reversed(manifest.points) if not p.dead]


def test_a_stale_fence_writes_nothing(stage: Stage) -> None:
    assert stage.program is not None
    row = stage.row(NAME)
    stage.backend.pause(row.key)
    wait_until(lambda: stage.row(NAME).cycle_started_at is None, "the end of the cycle", timeout_s=60)
    site = stage.program.engine.repository.site(row.protection.target_site)
    assert site is not None
    api = stage.program.engine.gateway.api(site)
    vm = row.protection.vm_uuid
    old = api.acquire_lease(vm, LeaseRequest(holder="stale", holder_name="stale", purpose="test"))
    new = api.acquire_lease(
        vm, LeaseRequest(holder="new", holder_name="new", purpose="test", takeover_reason="the first one is gone")
    )
    manifest = api.replica(vm).manifest
    newest = manifest.newest
    assert newest is not None
    assert new.fence > old.fence
    grant = WriteGrant(fence=old.fence, epoch=manifest.epoch, source_site=manifest.source_site, parent_seq=newest.seq)
    with pytest.raises(StaleLease):
        api.current_as_of(vm, CurrentAsOf(grant=grant, seq=newest.seq, at=newest.current_as_of))
    assert api.replica(vm).manifest == manifest
    api.release_lease(vm, new.fence)
    stage.backend.resume(row.key)


def test_a_flipped_byte_is_found_by_the_scrub_and_repaired(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    b = stage.lab.sites["b"]
    row = stage.row(NAME)
    stage.backend.pause(row.key)
    wait_until(lambda: stage.row(NAME).cycle_started_at is None, "the end of the cycle", timeout_s=60)
    paths = replica_paths(stage)
    found = json.loads(b.exec(["qemu-img", "map", "-U", "--output=json", paths[0]]).stdout)
    # A block of the oldest file that no newer one hides: the newest point reads it through its chain.
    deepest = max(e["depth"] for e in found if e["data"])
    spot = next(e for e in found if e["data"] and e["depth"] == deepest and e["length"] >= 65536)
    compared = compares(stage)
    b.exec([*DD, f"of={paths[-1]}", f"seek={spot['offset'] + 4096}"])
    monkeypatch.setattr(cycle, "SCRUB_LEAST_BYTES", 8 << 30)
    monkeypatch.setattr(cycle, "SCRUB_MOST_BYTES", 8 << 30)
    stage.backend.resume(row.key)

    def told() -> bool:
        return any(e.kind == "scrub-mismatch" for e in stage.backend.events(row.key))

    wait_until(told, "the scrub's finding", timeout_s=120, every_s=0.2)
    monkeypatch.undo()
    wait_until(lambda: compares(stage) > compared, "the comparing cycle", timeout_s=120, every_s=0.2)
    with stopped(stage):
        assert_newest_is_the_source(stage)


@contextlib.contextmanager
def stopped(stage: Stage) -> Iterator[None]:
    """The guest is off in here, and the newest point is of its disk as it stands."""
    a, row = stage.lab.sites["a"], stage.row(NAME)
    guests.shut_down(a, NAME)
    # One that began since: that of an earlier stop would let the test write before the last point is made.
    off_at = datetime.now(UTC)
    wait_until(lambda: quiet_since(stage, off_at), "a cycle with nothing to send", timeout_s=120, every_s=0.2)
    assert stage.row(NAME).key == row.key
    try:
        yield
    finally:
        said = len(guests.serial(a, NAME))
        a.virsh("start", NAME)
    guests.wait_for(a, NAME, "VAPOR-DIARY ", timeout_s=90, after=said)


def quiet_since(stage: Stage, moment: datetime) -> bool:
    """Was there nothing to send for the last cycle, and did it begin after that moment?"""
    last = stage.backend.cycles(stage.row(NAME).key, 1)
    return bool(last) and last[0].outcome == "unchanged" and last[0].started_at > moment


def last_outcome(stage: Stage) -> str | None:
    last = stage.backend.cycles(stage.row(NAME).key, 1)
    return last[0].outcome if last else None


def assert_newest_is_the_source(stage: Stage) -> None:
    """While it is off, its disk stands still and the newest point must be it, bit for bit."""
    a, b = stage.lab.sites["a"], stage.lab.sites["b"]
    proofs.assert_same_disk(a.path(guests.disk_files(a, NAME)[0]), b, replica_paths(stage)[0])


def dd_into_the_source(stage: Stage, *, unseen: bool) -> None:
    """16 bytes in one block of the stopped guest's disk; ``unseen``: its time of modification is put back."""
    a = stage.lab.sites["a"]
    [image] = guests.disk_files(a, NAME)
    mapped = json.loads(a.exec(["qemu-img", "map", "-U", "--output=json", image]).stdout)
    spot = next(e for e in mapped if e["data"] and e["start"] >= disks.SCRATCH_START and e["length"] >= 65536)
    status = a.path(image).stat()
    # Another place than the other test's: the same bytes at the same place again would change nothing.
    a.exec([*DD, f"of={image}", f"seek={spot['offset'] + (16384 if unseen else 4096)}"])
    if unseen:
        os.utime(a.path(image), ns=(status.st_atime_ns, status.st_mtime_ns))


def assert_one_block_was_compared(stage: Stage, compared: int) -> None:
    wait_until(lambda: compares(stage) > compared, "the comparing cycle", timeout_s=120, every_s=0.2)
    assert_newest_is_the_source(stage)
    last = stage.backend.cycles(stage.row(NAME).key, 5)
    assert next(c for c in last if c.mode == "compare").data_bytes <= 65536  # only what differs


def mismatches(stage: Stage) -> set[datetime]:
    return {e.at for e in stage.backend.events(stage.row(NAME).key) if e.kind == "scrub-mismatch"}


def test_a_dd_into_the_disk_of_a_vm_that_is_off_is_compared_by_the_next_cycle(stage: Stage) -> None:
    """No bitmap knows of it, but the file's time of modification does: it does not wait for the scrub."""
    with stopped(stage):
        before, compared = mismatches(stage), compares(stage)
        dd_into_the_source(stage, unseen=False)
        assert_one_block_was_compared(stage, compared)
        assert mismatches(stage) == before
        wait_until(lambda: last_outcome(stage) == "unchanged", "a quiet cycle", timeout_s=60, every_s=0.2)


def test_a_dd_that_leaves_no_trace_is_found_by_the_scrub_and_repaired(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the bitmap nor the file's times know of it: only reading the disk again does."""
    with stopped(stage):
        before, compared = mismatches(stage), compares(stage)
        dd_into_the_source(stage, unseen=True)
        monkeypatch.setattr(cycle, "SCRUB_LEAST_BYTES", 8 << 30)
        monkeypatch.setattr(cycle, "SCRUB_MOST_BYTES", 8 << 30)
        wait_until(lambda: mismatches(stage) > before, "the scrub's finding", timeout_s=120, every_s=0.2)
        monkeypatch.undo()
        assert_one_block_was_compared(stage, compared)


def test_forty_points_with_merges_leave_a_stopped_drill_as_it_was(stage: Stage) -> None:
    """Nothing but its own files tell of the drill: no pin, no lock, and they lie outside of the replica."""
    b, key = stage.lab.sites["b"], stage.row(NAME).key
    with proofs.quiet(stage):
        below = proofs.view(stage, NAME).manifest
        files = proofs.newest_files(stage, NAME)
    assert below.newest is not None
    hung, made, deepest = below.newest.seq, below.newest.seq, 0
    with proofs.booted_copy(b, "drill", files) as line:
        proofs.assert_sound(line)
        [overlay] = guests.disk_files(b, "drill")
        before = proofs.sha256_of_disk(b, overlay)
        while made < hung + POINTS:
            stage.backend.sync_now(key, wait=True)
            seen = proofs.view(stage, NAME)
            deepest = max(deepest, seen.files_in_chain)
            made = seen.manifest.next_seq - 1
        with proofs.quiet(stage):
            seen = proofs.view(stage, NAME)
            assert proofs.sha256_of_disk(b, overlay) == before
            b.exec(["qemu-img", "check", "-q", overlay])
            assert seen.manifest.entry(hung) is not None  # what the drill stands on is a point still
            # All that the drill reads stays, and of what came later the newest three; the rest was merged.
            assert len(seen.manifest.points) <= len(below.points) + NEWEST
            assert seen.files_in_chain <= len(below.points) + NEWEST
            proofs.judged(b, proofs.newest_files(stage, NAME))
    assert deepest <= len(below.points) + NEWEST + 2  # the one being received, and one that waits for its merge
    assert [c.outcome for c in stage.backend.cycles(key, POINTS)] == ["point"] * POINTS
    stage.backend.sync_now(key, wait=True)

    def only_the_newest() -> bool:
        return len(proofs.view(stage, NAME).manifest.points) == NEWEST

    # A quiet moment would begin by stopping the very merge that is waited for.
    wait_until(only_the_newest, "the end of what the drill held", timeout_s=60, every_s=0.2)


def test_a_full_target_keeps_the_last_point_and_says_so(stage: Stage) -> None:
    a, b = stage.lab.sites["a"], stage.lab.sites["b"]
    stage.wait_for_point(NAME, (stage.row(NAME).last_seq or 0) + 1)
    before = stage.row(NAME).last_seq or 0
    b.exec(["sh", "-c", f"mount -o remount,size=$(( $(du -sm {ROOT} | cut -f1) + 100 ))m {ROOT}"])
    guests.guest_shell(a, NAME, "dd if=/dev/urandom of=/data0/fill bs=1M count=60; sync")
    wait_until(
        lambda: stage.row(NAME).protection.last_error_code == "REPLICA-FULL", "the alarm", timeout_s=120, every_s=0.2
    )
    assert (stage.row(NAME).last_seq or 0) >= before
    assert b.exec(["df", "--output=avail", "-B1", ROOT]).stdout.split()[-1] != "0"
    b.exec(["qemu-img", "check", "-U", "-q", replica_paths(stage)[0]])
    b.exec(["mount", "-o", "remount,size=3g", ROOT])
    stage.backend.sync_now(stage.row(NAME).key)
    stage.wait_for_point(NAME, before + 2)
    assert stage.row(NAME).protection.last_error is None
