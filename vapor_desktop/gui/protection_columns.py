"""The columns of the protection table: what each shows, sorts by and says aloud. No Qt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from functools import cached_property
from operator import attrgetter
from typing import Any

from vapor_desktop.gui import words
from vapor_desktop.gui.icons import SEVERITY_WORDS
from vapor_desktop.model.drills import overdue
from vapor_desktop.model.states import DrillState, Phase, RpoHealth, Severity, Verification
from vapor_desktop.model.view import ProtectionStatus, VmStatus

Key = tuple[Any, ...]
LAST: Key = (1,)  # unknown sorts last, whatever the value's type


@dataclass(frozen=True)
class Row:
    """One line: a protection, or a VM that nothing protects. ``now`` is the snapshot's moment."""

    key: str
    name: str
    now: datetime
    status: ProtectionStatus | None = None
    vm: VmStatus | None = None

    @classmethod
    def of_protection(cls, status: ProtectionStatus, now: datetime) -> Row:
        """A protected VM."""
        return cls(status.key, status.protection.vm_name, now, status=status)

    @classmethod
    def of_vm(cls, vm: VmStatus, now: datetime) -> Row:
        """A VM that nothing protects."""
        return cls(f"vm:{vm.site_id}:{vm.vm_uuid}", vm.name, now, vm=vm)

    @property
    def severity(self) -> Severity:
        """Worst-first order and icon."""
        return self.status.severity if self.status else Severity.IDLE

    @property
    def ratio(self) -> float | None:
        """RPO now over target; None when unknown."""
        if self.status is None or self.status.rpo_now_s is None:
            return None
        return self.status.rpo_now_s / self.status.protection.policy.rpo_target_s

    @property
    def share(self) -> float | None:
        """Progress of the running cycle, 0..1."""
        p = self.status.progress if self.status else None
        return None if p is None or p.total_bytes <= 0 else min(1.0, p.done_bytes / p.total_bytes)

    @cached_property
    def haystack(self) -> str:
        """What the filter text is looked for in."""
        if self.status is not None:
            s = self.status
            parts = [s.status_text, s.source_name, s.target_name, s.protection.vm_uuid, s.protection.last_error or ""]
        elif self.vm is not None:
            parts = ["not protected", self.vm.site_name, self.vm.vm_uuid, self.vm.state]
        else:
            parts = []
        return "\n".join([self.name, *parts]).casefold()


class Chip(StrEnum):
    """The quick filters above the table."""

    ALL = "All"
    ATTENTION = "Needs attention"
    BREACHED = "RPO breached"
    RUNNING = "Running"
    PAUSED = "Paused"
    UNPROTECTED = "Not protected"

    def takes(self, row: Row) -> bool:
        """Whether the row belongs under this chip."""
        status = row.status
        if self is Chip.UNPROTECTED or status is None:
            return status is None and self is Chip.UNPROTECTED
        if self is Chip.ATTENTION:
            return row.severity >= Severity.WARNING
        if self is Chip.BREACHED:
            return status.rpo_health is RpoHealth.BREACHED
        if self is Chip.RUNNING:
            return status.cycle_started_at is not None
        return status.protection.paused if self is Chip.PAUSED else True


def _status(row: Row) -> str:
    if row.status is None:
        return "not protected"
    drill = row.status.protection.drill
    return row.status.status_text + ("" if drill is DrillState.NONE else f" · drill {drill.value}")


def _rpo(row: Row) -> str:
    return words.duration(row.status.rpo_now_s if row.status else None)


def _target(row: Row) -> str:
    return words.duration(row.status.protection.policy.rpo_target_s) if row.status else words.UNKNOWN


def _last_point(row: Row) -> str:
    return words.local(row.status.last_point_taken_at if row.status else None, row.now)


def _progress(row: Row) -> str:
    status = row.status
    if status is None or status.cycle_started_at is None:
        return ""
    p = status.progress
    if p is None:
        return f"starting, {words.duration((row.now - status.cycle_started_at).total_seconds())}"
    if p.total_bytes <= 0:
        return f"{words.size(p.done_bytes)} · {words.rate(p.rate_bytes_s)}"
    left = max(0, p.total_bytes - p.done_bytes)
    eta = words.duration(left / p.rate_bytes_s) if p.rate_bytes_s > 0 else words.UNKNOWN
    percent = 100 * p.done_bytes // p.total_bytes
    return f"{percent} % · {words.size(left)} left · {words.rate(p.rate_bytes_s)} · {eta}"


