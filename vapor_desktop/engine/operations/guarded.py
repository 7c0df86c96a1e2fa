"""A journal that records only what belongs in it: no trouble of an engine that ends, or of its database.

What a durable step raises is recorded like a result, and raised again by whoever goes on with the operation. So what
says nothing about the operation itself must not get there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import structlog

from vapor_desktop.engine.operations.steps import EngineStopping
from vapor_desktop.engine.ports import Clock, Journal
from vapor_desktop.model.errors import DatabaseTrouble

log = structlog.get_logger(__name__)

AGAIN_S = 1.0
DATABASE_PATIENCE_S = 300.0  # as long as its restart, or its host's, may take


class GuardedJournal:
    """``ours``: is the operation still this engine's? One that was adopted by another goes on there, not here."""

    def __init__(self, journal: Journal, stopping: threading.Event, ours: Callable[[], bool], clock: Clock) -> None:
        self._journal = journal
        self._stopping = stopping
        self._ours = ours
        self._clock = clock

    def step(self, name: str, act: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """See ``Journal``. Raises EngineStopping, unrecorded, when this engine has nothing more to say."""
        return self._journal.step(name, lambda: self._run(name, act))

    def _run(self, name: str, act: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        deadline = self._clock.monotonic() + DATABASE_PATIENCE_S
        while True:
            try:
                if self._stopping.is_set() or not self._ours():
                    raise EngineStopping
                return act()
            except DatabaseTrouble as error:
                if self._clock.monotonic() > deadline:
                    raise
                log.warning("the database fails; the step is tried again", step=name, error=str(error))
                if self._stopping.wait(AGAIN_S):
                    raise EngineStopping from error
            except Exception as error:
                if self._stopping.is_set():
                    raise EngineStopping from error
                raise
