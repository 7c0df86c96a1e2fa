"""What a cycle decides from what it observed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import pytest

from vapor_desktop.engine.plan import checkpoint_name, family, ours, plan_cycle
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


def test_after_a_scrubs_finding_no_bitmap_is_trusted_whichever_engine_plans() -> None:
    tainted = point().model_copy(update={"verified": False})
    p = plan(manifest(tainted), domain(disk("vda"), disk("vdb", fmt="raw")))
    assert [d.mode for d in p.disks] == [DiskMode.COMPARE, DiskMode.FULL]
    assert p.disks[0].why == "the scrub found a difference"
    repaired = plan(manifest(tainted, point(5)), domain())
    assert repaired.disks[0].mode is DiskMode.DELTA


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


def test_a_resumed_copy_keeps_its_mode_and_reads_what_changed_since() -> None:
    kept = incoming().model_copy(update={"disks": {"vda": DiskMode.COMPARE}})
    p = plan(manifest(point(), next_seq=6), domain(), incoming=kept)
    assert p.disks[0].mode is DiskMode.COMPARE  # what it has not compared yet is not sent blindly
    assert p.disks[0].from_checkpoint == kept.checkpoint
    assert p.may_pause


def first_part(*targets: str) -> IncomingView:
    return IncomingView(
        seq=1,
        parent_seq=None,
        checkpoint="vapor-12345678-1-000001-cc",
        disks=dict.fromkeys(targets, DiskMode.FULL),
        sizes=dict.fromkeys(targets, GIB),
        received_bytes=dict.fromkeys(targets, 100),
    )


def test_a_first_copy_whose_bitmap_is_lost_is_compared_not_begun_again() -> None:
    p = plan(manifest(next_seq=2), domain(), incoming=first_part("vda"), valid=False, cps=[])
    assert p.resume_incoming
    assert (p.seq, p.disks[0].mode, p.disks[0].from_checkpoint) == (1, DiskMode.COMPARE, None)


def test_a_delta_whose_bitmap_is_lost_is_discarded() -> None:
    p = plan(manifest(point(), next_seq=6), domain(), incoming=incoming(), valid=False)
    assert p.discard_incoming
    assert p.disks[0].mode is DiskMode.COMPARE


def test_a_first_copy_with_a_raw_disk_is_resumed_by_compare_and_has_no_time_limit() -> None:
    d = domain(disk("vda"), disk("vdb", fmt="raw"))
    p = plan(manifest(next_seq=2), d, incoming=first_part("vda", "vdb"))
    assert p.resume_incoming
    assert [x.mode for x in p.disks] == [DiskMode.FULL, DiskMode.COMPARE]
    assert [x.from_checkpoint for x in p.disks] == ["vapor-12345678-1-000001-cc", None]
    assert not p.may_pause


def test_the_unfinished_copys_checkpoint_is_kept_and_older_ones_go() -> None:
    cps = ["vapor-12345678-1-000001-bb", "vapor-12345678-1-000001-cc"]
    p = plan(manifest(next_seq=2), domain(), incoming=first_part("vda"), cps=cps)
    assert p.stale_checkpoints == ("vapor-12345678-1-000001-bb",)


def test_a_seeded_disk_is_compared_and_only_until_a_point_holds_it() -> None:
    d = domain(disk("vda"), disk("vdb"))
    p = plan_cycle(
        manifest=manifest(next_seq=1),
        incoming=None,
        seeded=("vdb",),
        domain=d,
        verdicts=judge(d),
        checkpoints=(),
        valid=lambda _n, _t: False,
    )
    assert {x.target: (x.mode, x.why) for x in p.disks} == {
        "vda": (DiskMode.FULL, "first copy"),
        "vdb": (DiskMode.COMPARE, "seeded"),
    }
    assert family(p.checkpoint or "") == "vapor-12345678-"
