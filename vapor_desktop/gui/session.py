"""Where the window was left: its place, page and VM; and how it comes up at the start of a session."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from PySide6.QtCore import QByteArray, QObject, QRect, QTimer
from PySide6.QtGui import QGuiApplication
from PySide6.QtWidgets import QMainWindow

from vapor_desktop.gui.layout_store import Memory

MIN_SEEN_PX = 120  # of a window's title must lie on a screen, or it cannot be taken hold of
TITLE_PX = 40
TRAY_WAIT_MS = 15_000
_STEP_MS = 250


def reachable(window: QRect, screens: Sequence[QRect]) -> bool:
    """Whether enough of the window's upper edge lies on a screen."""
    title = QRect(window.left(), window.top(), window.width(), TITLE_PX)
    seen = [title.intersected(screen) for screen in screens]
    return any(part.width() >= min(MIN_SEEN_PX, window.width()) and part.height() >= TITLE_PX // 2 for part in seen)


def restore_place(window: QMainWindow, memory: Memory, width: int, height: int) -> None:
    """Where it was, if that is on a screen that is there; else in the middle, in its first size."""
    saved = memory.get("geometry")
    screens = [screen.availableGeometry() for screen in QGuiApplication.screens()]
    if isinstance(saved, str) and window.restoreGeometry(QByteArray.fromBase64(saved.encode())):
        if reachable(window.geometry(), screens):
            return
        window.setWindowState(window.windowState().WindowNoState)
    window.resize(width, height)
    if saved and screens:
        window.move(screens[0].center() - window.rect().center())


def remember_place(window: QMainWindow, memory: Memory) -> None:
    """For the next start."""
    memory.put("geometry", bytes(window.saveGeometry().toBase64().data()).decode())


class TrayStart(QObject):
    """Started with the session: a panel may come later than we do, so its tray is waited for."""

    def __init__(
        self, available: Callable[[], bool], absent: Callable[[], None], parent: QObject, wait_ms: int | None = None
    ) -> None:
        """``absent``: called once when no tray has come within ``wait_ms``."""
        super().__init__(parent)
        self._available, self._absent, self._left_ms = available, absent, TRAY_WAIT_MS if wait_ms is None else wait_ms
        self._timer = QTimer(self)
        self._timer.timeout.connect(self._look)
        self._timer.start(_STEP_MS)

    def _look(self) -> None:
        self._left_ms -= _STEP_MS
        if self._available():
            self._timer.stop()
        elif self._left_ms <= 0:
            self._timer.stop()
            self._absent()
