"""Which notifications an alert deserves. Pure: alerts and the time in, notices out.

Once per episode (one opening of one cause); recovery always told; an escalation never suppressed; more than
three new ones within a minute become one line; acknowledging silences reminders, snoozing delays one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from vapor_desktop.model.states import Severity
from vapor_desktop.model.view import Alert

GROUP_WINDOW = timedelta(seconds=60)
GROUP_ABOVE = 3
REMIND_EVERY = timedelta(hours=4)
SNOOZE = timedelta(hours=1)
FORGET_AFTER = timedelta(days=7)
GROUP_SLOT = "group"


class Urgency(StrEnum):
    """As the desktop understands it."""

    LOW = "low"
    NORMAL = "normal"
    CRITICAL = "critical"


@dataclass(frozen=True, slots=True)
class Notice:
    """One notification. A later notice of the same ``slot`` replaces it on the screen."""

    slot: str
    title: str
    body: str
    urgency: Urgency
    protection_id: str | None = None
    keys: tuple[str, ...] = ()  # the alerts it speaks of
    closed: bool = False


@dataclass(slots=True)
class _Told:
    opened_at: datetime
    severity: int
    told_at: datetime
    closed: bool = False
    acknowledged: bool = False
    snoozed_until: datetime | None = None


@dataclass(slots=True)
class Episodes:
    """Remembers what was told."""

    told: dict[str, _Told] = field(default_factory=dict)
    _recent: list[tuple[datetime, str]] = field(default_factory=list)

    def feed(self, alerts: Iterable[Alert], now: datetime) -> list[Notice]:
        """The notices to send now."""
        alerts = sorted(alerts, key=lambda a: (-int(a.severity), a.opened_at, a.key))
        openings = [a for a in alerts if a.closed_at is None and self._worth_telling(a, now)]
        closings = [a for a in alerts if a.closed_at is not None and self._was_open(a)]
        notices = self._open(openings, now)
        for alert in closings:
            self.told[alert.key].closed = True
            notices.append(_closing(alert))
        self._forget(now)
        return notices

    def acknowledge(self, keys: Iterable[str]) -> None:
        """A person has seen it: no reminder."""
        for key in keys:
            if key in self.told:
                self.told[key].acknowledged = True

    def snooze(self, keys: Iterable[str], now: datetime) -> None:
        """Tell again in an hour if it still holds."""
        for key in keys:
            if key in self.told:
                self.told[key].snoozed_until = now + SNOOZE

    def saved(self) -> dict[str, Any]:
        """What a restarted console must know, as JSON values."""
        return {
            key: {
                "opened_at": t.opened_at.isoformat(),
                "severity": t.severity,
                "told_at": t.told_at.isoformat(),
                "closed": t.closed,
                "acknowledged": t.acknowledged,
                "snoozed_until": t.snoozed_until.isoformat() if t.snoozed_until else None,
            }
            for key, t in self.told.items()
        }

    @classmethod
    def restore(cls, saved: dict[str, Any]) -> Episodes:
        """From ``saved``. Raises KeyError, TypeError or ValueError when it is damaged."""
        told = {
            key: _Told(
                datetime.fromisoformat(v["opened_at"]),
                int(v["severity"]),
                datetime.fromisoformat(v["told_at"]),
                bool(v["closed"]),
                bool(v["acknowledged"]),
                datetime.fromisoformat(v["snoozed_until"]) if v["snoozed_until"] else None,
            )
            for key, v in saved.items()
        }
        return cls(told)

    # --- how ----------------------------------------------------------------------------------------
    def _worth_telling(self, alert: Alert, now: datetime) -> bool:
        known = self.told.get(alert.key)
        if known is None or known.closed or known.opened_at != alert.opened_at:
            return True
        if int(alert.severity) > known.severity:
            return True
        if known.snoozed_until is not None:
            return now >= known.snoozed_until
        return not known.acknowledged and now - known.told_at >= REMIND_EVERY

    def _was_open(self, alert: Alert) -> bool:
        """Closed now, and its opening was told: what was over before anybody heard of it is not news."""
        known = self.told.get(alert.key)
        return known is not None and not known.closed and known.opened_at == alert.opened_at

    def _open(self, alerts: list[Alert], now: datetime) -> list[Notice]:
        self._recent = [(at, key) for at, key in self._recent if now - at < GROUP_WINDOW]
        room = max(0, GROUP_ABOVE - len(self._recent))
        if len(alerts) > GROUP_ABOVE:
            room = 0
        single, grouped = alerts[:room], alerts[room:]
        for alert in alerts:
            self._recent.append((now, alert.key))
            self.told[alert.key] = _Told(alert.opened_at, int(alert.severity), now)
        notices = [_opening(alert) for alert in single]
        if grouped:
            notices.append(self._group(alerts, now))
        return notices

    def _group(self, alerts: list[Alert], now: datetime) -> Notice:
        keys = list(dict.fromkeys(key for _at, key in self._recent))
        titles = [alert.title for alert in alerts]
        body = "\n".join(titles[:6]) + (f"\nand {len(titles) - 6} more" if len(titles) > 6 else "")
        worst = max(alert.severity for alert in alerts)
        title = f"{len(keys)} alerts within a minute"
        return Notice(GROUP_SLOT, title, body, _urgency(worst), None, tuple(keys))

    def _forget(self, now: datetime) -> None:
        old = [key for key, t in self.told.items() if t.closed and now - t.told_at > FORGET_AFTER]
        for key in old:
            del self.told[key]


def _urgency(severity: Severity) -> Urgency:
    return Urgency.CRITICAL if severity >= Severity.CRITICAL else Urgency.NORMAL


def _opening(alert: Alert) -> Notice:
    return Notice(alert.key, alert.title, alert.body, _urgency(alert.severity), alert.protection_id, (alert.key,))


def _closing(alert: Alert) -> Notice:
    lasted = (alert.closed_at or alert.opened_at) - alert.opened_at
    minutes, seconds = divmod(int(lasted.total_seconds()), 60)
    time = f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
    body = f"It is over after {time}."
    title = f"Recovered: {alert.title}"
    return Notice(alert.key, title, body, Urgency.NORMAL, alert.protection_id, (alert.key,), closed=True)
