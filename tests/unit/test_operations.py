"""Durable operations: the driver over a journal in memory, and over DBOS with the engine killed after every step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dbos import DBOS

from vapor_desktop.app import SystemClock
from vapor_desktop.engine.operations import guarded
from vapor_desktop.engine.operations.registry import TYPES
from vapor_desktop.engine.operations.runner import OperationRunner
from vapor_desktop.engine.operations.steps import (
    RETRY,
    TAKE_OVER,
    UNDO,
    Ask,
    EngineStopping,
    OperationType,
    Step,
    StepContext,
    Tools,
)
from vapor_desktop.engine.ports import Journal
from vapor_desktop.engine.worker import EngineIdentity
from vapor_desktop.model.errors import (
    Conflict,
    DatabaseTrouble,
    InvalidRequest,
    LeaseHeld,
    NotReplicable,
    SiteUnreachable,
    VaporError,
)
from vapor_desktop.model.operations import SCHEMA, Choice, Operation, OperationKind, OperationState, StepState
from vapor_desktop.model.policy import Policy
from vapor_desktop.model.sites import Protection
from vapor_desktop.store.repository import SqlRepository

HERE = Path(__file__)


class MemoryJournal:
    """One run's record; answers are taken from a list."""

    def __init__(self, answers: dict[str, str]) -> None:
        self.recorded: dict[str, dict[str, Any]] = {}
        self.answers = answers

    def step(self, name: str, act: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        kind, _, question = name.partition(" ")
        if kind == "answer":
            return {"choice": self.answers[question]}
        if name not in self.recorded:
            self.recorded[name] = json.loads(json.dumps(act()))
        return self.recorded[name]


class MemoryDurable:
    """Runs the body at once, in the caller's thread."""

    def __init__(self) -> None:
        self.journal = MemoryJournal({})
        self.body: Callable[[str, Journal], None] | None = None

    def launch(self, engine_id: str, body: Callable[[str, Journal], None]) -> None:
        self.body = body

    def start(self, operation_id: str) -> None:
        assert self.body is not None
        self.body(operation_id, self.journal)

    adopt = start

    def close(self) -> None:
        pass


class Toy:
    """A diary in a file: each step adds its line unless it is there; undo takes it away."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trouble: dict[str, list[VaporError | Ask]] = {}
        self.ended: list[VaporError | None] = []

    def lines(self) -> list[str]:
        return self.path.read_text().split() if self.path.exists() else []

    def act(self, name: str) -> Callable[[StepContext], dict[str, Any]]:
        def act(context: StepContext) -> dict[str, Any]:
            if self.trouble.get(name):
                raise self.trouble[name].pop(0)
            if name not in self.lines():
                self.path.write_text("\n".join([*self.lines(), name]))
            context.note(f"wrote {name}")
            return {name: sorted(context.done)}

        return act

    def undo(self, name: str) -> Callable[[StepContext], None]:
        return lambda _c: self.path.write_text("\n".join(line for line in self.lines() if line != name)) and None

    def type(self) -> OperationType:
        steps = tuple(
            Step(n, n.upper(), self.act(n), None if n == "three" else self.undo(n), no_return=n == "three")
            for n in ("one", "two", "three", "four")
        )
        return OperationType(OperationKind.MIGRATION, steps, True, lambda _c, e: self.ended.append(e))


def open_repository(path: Path) -> SqlRepository:
    repository = SqlRepository(f"sqlite:///{path}")
    if repository.protection("p1") is None:
        repository.save_protection(
            Protection(
                protection_id="p1",
                vm_uuid="u1",
                vm_name="web",
                source_site="A",
                target_site="B",
                policy=Policy(),
                epoch_owner="A",
                created_at=datetime.now(UTC),
            )
        )
    return repository


def tools(repository: SqlRepository, engine_id: str) -> Tools:
    identity = EngineIdentity(engine_id, "me@here", "console")
    return Tools(repository, None, None, SystemClock(), identity, None)  # type: ignore[arg-type]  # the toy uses none


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[SqlRepository]:
    opened = open_repository(tmp_path / "v.db")
    yield opened
    opened.close()


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path / "lines")


@pytest.fixture
def durable() -> MemoryDurable:
    return MemoryDurable()


@pytest.fixture
def runner(repository: SqlRepository, toy: Toy, durable: MemoryDurable) -> OperationRunner:
    return OperationRunner(tools(repository, "e1"), durable, {OperationKind.MIGRATION: toy.type()})


def begin(runner: OperationRunner) -> Operation:
    operation = runner.begin(OperationKind.MIGRATION, "p1", {}, "because", "me")
    return runner._operation(operation.operation_id)


def test_steps_run_in_order_and_the_journal_tells_them(runner: OperationRunner, toy: Toy) -> None:
    done = begin(runner)
    assert done.state is OperationState.DONE
    assert toy.lines() == ["one", "two", "three", "four"]
    assert done.result["four"] == ["one", "three", "two"]
    assert [s.state for s in done.steps] == [StepState.DONE] * 4
    assert all(s.started_at and s.ended_at and s.note == f"wrote {s.name}" for s in done.steps)
    assert toy.ended == [None]


def test_a_fault_that_passes_is_tried_again_by_itself(runner: OperationRunner, toy: Toy) -> None:
    toy.trouble["two"] = [SiteUnreachable("away")]
    assert begin(runner).state is OperationState.DONE


def test_a_failed_step_asks_and_undo_takes_all_back(
    runner: OperationRunner, toy: Toy, durable: MemoryDurable
) -> None:
    toy.trouble["two"] = [NotReplicable("no"), NotReplicable("no")]
    durable.journal.answers = {"two/0": RETRY.key, "two/1": UNDO.key}
    done = begin(runner)
    assert done.state is OperationState.UNDONE
    assert toy.lines() == []
    assert [s.state for s in done.steps] == [
        StepState.UNDONE,
        StepState.UNDONE,
        StepState.PENDING,
        StepState.PENDING,
    ]


def test_after_the_point_of_no_return_there_is_no_undo(
    runner: OperationRunner, toy: Toy, durable: MemoryDurable, repository: SqlRepository
) -> None:
    toy.trouble["four"] = [NotReplicable("no")]
    durable.journal.answers = {"four/0": "stop"}
    asked: list[Operation] = []
    keep = repository.save_operation

    def watch(operation: Operation, *, expect_version: int | None = None) -> Operation:
        if operation.question is not None:
            asked.append(operation)
        return keep(operation, expect_version=expect_version)

    repository.save_operation = watch  # type: ignore[method-assign]
    done = begin(runner)
    assert done.state is OperationState.FAILED
    assert done.error is not None
    assert done.error["code"] == NotReplicable.code
    assert toy.lines() == ["one", "two", "three"]
    assert asked[0].question is not None
    assert {c.key for c in asked[0].question.choices} == {"retry", "stop"}  # no undo any more
    with pytest.raises(InvalidRequest):
        runner.answer(done.operation_id, "four/0", "retry")


def test_a_question_of_a_step_is_answered_to_that_step(
    runner: OperationRunner, toy: Toy, durable: MemoryDurable
) -> None:
    toy.trouble["one"] = [Ask("now?", Choice(key="yes", text="Yes"))]
    durable.journal.answers = {"one/0": "yes"}
    assert begin(runner).state is OperationState.DONE


def test_one_open_operation_per_vm(runner: OperationRunner, repository: SqlRepository) -> None:
    done = begin(runner)
    again = done.model_copy(update={"operation_id": "x", "state": OperationState.RUNNING, "ended_at": None})
    repository.save_operation(again)
    with pytest.raises(Conflict) as caught:
        begin(runner)
    assert caught.value.details["operation_id"] == "x"
    with pytest.raises(Conflict):  # and the database refuses it too, should two engines ask at once
        repository.save_operation(again.model_copy(update={"operation_id": "y"}))


def test_nothing_without_a_reason(runner: OperationRunner) -> None:
    with pytest.raises(InvalidRequest):
        runner.begin(OperationKind.MIGRATION, "p1", {}, "  ", "me")


@pytest.mark.parametrize("choice", ["continue", "undo"])
def test_a_long_interruption_waits_for_a_person(
    runner: OperationRunner, toy: Toy, durable: MemoryDurable, repository: SqlRepository, choice: str
) -> None:
    operation = begin(runner)
    old = datetime.now(UTC) - timedelta(minutes=11)
    left = operation.model_copy(
        update={
            "operation_id": "left",
            "engine_id": "dead",
            "state": OperationState.RUNNING,
            "seen_at": old,
            "ended_at": None,
            "steps": tuple(s.model_copy(update={"state": StepState.PENDING}) for s in operation.steps),
        }
    )
    repository.save_operation(left)
    toy.path.unlink()
    durable.journal = MemoryJournal({"one/0": choice})
    runner.adopt({"e1"})
    found = repository.operation("left")
    assert found is not None
    assert found.state is (OperationState.DONE if choice == "continue" else OperationState.UNDONE)
    assert found.engine_id == "e1"
    assert toy.lines() == (["one", "two", "three", "four"] if choice == "continue" else [])


def test_another_schema_is_not_continued(runner: OperationRunner, toy: Toy, repository: SqlRepository) -> None:
    operation = begin(runner)
    toy.path.unlink()
    left = operation.model_copy(
        update={
            "operation_id": "left",
            "engine_id": "dead",
            "state": OperationState.RUNNING,
            "schema_number": SCHEMA + 1,
            "ended_at": None,
        }
    )
    repository.save_operation(left)
    runner.adopt({"e1"})
    found = repository.operation("left")
    assert found is not None
    assert found.state is OperationState.INTERRUPTED
    assert toy.lines() == []
    runner.cancel("left")
    found = repository.operation("left")
    assert found is not None
    assert found.ended


def test_a_living_engines_operation_is_left_alone(runner: OperationRunner, repository: SqlRepository) -> None:
    operation = begin(runner)
    running = {"operation_id": "x", "engine_id": "other", "state": OperationState.RUNNING, "ended_at": None}
    repository.save_operation(operation.model_copy(update=running))
    runner.adopt({"e1", "other"})
    found = repository.operation("x")
    assert found is not None
    assert found.engine_id == "other"


def test_every_type_has_distinct_steps_and_knows_its_end() -> None:
    for kind, made in TYPES.items():
        assert made.kind is kind
        names = [s.name for s in made.steps]
        assert len(names) == len(set(names)) > 0


def test_a_held_lease_may_be_taken_over_by_an_answer(
    runner: OperationRunner, toy: Toy, durable: MemoryDurable
) -> None:
    held = LeaseHeld("bert holds this VM's lease at this site", why="drill since noon", holder="x/drill")
    toy.trouble["two"] = [held] * 5
    taken: list[bool] = []
    act = toy.act("two")

    def watched(context: StepContext) -> dict[str, Any]:
        taken.append(context.take_over)
        return act(context)

    kind = toy.type()
    steps = tuple(replace(s, act=watched, retry_after_s=(0.01,) * 4) if s.name == "two" else s for s in kind.steps)
    runner._types = {OperationKind.MIGRATION: replace(kind, steps=steps)}
    durable.journal.answers = {"two/0": TAKE_OVER.key}
    done = begin(runner)
    assert done.state is OperationState.DONE
    assert taken == [False] * 5 + [True]


def test_a_database_that_is_away_for_a_moment_fails_no_step(
    runner: OperationRunner,
    toy: Toy,
    durable: MemoryDurable,
    repository: SqlRepository,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(guarded, "AGAIN_S", 0.01)
    toy.trouble["two"] = [DatabaseTrouble("The database refused")] * 3
    done = begin(runner)
    assert done.state is OperationState.DONE
    assert {name for name in durable.journal.recorded if name.startswith("two")} == {"two/0"}


def test_what_another_engine_adopted_goes_on_there_and_nothing_is_recorded_here(
    runner: OperationRunner, toy: Toy, durable: MemoryDurable, repository: SqlRepository
) -> None:
    kind = toy.type()

    def lost(context: StepContext) -> dict[str, Any]:
        other = {"engine_id": "e2"}
        now = runner._operation(context.operation.operation_id)
        repository.save_operation(now.model_copy(update=other), expect_version=now.version)
        return {}

    steps = tuple(replace(s, act=lost) if s.name == "two" else s for s in kind.steps)
    runner._types = {OperationKind.MIGRATION: replace(kind, steps=steps)}
    with pytest.raises(EngineStopping):
        begin(runner)
    [operation] = repository.operations()
    assert not operation.ended
    assert toy.lines() == ["one"]  # it began nothing more
    assert "three/0" not in durable.journal.recorded


# --- DBOS: the process is killed ----------------------------------------------------------------------------
def child(folder: Path, engine_id: str, cut: str) -> None:
    """Begin or adopt; ``cut``: "step:moment" at which this process kills itself, or ""."""
    from vapor_desktop.store.durable import DbosOperations

    repository = open_repository(folder / "v.db")
    toy = Toy(folder / "lines")
    if os.environ.get("TOY_UNDO"):
        toy.trouble["two"] = [NotReplicable("no")] * 9
    made = OperationRunner(
        tools(repository, engine_id),
        DbosOperations(f"sqlite:///{folder}/v.db"),
        {OperationKind.MIGRATION: toy.type()},
    )

    def observe(_operation: str, step: str, moment: str) -> None:
        with (folder / "ran").open("a") as ran:
            ran.write(f"{engine_id} {step} {moment}\n")
        if f"{step}:{moment}" == cut:
            os._exit(9)

    made.observer = observe
    waiting = repository.operations(open_only=True)
    if waiting:
        made.adopt({engine_id})
        operation_id = waiting[0].operation_id
    else:
        operation_id = made.begin(OperationKind.MIGRATION, "p1", {}, "because", "me").operation_id
    found = made.wait(operation_id, 30)
    while found.question is not None and not os.environ.get("TOY_LEAVE"):
        made.answer(operation_id, found.question.question_id, UNDO.key)
        for _ in range(500):
            found = repository.operation(operation_id) or found
            if found.ended:
                break
            threading.Event().wait(0.02)
    print(found.state.value, flush=True)
    made.close()


def broken(folder: Path) -> None:
    """DBOS records an error of its own for the workflow, and the operation stays open."""
    from vapor_desktop.store.durable import DbosOperations

    repository = open_repository(folder / "v.db")
    toy = Toy(folder / "lines")
    durable = DbosOperations(f"sqlite:///{folder}/v.db")
    made = OperationRunner(tools(repository, "e1"), durable, {OperationKind.MIGRATION: toy.type()})
    drive = made._drive

    def body(operation_id: str, journal: Journal) -> None:
        def step(name: str, act: Callable[[], dict[str, Any]]) -> dict[str, Any]:
            return journal.step(name, act if name != "three/0" else fail)

        def fail() -> dict[str, Any]:
            raise ZeroDivisionError("the journal's own trouble")

        drive(operation_id, SimpleNamespace(step=step))

    durable.launch("e1", body)
    operation_id = made.begin(OperationKind.MIGRATION, "p1", {}, "because", "me").operation_id
    for _ in range(500):
        status = DBOS.get_workflow_status(operation_id)
        if status is not None and status.status == "ERROR":
            print("broken", flush=True)
            os._exit(0)
        threading.Event().wait(0.02)
    os._exit(3)


def test_an_operation_that_only_dbos_thinks_failed_goes_on_from_that_step(tmp_path: Path) -> None:
    left = run_child(tmp_path, "broken", "")
    assert left.stdout.split() == ["broken"], left.stderr
    assert Toy(tmp_path / "lines").lines() == ["one", "two"]
    cut = run_child(tmp_path, "e2", "three:acted")  # and the one that goes on is killed in its turn
    assert cut.returncode == 9, cut.stderr
    done = run_child(tmp_path, "e3", "")
    assert done.stdout.split()[-1] == "done", done.stderr
    assert Toy(tmp_path / "lines").lines() == ["one", "two", "three", "four"]
    ran = [line.split() for line in (tmp_path / "ran").read_text().splitlines()]
    assert [s for e, s, m in ran if m == "begin"] == ["three", "three", "four"]


def run_child(folder: Path, engine_id: str, cut: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(HERE), str(folder), engine_id, cut],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **env},
    )


@pytest.mark.parametrize(
    ("step", "moment"),
    [("one", "begin"), ("two", "recorded"), ("three", "acted"), ("three", "recorded"), ("four", "acted")],
)
def test_a_killed_engines_operation_goes_on_at_the_step_that_was_cut(tmp_path: Path, step: str, moment: str) -> None:
    cut = run_child(tmp_path, "e1", f"{step}:{moment}")
    assert cut.returncode == 9, cut.stderr
    rest = run_child(tmp_path, "e2", "")
    assert rest.stdout.split()[-1] == "done", rest.stderr
    assert Toy(tmp_path / "lines").lines() == ["one", "two", "three", "four"]
    ran = [line.split() for line in (tmp_path / "ran").read_text().splitlines()]
    names = ["one", "two", "three", "four"]
    expected = names[names.index(step) + (1 if moment == "recorded" else 0) :]
    assert [s for e, s, m in ran if e == "e2" and m == "begin"] == expected


def test_an_open_question_keeps_no_process_alive_and_waits_for_the_next(tmp_path: Path) -> None:
    left = run_child(tmp_path, "e1", "", TOY_UNDO="1", TOY_LEAVE="1")
    assert left.returncode == 0, left.stderr
    assert left.stdout.split()[-1] == "answer"  # "waiting for an answer"
    done = run_child(tmp_path, "e2", "", TOY_UNDO="1")
    assert done.stdout.split()[-1] == "undone", done.stderr
    assert Toy(tmp_path / "lines").lines() == []


def test_an_undo_asked_by_a_person_survives_too(tmp_path: Path) -> None:
    done = run_child(tmp_path, "e1", "", TOY_UNDO="1")
    assert done.stdout.split()[-1] == "undone", done.stderr
    assert Toy(tmp_path / "lines").lines() == []


if __name__ == "__main__":
    if sys.argv[2] == "broken":
        broken(Path(sys.argv[1]))
    child(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
