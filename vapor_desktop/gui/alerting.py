"""From a snapshot's alerts to notifications, and from a pressed button back to the window."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta

from PySide6.QtCore import QObject, Signal

from vapor_desktop.gui.arrivals import use_token
from vapor_desktop.gui.episodes import Episodes, Notice, Rules
from vapor_desktop.gui.layout_store import Memory
from vapor_desktop.gui.notify import Notifier
from vapor_desktop.gui.preferences import Preferences
from vapor_desktop.model.view import Alert, Snapshot

log = logging.getLogger(__name__)


class Alerting(QObject):
    """Signals:
    open_asked: a protection id, or "" for the window as it is.
    many_asked: show what several alerts speak of.
    known: {alert key: how a person has dealt with it}.
    plain_invoked: what was pressed on a notification that speaks of no alert.
    """

    open_asked = Signal(str)
    plain_invoked = Signal(str)
    known = Signal(object)
    many_asked = Signal()

    def __init__(self, notifier: Notifier, memory: Memory, parent: QObject) -> None:
        super().__init__(parent)
        self._notifier, self._memory = notifier, memory
        self.preferences = Preferences(memory)
        self.enabled = self.preferences.get("notifications")
        self.episodes = self._restore()
        notifier.invoked.connect(self._invoked)

    def take(self, snapshot: Snapshot) -> None:
        """Tell what is new."""
        notices = self.episodes.feed(snapshot.alerts, snapshot.at, self.rules(snapshot.at))
        if notices:
            self._remember()
        self.known.emit(self.episodes.known(snapshot.at))
        for notice in notices:
            if self.enabled:
                self._notifier.notify(notice)

    def rules(self, now: datetime) -> Rules:
        """As the settings have them now."""
        wanted = self.preferences
        hours = wanted.get("remind_hours")
        return Rules(
            quiet=wanted.quiet(now),
            warnings=wanted.get("notify_warning"),
            critical=wanted.get("notify_critical"),
            remind_every=timedelta(hours=hours) if hours > 0 else None,
        )

    def enable(self, on: bool) -> None:
        """Switch notifications on or off; episodes are followed all the same."""
        self.enabled = on
        self._memory.put("notifications", on)

    def acknowledge(self, alert: Alert) -> None:
        """A person has seen it in the window."""
        self.episodes.meet(alert, datetime.now(UTC))
        self.episodes.acknowledge([alert.key])
        self._noted()

    def snooze(self, alert: Alert) -> None:
        """Tell it again in an hour."""
        now = datetime.now(UTC)
        self.episodes.meet(alert, now)
        self.episodes.snooze([alert.key], now)
        self._noted()

    def _noted(self) -> None:
        self._remember()
        self.known.emit(self.episodes.known(datetime.now(UTC)))

    def _invoked(self, action: str, notice: Notice, token: str) -> None:
        if notice.protection_id is None and not notice.keys:
            self.plain_invoked.emit(action)  # it speaks of no alert
        if action == "acknowledge":
            self.episodes.acknowledge(notice.keys)
        elif action == "snooze":
            self.episodes.snooze(notice.keys, datetime.now(UTC))
        elif action == "open":
            use_token(token)
            if len(notice.keys) > 1:
                self.many_asked.emit()
            else:
                self.open_asked.emit(notice.protection_id or "")
        self._noted()

    def _remember(self) -> None:
        self._memory.put("alerts_told", self.episodes.saved())

    def _restore(self) -> Episodes:
        try:
            return Episodes.restore(self._memory.get("alerts_told", {}))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            log.warning("what was notified before is unreadable (%s); alerts may be told twice", error)
            return Episodes()
