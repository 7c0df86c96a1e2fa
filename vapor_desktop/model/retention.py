"""Which recovery points are kept: the newest N, then the last of each of H hours, then of each of D days.

A point is forgotten by merging the next one into its file, so it goes only when both are unpinned.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime, time, timedelta

from vapor_desktop.model.errors import InvalidRequest
from vapor_desktop.model.manifest import PointEntry
from vapor_desktop.model.policy import Policy, Retention

CHAIN_LIMIT = 32
# Deeper chains do not start there [facts/libvirt 0.11]; versions as virConnectGetLibVersion gives them.
CHAIN_LIMIT_SHALLOW = 16
_SHALLOW_FROM, _SHALLOW_TO = 10_008_000, 12_000_000


def chain_limit(libvirt_version: int | None) -> int:
    """Files that a chain may have at a target; unknown versions get the lower limit.

    libvirt_version: major * 1,000,000 + minor * 1,000 + release.
    """
    if libvirt_version is None or _SHALLOW_FROM <= libvirt_version < _SHALLOW_TO:
        return CHAIN_LIMIT_SHALLOW
    return CHAIN_LIMIT


def chain_limit_of(libvirt_version: str | None) -> int:
    """The same for a version as a site tells it ("11.3.0"); None, or what is no version, gets the lower limit."""
    parts = (libvirt_version or "").split(".")
    if len(parts) < 2 or not all(part.isdecimal() for part in parts[:2]):
        return chain_limit(None)
    return chain_limit(int(parts[0]) * 1_000_000 + int(parts[1]) * 1_000)


def kept_points(retention: Retention) -> int:
    """How many points a retention keeps in the long run."""
    return retention.newest + retention.hourly + retention.daily


def check_fits(retention: Retention, limit: int) -> None:
    """Raises InvalidRequest unless the kept points and the overlay on top of them fit into a chain."""
    count = kept_points(retention)
    if count + 1 > limit:
        raise InvalidRequest(
            f"{count} recovery points and the one being received do not fit: "
            f"the target starts chains of at most {limit} files",
            fix=f"Keep at most {limit - 1} points in all",
        )


def longest_gap_s(at_times: Sequence[time]) -> int:
    """The longest wait between two of these times of day, over midnight too; 24 h for a single one."""
    day = 24 * 3600
    seconds = sorted({t.hour * 3600 + t.minute * 60 + t.second for t in at_times})
    gaps = [b - a for a, b in zip(seconds, [*seconds[1:], seconds[0] + day], strict=True)] if seconds else []
    return max(gaps, default=0)


def interval_s(policy: Policy) -> float:
    """How far apart points are at most, when all goes well: by the RPO target, or by the times of day."""
    return float(longest_gap_s(policy.at_times) or policy.rpo_target_s)


def reach(retention: Retention, rpo_target_s: float) -> timedelta:
    """How far back the oldest kept point reaches at least, with a point every ``rpo_target_s``, in the long run."""
    seconds = (retention.newest - 1) * rpo_target_s
    for count, period_s in ((retention.hourly, 3600.0), (retention.daily, 86400.0)):
        if count:
            seconds += max(count * rpo_target_s, (count - 1) * period_s)
    return timedelta(seconds=seconds)


def pinned(points: Sequence[PointEntry]) -> set[int]:
    """Numbers of living points that carry a pin, and of the newest proven one, which is pinned by itself."""
    living = [p for p in points if not p.dead]
    out = {p.seq for p in living if p.pins}
    proven = [p.seq for p in living if p.proven_at is not None]
    return out | set(proven[-1:])


def plan(
    points: Sequence[PointEntry],
    retention: Retention,
    now: datetime,
    pinned_elsewhere: Collection[int] = (),
    refused: Collection[int] = (),
    *,
    chain_limit: int = CHAIN_LIMIT_SHALLOW,
) -> list[int]:
    """Numbers of the points to drop now, in the order in which to drop them (oldest first).

    points: the manifest's, oldest first. now: the clock of ``taken_at``; a point from the future counts as
    of now. pinned_elsewhere: also not to be touched. refused: what the site would not drop just now (something hangs
    on a file of that merge): they stay, their neighbours may go. The newest is never among them. When the pins
    leave more points than a chain may hold, the oldest that can go go as well.
    """
    living = [p for p in points if not p.dead]
    fixed = pinned(living) | set(pinned_elsewhere)
    stays = set(refused)
    keep = _kept(living, retention, now)
    alive = [p.seq for p in living]
    dropped: list[int] = []
    for seq in [p.seq for p in living if p.seq not in keep]:
        if seq not in stays and _droppable(alive, seq, fixed):
            alive.remove(seq)
            dropped.append(seq)
    while len(alive) + 1 > chain_limit:
        oldest = next((s for s in alive if s not in stays and _droppable(alive, s, fixed)), None)
        if oldest is None:
            break
        alive.remove(oldest)
        dropped.append(oldest)
    return dropped


def _droppable(alive: Sequence[int], seq: int, fixed: Collection[int]) -> bool:
    at = alive.index(seq)
    return at + 1 < len(alive) and seq not in fixed and alive[at + 1] not in fixed


def _kept(living: Sequence[PointEntry], retention: Retention, now: datetime) -> set[int]:
    keep = {p.seq for p in living[-retention.newest :]}
    for count, period in ((retention.hourly, _hour), (retention.daily, _day)):
        keep |= _last_of_each(living, keep, count, period, now)
    return keep


def _last_of_each(
    living: Sequence[PointEntry], keep: Collection[int], count: int, period: Callable[[datetime], str], now: datetime
) -> set[int]:
    """The last point of each of ``count`` periods, counted only where it is not kept already."""
    found: set[int] = set()
    before: str | None = None
    for point in reversed(living):
        if len(found) == count:
            break
        this = period(min(point.taken_at, now).astimezone(UTC))
        if this != before:
            before = this
            if point.seq not in keep:
                found.add(point.seq)
    return found


def _hour(at: datetime) -> str:
    return at.strftime("%Y-%m-%d %H")


def _day(at: datetime) -> str:
    return at.strftime("%Y-%m-%d")
