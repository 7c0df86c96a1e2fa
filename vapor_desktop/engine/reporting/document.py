"""A report as a value: sections of text and tables whose cells keep their kind. Unknown is ``None``, never 0."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from enum import StrEnum

UNKNOWN = "—"
Cell = str | float | int | datetime | timedelta | None


class Is(StrEnum):
    """What a column holds. TIME: aware datetime; DURATION: timedelta; SHARE: 0…1; SECONDS: float."""

    TEXT = "text"
    TIME = "time"
    DURATION = "duration"
    SECONDS = "seconds"
    SHARE = "share"
    COUNT = "count"


@dataclass(frozen=True, slots=True)
class Column:
    """``key``: its name in JSON; ``title``: for people."""

    key: str
    title: str
    kind: Is = Is.TEXT


@dataclass(frozen=True, slots=True)
class Picture:
    """A PNG, and what it shows."""

    png: bytes
    caption: str


@dataclass(frozen=True, slots=True)
class Section:
    """Sentences, then a table (if it has columns), then pictures. ``empty``: told instead of a table without rows."""

    title: str
    text: tuple[str, ...] = ()
    columns: tuple[Column, ...] = ()
    rows: tuple[tuple[Cell, ...], ...] = ()
    empty: str = ""
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """One document. ``start``/``end`` None: it tells of the moment it was made at."""

    kind: str
    title: str
    start: datetime | None
    end: datetime | None
    made_at: datetime
    made_by: str
    versions: tuple[tuple[str, str], ...]
    sections: tuple[Section, ...]

    def facts(self, zone: tzinfo | None) -> tuple[tuple[str, str], ...]:
        """Its head: what range, when and by whom it was made, with which versions."""
        reach: tuple[tuple[str, str], ...] = ()
        if self.start is not None and self.end is not None:
            reach = (("From", time_text(self.start, zone)), ("To", time_text(self.end, zone)))
        made = (("Made", time_text(self.made_at, zone)), ("Made by", self.made_by))
        return (*reach, *made, *self.versions)


def time_text(at: datetime, zone: tzinfo | None) -> str:
    """An absolute time, local and UTC. ``zone`` None: the machine's."""
    return f"{local_text(at, zone)} ({utc_text(at)})"


def local_text(at: datetime, zone: tzinfo | None) -> str:
    """As in "2026-11-23 11:00:00 +0100"."""
    return f"{at.astimezone(zone):%Y-%m-%d %H:%M:%S %z}"


def utc_text(at: datetime) -> str:
    """As in "2026-11-23 10:00:00 UTC"."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def cell_text(value: Cell, kind: Is, zone: tzinfo | None) -> str:
    """For people."""
    if value is None:
        return UNKNOWN
    if isinstance(value, datetime):
        return time_text(value, zone)
    if isinstance(value, timedelta):
        return duration_text(value.total_seconds())
    if kind is Is.SECONDS and not isinstance(value, str):
        return duration_text(float(value))
    if kind is Is.SHARE and not isinstance(value, str):
        return share_text(float(value))
    return str(value)


def share_text(share: float) -> str:
    """A share in percent; never rounded to all, nor to nothing, when it is not."""
    percent = round(share * 100, 2)
    if percent >= 100 and share < 1:
        return "> 99.99 %"
    if percent <= 0 and share > 0:
        return "< 0.01 %"
    return f"{percent:.2f} %"


def duration_text(seconds: float) -> str:
    """As in "3 d 4 h", "12 min 5 s", "7.5 s"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    left, parts = round(seconds), []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts)
