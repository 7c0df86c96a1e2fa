"""What is known of each disk of a protection: at the source, in the replica, and of the last cycle.

The last plan and the scrub's progress are kept beside the settings of the database, so that viewers see them too.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from pydantic import TypeAdapter

from vapor_desktop.engine.plan import CyclePlan
from vapor_desktop.engine.ports import Repository
from vapor_desktop.model.domains import DiskView, DomainView
from vapor_desktop.model.eligibility import DiskVerdict, judge
from vapor_desktop.model.manifest import Point
from vapor_desktop.model.policy import Value
from vapor_desktop.model.view import DiskStatus
from vapor_desktop.model.wire import ReplicaView, Scrubbed


class DiskNote(Value):
    """What the last cycle did with a disk. Sizes in bytes; None and "" where nothing is known."""

    mode: str = ""
    why: str = ""
    scrub_reached_bytes: int | None = None
    scrub_passed_at: datetime | None = None


_Notes = TypeAdapter(dict[str, DiskNote])


def notes(repository: Repository, protection_id: str) -> dict[str, DiskNote]:
    """Disk target -> what the last cycles noted."""
    text = repository.setting(_key(protection_id))
    return _Notes.validate_json(text) if text else {}


def note_plan(repository: Repository, protection_id: str, plan: CyclePlan) -> None:
    """A cycle begins: how it copies each disk, and why so."""
    before = notes(repository, protection_id)
    after = {
        d.target: before.get(d.target, DiskNote()).model_copy(update={"mode": d.mode.value, "why": d.why})
        for d in plan.disks
    }
    _save(repository, protection_id, before, after)


def note_scrub(repository: Repository, protection_id: str, scrubbed: Scrubbed) -> None:
    """How far the scrub's pass has come."""
    before = notes(repository, protection_id)
    after = dict(before)
    for disk, reached_bytes in scrubbed.reached_bytes.items():
        update = {"scrub_reached_bytes": reached_bytes, "scrub_passed_at": scrubbed.passed_at.get(disk)}
        after[disk] = before.get(disk, DiskNote()).model_copy(update=update)
    _save(repository, protection_id, before, after)


def _save(
    repository: Repository, protection_id: str, before: Mapping[str, DiskNote], after: dict[str, DiskNote]
) -> None:
    if before != after:
        repository.set_setting(_key(protection_id), _Notes.dump_json(after).decode())


def _key(protection_id: str) -> str:
    return f"disks:{protection_id}"


def rows(
    domain: DomainView | None, replica: ReplicaView | None, newest: Point | None, known: Mapping[str, DiskNote]
) -> tuple[DiskStatus, ...]:
    """One row per disk: the VM's, in its order, then those that only the replica knows.

    ``domain`` None: the source cannot be asked. ``replica`` None: there is none yet, or it cannot be asked.
    """
    verdicts = {v.target: v for v in judge(domain)} if domain else {}
    views = {d.target: d for d in domain.disks} if domain else {}
    held = replica.manifest.newest.sizes if replica and replica.manifest.newest else {}
    targets = [*views, *(t for t in held if t not in views)]
    return tuple(_row(t, views.get(t), verdicts.get(t), replica, newest, known.get(t, DiskNote())) for t in targets)


def _row(
    target: str,
    view: DiskView | None,
    verdict: DiskVerdict | None,
    replica: ReplicaView | None,
    newest: Point | None,
    note: DiskNote,
) -> DiskStatus:
    entry = replica.manifest.newest if replica else None
    point = next((d for d in newest.disks if d.target == target), None) if newest else None
    size = view.size_bytes if view else None
    return DiskStatus(
        target=target,
        bus=view.bus if view else "",
        format=view.driver_format if view else "",
        source=view.source if view else None,
        size_bytes=size if size is not None else (entry.sizes.get(target) if entry else None),
        allocated_bytes=view.allocated_bytes if view else None,
        kind=verdict.kind if verdict else "",
        reason=verdict.reason if verdict else "",
        fix=verdict.fix if verdict else "",
        in_point=entry is not None and target in entry.files,
        seeded=replica is not None and target in replica.seeded,
        replica_bytes=replica.disk_bytes.get(target, 0) if replica else None,
        received_bytes=replica.incoming.received_bytes.get(target) if replica and replica.incoming else None,
        last_mode=note.mode,
        last_why=note.why,
        last_sent_bytes=point.sent_bytes if point else None,
        last_seq=newest.seq if newest and point else None,
        scrub_reached_bytes=note.scrub_reached_bytes,
        scrub_passed_at=note.scrub_passed_at,
        verified=entry.verified if entry and target in entry.files else None,
    )
