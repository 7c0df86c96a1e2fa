"""Which notifications an alert deserves. Pure: alerts and the time in, notices out.

Once per episode (one opening of one cause); recovery always told; an escalation never suppressed; more than
three new ones within a minute become one line; acknowledging silences reminders, snoozing delays one. What comes
and goes is told twice within half an hour, and then only how it has settled. Quiet hours hold back warnings,
never what is critical.
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
FLAP_WINDOW = timedelta(minutes=30)
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
    actions: tuple[tuple[str, str], ...] | None = None  # (key, text) instead of the usual ones


@dataclass(frozen=True, slots=True)
class Rules:
    """What the user wants to be told. ``remind_every`` None: never."""

    quiet: bool = False  # now: warnings wait
    warnings: bool = True
    critical: bool = True
    remind_every: timedelta | None = REMIND_EVERY

    def tells(self, severity: Severity) -> bool:
        """Whether an alert of that severity may be told now."""
        if severity >= Severity.CRITICAL:
            return self.critical
        return self.warnings and not self.quiet


@dataclass(slots=True)
class _Told:
    opened_at: datetime
    severity: int
    told_at: datetime
    closed: bool = False
    acknowledged: bool = False
    snoozed_until: datetime | None = None
    closed_at: datetime | None = None
    title: str = ""
    protection_id: str | None = None
    openings: list[datetime] = field(default_factory=list)  # of this cause, within the flap window
    unsettled: bool = False  # told that it comes and goes; how it settled is owed


@dataclass(slots=True)
class Episodes:
    """Remembers what was told."""

    told: dict[str, _Told] = field(default_factory=dict)
    _recent: list[tuple[datetime, str]] = field(default_factory=list)

    def feed(self, alerts: Iterable[Alert], now: datetime, rules: Rules | None = None) -> list[Notice]:
        """The notices to send now."""
        rules = rules or Rules()
        alerts = sorted(alerts, key=lambda a: (-int(a.severity), a.opened_at, a.key))
        open_ones = [a for a in alerts if a.closed_at is None]
        openings = [a for a in open_ones if self._worth_telling(a, now, rules)]
        notices = self._open(openings, now)
        for alert in alerts:
            if alert.closed_at is not None and self._was_open(alert):
                notices += self._close(alert, now)
        notices += self._settle({a.key for a in open_ones}, now)
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

    def meet(self, alert: Alert, now: datetime) -> None:
        """A person deals with it in the window, told or not: then it needs no telling any more."""
        known = self.told.get(alert.key)
        if known is None or known.closed or known.opened_at != alert.opened_at:
            self._tell(alert, now)

    def known(self, now: datetime) -> dict[str, str]:
        """Alerts that are acknowledged or snoozed: key -> words."""
        found = {}
        for key, told in self.told.items():
            if told.closed:
                continue
            if told.snoozed_until is not None and told.snoozed_until > now:
                found[key] = f"snoozed until {told.snoozed_until.astimezone():%H:%M}"
            elif told.acknowledged:
                found[key] = "acknowledged"
        return found

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
                "closed_at": t.closed_at.isoformat() if t.closed_at else None,
                "title": t.title,
                "protection_id": t.protection_id,
                "openings": [at.isoformat() for at in t.openings],
                "unsettled": t.unsettled,
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
                datetime.fromisoformat(v["closed_at"]) if v.get("closed_at") else None,
                str(v.get("title", "")),
                v.get("protection_id"),
                [datetime.fromisoformat(at) for at in v.get("openings", ())],
                bool(v.get("unsettled", False)),
            )
            for key, v in saved.items()
        }
        return cls(told)

    # --- how ----------------------------------------------------------------------------------------
    def _worth_telling(self, alert: Alert, now: datetime, rules: Rules) -> bool:
        if not rules.tells(alert.severity):
            return False
        known = self.told.get(alert.key)
        if known is None:
            return True
        if int(alert.severity) > known.severity:
            return True
        if known.closed or known.opened_at != alert.opened_at:
            return not self._flaps(known, alert, now)
        if known.snoozed_until is not None:
            return now >= known.snoozed_until
        if known.acknowledged or rules.remind_every is None or known.unsettled:
            return False
        return now - known.told_at >= rules.remind_every

    @staticmethod
    def _flaps(known: _Told, alert: Alert, now: datetime) -> bool:
        """A third opening within the window: it was said that it comes and goes; follow it silently."""
        known.openings = [at for at in known.openings if now - at < FLAP_WINDOW]
        if not known.unsettled or not known.openings:
            return False
        if alert.opened_at != known.opened_at:
            known.opened_at, known.closed, known.closed_at = alert.opened_at, False, None
            known.openings.append(alert.opened_at)
            known.snoozed_until = None
        return True

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
        titles = {alert.key: self._tell(alert, now) for alert in alerts}
        notices = [_opening(alert, titles[alert.key], again=self.told[alert.key].unsettled) for alert in single]
        if grouped:
            notices.append(self._group(alerts, now))
        return notices

    def _tell(self, alert: Alert, now: datetime) -> str:
        """Note that it is told; how its title shall begin."""
        self._recent.append((now, alert.key))
        known = self.told.get(alert.key)
        told = _Told(alert.opened_at, int(alert.severity), now, title=alert.title, protection_id=alert.protection_id)
        if known is not None:
            told.openings = [at for at in known.openings if now - at < FLAP_WINDOW]
        same = known is not None and known.opened_at == alert.opened_at and not known.closed
        if not same:
            told.unsettled = bool(told.openings)
            told.openings.append(now)
        elif known is not None:
            told.unsettled = known.unsettled
        self.told[alert.key] = told
        if told.unsettled:
            return "Again: "
        return "Still: " if same and known is not None and known.severity == told.severity else ""

    def _close(self, alert: Alert, now: datetime) -> list[Notice]:
        told = self.told[alert.key]
        told.closed, told.closed_at = True, now
        return [] if told.unsettled else [_closing(alert)]  # else it is said once it has settled

    def _settle(self, open_keys: set[str], now: datetime) -> list[Notice]:
        """What came and went: it has been one or the other for the whole window."""
        notices = []
        for key, told in self.told.items():
            since = told.closed_at if told.closed else told.opened_at
            if not told.unsettled or since is None or now - since < FLAP_WINDOW:
                continue
            told.unsettled, told.openings, told.told_at = False, [], now
            if told.closed or key in open_keys:
                notices.append(_settled(key, told))
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


def _opening(alert: Alert, begin: str, *, again: bool) -> Notice:
    body = f"{alert.body}\nIt comes and goes; you will be told how it settles." if again else alert.body
    keys = (alert.key,)
    return Notice(alert.key, begin + alert.title, body, _urgency(alert.severity), alert.protection_id, keys)


def _settled(key: str, told: _Told) -> Notice:
    minutes = int(FLAP_WINDOW.total_seconds() // 60)
    if told.closed:
        title, body, urgency = f"Recovered: {told.title}", f"It has stayed away for {minutes} min.", Urgency.NORMAL
    else:
        title, body = f"Still: {told.title}", f"It has held for {minutes} min."
        urgency = _urgency(Severity(told.severity))
    return Notice(key, title, body, urgency, told.protection_id, (key,), closed=told.closed)


def _closing(alert: Alert) -> Notice:
    lasted = (alert.closed_at or alert.opened_at) - alert.opened_at
    minutes, seconds = divmod(int(lasted.total_seconds()), 60)
    time = f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
    body = f"It is over after {time}."
    title = f"Recovered: {alert.title}"
    return Notice(alert.key, title, body, Urgency.NORMAL, alert.protection_id, (alert.key,), closed=True)
