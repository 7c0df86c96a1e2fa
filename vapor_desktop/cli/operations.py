"""Durable operations from the shell: begin one and follow it, list them, answer, undo."""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping

import click

from vapor_desktop.cli import program
from vapor_desktop.cli.completing import operation_ids, vm_names
from vapor_desktop.cli.confirming import DRY, check_confirmed, nothing_done
from vapor_desktop.cli.output import Output, json_option
from vapor_desktop.engine.console import EngineBackend
from vapor_desktop.model.errors import InvalidRequest, NotFound, from_wire
from vapor_desktop.model.operations import Operation, OperationKind, Question, StepState

LOOK_S = 0.1


shutdown_option = click.option(
    "--shutdown-timeout",
    type=click.FloatRange(1, 86400),
    default=120.0,
    show_default=True,
    metavar="SECONDS",
    help="How long the guest may take to shut down before you are asked.",
)


@click.command()
@click.argument("vm", shell_complete=vm_names)
@click.option("--reason", required=True, help="Why; kept in the history and at the sites.")
@click.option("--confirm", metavar="NAME", help=f"The VM's name again. {DRY}")
@shutdown_option
@click.option(
    "--reread",
    is_flag=True,
    help="Read all disks again once it is off. How much longer that takes is asked before it is shut down.",
)
@click.option("--reread-within", type=click.FloatRange(min=0), metavar="SECONDS",
              help="With --reread: do not ask when it takes at most so long.")  # fmt: skip
@json_option
@click.pass_obj
def migrate(
    out: Output,
    vm: str,
    reason: str,
    confirm: str | None,
    shutdown_timeout: float,
    reread: bool,
    reread_within: float | None,
) -> None:
    """Planned migration: move VM to its target and lose nothing. It is shut down, synced, started there."""
    if reread_within is not None and not reread:
        raise InvalidRequest("--reread-within says nothing without --reread", fix="Add --reread, or leave it out")
    args: dict[str, object] = {"shutdown_s": shutdown_timeout}
    if reread:
        args |= {"reread": True, "reread_within_s": reread_within}
    with program.acting() as backend:
        row = program.find_protection(backend, vm)
        name = row.protection.vm_name
        if confirm is None:
            steps = [s.title for s in backend.operation_steps(OperationKind.MIGRATION, args)]
            raise nothing_done(out, steps, name, f"migrate it to {row.target_name}", steps=steps)
        check_confirmed(name, confirm)
        done = carry_out(out, backend, OperationKind.MIGRATION, row.key, args, reason)
    finish(out, done)


def carry_out(
    out: Output, backend: EngineBackend, kind: OperationKind, key: str, args: Mapping[str, object], reason: str
) -> Operation:
    """Begin it, and ``follow`` it."""
    return follow(out, backend, backend.begin_operation(kind, key, args, reason))


def follow(out: Output, backend: EngineBackend, operation_id: str) -> Operation:
    """Tell each step as it ends, on stderr, until the operation ended or asks what nobody here can answer."""
    told: set[str] = set()
    pause = threading.Event()
    while True:
        operation = backend.operation(operation_id)
        if not out.as_json:
            _tell_steps(operation, told)
        if operation.ended:
            return operation
        asking = _asking(backend, operation)
        if asking is not None and asking.question is not None:
            if out.as_json or not sys.stdin.isatty():
                return asking
            question = asking.question
            backend.answer_question(asking.operation_id, question.question_id, _prompt(question))
            _wait_answered(backend, asking)
        pause.wait(LOOK_S)


def _asking(backend: EngineBackend, operation: Operation) -> Operation | None:
    """Itself, or one that it began and waits for."""
    if operation.question is not None:
        return operation
    for step in operation.steps:
        if step.operation_id and step.state is StepState.RUNNING:
            child = backend.operation(step.operation_id)
            if child.question is not None:
                return child
    return None


def _wait_answered(backend: EngineBackend, operation: Operation) -> None:
    asked = operation.question
    pause = threading.Event()
    while asked is not None and backend.operation(operation.operation_id).question == asked:
        pause.wait(LOOK_S)


def _tell_steps(operation: Operation, told: set[str]) -> None:
    for step in operation.steps:
        ended = step.state in {StepState.DONE, StepState.FAILED, StepState.UNDONE}
        key = f"{step.name} {step.state}"
        if ended and key not in told:
            told.add(key)
            took = (
                f" ({(step.ended_at - step.started_at).total_seconds():.1f} s)"
                if step.ended_at and step.started_at
                else ""
            )
            click.echo(f"  {step.state:7} {step.title}{took}" + (f": {step.note}" if step.note else ""), err=True)


