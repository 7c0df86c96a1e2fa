"""Seeds: a first copy stands on an image that was at the target, and reads like the source all the same."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.mover_rig import MIB, Rig, SourceDisk, disk, export, run
from vapor_desktop.model.errors import Conflict, InvalidRequest, NotAllowed, ReplicaFull, StaleLease, from_wire
from vapor_desktop.model.extents import BLOCK_BYTES, Extent
from vapor_desktop.model.manifest import DiskMode
from vapor_desktop.model.wire import SeedImage, SeedRequest, SeedState
from vapor_desktop.site.helper import Helper, listen_at
from vapor_desktop.site.helper_client import HelperClient
from vapor_desktop.site.mover.nbd_source import Export
from vapor_desktop.site.mover.tables import digests_of
from vapor_desktop.site.replica import ReplicaStore, steps
from vapor_desktop.site.replica.layout import Layout
from vapor_desktop.site.seeding import Seeding

SIZE = 64 * MIB + 4096


@pytest.fixture
def rig() -> Iterator[Rig]:
    with tempfile.TemporaryDirectory(prefix="vm-") as root:
        rig = Rig(Path(root))
        listener = listen_at(rig.target.helper_socket, os.geteuid(), os.getegid())
        stop = threading.Event()
        helper = Helper(rig.target, frozenset({os.geteuid()}))
        thread = threading.Thread(target=helper.serve, args=(listener, stop))
        thread.start()
        yield rig
        rig.close()
        stop.set()
        thread.join()
        listener.close()


@pytest.fixture
def vda(rig: Rig) -> SourceDisk:
    source = SourceDisk(rig.root / "vda.qcow2", SIZE)
    source.write((0, 3 * MIB, 1), (10 * MIB, 8 * MIB, 2), (SIZE - 4096, 4096, 3))
    return source


def old_copy(rig: Rig, vda: SourceDisk, fmt: str = "qcow2") -> Path:
    """An image of the disk at the target, from before the disk's last writes."""
    there = rig.root / f"old.{fmt}"
    run("qemu-img", "convert", "-f", "qcow2", "-O", fmt, vda.path, there)
    vda.write((11 * MIB, 65536, 4), (12 * MIB, 65536, 0), (40 * MIB, 65536, 5), (2 * MIB, 65536, -1))
    return there


def seed(rig: Rig, image: Path, fmt: str = "qcow2", **more: object) -> SeedState:
    """Make it; how it ended."""
    seeding = Seeding(rig.store, HelperClient(rig.target.helper_socket), rig.target.run_dir)
    asked = SeedImage.model_validate({"path": str(image), "format": fmt, **more})
    newest = rig.manifest().newest
    seeding.start(rig.vm, SeedRequest(grant=rig.grant(newest.seq if newest else None), disks={"vda": asked}))
    seeding._work[rig.vm].thread.join()
    return seeding.state(rig.vm)


def failure(state: SeedState) -> Exception:
    assert state.error is not None
    return from_wire(state.error)


def layout(rig: Rig) -> Layout:
    return Layout(rig.target.replica_roots[0].resolve(), rig.vm)


@pytest.mark.parametrize("fmt", ["qcow2", "raw"])
def test_a_seeded_first_copy_sends_only_what_differs(rig: Rig, vda: SourceDisk, fmt: str) -> None:
    state = seed(rig, old_copy(rig, vda, fmt), fmt, disk_bytes=SIZE)
    assert state.error is None
    assert not state.running
    view = rig.store.view(rig.vm)
    assert view.seeded == ("vda",)
    assert view.manifest.points == ()
    assert view.incoming is None
    vda.bitmap("cp1")
    with export(vda.path) as socket:
        done = rig.send(rig.transfer([disk("vda", SIZE, socket, DiskMode.COMPARE)], checkpoint="cp1"))
        assert done.published
        assert rig.identical(1, "vda", socket)
    assert done.data_bytes == 2 * 65536
    assert done.wire_bytes < MIB
    assert rig.store.point(rig.vm, 1).disks[0].digest != ""
    assert rig.store.view(rig.vm).seeded == ()
    assert rig.store.view(rig.vm).files_in_chain == 2


