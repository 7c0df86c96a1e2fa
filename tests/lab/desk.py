"""The real console in the test's own process: main window, QThread engine, shell, tray, notifications.

Put together as ``gui.application.run`` does it, without giving the event loop away.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

# Offscreen, whatever display there is: a window manager would decide what is visible.
os.environ["QT_QPA_PLATFORM"] = "offscreen"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "gui"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "desktop"))

from heartbeat import Heartbeat, Starvation
from PySide6.QtCore import QEventLoop, Qt, QTimer
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication, QWizard
from recorder import Desktop

from vapor_desktop import app
from vapor_desktop.gui.bridge import Bridge
from vapor_desktop.gui.context import Context
from vapor_desktop.gui.engine_thread import EngineThread
from vapor_desktop.gui.errands import Errands
from vapor_desktop.gui.layout_store import Memory
from vapor_desktop.gui.main_window import MainWindow
from vapor_desktop.gui.notify import Notifier
from vapor_desktop.gui.protection_columns import INDEX, Row
from vapor_desktop.gui.shell import Shell
from vapor_desktop.gui.theme import Scheme, Theme
from vapor_desktop.model.view import ProtectionStatus

NEXT, COMMIT, FINISH = (
    QWizard.WizardButton.NextButton,
    QWizard.WizardButton.CommitButton,
    QWizard.WizardButton.FinishButton,
)


class Desk:
    """A person's desktop: a session bus with notifications (the caller's), and the console on it."""

    def __init__(self, home: Path) -> None:
        os.environ["VAPOR_DATABASE_URL"] = f"sqlite:///{home / 'vapor.db'}"
        self.uncaught: list[str] = []
        sys.excepthook = self._uncaught
        made = QApplication.instance()
        self.app = made if isinstance(made, QApplication) else QApplication(["vapor-desktop"])
        self.app.setQuitOnLastWindowClosed(False)
        self.desktop = Desktop(os.environ["DBUS_SESSION_BUS_ADDRESS"], notifications=True, tray=False)
        self.program = app.build("console")
        self.bridge = Bridge(self.program.backend)
        memory = Memory(home / "window.json")
        self.context = Context(self.bridge, Errands(self.bridge), Theme(self.app, Scheme.LIGHT), memory)
        self.window = MainWindow(self.context)
        self.engine = EngineThread(self.program.engine.run, self.program.engine.stop)
        self.notifier = Notifier("Vapor Desktop", "vapor-desktop")
        self.shell = Shell(self.context, self.window, self.notifier, self.engine)
        self.window.resize(1300, 850)
        self.window.show()
        self.bridge.start()
        self.engine.start()

    def _uncaught(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        self.uncaught.append(f"{kind.__name__}: {error}")
        sys.__excepthook__(kind, error, trace)

    def close(self) -> None:
        """End it as a person does who has answered the question; everything must end."""
        self.shell.quit()
        self.until(self.engine.isFinished, "the end of the engine", 60)
        self.notifier.close()
        self.bridge.close(wait_s=5)
        self.program.close()
        self.window.hide()
        self.desktop.close()
        sys.excepthook = sys.__excepthook__

    # --- waiting -----------------------------------------------------------------------------------
    def until(self, condition: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
        """Let the window live until the condition holds."""
        end = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < end, f"{what}: not within {timeout_s:g} s; {self.told()}"
            self._turn(20)

    def live(self, seconds: float) -> None:
        """Let the window live for that long: a measurement, not a wait for something."""
        self._turn(int(seconds * 1000))

    def _turn(self, milliseconds: int) -> None:
        """As ``QApplication.exec`` does it. QTest.qWait keeps Python's lock meanwhile: each step of the engine's
        threads then waits for its end, and cycles of 0.3 s take 2 to 7 s [measured, PySide6 6.11]."""
        loop = QEventLoop()
        QTimer.singleShot(milliseconds, loop, loop.quit)
        loop.exec()

    def told(self) -> str:
        """What the window says now, for a failed test."""
        rows = [r.status_text + f" ({r.protection.last_error})" for r in self.statuses()]
        tasks = [f"{t.title}: {t.outcome} {t.detail}" for t in self.context.errands.tasks()[:3]]
        return f"rows {rows}, tasks {tasks}, uncaught {self.uncaught}"

    # --- reading the window -----------------------------------------------------------------------
    def statuses(self) -> tuple[ProtectionStatus, ...]:
        return self.window.snapshot.protections if self.window.snapshot else ()

    def row(self, name: str) -> Row:
        """The table's row of a protected VM."""
        model = self.window.vms.model
        rows = [model.row(n) for n in range(model.rowCount())]
        return next(r for r in rows if r is not None and r.name == name)

    def status(self, name: str) -> ProtectionStatus:
        status = self.row(name).status
        assert status is not None, f"{name} is not protected"
        return status

    def cell(self, name: str, column: str) -> str:
        """What the table shows."""
        model = self.window.vms.model
        at = model.find(self.row(name).key)
        return str(model.data(model.index(at.row(), INDEX[column])))

    def site(self, name: str, header: str) -> str:
        """What the page of the sites shows of one."""
        model = self.window.sites.model
        column = [field.header for field in model.fields].index(header)
        rows = [n for n in range(model.rowCount()) if str(model.data(model.index(n, 0))) == name]
        return str(model.data(model.index(rows[0], column))) if rows else ""

    def choose(self, name: str) -> None:
        """Select the VM's row on the page of the virtual machines."""
        self.window.go(1)
        self.window.vms.table.select(self.row(name).key)

    def notices(self, title: str) -> list[Any]:
        """Notifications of that title that reached the desktop, recoveries apart."""
        return [n for n in self.desktop.shown if n.title == title]

    # --- doing ------------------------------------------------------------------------------------
    def press(self, wizard: QWizard, which: QWizard.WizardButton) -> None:
        """A button of a wizard, when it can be pressed."""
        button = wizard.button(which)
        self.until(lambda: button.isEnabled() and button.isVisible(), f"the button {which.name}")
        QTest.mouseClick(button, Qt.MouseButton.LeftButton)


class Stillness:
    """How long the GUI thread stood still, and for how much of that this process was merely not given a CPU."""

    def __init__(self) -> None:
        self._starvation = Starvation()
        self._beat = Heartbeat(self._starvation)

    def end(self) -> list[tuple[float, float]]:
        """(gap, of which starved) in seconds, the longest gap first."""
        self._beat.stop()
        found = sorted(zip(self._beat.gaps, self._beat.starved, strict=True), reverse=True)
        self._beat.deleteLater()
        self._starvation.close()
        return found
