"""The report of a plan run: per VM, what came of it and what was seen at the end. Pure, of the operation's record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from vapor_desktop.model.operations import Operation, StepState

_WORDS = {
    "up": "up",
    "unchecked": "taken as it is",
    "skipped": "left out",
    "failed": "not up",
    "stopped": "stopped",
    "waiting": "not begun",
    "working": "being brought up",
}


@dataclass(frozen=True, slots=True)
class ReportLine:
    """One VM. ``seconds``: from the beginning of its recovery until it was up (or given up); None: not begun.

    ``now``: what libvirt at its target said at the end of the run, "" when it was not looked at.
    """

    vm: str
    vm_uuid: str
    state: str
    seconds: float | None
    how: str
    now: str
    target: str
    checks: tuple[str, ...]
    addresses: tuple[str, ...]
    problem: str
    operation_id: str

    @property
    def words(self) -> str:
        """Its state in words."""
        return _WORDS.get(self.state, self.state)

    @property
    def note(self) -> str:
        """What a person should read beside it."""
        return self.problem or "; ".join([self.how, *self.addresses])

    def facts(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def report_of(run: Operation) -> tuple[ReportLine, ...]:
    """In the plan's order; also of a run that was stopped or still runs: then as far as it came."""
    seen = {line["vm_uuid"]: line for line in run.result.get("report", ())}
    lines = []
    for step in run.steps:
        if not step.parent:
            continue
        uuid = step.name.removeprefix("vm-")
        known = seen.get(uuid) or run.result.get(step.name) or _so_far(run, step.name)
        lines.append(_line(step.title, uuid, known))
    return tuple(lines)


def _so_far(run: Operation, name: str) -> Mapping[str, Any]:
    step = run.step(name)
    state = {StepState.PENDING: "waiting", StepState.RUNNING: "working", StepState.DONE: "up"}.get(
        step.state, "failed"
    )
    took = None
    if step.started_at is not None and step.ended_at is not None:
        took = (step.ended_at - step.started_at).total_seconds()
    told = {"problem": step.note} if state == "failed" else {"how": step.note}
    return {"state": state, "seconds": took, "operation_id": step.operation_id, **told}


def _line(vm: str, uuid: str, known: Mapping[str, Any]) -> ReportLine:
    return ReportLine(
        vm=vm,
        vm_uuid=uuid,
        state=str(known.get("state", "waiting")),
        seconds=known.get("seconds"),
        how=str(known.get("how", "")),
        now=str(known.get("now", "")),
        target=str(known.get("target", "")),
        checks=tuple(str(c["check"]) for c in known.get("checks", ())),
        addresses=tuple(f"{a['address']}: {a['how']}" for a in known.get("addresses", ())),
        problem=str(known.get("problem", "")),
        operation_id=str(known.get("operation_id", "")),
    )