def test_points_on_a_seed_merge_and_the_replica_is_deleted_whole(rig: Rig, vda: SourceDisk) -> None:
    image = old_copy(rig, vda)
    seed(rig, image)
    for number in (1, 2, 3):
        vda.bitmap(f"cp{number}")
        mode, bitmap = (DiskMode.DELTA, f"cp{number - 1}") if number > 1 else (DiskMode.COMPARE, None)
        with export(vda.path, bitmap=bitmap) as socket:
            rig.send(rig.transfer([disk("vda", SIZE, socket, mode, bitmap)], checkpoint=f"cp{number}"))
            assert rig.identical(number, "vda", socket)
            if number == 3:
                rig.store.drop(rig.vm, 1, rig.grant(3))
                rig.store.reconcile(rig.vm)
                assert rig.identical(3, "vda", socket)
                assert rig.store.digests(rig.vm, "vda").root() == rig.store.point(rig.vm, 3).disks[0].digest
        vda.write((number * 5 * MIB, 70000 // 512 * 512, 20 + number))
    assert [p.seq for p in rig.manifest().points] == [2, 3]
    assert image.exists()
    with pytest.raises(Conflict):
        raise failure(seed(rig, image))  # its disk has points now
    rig.store.delete(rig.vm, rig.grant(3))
    assert not layout(rig).top.exists()
    assert image.exists()


def test_a_seeded_copy_in_two_jobs_goes_on_comparing(rig: Rig, vda: SourceDisk) -> None:
    vda.write((20 * MIB, 10 * MIB, 6))
    image = old_copy(rig, vda)
    vda.write((20 * MIB, 4 * MIB, 7))
    seed(rig, image)
    vda.bitmap("cp1")
    with export(vda.path) as socket:
        part = rig.send(
            rig.transfer(
                [disk("vda", SIZE, socket, DiskMode.COMPARE)],
                checkpoint="cp1",
                bandwidth_bytes_s=2 * MIB,
                deadline_s=1.0,
            )
        )
    assert not part.published
    vda.write((0, 65536, 8), (11 * MIB, 65536, 9))
    vda.bitmap("cp2")
    with export(vda.path, bitmap="cp1") as socket:
        later = [disk("vda", SIZE, socket, DiskMode.COMPARE, "cp1")]
        done = rig.send(rig.transfer(later, checkpoint="cp2", resume_incoming=True))
        assert done.published
        assert rig.identical(done.seq, "vda", socket)
    assert part.data_bytes + done.data_bytes < 6 * MIB  # of more than 20 MiB that the image had right


def test_a_discarded_first_copy_keeps_the_seed(rig: Rig, vda: SourceDisk) -> None:
    seed(rig, old_copy(rig, vda))
    with export(vda.path) as socket:
        transfer = rig.transfer([disk("vda", SIZE, socket, DiskMode.COMPARE)], checkpoint="cp1", complete=False)
        rig.send(transfer)
        rig.store.discard_incoming(rig.vm, rig.grant(None))
        rig.store.reconcile(rig.vm)
        done = rig.send(rig.transfer([disk("vda", SIZE, socket, DiskMode.COMPARE)], checkpoint="cp1"))
        assert rig.identical(done.seq, "vda", socket)
    assert done.data_bytes == 2 * 65536


def test_seeding_again_takes_the_other_image_and_leaves_one_file(rig: Rig, vda: SourceDisk) -> None:
    wrong = SourceDisk(rig.root / "wrong.qcow2", 8 * MIB)
    wrong.write((0, MIB, 77))
    seed(rig, wrong.path)
    right = old_copy(rig, vda)
    with export(vda.path) as socket:
        rig.send(
            rig.transfer([disk("vda", SIZE, socket, DiskMode.COMPARE)], checkpoint="cp1", complete=False)
        )  # unfinished, on the wrong one
        seed(rig, right)
        assert rig.store.view(rig.vm).incoming is None
        assert len(list(layout(rig).disks.iterdir())) == 1
        done = rig.send(rig.transfer([disk("vda", SIZE, socket, DiskMode.COMPARE)], checkpoint="cp1"))
        assert rig.identical(done.seq, "vda", socket)
    assert done.data_bytes < MIB


def test_a_smaller_seed_grows(rig: Rig, vda: SourceDisk) -> None:
    there = rig.root / "small.raw"
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", vda.path, there)
    os.truncate(there, 30 * MIB + 512)
    seed(rig, there, "raw", disk_bytes=SIZE)
    with export(vda.path) as socket:
        done = rig.send(rig.transfer([disk("vda", SIZE, socket, DiskMode.COMPARE)], checkpoint="cp1"))
        assert rig.identical(done.seq, "vda", socket)
    assert done.data_bytes == 4096  # the short last block; the rest beyond the seed's end is zero


def test_refusals_leave_nothing_behind(rig: Rig, vda: SourceDisk) -> None:
    outside = Path(tempfile.mkdtemp(prefix="outside-")) / "disk.qcow2"
    shutil.copy(vda.path, outside)
    assert isinstance(failure(seed(rig, outside)), NotAllowed)
    shutil.rmtree(outside.parent)
    assert isinstance(failure(seed(rig, vda.path, disk_bytes=SIZE - 512)), InvalidRequest)
    rig.fence += 7
    with pytest.raises(StaleLease):
        seed(rig, vda.path)
    rig.fence -= 7
    full = ReplicaStore(rig.target.replica_roots, rig.target_id, lambda _v, _f: None, 1 << 60)
    seeding = Seeding(full, HelperClient(rig.target.helper_socket), rig.target.run_dir)
    asked = SeedRequest(grant=rig.grant(None), disks={"vda": SeedImage(path=str(vda.path), format="qcow2")})
    with pytest.raises(ReplicaFull):
        seeding.start(rig.vm, asked)
    assert list(layout(rig).disks.iterdir()) == []
    assert rig.store.view(rig.vm).seeded == ()


def test_a_lease_that_ends_stops_the_copying(rig: Rig, vda: SourceDisk) -> None:
    """The lease is taken away after the first look: the copy is not registered, and its file goes."""
    looks: list[int] = []

    def check(vm: str, fence: int) -> None:
        looks.append(fence)
        if len(looks) > 2:
            raise StaleLease("another took it")

    store = ReplicaStore(rig.target.replica_roots, rig.target_id, check, 0)
    seeding = Seeding(store, HelperClient(rig.target.helper_socket), rig.target.run_dir)
    asked = SeedRequest(grant=rig.grant(None), disks={"vda": SeedImage(path=str(vda.path), format="qcow2")})
    seeding.start(rig.vm, asked)
    seeding._work[rig.vm].thread.join()
    assert isinstance(failure(seeding.state(rig.vm)), StaleLease)
    assert list(layout(rig).disks.iterdir()) == []
    assert list(layout(rig).digests.iterdir()) == []


def test_a_copy_that_was_cut_off_is_replaced_by_the_next(rig: Rig, vda: SourceDisk) -> None:
    left = rig.store.begin_seed(rig.vm, rig.grant(None), "vda", SIZE, "/x")
    left.write_bytes(b"half")  # the service was killed here
    assert rig.store.view(rig.vm).seeded == ()
    assert seed(rig, vda.path).error is None
    assert not left.exists()
    assert rig.store.view(rig.vm).seeded == ("vda",)


class Cut(BaseException):
    """The power goes."""


@pytest.mark.parametrize("step", ["seed-noted", "seed-table", "discard", "seed-ready"])
def test_a_power_cut_while_a_seed_is_made_costs_at_most_the_seed(
    rig: Rig, vda: SourceDisk, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = old_copy(rig, vda)
    with export(vda.path) as socket:  # an unfinished copy that began without the seed
        rig.send(rig.transfer([disk("vda", SIZE, socket)], checkpoint="cp0", complete=False))

    def cut(reached: str) -> None:
        if reached == step:
            raise Cut

    def make() -> None:
        copy = rig.store.begin_seed(rig.vm, rig.grant(None), "vda", SIZE, str(right))
        shutil.copy(right, copy)
        table = rig.store.seed_table(rig.vm, "vda", SIZE)
        with export(right) as frozen:
            for extent, digests in digests_of(Export(frozen, "disk"), [Extent(0, SIZE)], threading.Event()):
                table.write(extent.offset // BLOCK_BYTES, digests)
        rig.store.finish_seed(rig.vm, rig.grant(None), "vda", copy)

    with monkeypatch.context() as patched:
        patched.setattr(steps, "reached", cut)
        with pytest.raises(Cut):
            make()
    rig.store.reconcile(rig.vm)
    seeded = "vda" in rig.store.view(rig.vm).seeded
    assert seeded == (step == "seed-ready")
    if not seeded:
        assert seed(rig, right).error is None
    assert len(list(layout(rig).disks.iterdir())) == 1
    with export(vda.path) as socket:
        done = rig.send(rig.transfer([disk("vda", SIZE, socket, DiskMode.COMPARE)], checkpoint="cp1"))
        assert rig.identical(done.seq, "vda", socket)
    assert done.data_bytes == 2 * 65536
    assert rig.store.point(rig.vm, done.seq).disks[0].digest != ""
