"""Durable operations as values: what is asked, its steps, its questions, and what came of it.

An operation is a fixed list of steps (``engine.operations.registry``). Each step observes, decides and acts in one;
what it returns is recorded and never asked again. ``result`` values are JSON.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from pydantic import Field

from vapor_desktop.model.policy import Value

# The shape of the steps below. An operation begun under another number is not continued by this program.
SCHEMA = 2
# Longer than this without a sign of life, and a person decides whether it goes on (DESIGN §7).
INTERRUPTED_AFTER = timedelta(minutes=10)


class OperationKind(StrEnum):
    """What is being done. The text is what UI, CLI and docs show."""

    MIGRATION = "planned migration"
    FAILOVER = "emergency failover"
    COMMIT = "commit failover"
    ROLLBACK = "roll back failover"
    RESOLVE = "resolve split brain"
    DRILL = "drill"
    STOP_DRILL = "stop drill"
    REPROTECT = "reprotect"
    PLAN = "plan run"


class OperationState(StrEnum):
    """Where it stands."""

    RUNNING = "running"
    WAITING = "waiting for an answer"
    UNDOING = "undoing"
    DONE = "done"
    UNDONE = "undone"
    FAILED = "failed"
    INTERRUPTED = "interrupted by an upgrade"


ENDED = frozenset({OperationState.DONE, OperationState.UNDONE, OperationState.FAILED})


class StepState(StrEnum):
    """Where one step stands."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    UNDONE = "undone"


class StepRow(Value):
    """One step as the journal shows it."""

    name: str
    title: str
    state: StepState = StepState.PENDING
    started_at: datetime | None = None
    ended_at: datetime | None = None
    note: str = ""  # what was observed and done, or why it failed
    no_return: bool = False  # after it there is no undo
    parent: str = ""  # the step that this one is shown under
    operation_id: str = ""  # the operation that does it


class Choice(Value):
    """One answer that can be given."""

    key: str
    text: str


class Question(Value):
    """What a person must decide. It waits as long as it takes: a time-out is no answer."""

    question_id: str
    text: str
    choices: tuple[Choice, ...]
    asked_at: datetime


class Operation(Value):
    """One operation, whole; ``version`` rises with every write (compare-and-set)."""

    operation_id: str
    kind: OperationKind
    protection_id: str
    vm_uuid: str
    vm_name: str
    args: dict[str, Any] = {}
    reason: str = ""
    asked_by: str
    engine_id: str
    schema_number: int = SCHEMA
    state: OperationState = OperationState.RUNNING
    started_at: datetime
    seen_at: datetime  # the last sign of life of the engine that runs it
    ended_at: datetime | None = None
    steps: tuple[StepRow, ...] = ()
    question: Question | None = None
    answers: dict[str, str] = {}  # question id -> choice
    cancel_asked: bool = False
    interrupted_since: datetime | None = None  # adopted after so long a pause that a person must look first
    result: dict[str, Any] = {}
    error: dict[str, Any] | None = None
    parent_id: str = ""  # the plan run that began it
    version: int = Field(default=0, ge=0)

    @property
    def ended(self) -> bool:
        """Nothing more will happen."""
        return self.state in ENDED

    @property
    def excludes(self) -> str:
        """Two open operations of the same word shut each other out."""
        return exclusion(self.kind, self.vm_uuid)

    @property
    def past_return(self) -> bool:
        """Has its point of no return been passed?"""
        return any(s.no_return and s.state is StepState.DONE for s in self.steps)

    def step(self, name: str) -> StepRow:
        """The row of that step. Raises KeyError."""
        for row in self.steps:
            if row.name == name:
                return row
        raise KeyError(name)

    def with_step(self, name: str, **changes: Any) -> Operation:
        """The same with one step's row changed."""
        steps = tuple(s.model_copy(update=changes) if s.name == name else s for s in self.steps)
        return self.model_copy(update={"steps": steps})


def exclusion(kind: OperationKind, vm_uuid: str) -> str:
    """One open operation per VM; but drills take nothing that others need: they are beside everything else."""
    return f"{vm_uuid}/drill" if is_beside(kind) else vm_uuid


def is_beside(kind: OperationKind) -> bool:
    """Do cycles, and other operations, go on meanwhile?"""
    return kind in {OperationKind.DRILL, OperationKind.STOP_DRILL}


def was_interrupted(operation: Operation, now: datetime) -> bool:
    """Did nobody work on it for so long that a person must look first? A waiting question is no interruption."""
    return operation.state is not OperationState.WAITING and now - operation.seen_at > INTERRUPTED_AFTER


def may_cancel(operation: Operation) -> bool:
    """Cancelling is undoing: possible until the point of no return."""
    return not operation.ended and not operation.past_return
