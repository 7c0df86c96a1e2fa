"""One VM of a plan run: its own operation, then its addresses, then what is waited for.

May run again from the beginning after a cut: the operation's id follows from the plan run's, so it is found again
and never begun twice; a VM that runs at the target already is seen as done.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from vapor_desktop.engine.operations.failover import vm_state
from vapor_desktop.engine.operations.guest_addresses import set_addresses
from vapor_desktop.engine.operations.steps import Result, StepContext
from vapor_desktop.model.domain_xml.mark import read_mark
from vapor_desktop.model.errors import (
    Fate,
    GuestMissing,
    NotFound,
    OperationStopped,
    StartFailed,
    Unexpected,
    VaporError,
    from_wire,
)
from vapor_desktop.model.operations import Operation, OperationState, StepState
from vapor_desktop.model.plans import CheckKind, Plan, PlanMode, PlanVm, WaitFor
from vapor_desktop.model.sites import Protection
from vapor_desktop.model.wire import TcpProbe

SCREEN = "screen"  # the key of a drill's check
LOOK_S = 0.1
CHECK_EVERY_S = 0.5
RUNNING_S = 30.0
PROBE_S = 3.0


def step_of(vm: PlanVm) -> str:
    """The name of its step in the plan run."""
    return f"vm-{vm.vm_uuid}"


def child_id(run_id: str, vm_uuid: str, attempt: int) -> str:
    """The id of the operation that a plan run begins for a VM, by attempt: the same one in every process."""
    return str(uuid.uuid5(uuid.UUID(run_id), f"{vm_uuid}/{attempt}"))


@dataclass(slots=True)
class BringUp:
    """``attempts``: how many operations may be begun for it in all; one, and one more for each *try again*."""

    ctx: StepContext
    plan: Plan
    mode: PlanMode
    vm: PlanVm
    attempts: int = 1

    def run(self) -> Result:
        """What came of it; only a stopping engine raises. ``state``: up | failed | stopped."""
        clock = self.ctx.tools.clock
        began = clock.now()
        self._tell(state=StepState.RUNNING, started_at=began, ended_at=None, note="")
        out: Result = {"vm": self.vm.name, "vm_uuid": self.vm.vm_uuid, "recovered": False, "checks": []}
        try:
            began = self._up(out, began)
        except OperationStopped as error:
            out |= {"state": "stopped", "problem": str(error)}
        except VaporError as error:
            out |= {"state": "failed", "problem": str(error), "error": error.to_wire()}
        out["seconds"] = round((clock.now() - began).total_seconds(), 2)
        state = StepState.DONE if out["state"] == "up" else StepState.FAILED
        note = out["problem"] if out["state"] != "up" else f"{out['how']}, up after {out['seconds']:.1f} s"
        self._tell(state=state, ended_at=clock.now(), note=note)
        if out["state"] == "up" and self.vm.delay_s:
            self._delay()
        return out

    # --- its own operation ------------------------------------------------------------------------------
    def _up(self, out: Result, began: datetime) -> datetime:
        p = self.protection()
        if self.mode is not PlanMode.DRILL and self.runs_there(p):
            out["how"] = f"ran at its target already (epoch {self._epoch(p)})"
        else:
            child = self._child(p)
            began = child.started_at
            out |= {"how": f"{self.mode.kind.value} done", "operation_id": child.operation_id}
            if self.mode is PlanMode.DRILL:
                _drilled(out, child)
                return began
        self._see_it_run(p)
        out["recovered"] = True
        if self.vm.addresses:
            self._tell(note="setting its addresses")
            out["addresses"] = set_addresses(self.ctx, p, self.vm.addresses, self._cancelled)
        for check in self.vm.checks:
            out["checks"].append(self._wait_for(p, check))
        out["state"] = "up"
        return began

    def protection(self) -> Protection:
        """Raises NotFound."""
        for p in self.ctx.tools.repository.protections():
            if p.vm_uuid == self.vm.vm_uuid:
                return p
        raise NotFound(f"“{self.vm.name}” is not protected", fix="Protect it, or take it out of the plan")

    def runs_there(self, p: Protection) -> bool:
        """Does it belong to its target and run there, as we defined it? Looked at now."""
        manifest = self.ctx.api(p.target_site).replica(p.vm_uuid).manifest
        if manifest.epoch.owner != p.target_site:
            return False
        hv = self.ctx.hypervisor(p.target_site)
        if vm_state(hv, p.vm_uuid) != "running":
            return False
        mark = read_mark(hv.domain_xml(p.vm_uuid, secure=False))
        return mark is not None and (mark.protection_id, mark.epoch) == (p.protection_id, manifest.epoch.number)

    def _epoch(self, p: Protection) -> int:
        return self.ctx.api(p.target_site).replica(p.vm_uuid).manifest.epoch.number

    def _child(self, p: Protection) -> Operation:
        """Its operation, done. Raises what that failed with."""
        ctx, repository = self.ctx, self.ctx.tools.repository
        failed: Operation | None = None
        for attempt in range(self.attempts):
            known = child_id(ctx.operation.operation_id, self.vm.vm_uuid, attempt)
            child = repository.operation(known)
            if child is None:
                child = self._begin(p, known)
            self._tell(operation_id=known)
            child = self._ended(child)
            if child.state is OperationState.DONE:
                return child
            failed = child
        if failed is not None and failed.error is not None:
            raise from_wire(failed.error)
        raise StartFailed(f"The {self.mode.kind} of “{self.vm.name}” was {failed.state if failed else 'not begun'}")

    def _begin(self, p: Protection, operation_id: str) -> Operation:
        ctx = self.ctx
        self._cancelled()
        if ctx.children is None:
            raise Unexpected("A plan run cannot begin operations here")
        if self.mode is not PlanMode.DRILL:
            # A running cycle lets go of its lease at its next chunk; what it has sent is kept.
            asked: dict[str, object] = {"protection_id": p.protection_id}
            ctx.tools.repository.ask("cancel", asked, ctx.tools.identity.name, RUNNING_S)
        kind = self.mode.kind
        return ctx.children.begin_child(ctx.operation, operation_id, kind, p.protection_id, self._args())

    def _args(self) -> dict[str, Any]:
        """Of its own operation. A drill's networks are its bubble's, and the site runs its checks."""
        if self.mode is PlanMode.DRILL:
            return {"wanted": wanted_of(self.vm)}
        args: dict[str, Any] = {"networks": self.vm.networks}
        return {**args, "shutdown_s": self.plan.shutdown_s} if self.mode is PlanMode.MIGRATION else args

    def _ended(self, child: Operation) -> Operation:
        """Until it ended; its questions are its own, and asked at its own place."""
        told = ""
        while not child.ended:
            note = f"asks: {child.question.text}" if child.question is not None else _now_at(child)
            if note != told:
                told = note
                self._tell(note=note)
            self._pause(LOOK_S)
            self._cancelled(f"; its {child.kind} goes on by itself")
            child = self.ctx.tools.repository.operation(child.operation_id) or child
        return child

    # --- what is waited for -------------------------------------------------------------------------------
    def _see_it_run(self, p: Protection) -> None:
        hv = self.ctx.hypervisor(p.target_site)
        if not self.ctx.wait_until(lambda: vm_state(hv, p.vm_uuid) == "running", RUNNING_S):
            raise StartFailed(f"“{p.vm_name}” is {vm_state(hv, p.vm_uuid)} at its target")

    def _wait_for(self, p: Protection, check: WaitFor) -> Result:
        self._tell(note=f"waiting until {check.words}")
        clock, why = self.ctx.tools.clock, list[str]()
        began = clock.monotonic()

        def passed() -> bool:
            self._cancelled()
            try:
                why[:] = [self._not_yet(p, check)]
            except VaporError as error:
                if error.fate is not Fate.RETRY:
                    raise
                why[:] = [str(error)]
            return not why[0]

        if not self.ctx.wait_until(passed, check.timeout_s, CHECK_EVERY_S):
            raise GuestMissing(
                f"“{p.vm_name}” runs, but within {check.timeout_s:g} s it was not so that {check.words}", why=why[0]
            )
        return {"check": check.words, "seconds": round(clock.monotonic() - began, 2)}

    def _not_yet(self, p: Protection, check: WaitFor) -> str:
        """Why it has not passed, "" when it has."""
        hv = self.ctx.hypervisor(p.target_site)
        state = vm_state(hv, p.vm_uuid)
        if state != "running":
            return f"it is {state}"
        if check.kind is CheckKind.RUNNING:
            return ""
        if check.kind is CheckKind.AGENT:
            return "" if hv.agent_ping(p.vm_uuid) else "its agent is silent"
        address = check.address or self._address(p)
        if not address or check.port is None:
            return "its address is not known yet: no agent tells one"
        probed = self.ctx.api(p.target_site).probe_tcp(TcpProbe(address=address, port=check.port, timeout_s=PROBE_S))
        return "" if probed.open else f"{address} port {check.port}: {probed.why}"

    def _address(self, p: Protection) -> str:
        if self.vm.addresses:
            return self.vm.addresses[0].ip
        told = self.ctx.hypervisor(p.target_site).agent_addresses(p.vm_uuid)
        found = [a.partition("/")[0] for card in told.values() for a in card]
        return next((a for a in found if ":" not in a), "")

    def _delay(self) -> None:
        """Its place is free for the next one only then."""
        until = self.ctx.tools.clock.monotonic() + self.vm.delay_s
        while (left := until - self.ctx.tools.clock.monotonic()) > 0:
            if self.ctx.cancelled():
                return
            self._pause(min(left, CHECK_EVERY_S))

    # --- helpers --------------------------------------------------------------------------------------------
    def _cancelled(self, more: str = "") -> None:
        """Raises OperationStopped when a person stopped the run."""
        if self.ctx.cancelled():
            raise OperationStopped(f"The plan run was stopped before “{self.vm.name}” was up{more}")

    def _pause(self, seconds: float) -> None:
        self.ctx.wait_until(lambda: False, seconds, seconds)

    def _tell(self, **changes: Any) -> None:
        self.ctx.tell(step_of(self.vm), changes)


def wanted_of(vm: PlanVm) -> dict[str, Any]:
    """The plan's checks as a drill runs them (``model.drills.Wanted``): in the bubble, under the VM's own address."""
    wanted: dict[str, Any] = {
        "agent": any(c.kind is CheckKind.AGENT for c in vm.checks),
        "tcp_ports": sorted({c.port for c in vm.checks if c.port is not None}),
    }
    if vm.checks:
        wanted["boot_s"] = max(c.timeout_s for c in vm.checks) or LOOK_S
    return wanted


def _drilled(out: Result, child: Operation) -> None:
    """What the site found of the copy. Raises GuestMissing for checks that did not pass."""
    found = child.result.get("checks", ())
    out |= {"recovered": True, "domain": child.result.get("domain", ""), "usable_s": child.result.get("usable_s")}
    out["checks"] = [{"check": c["title"]} for c in found if c["state"] == "ok"]
    # A picture is kept for a person to judge: many a server that runs well shows a blank screen.
    judged = [c for c in found if c["key"] != SCREEN]
    bad = [f"{c['title']}: {c.get('text') or c['state']}" for c in judged if c["state"] != "ok"]
    if bad:
        raise GuestMissing(
            f"The copy of “{child.vm_name}” runs, but not all of its checks passed", why="; ".join(bad)
        )
    out["state"] = "up"


def _now_at(child: Operation) -> str:
    running = [s.title for s in child.steps if s.state is StepState.RUNNING]
    return f"{child.kind.value}: {running[-1]}" if running else f"{child.kind.value} begins"
