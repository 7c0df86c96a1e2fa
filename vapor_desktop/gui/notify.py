"""Desktop notifications over D-Bus, by jeepney.

Not ``QSystemTrayIcon.showMessage``: without a tray it makes no call at all, and with one it sends the urgency
as an int32 where the specification wants a byte. Not QtDBus: PySide6 cannot send a uint32.
Everything happens in daemon threads; a failure is logged and never stops anything.
"""

from __future__ import annotations

import logging
import queue
import threading
from dataclasses import dataclass, field
from html import escape
from typing import Any

from jeepney import DBusAddress, DBusErrorResponse, MatchRule, Message, message_bus, new_method_call
from jeepney.io.common import RouterClosed
from jeepney.io.threading import DBusConnection, DBusRouter, Proxy, open_dbus_connection
from jeepney.wrappers import unwrap_msg
from PySide6.QtCore import QObject, Signal

from vapor_desktop.gui.episodes import Notice, Urgency

log = logging.getLogger(__name__)

_NAME = "org.freedesktop.Notifications"
_SERVER = DBusAddress("/org/freedesktop/Notifications", bus_name=_NAME, interface=_NAME)
_URGENCY = {Urgency.LOW: 0, Urgency.NORMAL: 1, Urgency.CRITICAL: 2}
_ICONS = {Urgency.LOW: "dialog-information", Urgency.NORMAL: "dialog-warning", Urgency.CRITICAL: "dialog-error"}
_TROUBLE = (OSError, KeyError, TimeoutError, DBusErrorResponse, RouterClosed, ValueError)
TIMEOUT_S = 5.0
ACTIONS = ("default", "Open", "open", "Open", "acknowledge", "Acknowledge", "snooze", "Snooze 1 h")


def _actions(notice: Notice) -> list[str]:
    """Key and text by turns, as the specification wants them."""
    if notice.actions is not None:
        return [part for action in notice.actions for part in action]
    return list(ACTIONS[:4] if notice.closed else ACTIONS)


@dataclass
class _Link:
    """A live connection to the session bus."""

    connection: DBusConnection
    router: DBusRouter
    capabilities: frozenset[str]
    signals: queue.Queue[Message | None] = field(default_factory=queue.Queue)


class Notifier(QObject):
    """Sends notices; hears what was pressed.

    Signals:
        invoked: (action key, Notice, activation token or "").
        sent: the Notice, once the server has taken it.
        failed: (Notice, reason) when it could not be shown.
    """

    invoked = Signal(str, object, str)
    sent = Signal(object)
    failed = Signal(object, str)

    def __init__(self, app_name: str, desktop_entry: str, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._app_name, self._desktop_entry = app_name, desktop_entry
        self._outbox: queue.SimpleQueue[Notice | None] = queue.SimpleQueue()
        self._link: _Link | None = None
        self._ids: dict[str, int] = {}  # slot -> the server's id
        self._notices: dict[int, Notice] = {}
        self._tokens: dict[int, str] = {}
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._send_all, name="notify", daemon=True)
        self._thread.start()

    def notify(self, notice: Notice) -> None:
        """Queue it; returns at once."""
        self._outbox.put(notice)

    def close(self) -> None:
        """End the threads."""
        self._outbox.put(None)
        self._thread.join(TIMEOUT_S)

    # --- the sending thread ---------------------------------------------------------------------------
    def _send_all(self) -> None:
        while (notice := self._outbox.get()) is not None:
            try:
                self._send(notice)
            except _TROUBLE as error:
                reason = str(error) or type(error).__name__
                log.warning("the notification %r could not be shown: %s", notice.title, reason)
                self._drop_link()
                self.failed.emit(notice, reason)
            else:
                self.sent.emit(notice)
        self._drop_link()

    def _send(self, notice: Notice) -> None:
        link = self._link or self._connect()
        known = self._ids.get(notice.slot, 0)
        body = escape(notice.body, quote=False) if "body-markup" in link.capabilities else notice.body
        actions = _actions(notice) if "actions" in link.capabilities else []
        hints: dict[str, tuple[str, Any]] = {
            "urgency": ("y", _URGENCY[notice.urgency]),
            "desktop-entry": ("s", self._desktop_entry),
            "category": ("s", "network.error" if not notice.closed else "network"),
        }
        args = (self._app_name, known, _ICONS[notice.urgency], notice.title, body, actions, hints, -1)
        with self._lock:  # an action may come before we know the id
            reply = link.router.send_and_get_reply(
                new_method_call(_SERVER, "Notify", "susssasa{sv}i", args), timeout=TIMEOUT_S
            )
            new_id = int(unwrap_msg(reply)[0])
            self._ids[notice.slot] = new_id
            self._notices[new_id] = notice

    def _connect(self) -> _Link:
        connection = open_dbus_connection("SESSION")
        router = DBusRouter(connection)
        rule = MatchRule(type="signal", interface=_NAME, path=_SERVER.object_path)
        Proxy(message_bus, router, timeout=TIMEOUT_S).AddMatch(rule)
        reply = router.send_and_get_reply(new_method_call(_SERVER, "GetCapabilities"), timeout=TIMEOUT_S)
        link = _Link(connection, router, frozenset(unwrap_msg(reply)[0]))
        router.filter(rule, queue=link.signals).__enter__()
        threading.Thread(target=self._listen, args=(link,), name="notify-actions", daemon=True).start()
        self._link = link
        return link

    def _drop_link(self) -> None:
        link, self._link = self._link, None
        self._ids.clear()  # a restarted server counts anew
        if link is not None:
            link.signals.put(None)
            link.router.close()
            link.connection.close()

    # --- the listening thread ---------------------------------------------------------------------------
    def _listen(self, link: _Link) -> None:
        while (message := link.signals.get()) is not None:
            self._heard(message)

    def _heard(self, message: Message) -> None:
        fields = message.header.fields
        member = next((value for key, value in fields.items() if key.name == "member"), "")
        number = int(message.body[0]) if message.body else 0
        with self._lock:
            notice = self._notices.get(number)
            if notice is None:
                return  # somebody else's
            if member == "ActivationToken":
                self._tokens[number] = str(message.body[1])
            elif member == "NotificationClosed":
                self._notices.pop(number, None)
                self._tokens.pop(number, None)
                if self._ids.get(notice.slot) == number:
                    del self._ids[notice.slot]
                return
            token = self._tokens.pop(number, "") if member == "ActionInvoked" else ""
        if member == "ActionInvoked":
            key = str(message.body[1])
            self.invoked.emit("open" if key == "default" else key, notice, token)
