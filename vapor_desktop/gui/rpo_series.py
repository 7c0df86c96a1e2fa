"""RPO samples as what the graph draws: a line with gaps, breaches, unknown stretches. Numpy, no Qt.

A gap is where the RPO was unknown, or where nobody looked (no engine ran): it is never drawn as a line.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from vapor_desktop.engine.ports import Event, RpoSample
from vapor_desktop.engine.reporting.compliance import pace

Floats = NDArray[np.float64]
Span = tuple[float, float]
Marks = tuple[tuple[float, str], ...]
MOST_POINTS = 4000
# What changed a VM's course, by the history's kind of line, and the word it gets in the graph.
MARKS = {
    "protected": "protected",
    "paused": "paused",
    "resumed": "resumed",
    "drill-running": "drill",
    "drill-ended": "drill ended",
    "migrated": "migrated",
    "failed-over": "failed over",
    "rolled-back": "rolled back",
    "committed": "committed",
    "reprotected": "reprotected",
    "split-brain": "split brain",
    "resolved": "resolved",
}
MOST_MARKS = 24
ROOM = timedelta(minutes=10)


def _empty() -> Floats:
    return np.empty(0)


@dataclass(frozen=True)
class Series:
    """Times are Unix seconds, values seconds of RPO; NaN parts the line."""

    times: Floats = field(default_factory=_empty)
    values: Floats = field(default_factory=_empty)
    targets: Floats = field(default_factory=_empty)
    breaches: tuple[Span, ...] = ()
    gaps: tuple[Span, ...] = ()
    samples: int = 0

    @property
    def highest(self) -> float:
        """The largest known value; 0 when there is none."""
        known = self.values[np.isfinite(self.values)]
        return float(known.max()) if known.size else 0.0

    def at(self, when: float) -> tuple[float, float | None, float] | None:
        """(time, RPO or None, target) of the sample nearest to a moment."""
        if not self.times.size:
            return None
        n = int(np.abs(self.times - when).argmin())
        value = float(self.values[n])
        return float(self.times[n]), None if np.isnan(value) else value, float(self.targets[n])


def marks(events: Iterable[Event], since: datetime, until: datetime) -> Marks:
    """(Unix seconds, word) of the newest that fall between two moments, oldest first."""
    found = sorted((e.at.timestamp(), MARKS[e.kind]) for e in events if e.kind in MARKS and since <= e.at <= until)
    return tuple(found[-MOST_MARKS:])


def shown_from(since: datetime, created_at: datetime | None, until: datetime) -> datetime:
    """Where the picture begins: not before the VM was protected, but with room for ten minutes."""
    return since if created_at is None else max(since, min(created_at, until - ROOM))


def build(samples: Sequence[RpoSample], since: datetime, until: datetime, most: int = MOST_POINTS) -> Series:
    """The series between two moments, thinned to about ``most`` points but never losing a peak.

    A sample lasts until the next one, but at most for its own stretch and three looks of the engine; after that
    nobody looked. Old samples are kept for longer stretches than new ones, so each has a length of its own.
    """
    start, end = since.timestamp(), until.timestamp()
    if not samples:
        return Series(gaps=((start, end),))
    times = np.array([s.at.timestamp() for s in samples])
    values = np.array([np.nan if s.rpo_s is None else s.rpo_s for s in samples], dtype=np.float64)
    targets = np.array([s.target_s for s in samples], dtype=np.float64)
    order = np.argsort(times, kind="stable")
    times, values, targets = times[order], values[order], targets[order]
    lasts = np.array([s.over_s for s in samples], dtype=np.float64)[order] + _paces(targets)
    gaps = _gaps(times, values, lasts, start, end)
    with np.errstate(invalid="ignore"):
        breached = values > targets
    breaches = _spans(times, breached, lasts)
    times, values, targets = _part(times, values, targets, lasts)
    thin_t, thin_v, thin_g = _thin(times, values, targets, most)
    return Series(thin_t, thin_v, thin_g, breaches, gaps, len(samples))


def _paces(targets: Floats) -> Floats:
    """Of each sample the seconds after which somebody should have looked again."""
    known, at = np.unique(targets, return_inverse=True)
    return np.array([pace(float(target)).total_seconds() for target in known])[at]


def _spans(times: Floats, on: NDArray[np.bool_], lasts: Floats) -> tuple[Span, ...]:
    """Stretches where ``on`` holds, each reaching to the sample that ended it. ``lasts``: see ``build``."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], on, [False])).astype(np.int8)))
    found: list[Span] = []
    for first, after in zip(edges[::2], edges[1::2], strict=True):
        reached = after < times.size and times[after] - times[after - 1] <= lasts[after - 1]
        last = times[after] if reached else times[after - 1]
        found.append((float(times[first]), float(last)))
    return tuple(found)


def _gaps(times: Floats, values: Floats, lasts: Floats, start: float, end: float) -> tuple[Span, ...]:
    unknown = list(_spans(times, np.isnan(values), lasts))
    holes = np.flatnonzero(np.diff(times) > lasts[:-1])
    unknown += [(float(times[n]), float(times[n + 1])) for n in holes]
    if times[0] - start > lasts[0]:
        unknown.append((start, float(times[0])))
    if end - times[-1] > lasts[-1]:
        unknown.append((float(times[-1]), end))
    return tuple(_merged(unknown))


def _merged(spans: Iterable[Span]) -> list[Span]:
    merged: list[Span] = []
    for a, b in sorted(spans):
        if merged and a <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(b, merged[-1][1]))
        else:
            merged.append((a, b))
    return merged


def _part(times: Floats, values: Floats, targets: Floats, lasts: Floats) -> tuple[Floats, Floats, Floats]:
    """A NaN in each hole, so that no line crosses it."""
    holes = np.flatnonzero(np.diff(times) > lasts[:-1])
    middles = (times[holes] + times[holes + 1]) / 2
    return (
        np.insert(times, holes + 1, middles),
        np.insert(values, holes + 1, np.nan),
        np.insert(targets, holes + 1, targets[holes]),
    )


def _thin(times: Floats, values: Floats, targets: Floats, most: int) -> tuple[Floats, Floats, Floats]:
    """Of each bucket its lowest, its highest and (if there is one) its first unknown sample."""
    if times.size <= most:
        return times, values, targets
    size = -(-times.size * 2 // most)
    keep: list[int] = []
    for begin in range(0, times.size, size):
        part = values[begin : begin + size]
        known = np.flatnonzero(np.isfinite(part))
        picks = (
            {begin + int(known[part[known].argmin()]), begin + int(known[part[known].argmax()])}
            if known.size
            else set()
        )
        if known.size < part.size:
            picks.add(begin + int(np.flatnonzero(np.isnan(part))[0]))
        keep.extend(sorted(picks))
    at = np.array(keep)
    return times[at], values[at], targets[at]
