"""Alerts: one episode per cause, opened once, closed once. Pure over values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from vapor_desktop.model import drills
from vapor_desktop.model.states import Phase, RpoHealth, Severity
from vapor_desktop.model.view import Alert, ProtectionStatus, SiteStatus

KEEP_CLOSED = timedelta(hours=24)
_SPLIT = {Phase.SPLIT_BRAIN, Phase.SPLIT_BRAIN_RISK}
_BAD_PHASES = {Phase.ERROR}


def conditions(protections: Iterable[ProtectionStatus], sites: Iterable[SiteStatus], now: datetime) -> list[Alert]:
    """What is wrong right now, one alert per cause. ``unknown`` neither opens nor closes an RPO breach."""
    found = []
    for p in protections:
        name = p.protection.vm_name
        if p.rpo_health is RpoHealth.BREACHED:
            found.append(
                Alert(f"rpo:{p.key}", now, None, Severity.CRITICAL, f"RPO breached: {name}", _breach_text(p), p.key)
            )
        if p.mismatch:
            text = "The scrub found data that differs from its digests; the next cycle compares all and repairs it"
            found.append(
                Alert(
                    f"mismatch:{p.key}", now, None, Severity.CRITICAL, f"Damaged recovery point: {name}", text, p.key
                )
            )
        if p.protection.phase in _BAD_PHASES and p.protection.failures >= 2:
            text = p.protection.last_error or p.status_text
            found.append(
                Alert(f"error:{p.key}", now, None, Severity.WARNING, f"Replication fails: {name}", text, p.key)
            )
        if p.protection.phase in _SPLIT:
            text = p.protection.last_error or p.status_text
            title = f"{p.protection.phase.value.capitalize()}: {name}"
            key = f"split:{p.protection.phase.name}:{p.key}"
            found.append(Alert(key, now, None, Severity.CRITICAL, title, text, p.key))
        days = p.protection.policy.drill_days
        if drills.overdue(days, p.protection.drilled_at, p.protection.created_at, now):
            last = p.protection.drilled_at
            text = "No drill has passed yet" if last is None else f"The last drill passed on {last:%Y-%m-%d}"
            text += f"; one was promised every {days} days"
            found.append(Alert(f"drill:{p.key}", now, None, Severity.WARNING, f"Drill overdue: {name}", text, p.key))
        ask_at = p.protection.commit_ask_at
        if p.protection.phase is Phase.PROVISIONAL and ask_at is not None and now >= ask_at:
            text = f"It runs at {p.target_name} since a failover that nobody has committed or rolled back"
            title = f"Commit or roll back: {name}"
            found.append(Alert(f"commit:{p.key}", now, None, Severity.WARNING, title, text, p.key))
    for s in sites:
        if s.reachable is False:
            text = s.error or "It does not answer"
            title = f"{s.site.name} {'cannot be used' if s.refuses else 'is unreachable'}"
            found.append(Alert(f"site:{s.site.site_id}", now, None, Severity.WARNING, title, text))
    return found


def _breach_text(p: ProtectionStatus) -> str:
    target = p.protection.policy.rpo_target_s
    age = f"{p.rpo_now_s:.0f} s" if p.rpo_now_s is not None else "an unknown time"
    cause = f" {p.protection.last_error}." if p.protection.last_error else ""
    return f"The newest recovery point at {p.target_name} is {age} old; the target is {target} s.{cause}"


def episodes(
    before: Mapping[str, Alert], current: Iterable[Alert], undecided: Iterable[str], now: datetime
) -> dict[str, Alert]:
    """The next state of all episodes.

    before: by key. ``undecided``: keys that could not be judged now (RPO unknown): failing to look never clears.
    A closed episode is kept a day; a condition that comes back opens a new one under the same key.
    """
    held = set(undecided)
    seen = {a.key: a for a in current}
    after: dict[str, Alert] = {}
    for key, old in before.items():
        if key in seen and old.closed_at is None:
            fresh = seen.pop(key)
            after[key] = replace(old, body=fresh.body, title=fresh.title, severity=fresh.severity)
        elif key in seen:
            after[key] = seen.pop(key)
        elif old.closed_at is None and key not in held:
            after[key] = replace(old, closed_at=now)
        elif old.closed_at is None or now - old.closed_at < KEEP_CLOSED:
            after[key] = old
    after.update(seen)
    return after


def undecided(protections: Iterable[ProtectionStatus]) -> set[str]:
    """Alert keys that cannot be judged: the RPO is unknown."""
    return {f"rpo:{p.key}" for p in protections if p.rpo_health is RpoHealth.UNKNOWN}
