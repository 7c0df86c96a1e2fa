"""From a snapshot's alerts to notifications, and from a pressed button back to the window."""

from __future__ import annotations

import logging
import os
from datetime import UTC, datetime

from PySide6.QtCore import QObject, Signal

from vapor_desktop.gui.episodes import Episodes, Notice
from vapor_desktop.gui.layout_store import Memory
from vapor_desktop.gui.notify import Notifier
from vapor_desktop.model.view import Snapshot

log = logging.getLogger(__name__)


class Alerting(QObject):
    """Signals:
    open_asked: a protection id, or "" for the window as it is.
    """

    open_asked = Signal(str)

    def __init__(self, notifier: Notifier, memory: Memory, parent: QObject) -> None:
        super().__init__(parent)
        self._notifier, self._memory = notifier, memory
        self.enabled = bool(memory.get("notifications", True))
        self.episodes = self._restore()
        notifier.invoked.connect(self._invoked)

    def take(self, snapshot: Snapshot) -> None:
        """Tell what is new."""
        notices = self.episodes.feed(snapshot.alerts, snapshot.at)
        if notices:
            self._remember()
        for notice in notices:
            if self.enabled:
                self._notifier.notify(notice)

    def enable(self, on: bool) -> None:
        """Switch notifications on or off; episodes are followed all the same."""
        self.enabled = on
        self._memory.put("notifications", on)

    def _invoked(self, action: str, notice: Notice, token: str) -> None:
        if action == "acknowledge":
            self.episodes.acknowledge(notice.keys)
        elif action == "snooze":
            self.episodes.snooze(notice.keys, datetime.now(UTC))
        elif action == "open":
            if token:  # without it a Wayland compositor will not let us raise the window
                os.environ["XDG_ACTIVATION_TOKEN"] = token
            self.open_asked.emit(notice.protection_id or "")
        self._remember()

    def _remember(self) -> None:
        self._memory.put("alerts_told", self.episodes.saved())

    def _restore(self) -> Episodes:
        try:
            return Episodes.restore(self._memory.get("alerts_told", {}))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            log.warning("what was notified before is unreadable (%s); alerts may be told twice", error)
            return Episodes()
