"""The real console in a process of its own, on a fake backend; told by stdin, telling by stdout (JSON lines)."""

from __future__ import annotations

import json
import sys
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "gui"))

from fake_backend import FakeBackend, world
from PySide6.QtCore import QObject, QTimer, Signal
from PySide6.QtWidgets import QApplication, QMessageBox

from vapor_desktop.gui import session
from vapor_desktop.gui.application import run
from vapor_desktop.gui.main_window import MainWindow
from vapor_desktop.model.states import Severity
from vapor_desktop.model.view import Alert

STARTED = datetime.now(UTC)


class Teller(QObject):
    """Tells the window's state whenever it differs; does what it is told."""

    heard = Signal(str)

    def __init__(self, backend: FakeBackend) -> None:
        super().__init__()
        self._backend, self._last = backend, ""
        self._timer = QTimer(self)
        self._timer.timeout.connect(self._tell)
        self._timer.start(50)
        self.heard.connect(self._do)
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in sys.stdin:
            self.heard.emit(line.strip())

    def _window(self) -> MainWindow | None:
        found = [w for w in QApplication.topLevelWidgets() if isinstance(w, MainWindow)]
        return found[0] if found else None

    def _tell(self) -> None:
        window = self._window()
        if window is None or window.snapshot is None:
            return
        page = type(window.pages.currentWidget()).__name__
        vm = window.detail._key if page == "DetailPage" else None
        dialogs = [w.windowTitle() for w in QApplication.topLevelWidgets() if w.isVisible() and w is not window]
        state = {"title": window.windowTitle(), "visible": window.isVisible(), "page": page, "vm": vm}
        line = json.dumps({**state, "dialogs": [d for d in dialogs if d]})
        if line != self._last:
            self._last = line
            print(line, flush=True)

    def _do(self, command: str) -> None:
        verb, _, name = command.partition(" ")
        window = self._window()
        assert window is not None
        if verb == "breach":
            self._alert(name, closed=False)
        elif verb == "recover":
            self._alert(name, closed=True)
        elif verb == "close":
            window.close()
        elif verb == "press":
            boxes = [w for w in QApplication.topLevelWidgets() if isinstance(w, QMessageBox) and w.isVisible()]
            next(b for b in boxes[0].buttons() if name in b.text()).click()

    def _alert(self, name: str, *, closed: bool) -> None:
        others = tuple(a for a in self._backend.shot.alerts if a.key != f"rpo:p-{name}")
        over = STARTED + timedelta(seconds=95) if closed else None
        body = "The newest recovery point at site-b is <12 min> old; the target is 5 min."
        alert = Alert(f"rpo:p-{name}", STARTED, over, Severity.CRITICAL, f"RPO breached: {name}", body, f"p-{name}")
        self._backend.shot = replace(self._backend.shot, alerts=(*others, alert), at=datetime.now(UTC))


def main() -> int:
    """``console_driver.py [--engine] [console's arguments]``."""
    app = QApplication([])
    backend = FakeBackend(world(datetime.now(UTC)))
    teller = Teller(backend)
    stop = threading.Event()
    if "--impatient" in sys.argv:
        session.TRAY_WAIT_MS = 500
    hosting = "--engine" in sys.argv
    if not hosting:
        backend.shot = replace(backend.shot, engine="service")

    def engine() -> None:
        stop.wait()
        print(json.dumps({"engine": "stopped"}), flush=True)

    code = run(backend, engine if hosting else None, stop.set, demo="--demo" in sys.argv, argv=sys.argv[1:])
    del teller, app
    return code


if __name__ == "__main__":
    sys.exit(main())