def _prompt(question: Question) -> str:
    click.echo(question.text, err=True)
    for choice in question.choices:
        click.echo(f"  {choice.key}: {choice.text}", err=True)
    return str(click.prompt("Answer", type=click.Choice([c.key for c in question.choices]), err=True))


def finish(out: Output, operation: Operation) -> None:
    """Say how it ended. Raises what it failed with, and InvalidRequest for a question that nobody here answers."""
    if operation.question is not None:
        raise InvalidRequest(
            f"The {operation.kind} of “{operation.vm_name}” asks: {operation.question.text}",
            fix=f"vaporctl operation answer {operation.operation_id[:8]} "
            + "|".join(c.key for c in operation.question.choices),
            operation_id=operation.operation_id,
            question_id=operation.question.question_id,
            choices=[c.key for c in operation.question.choices],
        )
    if operation.error is not None:
        raise from_wire(operation.error)
    text = f"{operation.kind.value.capitalize()} of {operation.vm_name}: {operation.state}"
    out.say(text, **_facts(operation))


def _facts(operation: Operation) -> dict[str, object]:
    return operation.model_dump(mode="json")


@click.group()
def operation() -> None:
    """Durable operations: list, look at one, answer its question, undo it."""


@operation.command("list")
@click.option("--open", "open_only", is_flag=True, help="Only those that have not ended.")
@json_option
@click.pass_obj
def list_(out: Output, open_only: bool) -> None:
    """Newest first."""
    with program.reading() as backend:
        found = backend.operations(open_only=open_only)
    if out.as_json:
        out.json([_facts(o) for o in found])
        return
    cells = [
        (o.operation_id[:8], o.kind.value, o.vm_name, o.state.value, f"{o.started_at:%Y-%m-%d %H:%M:%S}Z", o.reason)
        for o in found
    ]
    out.table(("ID", "OPERATION", "VM", "STATE", "STARTED", "REASON"), cells, "No operation yet")


@operation.command()
@click.argument("operation_id", shell_complete=operation_ids)
@json_option
@click.pass_obj
def show(out: Output, operation_id: str) -> None:
    """One operation's journal."""
    with program.reading() as backend:
        found = _find(backend, operation_id)
    if out.as_json:
        out.json(_facts(found))
        return
    click.echo(f"{found.kind.value.capitalize()} of {found.vm_name}: {found.state}")
    click.echo(f"asked by {found.asked_by}: {found.reason}")
    for step in found.steps:
        mark = " (no undo after this)" if step.no_return else ""
        click.echo(f"  {step.state:8} {step.title}{mark}" + (f": {step.note}" if step.note else ""))
    if found.question is not None:
        click.echo(f"It asks: {found.question.text}")
        for choice in found.question.choices:
            click.echo(f"  {choice.key}: {choice.text}")


@operation.command()
@click.argument("operation_id", shell_complete=operation_ids)
@click.argument("choice")
@json_option
@click.pass_obj
def answer(out: Output, operation_id: str, choice: str) -> None:
    """Answer what a waiting operation asks, and follow it."""
    with program.acting() as backend:
        found = _find(backend, operation_id)
        if found.question is None:
            raise InvalidRequest(f"The {found.kind} of “{found.vm_name}” asks nothing")
        backend.answer_question(found.operation_id, found.question.question_id, choice)
        _wait_answered(backend, found)
        done = follow(out, backend, found.operation_id)
    finish(out, done)


@operation.command()
@click.argument("operation_id", shell_complete=operation_ids)
@json_option
@click.pass_obj
def undo(out: Output, operation_id: str) -> None:
    """Take back what an operation has done; possible until its point of no return."""
    with program.acting() as backend:
        found = _find(backend, operation_id)
        backend.cancel_operation(found.operation_id)
        _wait_answered(backend, found)
        done = follow(out, backend, found.operation_id)
    finish(out, done)


def _find(backend: EngineBackend, text: str) -> Operation:
    found = [o for o in backend.operations(limit=1000) if o.operation_id.startswith(text)]
    if not found:
        raise NotFound(f"There is no operation “{text}”", fix="`vaporctl operation list` shows them")
    if len(found) > 1:
        raise InvalidRequest(f"“{text}” names several operations", fix="Give more of its id")
    return found[0]
