"""Points, cycles and events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timedelta

from sqlalchemy import and_, delete, func, insert, select

from vapor_desktop.engine.ports import CycleRecord, Event, PointRow, PointSummary
from vapor_desktop.store.database import Database
from vapor_desktop.store.schema import commands, cycles, events, points

CYCLES_KEPT = timedelta(days=90)
EVENTS_KEPT = timedelta(days=400)
COMMANDS_KEPT = timedelta(days=7)


class HistoryStore:
    """What happened."""

    _db: Database

    def replace_points(self, protection_id: str, points_now: Sequence[PointRow]) -> None:
        """What the manifest lists now, as one act. Raises NotFound for an unknown protection."""
        rows = [{**asdict(point), "pins": list(point.pins)} for point in points_now]
        with self._db.write() as connection:
            connection.execute(delete(points).where(points.c.protection_id == protection_id))
            if rows:
                connection.execute(insert(points), rows)

    def points(self, protection_id: str) -> Sequence[PointRow]:
        """Oldest first, like the manifest."""
        query = select(points).where(points.c.protection_id == protection_id).order_by(points.c.seq)
        with self._db.read() as connection:
            rows = connection.execute(query).mappings().all()
        return tuple(PointRow(**{**row, "pins": tuple(row["pins"])}) for row in rows)

    def point_summaries(self) -> dict[str, PointSummary]:
        """By protection id, in one query."""
        groups = (
            select(
                points.c.protection_id,
                func.max(points.c.seq).label("newest"),
                func.count().label("count"),
                func.min(points.c.taken_at).label("oldest"),
            )
            .group_by(points.c.protection_id)
            .subquery()
        )
        same = and_(points.c.protection_id == groups.c.protection_id, points.c.seq == groups.c.newest)
        query = select(points, groups.c["count"].label("n"), groups.c.oldest).join(groups, same)
        with self._db.read() as connection:
            rows = connection.execute(query).mappings().all()
        found = {}
        for row in rows:
            values = {c.name: row[c.name] for c in points.c}
            point = PointRow(**{**values, "pins": tuple(values["pins"])})
            found[point.protection_id] = PointSummary(point, row["n"], row["oldest"])
        return found

    def add_cycle(self, record: CycleRecord) -> None:
        """Raises NotFound when the protection was removed meanwhile."""
        with self._db.write() as connection:
            connection.execute(insert(cycles), asdict(record))

    def cycles(self, protection_id: str, limit: int = 50) -> Sequence[CycleRecord]:
        """Newest first."""
        columns = [column for column in cycles.c if column.name != "cycle_id"]
        query = (
            select(*columns)
            .where(cycles.c.protection_id == protection_id)
            .order_by(cycles.c.started_at.desc(), cycles.c.cycle_id.desc())
            .limit(limit)
        )
        with self._db.read() as connection:
            return tuple(CycleRecord(**row) for row in connection.execute(query).mappings())

    def add_event(self, event: Event) -> None:
        """Write it down."""
        with self._db.write() as connection:
            connection.execute(insert(events), asdict(event))

    def events(self, protection_id: str | None = None, limit: int = 200) -> Sequence[Event]:
        """Newest first; of one protection, or all."""
        query = (
            select(*(column for column in events.c if column.name != "event_id"))
            .order_by(events.c.at.desc(), events.c.event_id.desc())
            .limit(limit)
        )
        if protection_id is not None:
            query = query.where(events.c.protection_id == protection_id)
        with self._db.read() as connection:
            return tuple(Event(**row) for row in connection.execute(query).mappings())

    def thin_history(self, now: datetime) -> None:
        """Forget cycles, events and answered commands that are older than they are kept."""
        with self._db.write() as connection:
            connection.execute(delete(cycles).where(cycles.c.started_at < now - CYCLES_KEPT))
            connection.execute(delete(events).where(events.c.at < now - EVENTS_KEPT))
            connection.execute(delete(commands).where(commands.c.asked_at < now - COMMANDS_KEPT))
