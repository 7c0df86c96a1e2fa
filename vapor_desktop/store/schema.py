"""The tables. A change here needs a revision in ``migrations/versions``; a test compares the two.

Sites and protections are kept as the JSON of their model values: the database is a cache of what the
sites say, and a new field with a default needs no migration. What is searched for has its own column.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
)


class UtcTime(TypeDecorator[datetime]):
    """Aware in, aware (UTC) out. SQLite keeps no zone, so UTC is what is written there."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuses a naive time: whose clock it is on is not known."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"a time without a zone: {value!r}")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Aware, UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


# Integer keys that count by themselves: SQLite does that for INTEGER only.
_COUNTING = BigInteger().with_variant(Integer, "sqlite")
_CASCADE: dict[str, Any] = {"ondelete": "CASCADE"}

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

sites = Table(
    "sites",
    metadata,
    Column("site_id", String, primary_key=True),
    Column("name", String, nullable=False),
    Column("document", JSON, nullable=False),
)

pairs = Table(
    "pairs",
    metadata,
    Column("site_a", String, ForeignKey("sites.site_id", **_CASCADE), primary_key=True),
    Column("site_b", String, ForeignKey("sites.site_id", **_CASCADE), primary_key=True),
    Column("route", String, nullable=False),
)

# No foreign key to sites: a console that pairs with the surviving site alone must hold protections whose
# source it has never seen.
protections = Table(
    "protections",
    metadata,
    Column("protection_id", String, primary_key=True),
    Column("vm_uuid", String, nullable=False, index=True),
    Column("version", Integer, nullable=False),
    Column("document", JSON, nullable=False),
)

_OF_PROTECTION = "protections.protection_id"

points = Table(
    "points",
    metadata,
    Column("protection_id", String, ForeignKey(_OF_PROTECTION, **_CASCADE), primary_key=True),
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("taken_at", UtcTime, nullable=False),
    Column("current_as_of", UtcTime, nullable=False),
    Column("consistency", String, nullable=False),
    Column("bytes_sent", BigInteger, nullable=False),
    Column("pins", JSON, nullable=False),
    Column("verified", Boolean, nullable=False),
    Column("proven_at", UtcTime),
)

cycles = Table(
    "cycles",
    metadata,
    Column("cycle_id", _COUNTING, primary_key=True),
    Column("protection_id", String, ForeignKey(_OF_PROTECTION, **_CASCADE), nullable=False),
    Column("started_at", UtcTime, nullable=False),
    Column("duration_s", Float, nullable=False),
    Column("outcome", String, nullable=False),
    Column("seq", Integer),
    Column("data_bytes", BigInteger, nullable=False),
    Column("wire_bytes", BigInteger, nullable=False),
    Column("mode", String, nullable=False),
    Column("error_code", String),
    Column("error", Text),
    Index(None, "protection_id", "started_at"),
)

# History outlives what it is about, so no foreign keys.
events = Table(
    "events",
    metadata,
    Column("event_id", _COUNTING, primary_key=True),
    Column("at", UtcTime, nullable=False, index=True),
    Column("kind", String, nullable=False),
    Column("protection_id", String),
    Column("site_id", String),
    Column("severity", Integer, nullable=False),
    Column("text", Text, nullable=False),
    Index(None, "protection_id", "at"),
)

# step_ms 0: as measured. Else a bucket beginning at at_ms: the worst known RPO in it, and whether it was
# unknown at some time in it. Milliseconds since 1970, so that every database can do the arithmetic.
rpo_samples = Table(
    "rpo_samples",
    metadata,
    Column("protection_id", String, ForeignKey(_OF_PROTECTION, **_CASCADE), primary_key=True),
    Column("step_ms", Integer, primary_key=True, autoincrement=False),
    Column("at_ms", BigInteger, primary_key=True, autoincrement=False),
    Column("rpo_s", Float),
    Column("gap", Boolean, nullable=False),
    Column("target_s", Float, nullable=False),
    Index(None, "step_ms", "at_ms"),
)

clocks = Table(
    "clocks",
    metadata,
    Column("site_id", String, ForeignKey("sites.site_id", **_CASCADE), primary_key=True),
    Column("offset_s", Float, nullable=False),
    Column("error_s", Float, nullable=False),
    Column("at", UtcTime, nullable=False),
)

live = Table(
    "live",
    metadata,
    Column("protection_id", String, ForeignKey(_OF_PROTECTION, **_CASCADE), primary_key=True),
    Column("at", UtcTime, nullable=False),
    Column("progress", JSON(none_as_null=True)),
    Column("started_at", UtcTime),
    Column("next_due_at", UtcTime),
    Column("source_power", String),
)

engines = Table(
    "engines",
    metadata,
    Column("engine_id", String, primary_key=True),
    Column("host", String, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("kind", String, nullable=False),
    Column("heartbeat_at", UtcTime, nullable=False),
)

# Whose work a protection is. Held from the first cycle on, given back by its engine or taken from a dead one.
claims = Table(
    "claims",
    metadata,
    Column("protection_id", String, ForeignKey(_OF_PROTECTION, **_CASCADE), primary_key=True),
    Column("engine_id", String, nullable=False),
)

commands = Table(
    "commands",
    metadata,
    Column("command_id", _COUNTING, primary_key=True),
    Column("verb", String, nullable=False),
    Column("args", JSON, nullable=False),
    Column("asked_by", String, nullable=False),
    Column("asked_at", UtcTime, nullable=False),
    Column("expires_at", UtcTime),  # nobody takes it later: the one who asked has long gone
    Column("taken_by", String, index=True),
    Column("taken_at", UtcTime),
    Column("result", JSON(none_as_null=True)),
    Column("error", JSON(none_as_null=True)),
    Column("answered_at", UtcTime),
    sqlite_autoincrement=True,  # a number is never given twice, also after old commands were deleted
)

# Episodes, so that every console tells them, and a restart forgets none.
alerts = Table(
    "alerts",
    metadata,
    Column("key", String, primary_key=True),
    Column("document", JSON, nullable=False),
)

# The journal of operations, whole as the JSON of its model value. History outlives what it is about.
operations = Table(
    "operations",
    metadata,
    Column("operation_id", String, primary_key=True),
    Column("vm_uuid", String, nullable=False),
    Column("started_at", UtcTime, nullable=False, index=True),
    # The VM while it is open, else null: unique, so that a VM has one open operation at most.
    Column("open_vm", String, unique=True),
    Column("version", Integer, nullable=False),
    Column("document", JSON, nullable=False),
)

# Copies of what the targets keep, tombstones too. ``found``: what the engine last found of its readiness.
plans = Table(
    "plans",
    metadata,
    Column("plan_id", String, primary_key=True),
    Column("name", String, nullable=False),
    Column("version", Integer, nullable=False),
    Column("document", JSON, nullable=False),
    Column("found", JSON(none_as_null=True)),
)

settings = Table(
    "settings",
    metadata,
    Column("key", String, primary_key=True),
    Column("value", Text, nullable=False),
)
