"""Durable operations of any kind: begun, answered, cancelled, waited for."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

from vapor_desktop.engine.console.desk import VERB_DEADLINE_S, Desk
from vapor_desktop.model.errors import NotFound, Unexpected
from vapor_desktop.model.operations import Operation, OperationKind, StepRow


class OperatingDesk(Desk):
    """Operations, whoever runs them."""

    def begin_operation(
        self, kind: OperationKind, protection_id: str, args: Mapping[str, object], reason: str
    ) -> str:
        """Start an operation; its id. Raises Conflict naming the open operation of that VM."""
        asked: dict[str, object] = {
            "kind": kind.value,
            "protection_id": protection_id,
            "args": dict(args),
            "reason": reason,
            "asked_by": self._engine.identity.name,
        }
        return str(self._ask("begin", asked, VERB_DEADLINE_S)["operation_id"])

    def operations(self, *, open_only: bool = False, limit: int = 200) -> Sequence[Operation]:
        """Newest first."""
        return self._repository.operations(open_only=open_only, limit=limit)

    def operation_steps(self, kind: OperationKind, args: Mapping[str, object] | None = None) -> Sequence[StepRow]:
        """What such an operation would do, step by step: the dry run's list."""
        return self._engine.operations.plan(kind, args or {})

    def operation(self, operation_id: str) -> Operation:
        """Its journal. Raises NotFound."""
        operation = self._repository.operation(operation_id)
        if operation is None:
            raise NotFound("There is no such operation")
        return operation

    def answer_question(self, operation_id: str, question_id: str, choice: str) -> None:
        """What a waiting operation asked."""
        self._ask(
            "answer",
            {"operation_id": operation_id, "question_id": question_id, "choice": choice},
            VERB_DEADLINE_S,
        )

    def cancel_operation(self, operation_id: str) -> None:
        """Undo it, up to its point of no return."""
        self._ask("cancel-operation", {"operation_id": operation_id}, VERB_DEADLINE_S)

    def wait_operation(self, operation_id: str, timeout_s: float) -> Operation:
        """Until it ended or asks something. Raises Unexpected when neither happens in time."""
        deadline = self._clock.monotonic() + timeout_s
        pause = threading.Event()
        while True:
            operation = self.operation(operation_id)
            if operation.ended or operation.question is not None:
                self._engine.forget_rows()
                return operation
            if self._clock.monotonic() > deadline:
                raise Unexpected(f"The {operation.kind} of “{operation.vm_name}” has not ended yet")
            pause.wait(0.02)
