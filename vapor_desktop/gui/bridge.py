"""The way from the window to the engine and back, never on the GUI thread.

Each question runs in a daemon thread of a small pool and its answer comes back as a queued signal.
Daemon threads, not a QThreadPool: the pool's destructor waits for its threads, and a call that hangs in a
dead network (or behind a keyring's prompt) must not keep a closed window's process alive.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import shiboken6
from PySide6.QtCore import QObject, Qt, QTimer, Signal, Slot

from vapor_desktop.engine.backend import Backend
from vapor_desktop.model.errors import Unexpected, VaporError
from vapor_desktop.model.view import Snapshot

log = logging.getLogger(__name__)
T = TypeVar("T")

WORKERS = 8
PERIOD_S = 1.0


class Call(QObject):
    """One question under way. Callbacks run on the GUI thread, and not at all once ``owner`` is gone."""

    _answered = Signal(object, object)
    _checked = Signal(object)
    finished = Signal()

    def __init__(
        self,
        work: Callable[[Call], Any],
        owner: QObject,
        done: Callable[[Any], None] | None,
        failed: Callable[[VaporError], None] | None,
        check: Callable[[Any], None] | None,
    ) -> None:
        super().__init__()
        self._work, self._owner = work, owner
        self._done, self._failed, self._check = done, failed, check
        self._answered.connect(self._deliver, Qt.ConnectionType.QueuedConnection)
        self._checked.connect(self._deliver_check, Qt.ConnectionType.QueuedConnection)

    def run(self) -> None:
        """In a worker thread."""
        try:
            self._answered.emit(self._work(self), None)
        except VaporError as error:
            self._answered.emit(None, error)
        except Exception as error:
            log.exception("a call to the engine failed unexpectedly")
            why = f"{type(error).__name__}: {error}"
            self._answered.emit(None, Unexpected("Something went wrong that should not", why=why))

    def on_check(self, check: object) -> None:
        """Give this to a Backend call that reports its steps: Checks, or how far it is."""
        self._checked.emit(check)

    def abandon(self) -> None:
        """Nobody wants the answer any more (the page asked again)."""
        self._done = self._failed = self._check = None

    @Slot(object, object)
    def _deliver(self, result: object, error: VaporError | None) -> None:
        if shiboken6.isValid(self._owner):
            if error is None and self._done is not None:
                self._done(result)
            elif error is not None and self._failed is not None:
                self._failed(error)
        self.finished.emit()

    @Slot(object)
    def _deliver_check(self, check: object) -> None:
        if self._check is not None and shiboken6.isValid(self._owner):
            self._check(check)


class Bridge(QObject):
    """Asks the Backend; publishes a snapshot once a second.

    Signals:
        snapshot: a Snapshot.
        trouble: the VaporError that kept the last snapshot from coming.
    """

    snapshot = Signal(object)
    trouble = Signal(object)

    def __init__(self, backend: Backend, *, period_s: float = PERIOD_S) -> None:
        super().__init__()
        self.backend = backend
        self._period_s = period_s
        self._calls: set[Call] = set()
        self._queue: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._threads = [threading.Thread(target=self._poll, name="snapshot", daemon=True)]
        self._threads += [threading.Thread(target=self._serve, name=f"ask-{n}", daemon=True) for n in range(WORKERS)]

    def start(self) -> None:
        """Start the worker threads."""
        for thread in self._threads:
            thread.start()

    def refresh(self) -> None:
        """A snapshot now, not in up to a second."""
        self._wake.set()

    def ask(
        self,
        work: Callable[[], T],
        owner: QObject,
        done: Callable[[T], None] | None = None,
        failed: Callable[[VaporError], None] | None = None,
    ) -> Call:
        """Run ``work`` in a worker; ``done`` or ``failed`` later on the GUI thread."""
        return self._submit(Call(lambda _call: work(), owner, done, failed, None))

    def ask_live(
        self,
        work: Callable[[Callable[[Any], None]], T],
        owner: QObject,
        check: Callable[[Any], None],
        done: Callable[[T], None] | None = None,
        failed: Callable[[VaporError], None] | None = None,
    ) -> Call:
        """As ``ask``, for calls that report their steps."""
        return self._submit(Call(lambda call: work(call.on_check), owner, done, failed, check))

    def close(self, wait_s: float = 1.0) -> None:
        """Stop asking. A hanging call is left behind in its daemon thread, and logged."""
        self._stop.set()
        self._wake.set()
        for _ in range(WORKERS):
            self._queue.put(None)
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(wait_s)
                if thread.is_alive():
                    log.warning("closing while %s still waits for an answer", thread.name)
                    wait_s = 0.0

    def _submit(self, call: Call) -> Call:
        self._calls.add(call)
        # Later: a QObject must not lose its last reference inside its own slot.
        call.finished.connect(lambda: QTimer.singleShot(0, lambda: self._calls.discard(call)))
        self._queue.put(call)
        return call

    def _serve(self) -> None:
        while (call := self._queue.get()) is not None:
            call.run()

    def _poll(self) -> None:
        while not self._stop.is_set():
            self._wake.clear()
            self._one_snapshot()
            self._wake.wait(self._period_s)

    def _one_snapshot(self) -> None:
        try:
            shot: Snapshot = self.backend.snapshot()
        except VaporError as error:
            self._tell(self.trouble, error)
        except Exception as error:
            log.exception("no snapshot, unexpectedly")
            self._tell(self.trouble, Unexpected("The state cannot be read", why=f"{type(error).__name__}: {error}"))
        else:
            self._tell(self.snapshot, shot)

    def _tell(self, signal: Any, value: object) -> None:
        if not self._stop.is_set():
            signal.emit(value)
