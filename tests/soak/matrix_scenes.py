"""What each kind of operation needs before it can begin, and what is answered when it asks.

The matrix itself comes from the registry. A kind that nobody has described here is reported as not run.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from vapor_desktop.engine.backend import Backend
from vapor_desktop.lab.guests import GuestSpec
from vapor_desktop.lab.processes import wait_until
from vapor_desktop.lab.stage import Stage
from vapor_desktop.model.errors import from_wire
from vapor_desktop.model.operations import Operation, OperationKind, OperationState
from vapor_desktop.model.plans import Plan, PlanMode, PlanVm, Tier
from vapor_desktop.model.states import Phase

NAME = "cell"
REASON = "the soak matrix"
OP_S = 200.0


def nothing(_stage: Stage) -> None:
    """A protected VM with a recovery point is enough."""


def no_args(_stage: Stage) -> dict[str, Any]:
    """None."""
    return {}


def begin(kind: OperationKind, backend: Backend, protection_id: str, args: Mapping[str, Any]) -> str:
    """The operation's id."""
    if kind is OperationKind.PLAN:
        return backend.run_plan(PLAN.plan_id, PlanMode(args["mode"]), REASON)
    return backend.begin_operation(kind, protection_id, args, REASON)


@dataclass(frozen=True)
class Scene:
    """``prepare``: from a running, protected guest with a point; ``args``: of the operation; ``answers``: by step.

    ``like``: arguments whose steps are those that such an operation has, for the list of cells.
    """

    kind: OperationKind
    prepare: Callable[[Stage], None] = nothing
    args: Callable[[Stage], dict[str, Any]] = no_args
    answers: Mapping[str, str] = field(default_factory=dict)
    booted: bool = False  # the guest must answer (its agent shuts it down)
    twice: bool = False  # may it run at both sites meanwhile? Only what the scene itself caused
    like: Mapping[str, Any] = field(default_factory=dict)
    after: Callable[[Stage], None] = nothing  # once the end state has been looked at


def key_of(stage: Stage) -> str:
    """The protection's id."""
    return stage.row(NAME).key


def do(stage: Stage, kind: OperationKind, args: Mapping[str, object] | None = None) -> None:
    """Another operation first, to its end."""
    begun = stage.backend.begin_operation(kind, key_of(stage), args or {}, REASON)
    done = stage.backend.wait_operation(begun, OP_S)
    if done.error is not None:
        raise from_wire(done.error)
    if done.state is not OperationState.DONE:
        raise AssertionError(f"{kind} came to {done.state}: {done.question}")


def source_lost(stage: Stage) -> None:
    """The VM is gone at its source, as after a crash of its host."""
    stage.backend.pause(key_of(stage))
    stage.lab.sites["a"].virsh("destroy", NAME)


def failed_over(stage: Stage) -> None:
    """It runs at the target after an emergency."""
    source_lost(stage)
    do(stage, OperationKind.FAILOVER, {"seq": None})
    b = stage.lab.sites["b"]
    wait_until(lambda: b.virsh("domstate", NAME) == "running", "the failed-over VM", timeout_s=30)


def failed_over_with_a_choice(stage: Stage) -> None:
    """As ``failed_over``, from the newer one of two points."""
    stage.backend.sync_now(key_of(stage))
    stage.wait_for_point(NAME, 2)
    failed_over(stage)


def to_an_older_point(stage: Stage) -> dict[str, Any]:
    """Of a roll back; the guest is not asked, it may still be booting."""
    points = stage.backend.points(key_of(stage))
    return {"seq": min(p.seq for p in points), "force": True}


def committed(stage: Stage) -> None:
    """A failover that stands; the source's host is back, with the VM off."""
    failed_over(stage)
    do(stage, OperationKind.COMMIT)


def split_brain(stage: Stage) -> None:
    """A person on the old primary's host ignored every warning: it runs twice."""
    failed_over(stage)
    a = stage.lab.sites["a"]
    a.exec(["vapor-site", "guard", "override", NAME, "--reason", REASON])
    a.virsh("start", NAME)
    split = Phase.SPLIT_BRAIN
    wait_until(lambda: stage.row(NAME).protection.phase is split, "the split brain", timeout_s=20)


