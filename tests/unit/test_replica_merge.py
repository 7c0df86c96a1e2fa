from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from replica_bench import MIB, TARGET, VM, Bench, Source, cut_at, read_image, steps_of, write_image

from vapor_desktop.lab.processes import wait_until
from vapor_desktop.model.errors import Conflict, HypervisorUnreachable, NotFound, PointPinned, StaleLease
from vapor_desktop.model.extents import Extent
from vapor_desktop.model.manifest import Epoch
from vapor_desktop.model.wire import RunRequest
from vapor_desktop.site.replica import ReplicaStore, qcow2
from vapor_desktop.site.replica.files import FileLock
from vapor_desktop.site.tidying import Tidying


def make(root: Path, points: int, **options: object) -> Bench:
    bench = Bench(root, Source(vda=4 * MIB, vdb=MIB), **options)  # type: ignore[arg-type]
    bench.create()
    for _ in range(points):
        bench.cycle()
    return bench


def drop(bench: Bench, seq: int) -> None:
    bench.store.drop(VM, seq, bench.grant())


def seqs(bench: Bench) -> list[int]:
    return [p.seq for p in bench.manifest.points]


def only_the_chain(bench: Bench) -> bool:
    listed = {f"disks/{name}" for p in bench.manifest.points for name in p.files.values()}
    top = {p.name for p in (bench.root / VM).iterdir()}
    return bench.files() == listed and not {n for n in top if n.startswith("merge")}


def overlay(bench: Bench, name: str, seq: int) -> Path:
    """A stopped drill: an overlay with a write of its own, anywhere below the root."""
    path = bench.root / name
    base = bench.store.disk_path(VM, seq, "vda")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(base), str(path)], check=True)
    write_image(path, b"\7" * 65536, [Extent(0, 65536)])
    return path


@pytest.mark.parametrize("order", [(1, 2, 3, 4), (4, 3, 2, 1), (2, 4, 1, 3), (3, 4, 2)])
def test_any_order_of_drops_leaves_the_others_unchanged(tmp_path: Path, order: tuple[int, ...]) -> None:
    bench = make(tmp_path, 5)
    for seq in order:
        drop(bench, seq)
        assert seq not in seqs(bench)
        bench.check()
        assert only_the_chain(bench)
    bench.cycle()
    bench.check()


def test_the_newest_and_the_unknown_are_not_dropped(tmp_path: Path) -> None:
    bench = make(tmp_path, 2)
    with pytest.raises(PointPinned):
        drop(bench, 2)
    with pytest.raises(NotFound):
        drop(bench, 7)
    with pytest.raises(StaleLease):
        bench.store.drop(VM, 1, bench.grant(fence=0))
    assert seqs(bench) == [1, 2]


def test_a_pin_protects_both_files_of_a_merge(tmp_path: Path) -> None:
    bench = make(tmp_path, 4)
    bench.store.pin(VM, 2, bench.grant(), "user:before the upgrade")
    for seq in (1, 2):
        with pytest.raises(PointPinned):
            drop(bench, seq)
    drop(bench, 3)  # above it is free
    bench.check()
    bench.store.unpin(VM, 2, bench.grant(), "user:before the upgrade")
    drop(bench, 2)
    assert seqs(bench) == [1, 4]
    bench.check()


def test_the_newest_proven_point_is_pinned_by_itself(tmp_path: Path) -> None:
    bench = make(tmp_path, 4)
    for seq in (1, 2):
        bench.store.mark_proven(VM, seq, bench.grant(), bench.manifest.points[0].taken_at)
    with pytest.raises(PointPinned):
        drop(bench, 2)
    bench.store.mark_proven(VM, 3, bench.grant(), bench.manifest.points[0].taken_at)
    drop(bench, 1)


def test_an_unrecorded_overlay_of_a_stopped_vm_protects_the_file_under_it(tmp_path: Path) -> None:
    bench = make(tmp_path, 5)
    hung = overlay(bench, "drill.qcow2", 3)
    before = read_image(hung)
    for seq in (2, 3):
        with pytest.raises(PointPinned):
            drop(bench, seq)
    assert not any(p.dead for p in bench.manifest.points)
    drop(bench, 4)
    drop(bench, 1)
    assert read_image(hung) == before
    bench.check()
    hung.unlink()
    drop(bench, 2)
    bench.check()


