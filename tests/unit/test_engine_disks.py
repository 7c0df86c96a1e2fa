"""Rows of the *Disks* tab, from what the two sites tell; notes of cycles in the database."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from vapor_desktop.engine import disks
from vapor_desktop.engine.plan import CyclePlan, DiskPlan
from vapor_desktop.model.domains import DiskView, DomainView
from vapor_desktop.model.manifest import Consistency, DiskMode, Epoch, Manifest, Point, PointDisk, PointEntry
from vapor_desktop.model.policy import Policy
from vapor_desktop.model.sites import Protection
from vapor_desktop.model.wire import ReplicaView, Scrubbed
from vapor_desktop.store.repository import SqlRepository

NOW = datetime(2026, 5, 6, 7, tzinfo=UTC)
GIB = 1 << 30


def disk(target: str, driver_format: str, **more: object) -> DiskView:
    values = {
        "device": "disk",
        "source_kind": "file",
        "source": f"/i/{target}",
        "allocated_bytes": 1,
        "bus": "virtio",
    }
    return DiskView(
        target=target, driver_format=driver_format, size_bytes=GIB, qcow2_compat="1.1",
        **(values | more),  # type: ignore[arg-type]
    )  # fmt: skip


DOMAIN = DomainView(
    vm_uuid="u", name="web", state="running", pause_reason=None, persistent=True, autostart=False,
    disks=(disk("vda", "qcow2"), disk("vdb", "raw"), disk("sda", "raw", device="cdrom")), networks=(),
    internal_snapshots=(), has_tpm=False, nvram_path=None, tpm_dir=None, managed_save=False, machine="q35",
    agent_connected=True, live_id=3,
)  # fmt: skip
EPOCH = Epoch(number=1, owner="a")
ENTRY = PointEntry(
    seq=4,
    taken_at=NOW,
    current_as_of=NOW,
    files={"vda": "x", "vdc": "y"},
    sizes={"vda": GIB, "vdc": 5},
    verified=False,
)
REPLICA = ReplicaView(
    manifest=Manifest(
        vm_uuid="u", vm_name="web", protection_id="p", source_site="a", target_site="b", epoch=EPOCH, points=(ENTRY,)
    ),
    root="/r", used_bytes=9, incoming=None, files_in_chain=1, disk_bytes={"vda": 7, "vdc": 2}, seeded=("vdb",),
    valid=True,
)  # fmt: skip
POINT = Point(
    vm_uuid="u", vm_name="web", protection_id="p", seq=4, parent_seq=3, epoch=EPOCH, source_site="a", target_site="b",
    checkpoint=None, taken_at=NOW, published_at=NOW, consistency=Consistency.CRASH,
    disks=(PointDisk(target="vda", size_bytes=GIB, mode=DiskMode.DELTA, sent_bytes=123),),
)  # fmt: skip


def test_rows_join_what_both_sides_and_the_last_cycle_tell() -> None:
    known = {"vda": disks.DiskNote(mode="compare", why="bitmap lost", scrub_reached_bytes=9, scrub_passed_at=NOW)}
    vda, vdb, sda, vdc = disks.rows(DOMAIN, REPLICA, POINT, known)
    assert (vda.kind, vda.last_mode, vda.last_why) == ("delta", "compare", "bitmap lost")
    assert (vda.replica_bytes, vda.last_sent_bytes, vda.last_seq, vda.verified) == (7, 123, 4, False)
    assert (vda.scrub_reached_bytes, vda.scrub_passed_at) == (9, NOW)
    assert (vdb.kind, vdb.in_point, vdb.seeded) == ("compare", False, True)
    assert (vdb.replica_bytes, vdb.last_sent_bytes) == (0, None)
    assert "keeps no record of changes" in vdb.reason
    assert (sda.kind, sda.in_point) == ("excluded", False)
    # gone from the VM, still in its newest point
    assert (vdc.target, vdc.source, vdc.size_bytes, vdc.in_point, vdc.kind) == ("vdc", None, 5, True, "")


def test_what_cannot_be_asked_is_unknown_not_zero() -> None:
    [vda, vdb, _sda] = disks.rows(DOMAIN, None, None, {})
    assert (vda.replica_bytes, vda.verified, vda.last_sent_bytes) == (None, None, None)
    assert vdb.kind == "compare"
    rows = disks.rows(None, REPLICA, POINT, {})
    assert [(r.target, r.kind, r.source) for r in rows] == [("vda", "", None), ("vdc", "", None)]
    assert disks.rows(None, None, None, {}) == ()


def test_notes_of_cycles_last_and_go_with_the_protection(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'v.db'}"
    repository = SqlRepository(url)
    repository.save_protection(
        Protection(
            protection_id="p", vm_uuid="u", vm_name="web", source_site="a", target_site="b", policy=Policy(),
            epoch_owner="a", created_at=NOW,
        )
    )  # fmt: skip
    plan = CyclePlan(
        seq=1, parent_seq=None, checkpoint=None,
        disks=(DiskPlan("vda", GIB, DiskMode.FULL, None, True, "first copy"),),
        excluded=(), running=True, resume_incoming=False, discard_incoming=False, stale_checkpoints=(),
    )  # fmt: skip
    disks.note_plan(repository, "p", plan)
    disks.note_scrub(
        repository,
        "p",
        Scrubbed(
            checked_bytes=4, source_mismatch={}, target_mismatch={}, wrapped=False, reached_bytes={"vda": 4},
            passed_at={"vda": NOW},
        ),
    )  # fmt: skip
    disks.note_plan(repository, "p", plan)  # the next cycle does not forget the scrub
    repository.close()
    again = SqlRepository(url)
    note = disks.notes(again, "p")["vda"]
    assert (note.mode, note.why, note.scrub_reached_bytes, note.scrub_passed_at) == ("full", "first copy", 4, NOW)
    again.remove_protection("p")
    assert disks.notes(again, "p") == {}
    again.close()
