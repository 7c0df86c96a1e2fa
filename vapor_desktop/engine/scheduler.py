"""When is which cycle due: pure functions over values and a clock's reading."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from statistics import median

from vapor_desktop.model.errors import Fate
from vapor_desktop.model.policy import Policy

# A point should be replaced before its age is "at risk" (0.8 of the target), not just before it is breached.
TARGET_AGE_RATIO = 0.75
BACKOFF_FIRST_S = 2.0
BACKOFF_LONGEST_S = 300.0
FIRST_GUESS_S = 2.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """One protection, as the scheduler sees it."""

    protection_id: str
    pair: tuple[str, str]
    due_at: datetime
    deadline_at: datetime  # when its RPO is breached
    priority: int


def expected_duration_s(durations_s: Sequence[float]) -> float:
    """What the next cycle will take: the median of the last ones, or the slowest of the last three."""
    if not durations_s:
        return FIRST_GUESS_S
    recent = list(durations_s[:10])
    return max(median(recent), *recent[:3])


def due_at(policy: Policy, current_as_of: datetime | None, expected_s: float, now: datetime) -> datetime:
    """When the next cycle must start (our clock).

    By deadline: when the newest point will reach its target age minus the expected duration. At fixed times of
    day: the next of them after the newest point; a missed one is due at once, and only once.
    """
    if current_as_of is None:
        return now
    if policy.at_times:
        return _next_time_of_day(policy, current_as_of)
    wait_s = TARGET_AGE_RATIO * policy.rpo_target_s - 1.25 * expected_s
    return current_as_of + timedelta(seconds=max(wait_s, 0.0))


def _next_time_of_day(policy: Policy, after: datetime) -> datetime:
    """The earliest fixed time later than ``after`` (UTC)."""
    day = after.astimezone(UTC).date()
    while True:
        for at in policy.at_times:
            moment = datetime.combine(day, at, tzinfo=UTC)
            if moment > after:
                return moment
        day += timedelta(days=1)


def choose(
    candidates: Collection[Candidate], running_pairs: Sequence[tuple[str, str]], now: datetime, per_pair: int
) -> list[Candidate]:
    """Which to start now: due ones, oldest deadline first, then priority; at most ``per_pair`` per site pair."""
    busy: dict[tuple[str, str], int] = {}
    for pair in running_pairs:
        busy[pair] = busy.get(pair, 0) + 1
    chosen = []
    for c in sorted(candidates, key=lambda c: (c.deadline_at, -c.priority, c.protection_id)):
        if c.due_at <= now and busy.get(c.pair, 0) < per_pair:
            busy[c.pair] = busy.get(c.pair, 0) + 1
            chosen.append(c)
    return chosen


def backoff_s(failures: int, fate: Fate, jitter: random.Random) -> float:
    """How long to wait after the Nth failure in a row: doubling, capped, +-25 % so that VMs do not march in step.

    What only a person can mend is tried again rarely; it still is, because a person may mend it elsewhere.
    """
    longest = BACKOFF_LONGEST_S
    base: float = min(BACKOFF_FIRST_S * 2.0 ** min(max(failures - 1, 0), 20), longest)
    if fate is not Fate.RETRY:
        base = max(base, 30.0)
    return base * jitter.uniform(0.75, 1.25)
