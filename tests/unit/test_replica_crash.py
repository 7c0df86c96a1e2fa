"""Power cuts (kill -9 between durable steps), lost manifests, and two writers at once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from replica_bench import MIB, TARGET, VM, Bench, Source, cut_at, ended, in_process, read_image, steps_of

from vapor_desktop.model.errors import ManifestInvalid, NotFound
from vapor_desktop.model.manifest import DiskMode, Epoch
from vapor_desktop.model.wire import RunRequest

REQUEST = RunRequest(fence=1, new_epoch=Epoch(number=2, owner=TARGET), seq=1, reason="test")


def make(root: Path, points: int = 2) -> Bench:
    root.mkdir(exist_ok=True)
    bench = Bench(root, Source(vda=4 * MIB, vdb=MIB))
    bench.create()
    for _ in range(points):
        bench.cycle()
    return bench


def only_the_chain(bench: Bench) -> bool:
    listed = {f"disks/{name}" for p in bench.manifest.points for name in p.files.values()}
    return bench.files() == listed


@pytest.mark.parametrize("points", [0, 2], ids=["first copy", "delta"])
def test_a_cut_at_every_step_of_a_cycle(tmp_path: Path, points: int) -> None:
    base = make(tmp_path / "base", points)
    cuts = steps_of(base.copy_to(tmp_path / "whole").cycle)
    assert {"incoming-recorded", "publish-moved", "manifest-after", "digests-folded"} <= {step for step, _ in cuts}
    for number, cut in enumerate(cuts):
        bench = base.copy_to(tmp_path / str(number))
        cut_at(cut, bench.cycle)
        bench.source.work()  # what the killed process had done to its copy of the source
        if bench.manifest.entry(points + 1) is not None:
            bench.expected[points + 1] = bench.source.snapshot()
            bench.source.clean()
        bench.check_points()
        bench.store.reconcile(VM)
        bench.store.reconcile(VM)
        bench.check_tables()
        left = bench.store.view(VM).incoming
        if left is not None:
            with bench.open(resume=True, seq=left.seq) as incoming:
                assert incoming.resumed
                bench.fill(incoming)
                bench.publish(incoming)
        bench.cycle()
        bench.check()
        assert only_the_chain(bench), cut


def test_a_publish_that_is_cut_keeps_all_that_was_received(tmp_path: Path) -> None:
    bench = make(tmp_path)
    cut_at(("publish-moved", 2), bench.cycle)
    bench.store.reconcile(VM)
    with bench.open(resume=True, seq=3) as incoming:
        assert incoming.resumed
        assert incoming.complete()


def test_publishing_twice_is_publishing_once(tmp_path: Path) -> None:
    bench = make(tmp_path)
    bench.source.work()
    with bench.open() as incoming:
        bench.fill(incoming)
        grant = bench.grant()
        done = bench.publish(incoming)
        assert bench.publish(incoming, grant) == done


def test_a_cut_at_every_step_of_a_failover(tmp_path: Path) -> None:
    base = make(tmp_path / "base")
    whole = base.copy_to(tmp_path / "whole")
    cuts = steps_of(lambda: whole.store.run(VM, REQUEST))
    assert len(cuts) >= 4
    for number, cut in enumerate(cuts):
        bench = base.copy_to(tmp_path / str(number))
        bench.open().close()
        cut_at(cut, lambda bench=bench: bench.store.run(VM, REQUEST))
        bench.store.reconcile(VM)
        bench.check()
        run = bench.store.run(VM, REQUEST)
        assert read_image(Path(run.disks["vda"])) == bench.expected[1]["vda"]
        bench.store.reconcile(VM)
        assert only_the_chain(bench)
        assert bench.manifest.epoch == REQUEST.new_epoch


def test_a_cut_at_every_step_of_a_deletion(tmp_path: Path) -> None:
    base = make(tmp_path / "base")
    whole = base.copy_to(tmp_path / "whole")
    cuts = steps_of(lambda: whole.store.delete(VM, whole.grant()))
    assert not (tmp_path / "whole" / VM).exists()
    for number, cut in enumerate(cuts[::4]):
        bench = base.copy_to(tmp_path / str(number))
        cut_at(cut, lambda bench=bench: bench.store.delete(VM, bench.grant()))
        with pytest.raises(NotFound):
            bench.store.manifest(VM)
        with pytest.raises(NotFound):
            bench.store.reconcile(VM)
        assert list(bench.root.iterdir()) == []


def test_a_cut_while_the_replica_is_made(tmp_path: Path) -> None:
    for number, cut in enumerate([("manifest-before", 1), ("manifest-after", 1)]):
        root = tmp_path / str(number)
        root.mkdir()
        bench = Bench(root, Source(vda=MIB))
        cut_at(cut, bench.create)
        bench.create()
        bench.cycle()
        bench.check()


DAMAGE = {
    "missing": lambda path: path.unlink(),
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "edited": lambda path: path.write_bytes(path.read_bytes().replace(b'"vm_name": "vm"', b'"vm_name": "wm"')),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_without_a_manifest_nothing_is_written_or_deleted(tmp_path: Path, damage: object) -> None:
    bench = make(tmp_path / "root", 4)
    bench.store.pin(VM, 2, bench.grant(), "user:keep")
    bench.store.drop(VM, 3, bench.grant())
    with bench.open() as incoming:
        bench.fill(incoming)
    before, grant = bench.manifest, bench.grant()
    damage(bench.root / VM / "manifest.json")  # type: ignore[operator]
    files = bench.files()
    for verb in (
        lambda: bench.store.manifest(VM),
        lambda: bench.store.reconcile(VM),
        lambda: bench.store.drop(VM, 1, grant),
        lambda: bench.store.delete(VM, grant),
        lambda: bench.store.discard_incoming(VM, grant),
        lambda: bench.store.run(VM, REQUEST),
        bench.create,
        lambda: bench.store.open_incoming(VM, grant, 6, {}, "cp", False),
    ):
        with pytest.raises(ManifestInvalid):
            verb()
    assert bench.files() == files
    view = bench.store.view(VM)
    assert not view.valid
    assert (view.trouble or {})["code"] == "MANIFEST-INVALID"
    assert view.manifest.points == before.points
    rebuilt = bench.store.rebuild(VM)
    same = {"generation": 0, "checksum": ""}
    assert rebuilt.model_copy(update=same) == before.model_copy(update=same)
    assert bench.files() == files
    bench.check()
    bench.cycle()
    bench.check()


def test_rebuilding_leaves_a_point_out_whose_file_is_gone(tmp_path: Path) -> None:
    bench = make(tmp_path, 3)
    bench.store.disk_path(VM, 3, "vdb").unlink()
    (bench.root / VM / "manifest.json").unlink()
    (bench.root / VM / "protection.json").unlink()
    assert [p.seq for p in bench.store.rebuild(VM).points] == [1, 2]
    assert bench.manifest.next_seq == 4
    bench.check_points()
    # The table was of the lost point: nothing is said rather than something wrong.
    assert bench.store.digests(VM, "vda").root() == ""


def test_a_manifest_lost_in_the_middle_of_a_merge(tmp_path: Path) -> None:
    base = make(tmp_path / "base", 4)
    for number, cut in enumerate(
        [("merge-dead", 1), ("merge-copied", 1), ("merge-repointed", 1), ("merge-listed", 1)]
    ):
        bench = base.copy_to(tmp_path / str(number))
        cut_at(cut, lambda bench=bench: bench.store.drop(VM, 2, bench.grant()))
        (bench.root / VM / "manifest.json").unlink()
        bench.store.rebuild(VM)
        bench.check()
        bench.store.reconcile(VM)
        assert [p.seq for p in bench.manifest.points] == [1, 3, 4]
        bench.check()
        assert only_the_chain(bench)


def test_of_two_senders_with_one_grant_one_publishes(tmp_path: Path) -> None:
    bench = make(tmp_path)
    grant, seq = bench.grant(), bench.manifest.next_seq
    disks = {"vda": (4 * MIB, DiskMode.DELTA), "vdb": (MIB, DiskMode.DELTA)}

    def sender(seed: int) -> None:
        with bench.store.open_incoming(VM, grant, seq, disks, f"cp-{seed}", False) as incoming:
            work(seed)
            bench.fill(incoming)
            bench.publish(incoming, grant)

    def work(seed: int) -> None:
        bench.source.random.seed(seed)
        bench.source.work()

    pids = [in_process(lambda seed=seed: sender(seed)) for seed in (11, 12)]
    codes = [ended(pid) for pid in pids]
    assert sorted(codes) == [0, 3]
    work((11, 12)[codes.index(0)])
    bench.expected[seq] = bench.source.snapshot()
    assert [p.seq for p in bench.manifest.points] == [1, 2, seq]
    bench.store.reconcile(VM)
    bench.check()
    assert only_the_chain(bench)
