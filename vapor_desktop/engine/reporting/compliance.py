"""How much of a range of time a VM was within its RPO target: pure, from the samples that the database keeps.

A sample tells the RPO at one moment; until the next one the RPO grows with the clock. What cannot be told from two
neighbouring samples is unknown, and so is every stretch that nobody looked at: neither counts as within.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from vapor_desktop.engine.ports import RpoSample
from vapor_desktop.model.errors import InvalidRequest

# Longest stretch that one kept sample may stand for; samples from so long before a range still speak into it.
LOOK_BACK = timedelta(hours=1)
# The engine samples every twentieth of the target, between 1 s and 60 s; three missed in a row: nobody looked.
_SHARE, _EVERY_MIN_S, _EVERY_MAX_S, _MISSED, _PACE_MIN_S = 20, 1.0, 60.0, 3, 15.0
_NONE = timedelta(0)


class Held(StrEnum):
    """What is known of the RPO target for a stretch of time. The text is what reports show."""

    WITHIN = "within"
    BREACHED = "breached"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Stretch:
    """One state from ``start`` until ``end``. ``worst_s``: the largest RPO that was seen in it, None if none was."""

    start: datetime
    end: datetime
    held: Held
    worst_s: float | None = None
    target_s: float | None = None


@dataclass(frozen=True, slots=True)
class Compliance:
    """One VM over a range. The three times add up to exactly the range."""

    start: datetime
    end: datetime
    within: timedelta
    breached: timedelta
    unknown: timedelta
    worst_s: float | None
    breaches: tuple[Stretch, ...]

    @property
    def length(self) -> timedelta:
        """The whole range."""
        return self.end - self.start


def compliance(samples: Sequence[RpoSample], start: datetime, end: datetime) -> Compliance:
    """Of one VM. ``samples``: in any order, from ``start - LOOK_BACK`` on. Raises InvalidRequest: not a range."""
    if start >= end:
        raise InvalidRequest("The range of time is empty", why=f"{start.isoformat()} is not before {end.isoformat()}")
    spent = dict.fromkeys(Held, _NONE)
    worst: float | None = None
    breaches: list[Stretch] = []
    for s in stretches(samples, start, end):
        spent[s.held] += s.end - s.start
        worst = _larger(worst, s.worst_s)
        if s.held is Held.BREACHED:
            if breaches and breaches[-1].end == s.start:
                joined = _larger(breaches[-1].worst_s, s.worst_s)
                breaches[-1] = replace(breaches[-1], end=s.end, worst_s=joined)
            else:
                breaches.append(s)
    return Compliance(
        start, end, spent[Held.WITHIN], spent[Held.BREACHED], spent[Held.UNKNOWN], worst, tuple(breaches)
    )


def stretches(samples: Sequence[RpoSample], start: datetime, end: datetime) -> Iterator[Stretch]:
    """The range from its start to its end without a hole or an overlap, in order."""
    ordered = sorted((s for s in samples if s.at < end), key=lambda s: s.at)
    cursor = start
    for n, sample in enumerate(ordered):
        after = ordered[n + 1] if n + 1 < len(ordered) else None
        until = end if after is None else after.at
        for told in _told(sample, after, until):
            a, b = max(told.start, cursor), min(told.end, until, end)
            if a >= b:
                continue
            if cursor < a:
                yield Stretch(cursor, a, Held.UNKNOWN)
            yield replace(told, start=a, end=b)
            cursor = b
    if cursor < end:
        yield Stretch(cursor, end, Held.UNKNOWN)


def every(target_s: float) -> timedelta:
    """How often the engine looks."""
    return timedelta(seconds=min(max(target_s / _SHARE, _EVERY_MIN_S), _EVERY_MAX_S))


def pace(target_s: float) -> timedelta:
    """Two samples further apart than this: nobody looked in between."""
    return max(timedelta(seconds=_PACE_MIN_S), every(target_s) * _MISSED)


def _told(sample: RpoSample, after: RpoSample | None, until: datetime) -> tuple[Stretch, ...]:
    """What a sample tells of the time until the next one."""
    value, target = sample.rpo_s, sample.target_s
    if value is None:
        return ()
    breached = value > target
    if sample.over_s:
        whole = sample.at + timedelta(seconds=sample.over_s)
        # A bucket that has an unknown part too: nobody can tell how much of it was within.
        mixed = after is not None and after.rpo_s is None and after.at < whole
        held = Held.BREACHED if breached else Held.UNKNOWN if mixed else Held.WITHIN
        return (Stretch(sample.at, min(whole, until), held, value, target),)
    if until - sample.at > pace(target):
        # Nobody looked for so long: what was seen speaks for its own turn only.
        after, until = None, sample.at + every(target)
    if breached:
        return (Stretch(sample.at, until, Held.BREACHED, value, target),)
    return _growing(sample, value, after, until)


def _growing(sample: RpoSample, value: float, after: RpoSample | None, until: datetime) -> tuple[Stretch, ...]:
    """Within its target at first; when it would reach it before the next sample, that one tells what came of it."""
    reaches = sample.at + timedelta(seconds=sample.target_s - value)
    within = Stretch(sample.at, min(reaches, until), Held.WITHIN, value, sample.target_s)
    if reaches >= until:
        return (within,)
    if after is not None and after.rpo_s is not None and after.rpo_s > after.target_s:
        return (within, Stretch(reaches, until, Held.BREACHED, after.rpo_s, sample.target_s))
    return (within, Stretch(reaches, until, Held.UNKNOWN))


def _larger(a: float | None, b: float | None) -> float | None:
    return b if a is None else a if b is None else max(a, b)