def the_target(_stage: Stage) -> dict[str, Any]:
    """Of a resolver."""
    return {"winner": "target", "force": True}


def read_again(_stage: Stage) -> dict[str, Any]:
    """Of a migration with all its steps: nobody is asked for the price."""
    return dict(READ_AGAIN)


def quick_drill(_stage: Stage) -> dict[str, Any]:
    """A copy that boots; it has no agent to wait for."""
    return {"wanted": {"boot_s": 60, "agent": False}}


def drilling(stage: Stage) -> None:
    """A drill is open."""
    do(stage, OperationKind.DRILL, quick_drill(stage))


def passed(_stage: Stage) -> dict[str, Any]:
    """Of the end of a drill."""
    return {"passed": True, "note": REASON}


def stop_drill(stage: Stage) -> None:
    """Nothing of it may stay for the next cell."""
    do(stage, OperationKind.STOP_DRILL, passed(stage))


def planned(stage: Stage) -> None:
    """A recovery plan of one VM, whose source is gone."""
    stage.backend.save_plan(PLAN)
    source_lost(stage)


def as_failover(_stage: Stage) -> dict[str, Any]:
    """Of a plan run."""
    return {"mode": PlanMode.FAILOVER.value}


def newest(_stage: Stage) -> dict[str, Any]:
    """Of a failover."""
    return {"seq": None}


READ_AGAIN = {"reread": True, "reread_within_s": 600}
PLAN = Plan(
    plan_id=str(uuid.uuid5(uuid.NAMESPACE_DNS, "plan.vapor-lab.example")),
    name="cell plan",
    tiers=(
        Tier(name="all", vms=(PlanVm(vm_uuid=GuestSpec(NAME).uuid, name=NAME),), pause="Look around", delay_s=0.5),
    ),
    changed_at=datetime(2026, 11, 22, tzinfo=UTC),
)

_ALL = (
    Scene(OperationKind.FAILOVER, source_lost, newest),
    Scene(OperationKind.MIGRATION, args=read_again, booted=True, like=READ_AGAIN),
    Scene(OperationKind.COMMIT, failed_over),
    Scene(OperationKind.ROLLBACK, failed_over_with_a_choice, to_an_older_point),
    Scene(OperationKind.RESOLVE, split_brain, the_target, twice=True),
    Scene(OperationKind.REPROTECT, committed),
    Scene(OperationKind.DRILL, args=quick_drill, after=stop_drill),
    Scene(OperationKind.STOP_DRILL, drilling, passed),
    Scene(
        OperationKind.PLAN,
        planned,
        as_failover,
        like={"plan": PLAN.model_dump(mode="json"), "mode": PlanMode.FAILOVER.value},
    ),
)
SCENES: dict[OperationKind, Scene] = {scene.kind: scene for scene in _ALL}

PREFERRED = ("retry", "continue", "go", "wait", "accept")


def answer(backend: Backend, operation_id: str, answers: Mapping[str, str]) -> str:
    """Answer its open question as an operator would who wants it to succeed; what was answered, "" = none is open."""
    operation = backend.operation(operation_id)
    question = operation.question
    if question is None:
        return ""
    offered = [choice.key for choice in question.choices]
    step = question.question_id.partition("/")[0]
    wanted = answers.get(step) or next((key for key in PREFERRED if key in offered), "")
    if wanted not in offered:
        raise AssertionError(f"“{question.text}” offers only {', '.join(offered)}")
    backend.answer_question(operation_id, question.question_id, wanted)
    return f"{question.text} -> {wanted}"


def wait_for_other_question(backend: Backend, asked: Operation) -> None:
    """Until the answer has been taken."""

    def taken() -> bool:
        return backend.operation(asked.operation_id).question != asked.question

    wait_until(taken, "the answer", timeout_s=30)
