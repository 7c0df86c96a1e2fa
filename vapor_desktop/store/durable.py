"""Durable operations on DBOS: ``engine.ports.Durable``. The only importer of DBOS.

What DBOS does not give is decided by the engine: who adopts what (DESIGN §7). DBOS is one object per process.
Its tables lie in a file of their own beside the SQLite database, or in the same PostgreSQL database.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from dbos import DBOS, DBOSConfig, SetWorkflowID
from sqlalchemy import make_url

from vapor_desktop.engine.ports import Journal
from vapor_desktop.model.errors import Unexpected
from vapor_desktop.model.operations import SCHEMA

_WORKFLOW = "vapor-operation"
_OVER = {"SUCCESS", "ERROR"}

_body: Callable[[str, Journal], None] | None = None


class _DbosJournal:
    """One running workflow's record."""

    def step(self, name: str, act: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Recorded under its place in the workflow."""
        return DBOS.run_step({"name": name}, act)


@DBOS.workflow(name=_WORKFLOW)
def _operation(operation_id: str) -> None:
    if _body is None:
        raise Unexpected("An operation ran before the engine was ready")
    _body(operation_id, _DbosJournal())


class DbosOperations:
    """DBOS for this process, over the engine's own database URL."""

    def __init__(self, database_url: str) -> None:
        self._url = _system_url(database_url)
        self._lock = threading.Lock()
        self._launched = False
        self._queue = ""

    def launch(self, engine_id: str, body: Callable[[str, Journal], None]) -> None:
        """Open the tables. The executor's id is the engine's own: ``local`` would run others' steps twice."""
        global _body
        with self._lock:
            if self._launched:
                return
            _body = body
            config: DBOSConfig = {
                "name": "vapor-desktop",
                "system_database_url": self._url,
                "executor_id": engine_id,
                "application_version": f"operations-{SCHEMA}",
                "log_level": "WARNING",
            }
            DBOS(config=config)
            # A resumed workflow goes through a queue; from a common one any engine would take it.
            self._queue = f"adopted-by-{engine_id}"
            DBOS.listen_queues([self._queue])
            DBOS.launch()
            DBOS.register_queue(self._queue)
            self._launched = True

    def start(self, operation_id: str) -> None:
        """Begin; the operation's id is the workflow's, so a second start is the same one."""
        with SetWorkflowID(operation_id):
            DBOS.start_workflow(_operation, operation_id)

    def adopt(self, operation_id: str) -> None:
        """Go on where it was cut; from the beginning when the engine died before it even began."""
        newest, forks = operation_id, 0
        while DBOS.get_workflow_status(following := f"{operation_id}~{forks + 1}") is not None:
            newest, forks = following, forks + 1
        status = DBOS.get_workflow_status(newest)
        if status is None:
            self.start(operation_id)
        elif status.status in _OVER:
            self._fork(newest, following)
        else:
            DBOS.resume_workflow(newest, queue_name=self._queue)

    def _fork(self, ended: str, name: str) -> None:
        """DBOS thinks that one over, and the operation is open: it broke off. Again, from the step that failed."""
        steps = DBOS.list_workflow_steps(ended, load_output=True)
        failed = [s["function_id"] for s in steps if s["error"] is not None]
        start = min(failed, default=max((s["function_id"] for s in steps), default=0) + 1)
        with SetWorkflowID(name):
            DBOS.fork_workflow(ended, start, queue_name=self._queue)

    def close(self) -> None:
        """Workflows that still run stay pending; who adopts them goes on at the step that was cut."""
        with self._lock:
            if self._launched:
                self._launched = False
                DBOS.delete_queue(self._queue)  # what still waits in it is given another by whoever adopts it
                DBOS.destroy(workflow_completion_timeout_sec=0)


def _system_url(database_url: str) -> str:
    url = make_url(database_url)
    if url.get_backend_name() == "sqlite":
        return url.set(database=f"{url.database}.operations").render_as_string(hide_password=False)
    return url.render_as_string(hide_password=False)
