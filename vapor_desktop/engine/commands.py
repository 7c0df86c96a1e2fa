"""What consoles ask an engine for through the database: one verb each, answered there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import structlog

from vapor_desktop.engine.operations.runner import OperationRunner
from vapor_desktop.engine.ports import Command, Repository
from vapor_desktop.engine.recovery_plans import RecoveryPlans
from vapor_desktop.engine.verbs import Recovery
from vapor_desktop.model.errors import InvalidRequest, Unexpected, VaporError
from vapor_desktop.model.operations import OperationKind, is_beside
from vapor_desktop.model.plans import PlanMode

log = structlog.get_logger(__name__)

Args = dict[str, object]


class Acting(Protocol):
    """The engine that has these commands."""

    repository: Repository
    operations: OperationRunner
    plans: RecoveryPlans
    recovery: Recovery

    def sync(self, protection_id: str) -> None: ...
    def cancel(self, protection_id: str) -> None:
        """Only a cycle that is queued or runs: the next one was not meant."""

    def cancel_and_wait(self, protection_id: str) -> None:
        """Until it has ended. Raises DomainBusy when it does not."""


class Commands:
    """Safe from several threads, as what it hands on to is."""

    def __init__(self, engine: Acting) -> None:
        self._engine = engine
        self._verbs: dict[str, Callable[[Args], Args]] = {
            "sync": self._sync,
            "cancel": self._cancel,
            "begin": self._begin,
            "run-plan": self._run_plan,
            "answer": self._answer,
            "cancel-operation": self._cancel_operation,
            "pin": self._pin,
            "delete-replica": self._delete_replica,
            "let-go": self._let_go,
        }

    def execute(self, command: Command) -> None:
        """Do it and write the answer, an error too; raises nothing but trouble with the database."""
        result: Args | None = None
        error: dict[str, Any] | None = None
        try:
            verb = self._verbs.get(command.verb)
            if verb is None:
                raise InvalidRequest(f"This engine does not know the verb “{command.verb}”")
            result = verb(command.args)
        except VaporError as trouble:
            error = trouble.to_wire()
        except Exception as crash:
            log.exception("verb crashed", verb=command.verb)
            error = Unexpected(repr(crash)).to_wire()
        self._engine.repository.answer(command.command_id, result, error)

    def _sync(self, args: Args) -> Args:
        self._engine.sync(str(args["protection_id"]))
        return {}

    def _cancel(self, args: Args) -> Args:
        """``wait``: until the cycle has ended."""
        cancel = self._engine.cancel_and_wait if args.get("wait") else self._engine.cancel
        cancel(str(args["protection_id"]))
        return {}

    def _begin(self, args: Args) -> Args:
        """Start a durable operation; its id."""
        protection_id, kind = str(args["protection_id"]), OperationKind(str(args["kind"]))
        if not is_beside(kind):
            self._engine.cancel(protection_id)
        details = args.get("args")
        operation = self._engine.operations.begin(
            kind,
            protection_id,
            dict(details) if isinstance(details, dict) else {},
            str(args.get("reason", "")),
            str(args.get("asked_by", "")),
        )
        return {"operation_id": operation.operation_id}

    def _run_plan(self, args: Args) -> Args:
        """Run it as its targets have it now; the operation's id."""
        plan_id, mode = str(args["plan_id"]), PlanMode(str(args["mode"]))
        plan = self._engine.plans.current(plan_id)
        reason, asked_by = str(args.get("reason", "")), str(args.get("asked_by", ""))
        return {"operation_id": self._engine.operations.begin_plan(plan, mode, reason, asked_by).operation_id}

    def _answer(self, args: Args) -> Args:
        self._engine.operations.answer(str(args["operation_id"]), str(args["question_id"]), str(args["choice"]))
        return {}

    def _cancel_operation(self, args: Args) -> Args:
        self._engine.operations.cancel(str(args["operation_id"]))
        return {}

    def _pin(self, args: Args) -> Args:
        note = args.get("note")
        self._engine.recovery.pin(
            str(args["protection_id"]), int(str(args["seq"])), None if note is None else str(note)
        )
        return {}

    def _let_go(self, args: Args) -> Args:
        self._engine.recovery.let_go(str(args["protection_id"]), int(str(args["epoch"])), str(args["reason"]))
        return {}

    def _delete_replica(self, args: Args) -> Args:
        self._engine.recovery.delete_replica(str(args["protection_id"]))
        return {}
