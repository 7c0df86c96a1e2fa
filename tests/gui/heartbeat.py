"""Does the GUI thread stand still? A beat every 10 ms tells."""

from __future__ import annotations

import os
import threading
import time

from PySide6.QtCore import QObject, QTimer


class Heartbeat(QObject):
    """Beats every 10 ms on the GUI thread; ``worst`` is the longest gap in seconds, on the wall."""

    def __init__(self) -> None:
        super().__init__()
        self.gaps: list[float] = []
        self._last = time.perf_counter()
        self._timer = QTimer(self)
        self._timer.timeout.connect(self._beat)
        self._timer.start(10)

    def _beat(self) -> None:
        now = time.perf_counter()
        self.gaps.append(now - self._last)
        self._last = now

    def restart(self) -> None:
        """Forget the gaps so far."""
        self.gaps.clear()
        self._last = time.perf_counter()

    @property
    def worst(self) -> float:
        """The longest gap."""
        return max(self.gaps)


class Witness:
    """A thread-free clock of the machine's own: how long this thread was ready to run and was not let run.

    From the kernel's run-queue statistics [Documentation/scheduler/sched-stats, /proc/PID/task/TID/schedstat].
    """

    def __init__(self) -> None:
        self._file = os.open(f"/proc/self/task/{threading.get_native_id()}/schedstat", os.O_RDONLY)

    def waited_s(self) -> float:
        """Seconds since the thread began."""
        return int(os.pread(self._file, 100, 0).split()[1]) / 1e9

    def close(self) -> None:
        """Done."""
        os.close(self._file)
