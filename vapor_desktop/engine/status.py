"""Rows for a console, built from records and one reading of the clock: pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from statistics import median

from vapor_desktop.engine.ports import CycleRecord, LiveRow, PointSummary
from vapor_desktop.engine.scheduler import due_at, expected_duration_s
from vapor_desktop.model import rpo
from vapor_desktop.model.sites import Protection
from vapor_desktop.model.states import Phase, RpoHealth, severity
from vapor_desktop.model.view import ProtectionStatus

LIVE_IS_FRESH = timedelta(seconds=10)
_BUSY = {Phase.INITIAL_SYNC, Phase.SYNCING, Phase.COMPARING}
_WORKED = {"point", "unchanged"}
_OVER = {Phase.PROVISIONAL, Phase.FAILED_OVER, Phase.SPLIT_BRAIN_RISK, Phase.SPLIT_BRAIN}


def status(
    protection: Protection,
    *,
    now: datetime,
    points: PointSummary | None,
    cycles: Sequence[CycleRecord],
    live: LiveRow | None,
    target_clock: tuple[float, float, datetime] | None,
    site_names: Mapping[str, str],
    route: str,
) -> ProtectionStatus:
    """One row. ``target_clock``: (offset s, +- error s, measured at) or None when never measured."""
    newest = points.newest if points else None
    offset = rpo.ClockOffset(target_clock[0], target_clock[1]) if target_clock else None
    as_of = newest.current_as_of if newest else None
    over = protection.phase in _OVER
    age = None if over else rpo.rpo_now_s(now, as_of, offset)
    health = RpoHealth.UNKNOWN if over else rpo.health(age, protection.policy.rpo_target_s, newest is not None)
    worked = [c for c in cycles if c.outcome == "point"]
    durations = [c.duration_s for c in worked]
    fresh = live if live and now - live.at < LIVE_IS_FRESH else None
    due = _due(protection, as_of, cycles, durations, now, offset)
    return ProtectionStatus(
        protection=protection,
        source_name=site_names.get(protection.source_site, protection.source_site[:8]),
        target_name=site_names.get(protection.target_site, protection.target_site[:8]),
        rpo_now_s=age,
        rpo_health=health,
        severity=severity(protection.phase, health),
        last_seq=newest.seq if newest else None,
        last_point_taken_at=newest.taken_at if newest else None,
        current_as_of=as_of,
        point_count=points.count if points else 0,
        oldest_taken_at=points.oldest_taken_at if points else None,
        progress=fresh.progress if fresh else None,
        cycle_started_at=fresh.started_at if fresh else None,
        next_due_at=due,
        last_sent_bytes=worked[0].data_bytes if worked else None,
        last_duration_s=worked[0].duration_s if worked else None,
        attainable_rpo_s=rpo.attainable_rpo_s(median(durations[:10])) if durations else None,
        source_power=fresh.source_power if fresh else (live.source_power if live else None),
        route=route,
        status_text=_text(protection, health),
        mismatch=newest is not None and not newest.verified,
    )


def _due(
    protection: Protection,
    as_of: datetime | None,
    cycles: Sequence[CycleRecord],
    durations: Sequence[float],
    now: datetime,
    offset: rpo.ClockOffset | None,
) -> datetime | None:
    """When the next cycle starts, on our clock; None when none will."""
    if protection.paused or protection.phase in _OVER:
        return None
    ours = as_of - timedelta(seconds=offset.offset_s) if as_of is not None and offset else as_of
    if ours is not None and ours > now + timedelta(seconds=rpo.CLOCK_NOISE_S):
        # The target's clock was set back: our own clock tells when its newest point was made, roughly.
        ours = next((c.started_at for c in cycles if c.outcome in _WORKED), None)
    due = due_at(protection.policy, ours, expected_duration_s(durations), now)
    return max(due, protection.not_before) if protection.not_before else due


def _text(protection: Protection, health: RpoHealth) -> str:
    text = protection.phase.value.capitalize()
    if protection.phase in _OVER:
        return f"{text} · not protected"
    if health is RpoHealth.WITHIN:
        return text
    if health is RpoHealth.NO_POINT and protection.phase in _BUSY:
        return text
    return f"{text} · {'RPO ' if health in {RpoHealth.BREACHED, RpoHealth.UNKNOWN} else ''}{health.value}"
