"""Qt's event loop and libvirt's live in one process and must not touch each other."""

from __future__ import annotations

import subprocess
import sys

from PySide6.QtCore import QCoreApplication
from pytestqt.qtbot import QtBot

TOGETHER = """
import threading
from vapor_desktop.hypervisor.events import ensure_event_loop
from vapor_desktop.hypervisor.link import Link
import vapor_desktop.gui.application
from PySide6.QtCore import QTimer
from PySide6.QtWidgets import QApplication

ensure_event_loop()
link = Link("test:///default")
app, seen = QApplication([]), []
timers = [QTimer() for _ in range(50)]

def fired():
    seen.append(threading.current_thread().name)
    if len(seen) >= 3000:
        app.quit()

for number, timer in enumerate(timers):
    timer.timeout.connect(fired)
    timer.start(number % 7)
with link.call("ask") as conn:  # its close callback and keepalive are the loop's
    conn.listAllDomains()
app.exec()
print(sorted(set(seen)))
"""


def test_the_window_has_a_loop_that_libvirt_does_not_share(qtbot: QtBot) -> None:
    dispatcher = QCoreApplication.eventDispatcher()
    assert dispatcher is not None
    assert "Glib" not in dispatcher.metaObject().className()


def test_the_windows_timers_fire_in_its_own_thread_beside_libvirts_loop() -> None:
    done = subprocess.run([sys.executable, "-c", TOGETHER], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "['MainThread']"), done.stderr[-2000:]
