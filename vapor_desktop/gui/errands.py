"""Verbs the user asked for: each is a task row at once, and ends as done or as a sentence why not."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from PySide6.QtCore import QObject, Signal

from vapor_desktop.gui.bridge import Bridge
from vapor_desktop.model.errors import VaporError
from vapor_desktop.model.view import Task
from vapor_desktop.model.wire import Progress

KEPT = 30


class Errands(QObject):
    """Runs verbs through the bridge and keeps their rows.

    Signals:
        changed: a row was added or ended.
        failed: (title, VaporError) of a verb that did not work.
    """

    changed = Signal()
    failed = Signal(str, object)

    def __init__(self, bridge: Bridge) -> None:
        super().__init__()
        self._bridge = bridge
        self._tasks: dict[str, Task] = {}
        self._numbers = itertools.count(1)

    def tasks(self) -> tuple[Task, ...]:
        """Newest first."""
        return tuple(reversed(self._tasks.values()))

    def run(
        self,
        title: str,
        work: Callable[[], Any],
        *,
        subject: str | None = None,
        done: Callable[[Any], None] | None = None,
        quiet: bool = False,
    ) -> None:
        """Do it. ``quiet``: a failure is only shown in its row."""
        key = self._begin(title, subject)

        def succeeded(result: Any) -> None:
            self._end(key, "done", f"in {result:.1f} s" if isinstance(result, float) else "")
            self._bridge.refresh()
            if done is not None:
                done(result)

        def went_wrong(error: VaporError) -> None:
            self._end(key, "failed", str(error))
            if not quiet:
                self.failed.emit(title, error)

        self._bridge.ask(work, self, succeeded, went_wrong)

    def run_long(
        self, title: str, work: Callable[[Callable[[Progress], None]], Any], *, subject: str | None = None
    ) -> None:
        """As ``run``, for work that tells how far it is."""
        key = self._begin(title, subject)

        def went_on(progress: Progress) -> None:
            self._tasks[key] = replace(self._tasks[key], progress=progress)
            self.changed.emit()

        def succeeded(_result: Any) -> None:
            self._end(key, "done", "")
            self._bridge.refresh()

        def went_wrong(error: VaporError) -> None:
            self._end(key, "failed", str(error))
            self.failed.emit(title, error)

        self._bridge.ask_live(work, self, went_on, succeeded, went_wrong)

    def _begin(self, title: str, subject: str | None) -> str:
        key = f"console-{next(self._numbers)}"
        self._tasks[key] = Task(key, title, subject, datetime.now(UTC), None, None, None)
        self.changed.emit()
        return key

    def _end(self, key: str, outcome: str, detail: str) -> None:
        self._tasks[key] = replace(self._tasks[key], finished_at=datetime.now(UTC), outcome=outcome, detail=detail)
        over = [k for k, task in self._tasks.items() if task.outcome is not None]
        for old in over[: max(0, len(over) - KEPT)]:
            del self._tasks[old]
        self.changed.emit()
