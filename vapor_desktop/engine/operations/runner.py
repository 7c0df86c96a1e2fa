"""Drives operations: begins, adopts, asks, undoes. The journal makes it durable; the sites' leases exclude.

``_body`` runs inside the durable workflow and may be run again from its beginning after a cut: it decides by
recorded answers only. Everything that looks or acts is inside ``journal.step``.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Collection, Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import structlog

from vapor_desktop.engine import records
from vapor_desktop.engine.operations.guarded import GuardedJournal
from vapor_desktop.engine.operations.steps import (
    RETRY,
    STOP,
    TAKE_OVER,
    UNDO,
    Ask,
    EngineStopping,
    Leases,
    OperationType,
    Result,
    Step,
    StepContext,
    Tools,
    rows,
    with_networks,
)
from vapor_desktop.engine.ports import Durable, Journal
from vapor_desktop.model.errors import (
    Conflict,
    DatabaseTrouble,
    Fate,
    InvalidRequest,
    LeaseHeld,
    NotFound,
    OperationStopped,
    Unexpected,
    VaporError,
    from_wire,
)
from vapor_desktop.model.operations import (
    SCHEMA,
    Choice,
    Operation,
    OperationKind,
    OperationState,
    Question,
    StepRow,
    StepState,
    exclusion,
    may_cancel,
    was_interrupted,
)
from vapor_desktop.model.plans import Plan, PlanMode, read_plan, shared_vms
from vapor_desktop.model.states import Severity

log = structlog.get_logger(__name__)

ANSWER_LOOK_S = 0.2
TOUCH_EVERY = timedelta(seconds=20)
LEFT_AFTER_S = 30.0  # an operation of ours that nothing here has run for so long is begun again
LEAVE_S = 5.0
_CONTINUE = Choice(key="continue", text="Go on")

Observer = Callable[[str, str, str], None]  # (operation id, step, "begin" | "acted" | "recorded")


class OperationRunner:
    """All operations of one engine."""

    def __init__(self, tools: Tools, durable: Durable, types: Mapping[OperationKind, OperationType]) -> None:
        self._tools = tools
        self._repository = tools.repository
        self._durable = durable
        self._types = types
        self._stopping = threading.Event()
        self._leases: dict[str, Leases] = {}
        self._lock = threading.Lock()
        self._run_at: dict[str, float] = {}  # operation -> when this process last had it in hand
        self._bodies: set[str] = set()
        self._no_bodies = threading.Condition(self._lock)
        self.observer: Observer = lambda _o, _s, _m: None

    # --- what others ask ---------------------------------------------------------------------------------
    def begin(
        self,
        kind: OperationKind,
        protection_id: str,
        args: dict[str, Any],
        reason: str,
        asked_by: str,
        *,
        operation_id: str = "",
        parent_id: str = "",
    ) -> Operation:
        """Record and start. Raises Conflict naming the open operation of that VM, NotFound, InvalidRequest."""
        protection = self._repository.protection(protection_id)
        if protection is None:
            raise NotFound("That protection does not exist any more")
        if not reason.strip():
            raise InvalidRequest(f"A {kind} wants a reason", fix="Write why, for those who come after")
        for other in self._repository.operations(open_only=True):
            if other.excludes == exclusion(kind, protection.vm_uuid):
                raise _busy(other)
        return self._start(
            operation_id=operation_id or str(uuid.uuid4()),
            kind=kind,
            protection_id=protection_id,
            vm_uuid=protection.vm_uuid,
            vm_name=protection.vm_name,
            args=args,
            reason=reason.strip(),
            asked_by=asked_by,
            parent_id=parent_id,
        )

    def begin_plan(self, plan: Plan, mode: PlanMode, reason: str, asked_by: str) -> Operation:
        """Run a recovery plan, as it is now. Raises Conflict naming an open run that shares a VM, InvalidRequest."""
        if mode.kind not in self._types:
            raise InvalidRequest(f"A plan cannot be run as a {mode} by this program yet")
        if not reason.strip():
            raise InvalidRequest("A plan run wants a reason", fix="Write why, for those who come after")
        for other in self._repository.operations(open_only=True):
            if other.kind is OperationKind.PLAN and shared_vms(plan, read_plan(other.args["plan"])):
                raise _busy(other)
        return self._start(
            operation_id=str(uuid.uuid4()),
            kind=OperationKind.PLAN,
            protection_id="",
            vm_uuid=plan.plan_id,
            vm_name=plan.name,
            args={"plan": plan.model_dump(mode="json"), "mode": mode.value},
            reason=reason.strip(),
            asked_by=asked_by,
        )

    def begin_child(
        self, parent: Operation, operation_id: str, kind: OperationKind, protection_id: str, args: dict[str, Any]
    ) -> Operation:
        """One that an operation begins. Raises what ``begin`` raises."""
        return self.begin(
            kind,
            protection_id,
            args,
            parent.reason,
            parent.asked_by,
            operation_id=operation_id,
            parent_id=parent.operation_id,
        )

    def _start(self, **values: Any) -> Operation:
        now = self._tools.clock.now()
        steps = rows(self._types[values["kind"]].steps_for(values["args"]))
        engine_id = self._tools.identity.engine_id
        operation = Operation(**values, engine_id=engine_id, started_at=now, seen_at=now, steps=steps)
        operation = self._repository.save_operation(operation)
        self._ready()
        self._durable.start(operation.operation_id)
        return operation

    def plan(self, kind: OperationKind, args: Mapping[str, Any]) -> tuple[StepRow, ...]:
        """The steps such an operation has with these arguments, none begun."""
        return rows(self._types[kind].steps_for(args) if args else self._types[kind].steps)

    def protections(self) -> set[str]:
        """Those of which an operation is open here."""
        return {o.protection_id for o in self._mine()}

    def touch(self) -> None:
        """A sign of life for each open operation of ours; one that was broken off here is begun again."""
        for operation in self._mine():
            self._touch(operation)

    def adopt(self, living: Collection[str], may: Callable[[Operation], bool] = lambda _operation: True) -> None:
        """Take over what engines that live no more have left, by compare-and-set. Call it now and then."""
        mine = self._tools.identity.engine_id
        for operation in self._repository.operations(open_only=True):
            gone = operation.engine_id != mine and operation.engine_id not in living
            if gone and operation.state is not OperationState.INTERRUPTED and may(operation):
                self._take_over(operation)

    def answer(self, operation_id: str, question_id: str, choice: str) -> None:
        """A person's answer. Raises InvalidRequest when that is not (or no longer) asked."""
        operation = self._operation(operation_id)
        question = operation.question
        if question is None or question.question_id != question_id:
            raise InvalidRequest("That question is not asked (any more)", fix="Look at the operation again")
        if choice not in {c.key for c in question.choices}:
            offered = ", ".join(c.key for c in question.choices)
            raise InvalidRequest(f"“{choice}” is no answer to that question", fix=f"One of: {offered}")
        self._update(operation_id, lambda o: o.model_copy(update={"answers": {**o.answers, question_id: choice}}))

    def cancel(self, operation_id: str) -> None:
        """Undo it. Raises InvalidRequest after the point of no return."""
        operation = self._operation(operation_id)
        if operation.ended:
            return
        if operation.state is OperationState.INTERRUPTED:
            self._update(operation_id, lambda o: _closed(o, OperationState.FAILED, self._tools))
            return
        if not may_cancel(operation):
            raise InvalidRequest(f"The {operation.kind} is past its point of no return")
        self._update(operation_id, lambda o: o.model_copy(update={"cancel_asked": True}))
        end = STOP.key if self._types[operation.kind].stops else UNDO.key
        if operation.question is not None and end in {c.key for c in operation.question.choices}:
            self.answer(operation_id, operation.question.question_id, end)

    def wait(self, operation_id: str, timeout_s: float) -> Operation:
        """Until it ended or asks something. Raises Unexpected when neither happens in time."""
        deadline = self._tools.clock.monotonic() + timeout_s
        while True:
            operation = self._operation(operation_id)
            if operation.ended or operation.question is not None:
                return operation
            if self._tools.clock.monotonic() > deadline or self._stopping.wait(0.02):
                raise Unexpected(f"The {operation.kind} of “{operation.vm_name}” has not ended yet")

    def close(self) -> None:
        """This engine ends; what runs is left to be adopted."""
        self._stopping.set()
        with self._lock:  # a step in the middle of its act may still end, and be recorded
            self._no_bodies.wait_for(lambda: not self._bodies, LEAVE_S)
        self._durable.close()
        with self._lock:
            for leases in self._leases.values():
                leases.close()
            self._leases.clear()

    # --- adoption -----------------------------------------------------------------------------------------
    def _ready(self) -> None:
        self._durable.launch(self._tools.identity.engine_id, self._body)

    def _mine(self) -> list[Operation]:
        me = self._tools.identity.engine_id
        return [o for o in self._repository.operations(open_only=True) if o.engine_id == me]

    def _touch(self, operation: Operation) -> None:
        now, operation_id = self._tools.clock.now(), operation.operation_id
        with self._lock:
            here = self._tools.clock.monotonic()
            if operation_id in self._bodies:
                self._run_at[operation_id] = here
            left = here - self._run_at.setdefault(operation_id, here) > LEFT_AFTER_S
            if left:
                self._run_at[operation_id] = here
        if left and operation.state is not OperationState.INTERRUPTED:
            log.warning("operation begun again", operation=operation_id)
            self._ready()
            self._durable.adopt(operation_id)
        if now - operation.seen_at >= TOUCH_EVERY:
            self._update(operation.operation_id, lambda o: o.model_copy(update={"seen_at": now}))

    def _take_over(self, operation: Operation) -> None:
        now = self._tools.clock.now()
        changes: dict[str, Any] = {"engine_id": self._tools.identity.engine_id, "seen_at": now}
        if operation.schema_number != SCHEMA:
            changes["state"] = OperationState.INTERRUPTED
        elif was_interrupted(operation, now):
            changes["interrupted_since"] = operation.seen_at
        try:
            self._repository.save_operation(operation.model_copy(update=changes), expect_version=operation.version)
        except Conflict:
            return  # another engine was faster
        if operation.schema_number == SCHEMA:
            log.info("operation adopted", operation=operation.operation_id, kind=operation.kind.value)
            self._ready()
            self._durable.adopt(operation.operation_id)

    # --- the durable body ----------------------------------------------------------------------------------
    def _body(self, operation_id: str, journal: Journal) -> None:
        with self._lock:
            self._bodies.add(operation_id)
        guarded = GuardedJournal(journal, self._stopping, lambda: self._is_ours(operation_id), self._tools.clock)
        try:
            self._drive(operation_id, guarded)
        except Exception as error:
            if self._stopping.is_set() or not self._is_ours(operation_id):
                raise EngineStopping from error  # nothing is recorded; whoever has adopted it, or will, goes on
            log.exception("operation crashed", operation=operation_id)
            wire = Unexpected("The operation ended in an error of this program", why=repr(error)).to_wire()
            failed = {"error": wire}
            self._update(
                operation_id, lambda o: _closed(o, OperationState.FAILED, self._tools).model_copy(update=failed)
            )

        finally:
            with self._lock:
                self._bodies.discard(operation_id)
                self._no_bodies.notify_all()

    def _is_ours(self, operation_id: str) -> bool:
        return self._operation(operation_id).engine_id == self._tools.identity.engine_id

    def _drive(self, operation_id: str, journal: Journal) -> None:
        operation = self._operation(operation_id)
        kind = self._types[operation.kind]
        done: dict[str, Result] = {}
        answers: dict[str, str] = {}
        end: Result = {}
        for step in kind.steps_for(operation.args):
            end = self._step(journal, operation_id, step, done, answers)
            if "done" not in end:
                break
            done[step.name] = end["done"]
        if end.get("undo"):
            self._undo(journal, operation_id, kind, done, answers)
        journal.step("end", lambda: self._end(operation_id, end, done))

    def _step(
        self, journal: Journal, operation_id: str, step: Step, done: dict[str, Result], answers: dict[str, str]
    ) -> Result:
        attempt = 0
        while True:
            name = f"{step.name}/{attempt}"
            out = journal.step(name, partial(self._perform, operation_id, step, name, done, answers))
            self.observer(operation_id, step.name, "recorded")
            if "ask" not in out:
                return out
            choice = self._answer(journal, operation_id, name)
            if choice == UNDO.key:
                return {"undo": True}
            if choice == STOP.key:
                return {"error": out.get("error")}
            answers[step.name] = choice
            attempt += 1

    def _answer(self, journal: Journal, operation_id: str, question_id: str) -> str:
        """A person's answer, however long it takes; recorded like a step."""

        def wait() -> Result:
            while (choice := self._operation(operation_id).answers.get(question_id)) is None:
                if self._stopping.wait(ANSWER_LOOK_S):
                    raise EngineStopping
            return {"choice": choice}

        return str(journal.step(f"answer {question_id}", wait)["choice"])

    def _perform(
        self, operation_id: str, step: Step, name: str, done: Mapping[str, Result], answers: Mapping[str, str]
    ) -> Result:
        """One step under the eyes of the journal: {"done": result}, {"undo"}, {"error"} or {"ask"}."""
        operation = self._operation(operation_id)
        kind = self._types[operation.kind]
        if operation.cancel_asked and may_cancel(operation):
            return {"error": _stopped(operation).to_wire()} if kind.stops else {"undo": True}
        if operation.interrupted_since is not None:
            return self._ask_interrupted(operation, operation.interrupted_since, name, _way_out(kind, operation))
        self._mark(operation_id, step, StepState.RUNNING)
        self.observer(operation_id, step.name, "begin")
        context = self._context(operation_id, step.name, done, answers)
        try:
            result = self._patiently(step, context)
        except Ask as question:
            asked = self._ask(operation_id, name, question.text, question.choices)
            return asked if question.error is None else {**asked, "error": question.error.to_wire()}
        except DatabaseTrouble:
            raise  # of ours, not of what is operated on
        except VaporError as error:
            self._mark(operation_id, step, StepState.FAILED, str(error))
            if not kind.asks:
                return {"error": error.to_wire()}
            choices = (*_ways(error), _way_out(kind, operation))
            return {**self._ask(operation_id, name, str(error), choices), "error": error.to_wire()}
        self.observer(operation_id, step.name, "acted")
        self._mark(operation_id, step, StepState.DONE)
        return {"done": result}

    def _patiently(self, step: Step, context: StepContext) -> Result:
        for wait_s in (*step.retry_after_s, None):
            try:
                return step.act(context)
            except VaporError as error:
                if error.fate is not Fate.RETRY or wait_s is None:
                    raise
                context.note(f"{error.what}; trying again")
                if self._stopping.wait(wait_s):
                    raise EngineStopping from error
            except (Ask, EngineStopping):
                raise
            except Exception as error:
                log.exception("step crashed", step=step.name)
                raise Unexpected(f"“{step.title}” ended in an error of this program", why=repr(error)) from error
        raise AssertionError  # the last round returns or raises

    def _undo(
        self,
        journal: Journal,
        operation_id: str,
        kind: OperationType,
        done: Mapping[str, Result],
        answers: dict[str, str],
    ) -> None:
        """Backwards over everything that was begun, the cut-off step too."""
        steps = kind.steps_for(self._operation(operation_id).args)
        begun = [s for s in steps if self._begun(journal, operation_id, s)]
        for step in reversed(begun):
            if step.undo is None:
                continue
            attempt = 0
            while True:
                name = f"undo {step.name}/{attempt}"
                out = journal.step(name, partial(self._take_back, operation_id, step, name, done, answers))
                if "ask" not in out:
                    break
                choice = self._answer(journal, operation_id, name)
                if choice == STOP.key:
                    break
                answers[f"undo {step.name}"] = choice
                attempt += 1

    def _begun(self, journal: Journal, operation_id: str, step: Step) -> bool:
        def look() -> Result:
            return {"begun": self._operation(operation_id).step(step.name).state is not StepState.PENDING}

        return bool(journal.step(f"look {step.name}", look)["begun"])

    def _take_back(
        self, operation_id: str, step: Step, name: str, done: Mapping[str, Result], answers: Mapping[str, str]
    ) -> Result:
        self._update(operation_id, lambda o: o.model_copy(update={"state": OperationState.UNDOING, "question": None}))
        context = self._context(operation_id, step.name, done, answers)
        context.take_over = answers.get(f"undo {step.name}") == TAKE_OVER.key
        undo = Step(step.name, f"Undo: {step.title}", lambda c: _nothing(step.undo, c))
        try:
            self._patiently(undo, context)
        except DatabaseTrouble:
            raise
        except VaporError as error:
            text = f"Could not undo “{step.title}”: {error}"
            return self._ask(operation_id, name, text, (*_ways(error), STOP))
        self._mark(operation_id, step, StepState.UNDONE)
        return {"done": {}}

    def _end(self, operation_id: str, end: Result, done: Mapping[str, Result]) -> Result:
        operation = self._operation(operation_id)
        kind = self._types[operation.kind]
        error = from_wire(end["error"]) if end.get("error") else None
        context = self._context(operation_id, "", done, {})
        kind.ended(context, error if "done" not in end else None)
        state = OperationState.DONE if "done" in end else OperationState.FAILED
        if end.get("undo"):
            state = OperationState.UNDONE
        result: dict[str, Any] = {}
        for values in done.values():
            result.update(values)
        changes = {"result": result, "error": end.get("error")}
        with self._lock:
            leases = self._leases.pop(operation_id, None)
        if leases is not None:
            leases.close()  # before anybody is told that it is over: what they do next needs them
        self._update(operation_id, lambda o: _closed(o, state, self._tools).model_copy(update=changes))
        self._tell(operation, state, error)
        return {}

    # --- records -------------------------------------------------------------------------------------------
    def _context(
        self, operation_id: str, step: str, done: Mapping[str, Result], answers: Mapping[str, str]
    ) -> StepContext:
        operation = self._operation(operation_id)
        protection = self._repository.protection(operation.protection_id) if operation.protection_id else None
        if protection is None and operation.protection_id:
            raise NotFound("The protection of this operation does not exist any more")
        with self._lock:
            lapsed = self._tools.lapsed
            leases = self._leases.setdefault(operation_id, Leases(operation, self._tools.identity.name, lapsed))

        def note(text: str) -> None:
            self._update(operation_id, lambda o: o.with_step(step, note=text))

        def tell(other: str, changes: dict[str, Any]) -> None:
            self._update(operation_id, lambda o: o.with_step(other, **changes))

        return StepContext(
            tools=self._tools,
            operation=operation,
            subject=None if protection is None else with_networks(protection, operation.args),
            tell=tell,
            children=self,
            leases=leases,
            stopping=self._stopping,
            note=note,
            done=done,
            answers=answers,
            take_over=answers.get(step) == TAKE_OVER.key,
        )

    def _mark(self, operation_id: str, step: Step, state: StepState, note: str | None = None) -> None:
        now = self._tools.clock.now()
        changes: dict[str, Any] = {"state": state}
        if note is not None:
            changes["note"] = note
        if state is not StepState.RUNNING:
            changes["ended_at"] = now
        elif not step.parent:  # one below another began when that one began it
            changes["started_at"] = now

        def change(o: Operation) -> Operation:
            whole: dict[str, Any] = {"seen_at": now}
            if state is StepState.RUNNING:
                whole |= {"state": OperationState.RUNNING, "question": None}
            return o.with_step(step.name, **changes).model_copy(update=whole)

        self._update(operation_id, change)

    def _ask(self, operation_id: str, name: str, text: str, choices: tuple[Choice, ...]) -> Result:
        now = self._tools.clock.now()
        question = Question(question_id=name, text=text, choices=choices, asked_at=now)
        changes = {"state": OperationState.WAITING, "question": question, "seen_at": now}
        operation = self._update(operation_id, lambda o: o.model_copy(update=changes))
        records.note(
            self._repository,
            now,
            "question",
            f"The {operation.kind} of “{operation.vm_name}” asks: {text}",
            severity=Severity.WARNING,
            protection_id=operation.protection_id or None,
        )
        return {"ask": name}

    def _ask_interrupted(self, operation: Operation, since: datetime, name: str, way_out: Choice) -> Result:
        self._update(operation.operation_id, lambda o: o.model_copy(update={"interrupted_since": None}))
        minutes = int((self._tools.clock.now() - since).total_seconds() // 60)
        text = f"The {operation.kind} was interrupted for {minutes} min; look at both sites before it goes on"
        return self._ask(operation.operation_id, name, text, (_CONTINUE, way_out))

    def _tell(self, operation: Operation, state: OperationState, error: VaporError | None) -> None:
        text = f"{operation.kind.value.capitalize()} {state.value}: {operation.reason}"
        if error is not None:
            text = f"{text} ({error})"
        records.note(
            self._repository,
            self._tools.clock.now(),
            "operation",
            text,
            severity=Severity.CRITICAL if state is OperationState.FAILED else Severity.WARNING,
            protection_id=operation.protection_id or None,
        )

    def _operation(self, operation_id: str) -> Operation:
        operation = self._repository.operation(operation_id)
        if operation is None:
            raise NotFound("There is no such operation")
        return operation

    def _update(self, operation_id: str, change: Callable[[Operation], Operation]) -> Operation:
        while True:
            now = self._operation(operation_id)
            wanted = change(now)
            if wanted == now:
                return now
            try:
                return self._repository.save_operation(wanted, expect_version=now.version)
            except Conflict:
                continue


def _ways(error: VaporError) -> tuple[Choice, ...]:
    """How to go on after it."""
    return (RETRY, TAKE_OVER) if isinstance(error, LeaseHeld) else (RETRY,)


def _closed(operation: Operation, state: OperationState, tools: Tools) -> Operation:
    return operation.model_copy(update={"state": state, "ended_at": tools.clock.now(), "question": None})


def _way_out(kind: OperationType, operation: Operation) -> Choice:
    return STOP if operation.past_return or kind.stops else UNDO


def _stopped(operation: Operation) -> OperationStopped:
    return OperationStopped(f"The {operation.kind} of “{operation.vm_name}” was stopped; what it had done stays")


def _nothing(undo: Callable[[StepContext], None] | None, context: StepContext) -> Result:
    if undo is not None:
        undo(context)
    return {}


def _busy(other: Operation) -> Conflict:
    return Conflict(
        f"A {other.kind} of “{other.vm_name}” is open already",
        why=f"asked by {other.asked_by} at {other.started_at:%Y-%m-%d %H:%M:%S}Z: {other.reason}",
        fix="Wait for it, answer its question, or cancel it",
        operation_id=other.operation_id,
    )
