"""The tray icon: worst severity as a shape, a tooltip, a menu. A second door; nothing depends on it."""

from __future__ import annotations

from PySide6.QtCore import QObject, Signal
from PySide6.QtGui import QAction
from PySide6.QtWidgets import QMenu, QSystemTrayIcon

from vapor_desktop.gui import words
from vapor_desktop.gui.icons import SEVERITY_ICONS, icon
from vapor_desktop.gui.protection_columns import Row, worst_first
from vapor_desktop.gui.status_line import headline, worst
from vapor_desktop.gui.theme import Theme
from vapor_desktop.model.states import Severity
from vapor_desktop.model.view import Snapshot

MOST = 5


class Tray(QObject):
    """Signals:
    toggle_asked: the icon was clicked.
    open_asked: show the window.
    vm_asked: show this protection.
    quit_asked: end the console.
    notifications_asked: on or off.
    """

    toggle_asked = Signal()
    open_asked = Signal()
    vm_asked = Signal(str)
    quit_asked = Signal()
    notifications_asked = Signal(bool)

    def __init__(self, theme: Theme, *, notifications: bool, parent: QObject) -> None:
        super().__init__(parent)
        self._theme = theme
        self._severity = Severity.IDLE
        self._attention: list[tuple[str, str]] = []
        self.menu = QMenu()
        self.status = self.menu.addAction("Reading…")
        self.status.setEnabled(False)
        self.menu.addAction("&Open").triggered.connect(self.open_asked)
        self._before = self.menu.addSeparator()
        self.notifications = self.menu.addAction("&Notifications")
        self.notifications.setCheckable(True)
        self.notifications.setChecked(notifications)
        self.notifications.toggled.connect(self.notifications_asked)
        self.menu.addSeparator()
        self.menu.addAction("&Quit console").triggered.connect(self.quit_asked)
        self._vm_actions: list[QAction] = []
        self.icon = QSystemTrayIcon(self)
        self.icon.setContextMenu(self.menu)
        self.icon.activated.connect(self._activated)
        theme.changed.connect(self._draw)
        self._draw()
        self.icon.setToolTip("Vapor Desktop")
        self.icon.show()

    @staticmethod
    def available() -> bool:
        """Whether somebody shows the icon. (``isVisible`` says True even when nobody does.)"""
        return QSystemTrayIcon.isSystemTrayAvailable()

    def take(self, snapshot: Snapshot) -> None:
        """Show a snapshot's condition."""
        text = headline(snapshot)
        if self.status.text() != text:
            self.status.setText(text)
            self.icon.setToolTip(f"Vapor Desktop — {text}")
        rows = [Row.of_protection(p, snapshot.at) for p in snapshot.protections if p.severity >= Severity.WARNING]
        self._list([(row.key, self._line(row)) for row in sorted(rows, key=worst_first)[:MOST]])
        if worst(snapshot) is not self._severity:
            self._severity = worst(snapshot)
            self._draw()

    @staticmethod
    def _line(row: Row) -> str:
        rpo = f", {words.duration(row.status.rpo_now_s)}" if row.status and row.status.rpo_now_s is not None else ""
        health = row.status.rpo_health.value if row.status else ""
        return f"{row.name}: RPO {health}{rpo}"

    def _list(self, lines: list[tuple[str, str]]) -> None:
        """Rebuilt only when other VMs are listed; else texts change in place, under an open menu too."""
        if [key for key, _text in lines] != [key for key, _text in self._attention]:
            for action in self._vm_actions:
                self.menu.removeAction(action)
                action.deleteLater()
            self._vm_actions = []
            for key, _text in lines:
                action = QAction(self.menu)
                action.triggered.connect(lambda _on=False, key=key: self.vm_asked.emit(key))
                self.menu.insertAction(self._before, action)
                self._vm_actions.append(action)
        for action, (_key, text) in zip(self._vm_actions, lines, strict=True):
            if action.text() != text:
                action.setText(text)
        self._attention = lines

    def _draw(self) -> None:
        colours = self._theme.colours
        picture = icon(SEVERITY_ICONS[self._severity], colours.severity[self._severity], knockout=colours.base)
        self.icon.setIcon(picture)

    def _activated(self, reason: QSystemTrayIcon.ActivationReason) -> None:
        if reason in (QSystemTrayIcon.ActivationReason.Trigger, QSystemTrayIcon.ActivationReason.DoubleClick):
            self.toggle_asked.emit()
