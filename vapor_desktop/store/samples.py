"""RPO samples, kept in a fixed size: as measured for two days, then in 5 min, then in hours."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, case, delete, func, literal, or_, select
from sqlalchemy.dialects import postgresql, sqlite

from vapor_desktop.engine.ports import RpoSample
from vapor_desktop.store.database import Database
from vapor_desktop.store.schema import protections, rpo_samples

RAW_KEPT = timedelta(hours=48)
FINE_KEPT = timedelta(days=30)
COARSE_KEPT = timedelta(days=400)
FINE_MS = 5 * 60 * 1000
COARSE_MS = 60 * 60 * 1000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _ms(at: datetime) -> int:
    return (at - _EPOCH) // timedelta(milliseconds=1)


def _at(ms: int) -> datetime:
    return _EPOCH + timedelta(milliseconds=ms)


def _pace_ms(target_s: ColumnElement[float]) -> ColumnElement[float]:
    """How long one sample may stand for: three times as long as the engine takes to the next one."""
    return case((target_s < 100, 15_000.0), (target_s > 1200, 180_000.0), else_=target_s * 150.0)


class SampleStore:
    """The history behind the RPO charts."""

    _db: Database

    def add_rpo_samples(self, samples: Sequence[tuple[str, RpoSample]]) -> None:
        """(protection, sample). Samples of protections removed meanwhile are left out."""
        rows = {
            (key, _ms(sample.at)): {
                "protection_id": key,
                "step_ms": 0,
                "at_ms": _ms(sample.at),
                "rpo_s": sample.rpo_s,
                "gap": sample.rpo_s is None,
                "target_s": sample.target_s,
            }
            for key, sample in samples
        }
        if not rows:
            return
        with self._db.write() as connection:
            known = set(connection.execute(select(protections.c.protection_id)).scalars())
            kept = [row for (key, _), row in rows.items() if key in known]
            self._db.upsert(connection, rpo_samples, kept, ["protection_id", "step_ms", "at_ms"])

    def rpo_samples(self, protection_id: str, since: datetime) -> Sequence[RpoSample]:
        """In order of time. A thinned bucket gives its worst known RPO and, if it had one, a gap (None)."""
        query = (
            select(rpo_samples)
            .where(rpo_samples.c.protection_id == protection_id, rpo_samples.c.at_ms >= _ms(since))
            .order_by(rpo_samples.c.at_ms)
        )
        found: list[RpoSample] = []
        with self._db.read() as connection:
            for row in connection.execute(query):
                if row.rpo_s is not None:
                    found.append(RpoSample(_at(row.at_ms), row.rpo_s, row.target_s, row.step_ms / 1000))
                if row.gap:
                    ahead = row.step_ms // 2 if row.rpo_s is not None else 0
                    over_s = (row.step_ms - ahead) / 1000
                    found.append(RpoSample(_at(row.at_ms + ahead), None, row.target_s, over_s))
        return tuple(found)

    def thin_samples(self, now: datetime) -> None:
        """Roll old samples up into buckets and forget the oldest. Idempotent; call it every hour or so."""
        with self._db.write() as connection:
            self._roll_up(connection, 0, FINE_MS, _ms(now - RAW_KEPT))
            self._roll_up(connection, FINE_MS, COARSE_MS, _ms(now - FINE_KEPT))
            connection.execute(delete(rpo_samples).where(rpo_samples.c.at_ms < _ms(now - COARSE_KEPT)))

    def _roll_up(self, connection: Connection, step_ms: int, to_ms: int, before_ms: int) -> None:
        """Whole buckets only, so that a bucket is made once; a straggler makes it worse, never better.

        A bucket that nobody looked at for two thirds of its time has a gap: one good look is not an hour within.
        """
        columns = rpo_samples.c
        old = (columns.step_ms == step_ms, columns.at_ms < before_ms - before_ms % to_ms)
        bucket = columns.at_ms - columns.at_ms % to_ms
        seen_ms = func.count() * (step_ms or _pace_ms(func.min(columns.target_s)))
        had_gap = or_(func.max(case((columns.gap, 1), else_=0)) == 1, seen_ms < to_ms)
        query = (
            select(
                columns.protection_id,
                literal(to_ms).label("step_ms"),
                bucket.label("at_ms"),
                func.max(columns.rpo_s),
                had_gap,
                func.min(columns.target_s),
            )
            .where(*old)
            .group_by(columns.protection_id, bucket)
        )
        into = (sqlite.insert if self._db.is_sqlite else postgresql.insert)(rpo_samples)
        new = into.excluded
        worse: dict[str, Any] = {
            "rpo_s": case((columns.rpo_s > new.rpo_s, columns.rpo_s), else_=func.coalesce(new.rpo_s, columns.rpo_s)),
            "gap": columns.gap | new.gap if self._db.is_sqlite else columns.gap.op("OR")(new.gap),
        }
        names = ["protection_id", "step_ms", "at_ms", "rpo_s", "gap", "target_s"]
        keys = ["protection_id", "step_ms", "at_ms"]
        statement = into.from_select(names, query).on_conflict_do_update(index_elements=keys, set_=worse)
        connection.execute(statement)
        connection.execute(delete(rpo_samples).where(*old))
