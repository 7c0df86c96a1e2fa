"""Does the GUI thread stand still? A beat every 10 ms tells."""

from __future__ import annotations

import os
import time

from PySide6.QtCore import QObject, QTimer


class Heartbeat(QObject):
    """Beats every 10 ms on the GUI thread; ``worst`` is the longest gap in seconds, on the wall.

    ``starved``: per gap, how much of it this process was kept off the CPU (0 without ``starvation``).
    """

    def __init__(self, starvation: Starvation | None = None) -> None:
        super().__init__()
        self.gaps: list[float] = []
        self.starved: list[float] = []
        self._starvation = starvation
        self._last = time.perf_counter()
        self._timer = QTimer(self)
        self._timer.timeout.connect(self._beat)
        self._timer.start(10)

    def _beat(self) -> None:
        now = time.perf_counter()
        self.gaps.append(now - self._last)
        self.starved.append(self._starvation.since_last_s() if self._starvation else 0.0)
        self._last = now

    def restart(self) -> None:
        """Forget the gaps so far."""
        self.gaps.clear()
        self.starved.clear()
        self._last = time.perf_counter()

    def stop(self) -> None:
        """No more beats."""
        self._timer.stop()

    @property
    def worst(self) -> float:
        """The longest gap."""
        return max(self.gaps)


class Starvation:
    """How long threads of this process were ready to run and were given no CPU.

    From the kernel's run queues: /proc/self/task/TID/schedstat, second field [Documentation/scheduler/sched-stats].
    """

    def __init__(self) -> None:
        self._tasks = os.open("/proc/self/task", os.O_RDONLY | os.O_DIRECTORY)
        self._files: dict[str, int] = {}
        self._seen: dict[str, int] = {}
        self.since_last_s()

    def since_last_s(self) -> float:
        """Of the worst off thread, since the last call. A GUI thread waits for the lock's holder, whichever it is."""
        worst = 0
        for thread in os.listdir(self._tasks):  # noqa: PTH208  every 10 ms: names, not paths
            waited = self._waited(thread)
            if waited is not None:
                worst = max(worst, waited - self._seen.get(thread, waited))
                self._seen[thread] = waited
        return worst / 1e9

    def _waited(self, thread: str) -> int | None:
        try:
            if thread not in self._files:
                self._files[thread] = os.open(f"/proc/self/task/{thread}/schedstat", os.O_RDONLY)
            return int(os.pread(self._files[thread], 100, 0).split()[1])
        except (FileNotFoundError, ProcessLookupError):
            return None  # it has ended; its number may come again
        except OSError as error:
            raise AssertionError(f"no run-queue statistics of thread {thread}") from error

    def close(self) -> None:
        """Done."""
        for file in (*self._files.values(), self._tasks):
            os.close(file)
        self._files.clear()
