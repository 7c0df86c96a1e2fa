"""Where consoles and engines meet: clocks, what an engine last saw, heart-beats, commands, settings."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta

from pydantic import TypeAdapter
from sqlalchemy import delete, func, insert, select, update

from vapor_desktop.engine.ports import Command, EngineRow, LiveRow
from vapor_desktop.model.errors import NotFound
from vapor_desktop.model.view import Alert
from vapor_desktop.model.wire import Progress
from vapor_desktop.store.database import Database
from vapor_desktop.store.schema import UtcTime, claims, clocks, commands, engines, live, protections, settings
from vapor_desktop.store.schema import alerts as alerts_table

_ALERT = TypeAdapter(Alert)
_Answer = tuple[dict[str, object] | None, dict[str, object] | None]


class CoordinationStore:
    """Several processes, one database."""

    _db: Database

    def save_clock(self, site_id: str, offset_s: float, error_s: float, at: datetime) -> None:
        """A site's measured clock. Raises NotFound for an unknown site."""
        row = {"site_id": site_id, "offset_s": offset_s, "error_s": error_s, "at": at}
        with self._db.write() as connection:
            self._db.upsert(connection, clocks, [row], ["site_id"])

    def clock(self, site_id: str) -> tuple[float, float, datetime] | None:
        """(offset s, error s, measured at), None when never measured."""
        with self._db.read() as connection:
            row = connection.execute(select(clocks).where(clocks.c.site_id == site_id)).first()
        return (row.offset_s, row.error_s, row.at) if row else None

    def save_live(self, rows: Sequence[LiveRow]) -> None:
        """Overwrite what was last seen of these; those of protections removed meanwhile are left out."""
        if not rows:
            return
        with self._db.write() as connection:
            known = set(connection.execute(select(protections.c.protection_id)).scalars())
            kept = [
                {
                    "protection_id": row.protection_id,
                    "at": row.at,
                    "progress": row.progress.model_dump(mode="json") if row.progress else None,
                    "started_at": row.started_at,
                    "next_due_at": row.next_due_at,
                    "source_power": row.source_power,
                }
                for row in rows
                if row.protection_id in known
            ]
            self._db.upsert(connection, live, kept, ["protection_id"])

    def live(self) -> dict[str, LiveRow]:
        """By protection."""
        with self._db.read() as connection:
            rows = connection.execute(select(live)).mappings().all()
        return {
            row["protection_id"]: LiveRow(
                **{**row, "progress": Progress.model_validate(row["progress"]) if row["progress"] else None}
            )
            for row in rows
        }

    def time(self) -> datetime:
        """The one clock that all engines of this database share: heart-beats are written and judged on it."""
        if self._db.is_sqlite:  # a file: all of them are on this machine
            return datetime.now(UTC)
        with self._db.read() as connection:
            return connection.execute(select(func.clock_timestamp(type_=UtcTime))).scalar_one()

    def shared(self) -> bool:
        """May engines of several machines meet here? A file is one machine's."""
        return not self._db.is_sqlite

    def beat(self, engine: EngineRow) -> None:
        """This engine lives."""
        with self._db.write() as connection:
            self._db.upsert(connection, engines, [asdict(engine)], ["engine_id"])

    def engines(self) -> Sequence[EngineRow]:
        """All, lapsed ones too; the newest heart-beat first."""
        with self._db.read() as connection:
            rows = connection.execute(select(engines).order_by(engines.c.heartbeat_at.desc())).mappings().all()
        return tuple(EngineRow(**row) for row in rows)

    def drop_engine(self, engine_id: str) -> None:
        """This engine has ended, and its claims with it. Idempotent."""
        with self._db.write() as connection:
            connection.execute(delete(claims).where(claims.c.engine_id == engine_id))
            connection.execute(delete(engines).where(engines.c.engine_id == engine_id))

    def claims(self) -> dict[str, str]:
        """Protection -> the engine whose work it is."""
        with self._db.read() as connection:
            return {row.protection_id: row.engine_id for row in connection.execute(select(claims))}

    def claim(self, protection_ids: Collection[str], engine_id: str, instead_of: str | None) -> None:
        """Make these this engine's, each if it still is ``instead_of``'s (None: nobody's)."""
        if instead_of is not None:
            statement = (
                update(claims)
                .where(claims.c.protection_id.in_(protection_ids), claims.c.engine_id == instead_of)
                .values(engine_id=engine_id)
            )
            with self._db.write() as connection:
                connection.execute(statement)
            return
        with self._db.write() as connection:
            known = select(protections.c.protection_id).where(protections.c.protection_id.in_(protection_ids))
            rows = [{"protection_id": found, "engine_id": engine_id} for found in connection.execute(known).scalars()]
            self._db.add_missing(connection, claims, rows)

    def unclaim(self, protection_ids: Collection[str], engine_id: str) -> None:
        """Give these back, where they are this engine's. Idempotent."""
        ours = (claims.c.engine_id == engine_id, claims.c.protection_id.in_(protection_ids))
        with self._db.write() as connection:
            connection.execute(delete(claims).where(*ours))

    def forget_engines(self, before: datetime) -> None:
        """Those whose heart has not beaten since: killed long ago."""
        with self._db.write() as connection:
            connection.execute(delete(engines).where(engines.c.heartbeat_at < before))

    def ask(self, verb: str, args: dict[str, object], asked_by: str, valid_s: float) -> int:
        """Leave a command for whichever engine lives; its number. Not taken within ``valid_s``, it is void."""
        now = self.time()
        until = now + timedelta(seconds=valid_s)
        row = {"verb": verb, "args": args, "asked_by": asked_by, "asked_at": now, "expires_at": until}
        with self._db.write() as connection:
            key = connection.execute(insert(commands).values(row).returning(commands.c.command_id)).scalar_one()
        return int(key)

    def take_command(self, engine_id: str, may: Callable[[Command], bool] = lambda _command: True) -> Command | None:
        """The oldest command that nobody has taken, that still holds and that ``may``, now this engine's; or None."""
        untaken = (commands.c.taken_by.is_(None), commands.c.expires_at > self.time())
        waiting = select(commands).where(*untaken).order_by(commands.c.command_id)
        with self._db.read() as connection:
            rows = connection.execute(waiting).all()
        for row in rows:
            command = Command(row.command_id, row.verb, row.args, row.asked_by)
            if not may(command):
                continue
            claim = (
                update(commands)
                .where(commands.c.command_id == row.command_id, commands.c.taken_by.is_(None))
                .values(taken_by=engine_id, taken_at=datetime.now(UTC))
            )
            with self._db.write() as connection:
                if connection.execute(claim).rowcount == 1:
                    return command
        return None

    def withdraw(self, command_id: int) -> bool:
        """Take a command back. False when an engine has it already."""
        statement = (
            update(commands)
            .where(commands.c.command_id == command_id, commands.c.taken_by.is_(None))
            .values(taken_by="withdrawn", taken_at=datetime.now(UTC))
        )
        with self._db.write() as connection:
            return connection.execute(statement).rowcount == 1

    def save_alerts(self, alerts: Mapping[str, Alert]) -> None:
        """All episodes, in place of those before."""
        rows = [{"key": key, "document": _ALERT.dump_python(alert, mode="json")} for key, alert in alerts.items()]
        with self._db.write() as connection:
            connection.execute(delete(alerts_table).where(alerts_table.c.key.not_in(list(alerts))))
            self._db.upsert(connection, alerts_table, rows, ["key"])

    def alerts(self) -> dict[str, Alert]:
        """By key."""
        with self._db.read() as connection:
            rows = connection.execute(select(alerts_table)).all()
        return {row.key: _ALERT.validate_python(row.document, strict=False) for row in rows}

    def answer(self, command_id: int, result: dict[str, object] | None, error: dict[str, object] | None) -> None:
        """The command's outcome. Raises NotFound when there is no such command."""
        statement = (
            update(commands)
            .where(commands.c.command_id == command_id)
            .values(result=result, error=error, answered_at=datetime.now(UTC))
        )
        with self._db.write() as connection:
            if connection.execute(statement).rowcount == 0:
                raise NotFound(f"There is no command {command_id}")

    def answer_of(self, command_id: int) -> _Answer | None:
        """(result, error), None while there is no answer. Raises NotFound when there is no such command."""
        query = select(commands).where(commands.c.command_id == command_id)
        with self._db.read() as connection:
            row = connection.execute(query).first()
        if row is None:
            raise NotFound(f"There is no command {command_id}")
        return None if row.answered_at is None else (row.result, row.error)

    def setting(self, key: str) -> str | None:
        """The value, None when never set."""
        with self._db.read() as connection:
            return connection.execute(select(settings.c.value).where(settings.c.key == key)).scalar()

    def set_setting(self, key: str, value: str) -> None:
        """Add or overwrite."""
        with self._db.write() as connection:
            self._db.upsert(connection, settings, [{"key": key, "value": value}], ["key"])