def _next(row: Row) -> str:
    status = row.status
    if status is None:
        return words.UNKNOWN
    if status.protection.phase in (Phase.FAILED_OVER, Phase.PROVISIONAL):
        return words.UNKNOWN
    if status.protection.paused:
        return "paused"
    if status.cycle_started_at is not None:
        return "running"
    wait = status.protection.not_before
    if status.protection.failures and wait is not None and wait > row.now:
        return f"retry {words.until(wait, row.now)}"
    return words.until(status.next_due_at, row.now)


def _route(row: Row) -> str:
    if row.status is not None:
        relay = " (relay)" if row.status.route == "relay" else ""
        return f"{row.status.source_name} → {row.status.target_name}{relay}"
    return row.vm.site_name if row.vm else words.UNKNOWN


def _last_sent(row: Row) -> str:
    if row.status is None or row.status.last_sent_bytes is None:
        return words.UNKNOWN
    return f"{words.size(row.status.last_sent_bytes)} in {words.duration(row.status.last_duration_s)}"


def _points(row: Row) -> str:
    if row.status is None:
        return words.UNKNOWN
    if row.status.oldest_taken_at is None:
        return str(row.status.point_count)
    age = words.duration((row.now - row.status.oldest_taken_at).total_seconds())
    return f"{row.status.point_count} (oldest {age})"


def _verified(row: Row) -> str:
    if row.status is None:
        return words.UNKNOWN
    p = row.status.protection
    if overdue(p.policy.drill_days, p.drilled_at, p.created_at, row.now):
        return Verification.OVERDUE.value
    return p.verification.value


def _power(row: Row) -> str:
    state = row.status.source_power if row.status else (row.vm.state if row.vm else None)
    return state or words.UNKNOWN


def _error(row: Row) -> str:
    if row.status is not None:
        return (row.status.protection.last_error or "").partition("\n")[0]
    return row.vm.reason if row.vm else ""


def _attainable(row: Row) -> str:
    return words.duration(row.status.attainable_rpo_s if row.status else None)


def _uuid(row: Row) -> str:
    return row.status.protection.vm_uuid if row.status else (row.vm.vm_uuid if row.vm else "")


def _number(pick: Callable[[ProtectionStatus], float | None]) -> Callable[[Row], Key]:
    def sort(row: Row) -> Key:
        value = pick(row.status) if row.status else None
        return LAST if value is None else (0, value)

    return sort


def _moment(pick: Callable[[ProtectionStatus], datetime | None]) -> Callable[[Row], Key]:
    def sort(row: Row) -> Key:
        value = pick(row.status) if row.status else None
        return LAST if value is None else (0, value.timestamp())

    return sort


def _text(show: Callable[[Row], str]) -> Callable[[Row], Key]:
    return lambda row: (0, words.natural(show(row)))


def worst_first(row: Row) -> Key:
    """Ascending = worst first. The ratio counts in steps, so that rows do not dance every second."""
    rank = -int(row.severity)
    if row.status is None:
        return (rank, 1, 0)
    unknown_first = 0 if row.ratio is None and row.severity >= Severity.WARNING else 1
    step = -min(40, int((row.ratio or 0.0) * 4))
    return (rank, 0, unknown_first, step)


def _severity_said(row: Row) -> str:
    return f"{SEVERITY_WORDS[row.severity]}: {_status(row)}"


def _rpo_said(row: Row) -> str:
    if row.status is None:
        return "not protected, no recovery point objective"
    said = f"target {_target(row)}"
    if row.status.rpo_now_s is None:
        return f"RPO {row.status.rpo_health.value}, {said}"
    return f"RPO {row.status.rpo_health.value}, {_rpo(row)}, {said}"


