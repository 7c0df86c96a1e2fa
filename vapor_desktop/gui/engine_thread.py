"""The engine in a QThread of its own. It knows nothing of Qt; it gets an event that says stop."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from PySide6.QtCore import QObject, QThread, Signal

from vapor_desktop.model.errors import Unexpected, VaporError

log = logging.getLogger(__name__)

RunEngine = Callable[[threading.Event], None]


class EngineThread(QThread):
    """Hosts the engine.

    Signals:
        failed: a VaporError that ended the engine before it was asked to stop.
    """

    failed = Signal(object)

    def __init__(self, run_engine: RunEngine, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._run_engine = run_engine
        self._stop = threading.Event()
        self.setObjectName("engine")

    def run(self) -> None:
        """In the thread: blocks as long as the engine lives."""
        try:
            self._run_engine(self._stop)
        except VaporError as error:
            log.exception("the engine stopped by an error")
            self.failed.emit(error)
        except Exception as error:
            log.exception("the engine stopped by an unexpected error")
            self.failed.emit(Unexpected("The engine stopped", why=str(error) or type(error).__name__))

    def stop_engine(self) -> None:
        """Ask it to end; returns at once. ``finished`` tells when it has."""
        self._stop.set()