def test_a_file_that_a_domain_names_is_not_merged(tmp_path: Path) -> None:
    used: list[Path] = []
    bench = make(tmp_path, 3, in_use=lambda: used)
    used.append(bench.store.disk_path(VM, 2, "vdb"))
    with pytest.raises(PointPinned):
        drop(bench, 1)
    used.clear()
    drop(bench, 1)
    bench.check()


def test_a_running_process_above_refuses_before_anything_is_marked(tmp_path: Path) -> None:
    bench = make(tmp_path, 4)
    image, socket = overlay(bench, "drill.qcow2", 3), tmp_path / "nbd"
    pidfile = tmp_path / "pid"
    running = subprocess.Popen(["qemu-nbd", "-t", "-f", "qcow2", "-k", socket, "--pid-file", pidfile, image])
    try:
        while not pidfile.exists():
            assert running.poll() is None
        with pytest.raises(PointPinned):
            drop(bench, 1)
        assert not any(p.dead for p in bench.manifest.points)
    finally:
        running.kill()
        running.wait()
    drop(bench, 1)
    bench.check()


def test_merges_wait_for_the_receiver(tmp_path: Path) -> None:
    bench = make(tmp_path, 3)
    incoming = bench.open()
    with pytest.raises(Conflict):
        drop(bench, 2)
    incoming.close()
    drop(bench, 2)  # the kept overlay hangs on point 3, whose file has changed
    bench.source.work()
    with bench.open(resume=True, seq=4) as incoming:
        assert not incoming.resumed or incoming.base_path("vda") == bench.store.disk_path(VM, 3, "vda")
        bench.fill(incoming)
        bench.publish(incoming)
    bench.check()
    assert only_the_chain(bench)


def test_a_removed_disk_goes_with_its_last_point(tmp_path: Path) -> None:
    bench = make(tmp_path, 2)
    del bench.source.disks["vdb"], bench.source.dirty["vdb"]
    bench.cycle()
    drop(bench, 2)
    bench.check()
    drop(bench, 1)
    bench.check()
    assert only_the_chain(bench)
    bench.source.disks["vdb"] = bytearray(2 * MIB)
    bench.source.dirty["vdb"] = [Extent(0, 2 * MIB)]
    bench.cycle()
    bench.cycle()
    drop(bench, 4)
    bench.check()


def test_a_run_stays_as_it_was_while_points_above_it_merge(tmp_path: Path) -> None:
    bench = make(tmp_path, 5)
    request = RunRequest(fence=1, new_epoch=Epoch(number=2, owner=TARGET), seq=2, reason="test")
    run = bench.store.run(VM, request)
    bench.epoch = request.new_epoch
    for seq in (1, 2):
        with pytest.raises(PointPinned):
            drop(bench, seq)
    drop(bench, 3)
    assert read_image(Path(run.disks["vda"])) == bench.expected[2]["vda"]
    bench.check()


def test_forty_points_with_an_overlay_on_one(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Source(vda=8 * MIB))
    bench.create()
    hung, before = None, b""
    for number in range(1, 41):
        bench.cycle(writes=3)
        if number == 6:
            hung = overlay(bench, "drill.qcow2", 6)
            before = read_image(hung)
        while len(seqs(bench)) > 10:
            free = [s for s in seqs(bench)[:-1] if s not in (5, 6)]
            drop(bench, bench.source.random.choice(free))
    assert hung is not None
    assert read_image(hung) == before
    assert 6 in seqs(bench)
    bench.check()
    assert bench.store.view(VM).files_in_chain == 10
    for entry in bench.manifest.points:
        subprocess.run(["qemu-img", "check", "-q", bench.store.disk_path(VM, entry.seq, "vda")], check=True)