@dataclass(frozen=True, slots=True)
class Column:
    """One column. ``sort`` returns a key by value, never by text; ``lively`` ones change by mere time."""

    key: str
    header: str
    show: Callable[[Row], str]
    sort: Callable[[Row], Key]
    width: int
    hidden: bool = False
    right: bool = False
    lively: bool = False
    said: Callable[[Row], str] | None = None
    help: str = ""

    def spoken(self, row: Row) -> str:
        """The cell for a screen reader, in words."""
        if self.said is not None:
            return self.said(row)
        text = self.show(row)
        return f"{self.header}: {'unknown' if text == words.UNKNOWN else text or 'none'}"


COLUMNS: tuple[Column, ...] = (
    Column("sev", "", lambda row: "", worst_first, 30, said=_severity_said, help="Severity; sorts worst first"),
    Column("name", "VM", lambda row: row.name, _text(lambda row: row.name), 140, said=lambda row: row.name),
    Column("status", "Status", _status, worst_first, 170),
    Column(
        "rpo_now",
        "RPO now",
        _rpo,
        _number(lambda s: s.rpo_now_s),
        110,
        lively=True,
        said=_rpo_said,
        help="How much data would be lost now: the age of the newest recovery point",
    ),
    Column("rpo_target", "RPO target", _target, _number(lambda s: s.protection.policy.rpo_target_s), 84, right=True),
    Column("last_point", "Last point", _last_point, _moment(lambda s: s.last_point_taken_at), 90),
    Column("progress", "Progress", _progress, lambda row: (0, -(row.share or -1.0)), 240, lively=True),
    Column("next_run", "Next cycle", _next, _moment(lambda s: s.next_due_at), 80, lively=True),
    Column("route", "From → to", _route, _text(_route), 120),
    Column("last_sent", "Last sent", _last_sent, _number(lambda s: s.last_sent_bytes), 110, right=True),
    Column("points", "Points", _points, _number(lambda s: s.point_count), 130, lively=True),
    Column("verified", "Last drill", _verified, _text(_verified), 100, hidden=True),
    Column("power", "Source power", _power, _text(_power), 90, hidden=True),
    Column("attainable", "Attainable RPO", _attainable, _number(lambda s: s.attainable_rpo_s), 100, True, True),
    Column("fails", "Failures in a row", lambda row: str(row.status.protection.failures) if row.status else "",
           _number(lambda s: s.protection.failures), 70, True, True),
    Column("epoch", "Epoch", lambda row: str(row.status.protection.epoch_number) if row.status else "",
           _number(lambda s: s.protection.epoch_number), 60, True, True),
    Column("error", "Last error", _error, _text(_error), 220, hidden=True),
    Column("uuid", "UUID", _uuid, _text(_uuid), 260, hidden=True),
)  # fmt: skip
INDEX = {column.key: n for n, column in enumerate(COLUMNS)}

_static = attrgetter(
    "protection", "source_name", "target_name", "rpo_health", "severity", "last_seq", "last_point_taken_at",
    "point_count", "progress", "cycle_started_at", "next_due_at", "last_sent_bytes", "last_duration_s",
    "attainable_rpo_s", "source_power", "route", "status_text",
)  # fmt: skip
_LIVELY = tuple(n for n, column in enumerate(COLUMNS) if column.lively)
_SETTLED = tuple(n for n, column in enumerate(COLUMNS) if not column.lively)


def _stamp(row: Row, column: int) -> object:
    if COLUMNS[column].key == "rpo_now":
        return row.status and (_rpo(row), row.status.rpo_health, int((row.ratio or 0.0) * 50))
    if COLUMNS[column].key == "sev":
        return row.severity
    return COLUMNS[column].show(row)


def changed_columns(old: Row, new: Row) -> list[int]:
    """The columns whose look differs. Cheap for a row of which only time has passed."""
    lively = [n for n in _LIVELY if _stamp(old, n) != _stamp(new, n)]
    if old.status is None or new.status is None:
        same = old.vm == new.vm and old.status is new.status
    else:
        same = bool(_static(old.status) == _static(new.status))
    same = same and (new.now - old.now) < timedelta(hours=1)
    return lively if same else sorted([*lively, *(n for n in _SETTLED if _stamp(old, n) != _stamp(new, n))])
