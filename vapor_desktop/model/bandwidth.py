"""Which bandwidth limit holds when: the policy's own, or that of a window of the day (UTC)."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta

from vapor_desktop.model.policy import BandwidthWindow, Policy


def limit_at(policy: Policy, at: datetime) -> int | None:
    """Bytes per second at that moment; None: no limit. Of windows that overlap, the first listed holds."""
    now = at.astimezone(UTC).time()
    for window in policy.bandwidth_windows:
        if _holds(window, now):
            return window.bandwidth_bytes_s
    return policy.bandwidth_bytes_s


def until_change_s(policy: Policy, at: datetime) -> float | None:
    """Seconds until the limit may be another; None when it never is."""
    moments = {t for w in policy.bandwidth_windows for t in (w.start, w.end)}
    now = at.astimezone(UTC)
    waits = []
    for moment in moments:
        next_at = datetime.combine(now.date(), moment, tzinfo=UTC)
        if next_at <= now:
            next_at += timedelta(days=1)
        waits.append((next_at - now).total_seconds())
    return min(waits, default=None)


def _holds(window: BandwidthWindow, now: time) -> bool:
    if window.start < window.end:
        return window.start <= now < window.end
    return now >= window.start or now < window.end
