"""Runs that are over and are kept; a commit; an epoch that rises without changing hands. On real qcow2 files."""

from __future__ import annotations

from pathlib import Path

import pytest
from replica_bench import MIB, SOURCE, TARGET, VM, Bench, Source, read_image, write_image

from vapor_desktop.model.errors import Conflict, EpochMoved, StaleLease
from vapor_desktop.model.extents import Extent
from vapor_desktop.model.manifest import Epoch
from vapor_desktop.model.wire import CommitRequest, EpochRequest, GiveBackRequest, LetGoRequest, Run, RunRequest


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    made = Bench(tmp_path, Source(vda=4 * MIB))
    made.create()
    made.cycle()
    made.cycle()
    return made


def run(bench: Bench, number: int, seq: int, **more: object) -> Run:
    epoch = Epoch(number=number, owner=TARGET)
    request = RunRequest(fence=1, new_epoch=epoch, seq=seq, reason="r", provisional=True).model_copy(update=more)
    made = bench.store.run(VM, request)
    bench.epoch = epoch
    return made


def wrote(made: Run) -> bytes:
    """Something in the run's overlay; what a guest would read there then."""
    write_image(Path(made.disks["vda"]), b"\7" * 65536, [Extent(0, 65536)])
    return read_image(Path(made.disks["vda"]))


def test_a_second_run_keeps_the_first_one_whole(bench: Bench) -> None:
    first = run(bench, 2, 2)
    content = wrote(first)
    second = run(bench, 3, 1, keep_as="before")
    assert read_image(Path(second.disks["vda"])) == bench.expected[1]["vda"]
    assert read_image(Path(first.disks["vda"])) == content
    view = bench.store.view(VM)
    assert (view.manifest.kept["2"].name, view.manifest.kept["2"].seq) == ("before", 2)
    assert view.manifest.provisional == 3
    assert view.run_bytes["2"]["vda"] >= 65536
    assert set(view.run_written_at) == {"2", "3"}
    assert run(bench, 3, 1) == second  # asked again: the same
    assert list(bench.store.view(VM).manifest.kept) == ["2"]


def test_only_what_is_over_and_unused_is_let_go(bench: Bench) -> None:
    first = run(bench, 2, 2)
    run(bench, 3, 1)
    with pytest.raises(Conflict):
        bench.store.let_go(VM, 3, LetGoRequest(fence=1, reason="r"))
    with pytest.raises(StaleLease):
        bench.store.let_go(VM, 2, LetGoRequest(fence=9, reason="r"))
    used = bench.store._in_use
    bench.store._in_use = lambda: [Path(first.disks["vda"])]  # a VM that is off is defined on it
    with pytest.raises(Conflict):
        bench.store.let_go(VM, 2, LetGoRequest(fence=1, reason="r"))
    bench.store._in_use = used
    assert Path(first.disks["vda"]).exists()
    after = bench.store.let_go(VM, 2, LetGoRequest(fence=1, reason="r"))
    assert (list(after.runs), after.kept) == (["3"], {})
    assert [p.pins for p in after.points] == [("run:3",), ()]
    assert not Path(first.disks["vda"]).parent.exists()
    assert bench.store.let_go(VM, 2, LetGoRequest(fence=1, reason="r")) == after


def test_a_commit_is_of_the_epoch_that_was_seen(bench: Bench) -> None:
    run(bench, 2, 2)
    with pytest.raises(EpochMoved):
        bench.store.commit(VM, CommitRequest(fence=1, epoch=1, reason="r"))
    assert bench.store.manifest(VM).provisional == 2
    after = bench.store.commit(VM, CommitRequest(fence=1, epoch=2, reason="r"))
    assert after.provisional == 0
    assert bench.store.commit(VM, CommitRequest(fence=1, epoch=2, reason="r")) == after


def test_an_epoch_rises_with_its_run_and_never_changes_hands(bench: Bench) -> None:
    made = run(bench, 2, 2)
    for wrong in (Epoch(number=3, owner=SOURCE), Epoch(number=1, owner=TARGET)):
        with pytest.raises(EpochMoved):
            bench.store.raise_epoch(VM, EpochRequest(fence=1, new_epoch=wrong, reason="r"))
    higher = EpochRequest(fence=1, new_epoch=Epoch(number=5, owner=TARGET), reason="r")
    after = bench.store.raise_epoch(VM, higher)
    assert (after.epoch.number, list(after.runs), after.provisional) == (5, ["5"], 5)
    assert bench.store.raise_epoch(VM, higher) == after
    again = run(bench, 5, 2)
    assert again.disks == made.disks  # the same overlays, under another number
    bench.store.reconcile(VM)
    assert Path(made.disks["vda"]).exists()


@pytest.mark.parametrize("keep_as", ["", "what ran there"])
def test_given_back_a_run_goes_or_is_kept_by_its_name(bench: Bench, keep_as: str) -> None:
    made = run(bench, 2, 2)
    bench.store.raise_epoch(VM, EpochRequest(fence=1, new_epoch=Epoch(number=4, owner=TARGET), reason="r"))
    home = Epoch(number=5, owner=SOURCE)
    request = GiveBackRequest(fence=1, new_epoch=home, run_epoch=4, reason="r", keep_as=keep_as)
    after = bench.store.give_back(VM, request)
    assert (after.epoch, after.provisional) == (home, 0)
    assert Path(made.disks["vda"]).exists() is bool(keep_as)
    assert {n: k.name for n, k in after.kept.items()} == ({"4": keep_as} if keep_as else {})
    assert bench.store.give_back(VM, request) == after
    bench.epoch = home
    bench.cycle()  # replication goes on
    bench.check()
    if keep_as:
        bench.store.let_go(VM, 4, LetGoRequest(fence=1, reason="r"))
        assert not Path(made.disks["vda"]).exists()