def test_a_cut_at_every_step_of_a_drop(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    base = make(tmp_path / "base", 4)
    base.keep()  # an unfinished point hangs on the newest
    whole = base.copy_to(tmp_path / "whole")
    cuts = steps_of(lambda: drop(whole, 2))
    assert len(cuts) > 12
    dead = False
    for number, cut in enumerate(cuts):
        bench = base.copy_to(tmp_path / str(number))
        cut_at(cut, lambda bench=bench: drop(bench, 2))
        bench.check_points()  # also before anything was put right
        dead = dead or cut[0] == "manifest-after"
        assert (bench.manifest.entry(2) is None) == dead
        bench.store.reconcile(VM)
        bench.store.reconcile(VM)
        assert seqs(bench) == ([1, 3, 4] if dead else [1, 2, 3, 4]), cut
        with bench.open(resume=True) as incoming:
            assert incoming.resumed
            bench.source.work()
            bench.fill(incoming)
            bench.publish(incoming)
        bench.check()
        assert only_the_chain(bench), cut


def test_the_next_drop_goes_on_with_a_merge_that_was_cut(tmp_path: Path) -> None:
    """The service was killed in a merge: retention must not stand still until a person reconciles."""
    (tmp_path / "base").mkdir()
    base = make(tmp_path / "base", 4)
    whole = base.copy_to(tmp_path / "whole")
    for number, cut in enumerate(steps_of(lambda: drop(whole, 2))[::3]):
        bench = base.copy_to(tmp_path / str(number))
        cut_at(cut, lambda bench=bench: drop(bench, 2))
        bench.cycle()
        drop(bench, 1)
        assert seqs(bench) in ([2, 3, 4, 5], [3, 4, 5]), cut
        bench.check()
        assert only_the_chain(bench), cut


def test_the_service_tidies_every_replica_when_it_starts(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    bench = make(tmp_path / "root", 4)
    cut_at(("merge-copied", 1), lambda: drop(bench, 2))
    orphan = tmp_path / "root" / VM / "incoming" / f"{'0' * 32}.qcow2"
    orphan.write_bytes(b"left over")
    tidying = Tidying(bench.store)
    tidying.start()
    wait_until(lambda: only_the_chain(bench) and not orphan.exists(), "the tidying", timeout_s=20, every_s=0.05)
    tidying.stop()
    assert seqs(bench) == [1, 3, 4]
    bench.check()


def test_what_cannot_be_tidied_yet_is_tried_again(tmp_path: Path) -> None:
    """libvirt starts after the service: nothing is merged while nobody knows what its VMs use."""
    (tmp_path / "root").mkdir()
    bench = make(tmp_path / "root", 3)
    cut_at(("merge-copied", 1), lambda: drop(bench, 1))
    asked: list[int] = []

    def in_use() -> list[Path]:
        asked.append(1)
        if len(asked) < 3:
            raise HypervisorUnreachable("libvirt does not answer")
        return []

    store = ReplicaStore([bench.root], TARGET, bench.leases.check, 0, in_use)
    tidying = Tidying(store, again_s=0.05)
    tidying.start()
    wait_until(lambda: only_the_chain(bench), "the third try", timeout_s=20, every_s=0.05)
    tidying.stop()
    assert len(asked) >= 3
    bench.check()


def test_a_torn_head_is_put_back(tmp_path: Path) -> None:
    bench = make(tmp_path, 4)
    child = bench.store.disk_path(VM, 4, "vdb")
    cut_at(("merge-repointed", 2), lambda: drop(bench, 2))
    with child.open("r+b") as file:
        file.write(b"\0" * 64)
    assert qcow2.read_header(child) is None
    bench.store.reconcile(VM)
    assert seqs(bench) == [1, 3, 4]
    bench.check()


def test_a_failover_goes_ahead_of_an_unfinished_merge(tmp_path: Path) -> None:
    bench = make(tmp_path, 4)
    cut_at(("merge-copied", 1), lambda: drop(bench, 2))
    request = RunRequest(fence=1, new_epoch=Epoch(number=2, owner=TARGET), seq=3, reason="test")
    run = bench.store.run(VM, request)
    bench.epoch = request.new_epoch
    bench.store.reconcile(VM)  # cannot finish: the run hangs on the upper file
    assert read_image(Path(run.disks["vda"])) == bench.expected[3]["vda"]
    bench.check()
    assert [p.seq for p in bench.manifest.points if not p.dead] == [1, 3, 4]


def test_a_merge_gives_way_to_something_urgent_and_goes_on_later(tmp_path: Path) -> None:
    bench = make(tmp_path, 4)
    urgent = FileLock(tmp_path / VM / ".stop-merge")
    assert urgent.acquire(0)
    with pytest.raises(Conflict):
        drop(bench, 2)
    bench.check()
    assert [p.seq for p in bench.manifest.points if p.dead] == [2]
    bench.cycle()  # replication is not in its way
    urgent.release()
    bench.store.reconcile(VM)
    assert seqs(bench) == [1, 3, 4, 5]
    bench.check()
    assert only_the_chain(bench)
