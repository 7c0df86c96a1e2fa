"""Whole transfers against a real receiver: what is published reads exactly like the frozen source."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import pytest

from tests.unit.mover_rig import MIB, Rig, SourceDisk, disk, export, noise, run
from vapor_desktop.model.errors import (
    Conflict,
    FrameCorrupt,
    NotAllowed,
    ProtocolError,
    ReplicaFull,
    StaleLease,
    TransferCancelled,
    TransferInterrupted,
)
from vapor_desktop.model.extents import BLOCK_BYTES, Extent
from vapor_desktop.model.manifest import DiskMode
from vapor_desktop.model.wire import Progress
from vapor_desktop.site.mover import protocol
from vapor_desktop.site.mover.digests import block_digests
from vapor_desktop.site.mover.link import CommandLink
from vapor_desktop.site.mover.peer import PeerPool, PeerSession
from vapor_desktop.site.mover.protocol import Kind
from vapor_desktop.site.mover.sender import Outgoing

SIZE = 64 * MIB + 4096  # the last block is a short one


@pytest.fixture
def rig() -> Iterator[Rig]:
    with tempfile.TemporaryDirectory(prefix="vm-") as root:
        rig = Rig(Path(root))
        yield rig
        rig.close()


@pytest.fixture
def vda(rig: Rig) -> SourceDisk:
    source = SourceDisk(rig.root / "vda.qcow2", SIZE)
    source.write((0, 3 * MIB, 1), (10 * MIB + 512, 700 * 1024, 2), (SIZE - 5000 // 512 * 512, 4608, 3))
    source.write((20 * MIB, MIB, 0), (30 * MIB, 2 * MIB, 4))
    return source


def first_copy(rig: Rig, source: SourceDisk, checkpoint: str = "cp1") -> None:
    source.bitmap(checkpoint)
    with export(source.path) as socket:
        done = rig.send(rig.transfer([disk("vda", SIZE, socket)], checkpoint=checkpoint))
        assert done.published
        assert rig.identical(done.seq, "vda", socket)


def test_full_copy_reads_like_the_source_and_fills_the_digest_table(rig: Rig, vda: SourceDisk) -> None:
    first_copy(rig, vda)
    point = rig.store.point(rig.vm, 1)
    assert point.disks[0].mode is DiskMode.FULL
    assert point.disks[0].digest != ""
    assert 5 * MIB < point.disks[0].sent_bytes < 9 * MIB  # holes did not travel
    assert rig.chain_ok(1, "vda")
    assert rig.same_tables(1, "vda", SIZE)


def test_delta_carries_data_zeroes_and_discards_over_the_parent(rig: Rig, vda: SourceDisk) -> None:
    first_copy(rig, vda)
    vda.write((MIB, MIB, 0), (30 * MIB, MIB, -1), (40 * MIB, 100 * 1024, 7), (SIZE - 4096, 4096, 8))
    with export(vda.path, bitmap="cp1") as socket:
        transfer = rig.transfer(
            [disk("vda", SIZE, socket, DiskMode.DELTA, "cp1")], checkpoint="cp2", skip_if_empty=True
        )
        done = rig.send(transfer)
        assert done.published
        assert rig.identical(done.seq, "vda", socket)
        assert done.data_bytes == 2 * 64 * 1024 + 4096  # whole blocks, and the short last one
    assert done.manifest is not None
    assert [p.seq for p in done.manifest.points] == [1, 2]
    assert rig.same_tables(2, "vda", SIZE)


def test_compare_sends_only_what_differs_and_zeroes_too(rig: Rig, vda: SourceDisk) -> None:
    first_copy(rig, vda)
    vda.drop_bitmap("cp1")  # as after a crash of QEMU: the bitmap is lost
    vda.write((2 * MIB, 64 * 1024, 9), (10 * MIB + 128 * 1024, 64 * 1024, -1), (50 * MIB, 4096, 10))
    with export(vda.path) as socket:
        done = rig.send(rig.transfer([disk("vda", SIZE, socket, DiskMode.COMPARE)], checkpoint="cp2"))
        assert done.published
        assert rig.identical(2, "vda", socket)
    assert done.data_bytes == 2 * 64 * 1024
    assert done.zero_bytes == 64 * 1024
    assert done.wire_bytes < MIB
    assert rig.store.point(rig.vm, 2).disks[0].digest != ""


def test_compare_without_a_table_reads_the_target_itself(rig: Rig, vda: SourceDisk) -> None:
    first_copy(rig, vda)
    rig.store.digests(rig.vm, "vda").path.unlink()
    vda.write((2 * MIB, 64 * 1024, 9))
    with export(vda.path) as socket:
        done = rig.send(rig.transfer([disk("vda", SIZE, socket, DiskMode.COMPARE)], checkpoint="cp2"))
        assert rig.identical(2, "vda", socket)
    assert done.data_bytes == 64 * 1024


def test_two_disks_are_one_point_and_a_new_disk_comes_full(rig: Rig, vda: SourceDisk) -> None:
    first_copy(rig, vda)
    vdb = SourceDisk(rig.root / "vdb.qcow2", 8 * MIB)
    vdb.write((MIB, MIB, 5))
    vda.write((MIB, 4096, 6))
    with export(vda.path, bitmap="cp1") as a, export(vdb.path) as b:
        disks = [disk("vda", SIZE, a, DiskMode.DELTA, "cp1"), disk("vdb", 8 * MIB, b)]
        done = rig.send(rig.transfer(disks, checkpoint="cp2"))
        assert rig.identical(done.seq, "vda", a)
        assert rig.identical(done.seq, "vdb", b)
    assert {d.target: d.mode for d in rig.store.point(rig.vm, 2).disks} == {
        "vda": DiskMode.DELTA,
        "vdb": DiskMode.FULL,
    }


def test_a_grown_disk_comes_with_its_new_size(rig: Rig, vda: SourceDisk) -> None:
    first_copy(rig, vda)
    grown = 80 * MIB
    run("qemu-img", "resize", "-q", vda.path, str(grown))
    vda.write((70 * MIB, MIB, 11))
    with export(vda.path, bitmap="cp1") as socket:
        done = rig.send(rig.transfer([disk("vda", grown, socket, DiskMode.DELTA, "cp1")], checkpoint="cp2"))
        assert rig.identical(done.seq, "vda", socket)


def test_nothing_changed_opens_nothing_when_asked_so(rig: Rig, vda: SourceDisk) -> None:
    first_copy(rig, vda)
    with export(vda.path, bitmap="cp1") as socket:
        delta = disk("vda", SIZE, socket, DiskMode.DELTA, "cp1")
        done = rig.send(rig.transfer([delta], checkpoint="cp2", skip_if_empty=True))
        assert (done.empty, done.published, done.wire_bytes) == (True, False, 0)
        assert rig.manifest().next_seq == 2
        done = rig.send(rig.transfer([delta], checkpoint="cp2"))
        assert (done.empty, done.published, done.data_bytes) == (False, True, 0)


def test_a_bandwidth_limit_holds(rig: Rig, vda: SourceDisk) -> None:
    vda.write((40 * MIB, 6 * MIB, 20))
    seen: list[Progress] = []
    with export(vda.path) as socket:
        done = rig.send(
            rig.transfer([disk("vda", SIZE, socket)], checkpoint=None, bandwidth_bytes_s=4 * MIB), seen.append
        )
    assert done.wire_bytes / done.duration_s < 4.6 * MIB
    assert done.duration_s > 2
    assert len(seen) >= 2
    assert 0 < seen[0].done_bytes < seen[-1].done_bytes <= seen[-1].total_bytes == SIZE


def test_the_deadline_keeps_the_incoming_and_the_same_job_goes_on(rig: Rig, vda: SourceDisk) -> None:
    vda.bitmap("cp1")
    vda.write((40 * MIB, 6 * MIB, 20))
    with export(vda.path) as socket:
        slow = rig.transfer([disk("vda", SIZE, socket)], checkpoint="cp1", bandwidth_bytes_s=2 * MIB, deadline_s=1.0)
        part = rig.send(slow)
        assert not part.published
        assert part.data_bytes < 6 * MIB  # a second's worth, and what was under way
        kept = rig.store.view(rig.vm).incoming
        assert kept is not None
        assert kept.received_bytes["vda"] > 0
        done = rig.send(rig.transfer([disk("vda", SIZE, socket)], checkpoint="cp1", resume_incoming=True))
        assert done.published
        assert done.data_bytes + part.data_bytes < 14 * MIB  # what had arrived did not travel again
        assert done.read_bytes < 12 * MIB
        assert rig.identical(done.seq, "vda", socket)


def test_a_later_job_sends_what_changed_since_and_what_had_not_arrived(rig: Rig, vda: SourceDisk) -> None:
    vda.bitmap("cp1")
    with export(vda.path) as socket:
        part = rig.send(
            rig.transfer([disk("vda", SIZE, socket)], checkpoint="cp1", bandwidth_bytes_s=2 * MIB, deadline_s=1.0)
        )
    assert not part.published
    vda.write((0, 2 * MIB, 30), (60 * MIB, MIB, 31), (30 * MIB, MIB, 0))  # over what has and has not arrived
    vda.bitmap("cp2")
    with export(vda.path, bitmap="cp1") as socket:
        later = rig.transfer(
            [disk("vda", SIZE, socket, DiskMode.FULL, "cp1")], checkpoint="cp2", resume_incoming=True
        )
        done = rig.send(later)
        assert done.published
        assert rig.identical(done.seq, "vda", socket)
    assert done.manifest is not None
    assert done.manifest.newest is not None
    assert done.manifest.newest.checkpoint == "cp2"
    assert rig.same_tables(done.seq, "vda", SIZE)


def test_an_incomplete_part_is_kept_and_not_published(rig: Rig, vda: SourceDisk) -> None:
    with export(vda.path) as socket:
        done = rig.send(rig.transfer([disk("vda", SIZE, socket)], checkpoint="cp1", complete=False))
        assert not done.published
        assert rig.manifest().newest is None
        done = rig.send(rig.transfer([disk("vda", SIZE, socket)], checkpoint="cp1", resume_incoming=True))
        assert done.published
        assert done.data_bytes == 0
        assert rig.identical(done.seq, "vda", socket)


def test_resuming_what_is_gone_is_refused(rig: Rig, vda: SourceDisk) -> None:
    with export(vda.path) as socket, pytest.raises(Conflict, match="no incoming"):
        rig.send(rig.transfer([disk("vda", SIZE, socket)], checkpoint="cp1", resume_incoming=True))
    assert rig.store.view(rig.vm).incoming is None


def test_cancel_stops_within_two_seconds_and_keeps_what_arrived(rig: Rig, vda: SourceDisk) -> None:
    with export(vda.path) as socket:
        slow = rig.transfer([disk("vda", SIZE, socket)], checkpoint="cp1", bandwidth_bytes_s=MIB)
        seen = threading.Event()
        outgoing = Outgoing(slow, rig.pool, rig.helper, lambda _p: seen.set())
        with ThreadPoolExecutor(1) as crew:
            running = crew.submit(outgoing.run)
            assert seen.wait(20)
            at = time.monotonic()
            outgoing.cancel()
            with pytest.raises(TransferCancelled):
                running.result(timeout=10)
            assert time.monotonic() - at < 2
        resumed = rig.transfer([disk("vda", SIZE, socket)], checkpoint="cp1", resume_incoming=True)
        done = rig.send(resumed)
        assert done.published
        assert rig.identical(done.seq, "vda", socket)


def test_a_transfer_cancelled_while_it_opens_leaves_nothing_to_continue(rig: Rig, vda: SourceDisk) -> None:
    """What it would have sent is on record nowhere; a later job knows only what changed since."""
    with export(vda.path) as socket:
        outgoing = Outgoing(rig.transfer([disk("vda", SIZE, socket)], checkpoint="cp1"), rig.pool, rig.helper, ignore)
        outgoing.cancel()
        with pytest.raises(TransferCancelled):
            outgoing.run()
        assert rig.store.view(rig.vm).incoming is None
        with pytest.raises(Conflict, match="no incoming"):
            rig.send(rig.transfer([disk("vda", SIZE, socket)], checkpoint="cp2", resume_incoming=True))
        done = rig.send(rig.transfer([disk("vda", SIZE, socket)], checkpoint="cp2"))
        assert done.published
        assert rig.identical(done.seq, "vda", socket)


def ignore(_progress: Progress) -> None:
    """Nobody looks."""


def test_a_stale_fence_is_refused_before_and_in_the_middle(rig: Rig, vda: SourceDisk) -> None:
    with export(vda.path) as socket:
        old = rig.transfer([disk("vda", SIZE, socket)], checkpoint="cp1")
        rig.fence = rig.lease()
        with pytest.raises(StaleLease):
            rig.send(old)
        assert rig.store.view(rig.vm).incoming is None
        running = rig.transfer([disk("vda", SIZE, socket)], checkpoint="cp1", bandwidth_bytes_s=256 * 1024)
        with pytest.raises(StaleLease):
            rig.send(running, lambda _p: setattr(rig, "fence", rig.lease()))
    assert rig.manifest().newest is None


def test_only_the_source_site_of_a_vm_may_send_it(rig: Rig, vda: SourceDisk) -> None:
    stranger = str(uuid4())
    argv = [stranger if word == rig.source_id else word for word in rig.receive_argv()]
    pool = PeerPool(lambda _peer: CommandLink(argv))
    with export(vda.path) as socket, pytest.raises(NotAllowed):
        Outgoing(rig.transfer([disk("vda", SIZE, socket)], checkpoint="cp1"), pool, rig.helper, lambda _p: None).run()
    pool.close()


def test_a_full_replica_is_told_before_it_is_full(vda: SourceDisk, rig: Rig) -> None:
    free = shutil.disk_usage(rig.root).free
    config = rig.root / "b" / "site.toml"
    config.write_text(config.read_text().replace("replica_reserve_bytes = 0", f"replica_reserve_bytes = {free * 2}"))
    with export(vda.path) as socket, pytest.raises(ReplicaFull):
        rig.send(rig.transfer([disk("vda", SIZE, socket)], checkpoint="cp1"))
    assert rig.manifest().newest is None


@pytest.mark.parametrize("victim", ["receiver", "storage daemon"])
def test_a_killed_end_costs_only_a_resume(rig: Rig, vda: SourceDisk, victim: str) -> None:
    first_copy(rig, vda)
    vda.write((0, 8 * MIB, 40))
    with export(vda.path, bitmap="cp1") as socket:
        delta = disk("vda", SIZE, socket, DiskMode.DELTA, "cp1")
        killed: list[int] = []

        def kill(_progress: Progress) -> None:
            if not killed:
                killed.append(rig.receiver_pid() if victim == "receiver" else rig.daemon_pid())
                os.kill(killed[0], signal.SIGKILL)

        with pytest.raises(TransferInterrupted):
            rig.send(rig.transfer([delta], checkpoint="cp2", bandwidth_bytes_s=2 * MIB), kill)
        assert rig.manifest().newest is not None
        assert rig.manifest().newest.seq == 1  # type: ignore[union-attr]
        assert rig.chain_ok(1, "vda")
        done = rig.send(rig.transfer([delta], checkpoint="cp2", resume_incoming=True))
        assert done.published
        assert rig.identical(done.seq, "vda", socket)
        assert rig.chain_ok(done.seq, "vda")


def test_nothing_of_qemu_has_a_published_file_open(rig: Rig, vda: SourceDisk) -> None:
    first_copy(rig, vda)
    daemon = rig.daemon_pid()  # alive between cycles, on purpose
    opened = [str(fd.readlink()) for fd in Path(f"/proc/{daemon}/fd").iterdir()]
    assert not [path for path in opened if path.endswith(".qcow2")]


def test_a_vanished_sender_leaves_no_process_and_no_socket(rig: Rig, vda: SourceDisk) -> None:
    first_copy(rig, vda)
    receiver, daemon = rig.receiver_pid(), rig.daemon_pid()
    rig.pool.close()
    assert not Path(f"/proc/{receiver}").exists()
    assert not Path(f"/proc/{daemon}").exists()
    assert list((rig.root / "b" / "run").iterdir()) == []


def test_a_damaged_block_is_never_written(rig: Rig, vda: SourceDisk) -> None:
    """A payload that does not match its digests ends the session; the point does not come to be."""
    with export(vda.path) as socket:
        wanted = rig.transfer([disk("vda", SIZE, socket)], checkpoint="cp1")
    session = rig.pool.take(rig.target_id)
    opening = {
        "vm_uuid": rig.vm,
        "grant": wanted.grant.model_dump(mode="json"),
        "seq": 1,
        "disks": [{"target": "vda", "size_bytes": SIZE, "mode": "full"}],
        "checkpoint": "cp1",
        "resume": False,
    }
    session.ask(protocol.encode_json(Kind.OPEN, opening), Kind.OPENED)
    session.send(protocol.encode(Kind.WANT, protocol.pack_extents([Extent(0, SIZE)])))
    assert list(session.needs()) == [(0, [Extent(0, SIZE)])]
    good = noise(1, 2 * BLOCK_BYTES)
    digests = block_digests(memoryview(good))
    bad = bytearray(good)
    bad[70_000] ^= 1
    for payload in (good, bytes(bad)):
        head = protocol.encode(Kind.DATA, digests, length=len(good), payload_bytes=len(good))
        session.send(head, payload)
    session.send(protocol.encode_json(Kind.SYNC, {}))
    with pytest.raises(FrameCorrupt):
        session.ask(protocol.encode_json(Kind.END, {}), Kind.ENDED)
    session.close()
    kept = rig.store.view(rig.vm).incoming
    assert kept is not None
    assert kept.received_bytes == {"vda": 2 * BLOCK_BYTES}
    assert rig.manifest().newest is None


def test_several_streams_carry_one_transfer(rig: Rig, vda: SourceDisk) -> None:
    vda.write((34 * MIB, 24 * MIB, 50))
    vda.bitmap("cp1")
    processes: set[int] = set()
    with export(vda.path) as socket:
        full = rig.transfer([disk("vda", SIZE, socket)], checkpoint="cp1", streams=3, bandwidth_bytes_s=16 * MIB)
        done = rig.send(full, lambda _p: processes.update(rig.receiver_pids()))
        assert rig.identical(done.seq, "vda", socket)
    assert len(processes) == 3
    assert rig.store.point(rig.vm, 1).disks[0].digest != ""
    assert len(rig.receiver_pids()) == 1  # the extra ones end with the transfer
    vda.write((MIB, 64 * 1024, 51))
    with export(vda.path, bitmap="cp1") as socket:
        delta = disk("vda", SIZE, socket, DiskMode.DELTA, "cp1")
        assert rig.send(rig.transfer([delta], checkpoint="cp2", streams=3)).published
        assert len(rig.receiver_pids()) == 1  # not worth another ssh


def test_a_stream_that_dies_costs_only_a_resume(rig: Rig, vda: SourceDisk) -> None:
    vda.write((34 * MIB, 24 * MIB, 50))
    first_copy(rig, vda)
    vda.write((0, 48 * MIB, 52))
    with export(vda.path, bitmap="cp1") as socket:
        delta = disk("vda", SIZE, socket, DiskMode.DELTA, "cp1")
        taken: list[PeerSession] = []

        class Watched(PeerPool):
            def take(self, peer_site: str, *, fresh: bool = False) -> PeerSession:
                taken.append(super().take(peer_site, fresh=fresh))
                return taken[-1]

        pool = Watched(lambda _peer: CommandLink(rig.receive_argv()))
        cut = rig.transfer([delta], checkpoint="cp2", streams=3, bandwidth_bytes_s=12 * MIB)
        with pytest.raises(TransferInterrupted):
            Outgoing(cut, pool, rig.helper, lambda _p: taken[-1].kill()).run()
        assert len(taken) == 3
        pool.close()
        done = rig.send(rig.transfer([delta], checkpoint="cp2", resume_incoming=True, streams=2))
        assert done.published
        assert done.data_bytes < 48 * MIB
        assert rig.identical(done.seq, "vda", socket)


def test_a_token_from_nowhere_opens_nothing(rig: Rig) -> None:
    for token in ("1-" + "0" * 32, "../../x", "None"):
        session = rig.pool.take(rig.target_id, fresh=True)
        with pytest.raises((NotAllowed, ProtocolError)):
            session.ask(protocol.encode_json(Kind.JOIN, {"token": token}), Kind.JOINED)
        session.close()


def test_a_compared_tail_of_zeroes_keeps_a_true_digest(rig: Rig) -> None:
    source = SourceDisk(rig.root / "vda.qcow2", SIZE)
    source.write((0, MIB, 1))
    first_copy(rig, source)
    with export(source.path) as socket:
        done = rig.send(rig.transfer([disk("vda", SIZE, socket, DiskMode.COMPARE)], checkpoint="cp2"))
        assert (done.data_bytes, done.zero_bytes) == (0, 0)
        done = rig.send(rig.transfer([disk("vda", SIZE, socket, DiskMode.COMPARE)], checkpoint="cp3"))
        assert (done.data_bytes, done.zero_bytes) == (0, 0)
    digests = {rig.store.point(rig.vm, seq).disks[0].digest for seq in (1, 2, 3)}
    assert len(digests) == 1
