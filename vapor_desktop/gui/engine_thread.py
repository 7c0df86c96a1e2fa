"""The engine in a QThread of its own. The engine knows nothing of Qt."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from PySide6.QtCore import QThread, Signal

from vapor_desktop.model.errors import Unexpected, VaporError

log = logging.getLogger(__name__)


class EngineThread(QThread):
    """Hosts the engine.

    Signals:
        failed: a VaporError that ended the engine before it was asked to stop.
    """

    failed = Signal(object)

    def __init__(self, run_engine: Callable[[], None], stop_engine: Callable[[], None]) -> None:
        """``run_engine`` blocks as long as the engine lives; ``stop_engine`` makes it return."""
        super().__init__()
        self._run_engine, self._stop_engine = run_engine, stop_engine
        self.setObjectName("engine")

    def run(self) -> None:
        """In the thread."""
        try:
            self._run_engine()
        except VaporError as error:
            log.exception("the engine stopped by an error")
            self.failed.emit(error)
        except Exception as error:
            log.exception("the engine stopped by an unexpected error")
            self.failed.emit(Unexpected("The engine stopped", why=str(error) or type(error).__name__))

    def stop_engine(self) -> None:
        """Ask it to end; returns at once. ``finished`` tells when it has."""
        threading.Thread(target=self._stop_engine, name="stop-engine", daemon=True).start()
