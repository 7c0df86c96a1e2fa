"""What a cycle decides from what it observed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import pytest

from vapor_desktop.engine.plan import checkpoint_name, ours, plan_cycle
from vapor_desktop.model.domains import DiskView, DomainView
from vapor_desktop.model.eligibility import judge
from vapor_desktop.model.errors import DiskShrunk, EpochMoved, NotReplicable
from vapor_desktop.model.manifest import DiskMode, Epoch, Manifest, PointEntry
from vapor_desktop.model.wire import IncomingView

NOW = datetime(2026, 11, 22, tzinfo=UTC)
GIB = 1 << 30
PID = "12345678-0000-4000-8000-000000000000"


def disk(target: str = "vda", size: int = GIB, fmt: str = "qcow2", **more: object) -> DiskView:
    return DiskView(target, "disk", "file", f"/img/{target}", fmt, size, size // 2, **more)  # type: ignore[arg-type]


def domain(*disks: DiskView, live: bool = True) -> DomainView:
    return DomainView(
        vm_uuid="u",
        name="web",
        state="running" if live else "shutoff",
        pause_reason=None,
        persistent=True,
        autostart=False,
        disks=disks or (disk(),),
        networks=(),
        internal_snapshots=(),
        has_tpm=False,
        nvram_path=None,
        tpm_dir=None,
        managed_save=False,
        machine="pc-q35-7.2",
        agent_connected=False,
        live_id=3 if live else None,
    )


def manifest(*points: PointEntry, owner: str = "A", next_seq: int = 5) -> Manifest:
    return Manifest(
        vm_uuid="u",
        vm_name="web",
        protection_id=PID,
        source_site="A",
        target_site="B",
        epoch=Epoch(number=1, owner=owner),
        next_seq=next_seq,
        points=points,
    )


def point(seq: int = 4, checkpoint: str | None = "vapor-12345678-1-000004-aa", **sizes: int) -> PointEntry:
    sizes = sizes or {"vda": GIB}
    return PointEntry(
        seq=seq,
        taken_at=NOW,
        current_as_of=NOW,
        files={t: f"{t}.qcow2" for t in sizes},
        sizes=sizes,
        checkpoint=checkpoint,
    )


def plan(
    m: Manifest, d: DomainView, *, valid: bool = True, incoming: IncomingView | None = None, cps: Sequence[str] = ()
):  # type: ignore[no-untyped-def]
    return plan_cycle(
        manifest=m, incoming=incoming, domain=d, verdicts=judge(d), checkpoints=cps, valid=lambda _n, _t: valid
    )


def test_first_copy_is_full_and_gets_a_checkpoint() -> None:
    p = plan(manifest(next_seq=1), domain())
    assert [d.mode for d in p.disks] == [DiskMode.FULL]
    assert p.seq == 1
    assert p.parent_seq is None
    assert p.checkpoint is not None


def test_valid_bitmap_means_delta_from_the_newest_points_checkpoint() -> None:
    p = plan(manifest(point()), domain())
    assert p.disks[0].mode is DiskMode.DELTA
    assert p.disks[0].from_checkpoint == "vapor-12345678-1-000004-aa"
    assert p.parent_seq == 4


def test_lost_bitmap_means_compare_never_a_blind_full() -> None:
    p = plan(manifest(point()), domain(), valid=False)
    assert p.disks[0].mode is DiskMode.COMPARE
    assert p.disks[0].why == "bitmap lost"


def test_an_added_disk_is_full_and_the_others_stay_delta() -> None:
    p = plan(manifest(point()), domain(disk("vda"), disk("vdb")))
    assert [d.mode for d in p.disks] == [DiskMode.DELTA, DiskMode.FULL]


def test_a_raw_disk_is_compared_each_cycle_and_holds_no_checkpoint() -> None:
    p = plan(manifest(point(checkpoint=None)), domain(disk(fmt="raw")))
    assert p.disks[0].mode is DiskMode.COMPARE
    assert not p.disks[0].with_checkpoint
    assert p.checkpoint is None


def test_a_grown_disk_stays_delta_and_a_shrunk_one_is_refused() -> None:
    assert plan(manifest(point()), domain(disk(size=2 * GIB))).disks[0].size_bytes == 2 * GIB
    with pytest.raises(DiskShrunk):
        plan(manifest(point()), domain(disk(size=GIB // 2)))


def test_one_lost_bitmap_of_two_compares_only_that_disk() -> None:
    d = domain(disk("vda"), disk("vdb"))
    p = plan_cycle(
        manifest=manifest(point(vda=GIB, vdb=GIB)),
        incoming=None,
        domain=d,
        verdicts=judge(d),
        checkpoints=(),
        valid=lambda _n, targets: "vdb" not in targets,
    )
    assert {x.target: x.mode for x in p.disks} == {"vda": DiskMode.DELTA, "vdb": DiskMode.COMPARE}


def incoming(checkpoint: str | None = "vapor-12345678-1-000005-bb", size: int = GIB) -> IncomingView:
    return IncomingView(
        seq=5,
        parent_seq=4,
        checkpoint=checkpoint,
        disks={"vda": DiskMode.DELTA},
        sizes={"vda": size},
        received_bytes={"vda": 100},
    )


def test_an_incoming_whose_checkpoint_validates_is_resumed_under_its_number() -> None:
    p = plan(manifest(point(), next_seq=6), domain(), incoming=incoming())
    assert p.resume_incoming
    assert p.seq == 5
    assert p.disks[0].from_checkpoint == "vapor-12345678-1-000005-bb"
    assert p.checkpoint != "vapor-12345678-1-000005-bb"


@pytest.mark.parametrize("bad", [incoming(checkpoint=None), incoming(size=GIB * 2)])
def test_an_incoming_that_cannot_be_trusted_is_discarded(bad: IncomingView) -> None:
    p = plan(manifest(point(), next_seq=6), domain(), incoming=bad)
    assert p.discard_incoming
    assert not p.resume_incoming
    assert p.seq == 6


def test_only_our_stale_checkpoints_are_named_for_deletion() -> None:
    cps = [
        "vapor-12345678-1-000003-cc",
        "vapor-12345678-1-000004-aa",
        "virtnbdbackup.0",
        "vapor-99999999-1-000001-dd",
    ]
    assert plan(manifest(point()), domain(), cps=cps).stale_checkpoints == ("vapor-12345678-1-000003-cc",)


def test_a_vm_that_belongs_to_the_other_site_is_not_replicated() -> None:
    with pytest.raises(EpochMoved):
        plan(manifest(point(), owner="B"), domain())


def test_a_refused_disk_stops_the_cycle_and_says_the_fix() -> None:
    with pytest.raises(NotReplicable) as caught:
        plan(manifest(), domain(disk(shareable=True)))
    assert caught.value.fix


def test_checkpoint_names_are_never_the_same_twice() -> None:
    names = {checkpoint_name(PID, 1, 7) for _ in range(200)}
    assert len(names) == 200
    assert all(ours(PID, n) for n in names)
