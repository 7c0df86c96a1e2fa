"""A plan run: tier after tier, each VM by an operation of its own, seen to be up before the next tier begins.

Its steps follow from the plan as it was when the run began (it is among the operation's arguments). A tier's step
brings its VMs up together; then each VM has a step that tells what came of it, and asks a person when it is not up.
The leases are the VMs' own operations'. None is held while another is waited for, so two plans never block each
other; the first step looks at all of them in the order of UUIDs and names a holder at once. VMs that wait for
their turn go on being replicated.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NoReturn

from vapor_desktop.engine.operations.failover import vm_state
from vapor_desktop.engine.operations.plan_vm import BringUp, step_of
from vapor_desktop.engine.operations.steps import (
    RETRY,
    STOP,
    Ask,
    OperationType,
    Result,
    Step,
    StepContext,
)
from vapor_desktop.engine.ports import SiteApi
from vapor_desktop.engine.readiness import PlanLook
from vapor_desktop.model.errors import Conflict, VaporError, from_wire
from vapor_desktop.model.operations import Choice, OperationKind, StepState
from vapor_desktop.model.plans import Plan, PlanMode, PlanVm, read_plan
from vapor_desktop.model.sites import Protection

# Leases that end by themselves within seconds are waited for; an operation's is not.
SHORT_S = 5.0
DELAY_LOOK_S = 0.5

GO = Choice(key="go", text="Go on")
RUN_ANYWAY = Choice(key="go", text="Run it all the same")
ACCEPT = Choice(key="accept", text="Go on with it as it is")
SKIP = Choice(key="skip", text="Go on without this VM")


def plan_of(args: Mapping[str, Any]) -> tuple[Plan, PlanMode]:
    """What is run, from the operation's arguments."""
    return read_plan(args["plan"]), PlanMode(args["mode"])


def tier_title(plan: Plan, number: int) -> str:
    """``Tier 1: data``; numbers begin with 1."""
    name = plan.tiers[number - 1].name
    return f"Tier {number}" + (f": {name}" if name else "")


def steps_of(args: Mapping[str, Any]) -> tuple[Step, ...]:
    """The steps of this run."""
    plan, _mode = plan_of(args)
    steps = [Step("check", "Look whether all of it can run", _check)]
    for n, tier in enumerate(plan.tiers, 1):
        title = tier_title(plan, n)
        if tier.pause:
            steps.append(Step(f"pause-{n}", f"Ask a person before {title}", partial(_pause, n)))
        steps.append(Step(f"tier-{n}", title, partial(_tier, n)))
        steps += [Step(step_of(vm), vm.name, partial(_settle, n, vm), parent=f"tier-{n}") for vm in tier.vms]
        if tier.delay_s and n < len(plan.tiers):
            steps.append(Step(f"delay-{n}", f"Wait {tier.delay_s:g} s after {title}", partial(_delay, tier.delay_s)))
    steps.append(Step("report", "Look what runs", _report))
    return tuple(steps)


def _check(ctx: StepContext) -> Result:
    """Every VM's point, mappings and machine type, now; and nobody else at work on any of them."""
    plan, mode = plan_of(ctx.operation.args)
    _nobody_else(ctx, plan, mode)
    look = PlanLook(ctx.tools.repository, ctx.tools.gateway).look(plan)
    over = {uuid for uuid, vm in look.vms.items() if vm is not None and vm.owner == vm.protection.target_site}
    lacks = [p.words for p in look.problems if mode is PlanMode.DRILL or p.vm_uuid not in over]
    if lacks and ctx.answers.get("check") != RUN_ANYWAY.key:
        raise Ask(f"The plan is not ready: {'; '.join(lacks)}", RUN_ANYWAY, RETRY, STOP)
    ctx.note(f"Not ready: {'; '.join(lacks)}" if lacks else "Ready")
    return {"not_ready": lacks}


def _nobody_else(ctx: StepContext, plan: Plan, mode: PlanMode) -> None:
    """Asks, naming the first holder, in the order of the VMs' UUIDs."""
    known = {p.vm_uuid: p for p in ctx.tools.repository.protections()}
    for vm in sorted(plan.vms(), key=lambda v: v.vm_uuid):
        p = known.get(vm.vm_uuid)
        if p is None:
            continue
        for other in ctx.tools.repository.operations(open_only=True):
            if other.vm_uuid == vm.vm_uuid and other.parent_id != ctx.operation.operation_id:
                _held(f"A {other.kind} of “{vm.name}” is open, asked by {other.asked_by}: {other.reason}")
        if mode is not PlanMode.DRILL:  # a drill goes on beside a cycle, and takes no lease
            _free(ctx, p, p.target_site)
        if mode is PlanMode.MIGRATION:
            _free(ctx, p, p.source_site)


def _free(ctx: StepContext, p: Protection, site_id: str) -> None:
    api = ctx.api(site_id)
    if not ctx.wait_until(lambda: _holder(ctx, api, p) == "", SHORT_S):
        holder = _holder(ctx, api, p)
        if holder:
            _held(f"“{p.vm_name}” is in use at {ctx.site(site_id).name}: {holder}")


def _held(text: str) -> NoReturn:
    """A person hears of it at once: it is not tried again by itself."""
    raise Ask(text, RETRY, STOP, error=Conflict(text))


def _holder(ctx: StepContext, api: SiteApi, p: Protection) -> str:
    """Who works on it there, "" for nobody but a cycle or this very run's operation."""
    lease = api.lease(p.vm_uuid)
    if lease is None or lease.purpose == "cycle":
        return ""
    held_by = ctx.tools.repository.operation(lease.holder.partition("/")[0])
    if held_by is not None and held_by.parent_id == ctx.operation.operation_id:
        return ""
    return f"{lease.holder_name} ({lease.purpose})"


def _pause(number: int, ctx: StepContext) -> Result:
    """A person answers, however long it takes; not asked before a tier that is up already (the plan is run again)."""
    plan, mode = plan_of(ctx.operation.args)
    tier = plan.tiers[number - 1]
    if ctx.answers.get(f"pause-{number}") == GO.key:
        return {}
    if mode is not PlanMode.DRILL and all(_up_already(BringUp(ctx, plan, mode, vm)) for vm in tier.vms):
        ctx.note("Not asked: all of the tier runs at its target already")
        return {}
    raise Ask(tier.pause, GO, STOP)


def _up_already(one: BringUp) -> bool:
    try:
        return one.runs_there(one.protection())
    except VaporError:  # what cannot be seen is no reason to leave a question out
        return False


def _tier(number: int, ctx: StepContext) -> Result:
    """All VMs of the tier, in their order, a few at a time. What came of each is told, not raised."""
    plan, mode = plan_of(ctx.operation.args)
    vms = plan.tiers[number - 1].vms
    with ThreadPoolExecutor(plan.parallel, thread_name_prefix="tier") as pool:
        futures = [pool.submit(BringUp(ctx, plan, mode, vm).run) for vm in vms]
        outcomes = [future.result() for future in futures]
    up = sum(1 for o in outcomes if o["state"] == "up")
    ctx.note(f"{up} of {len(vms)} up")
    return {f"tier-{number}": {vm.vm_uuid: outcome for vm, outcome in zip(vms, outcomes, strict=True)}}


def _settle(number: int, vm: PlanVm, ctx: StepContext) -> Result:
    """What came of one VM; a person says how it goes on when it is not up."""
    name = step_of(vm)
    outcome: Result = ctx.done[f"tier-{number}"][f"tier-{number}"][vm.vm_uuid]
    answer = ctx.answers.get(name)
    retries = sum(1 for q, a in ctx.operation.answers.items() if q.rpartition("/")[0] == name and a == RETRY.key)
    if retries:
        outcome = _again(ctx, vm, 1 + retries) if answer not in {ACCEPT.key, SKIP.key} else outcome
    if outcome["state"] == "up":
        return {name: outcome}
    if answer == SKIP.key:
        ctx.note(f"Left out: {outcome['problem']}")
        return {name: {**outcome, "state": "skipped"}}
    if answer == ACCEPT.key:
        ctx.note(f"Taken as it is: {outcome['problem']}")
        return {name: {**outcome, "state": "unchecked"}}
    choices = (RETRY, ACCEPT, SKIP, STOP) if outcome["recovered"] else (RETRY, SKIP, STOP)
    ctx.tell(name, {"state": StepState.FAILED, "note": outcome["problem"]})
    error = from_wire(outcome["error"]) if outcome.get("error") else None
    raise Ask(f"“{vm.name}” is not up: {outcome['problem']}", *choices, error=error)


def _again(ctx: StepContext, vm: PlanVm, attempts: int) -> Result:
    plan, mode = plan_of(ctx.operation.args)
    with ThreadPoolExecutor(1, thread_name_prefix="tier") as pool:
        return pool.submit(BringUp(ctx, plan, mode, vm, attempts).run).result()


def _delay(seconds: float, ctx: StepContext) -> Result:
    """From the end of the step before it, also when this engine is another one."""
    ended = [s.ended_at for s in ctx.operation.steps if s.ended_at is not None]
    now = ctx.tools.clock.now()
    left = seconds - (now - max(ended, default=now)).total_seconds()
    ctx.wait_until(ctx.cancelled, max(0.0, left), DELAY_LOOK_S)
    return {}


def _report(ctx: StepContext) -> Result:
    """Per VM: what came of it, and what libvirt at its target says now."""
    plan, mode = plan_of(ctx.operation.args)
    lines = []
    for vm in plan.vms():
        outcome = dict(ctx.done[step_of(vm)][step_of(vm)])
        outcome.pop("error", None)
        lines.append({**outcome, **_seen_now(ctx, BringUp(ctx, plan, mode, vm), outcome)})
    seconds = (ctx.tools.clock.now() - ctx.operation.started_at).total_seconds()
    up = sum(1 for line in lines if line["state"] == "up")
    ctx.note(f"{up} of {len(lines)} up after {seconds:.1f} s")
    return {"report": lines, "seconds": round(seconds, 2), "up": up}


def _seen_now(ctx: StepContext, one: BringUp, outcome: Result) -> Result:
    """What cannot be seen is said so, and is no reason to fail a run that is over."""
    try:
        p = one.protection()
        target, hv = ctx.site(p.target_site), ctx.hypervisor(p.target_site)
        if one.mode is not PlanMode.DRILL:
            return {"target": target.name, "now": vm_state(hv, p.vm_uuid)}
        copies = [d.state for d in hv.domains() if d.name == outcome.get("domain")]
        return {"target": target.name, "now": copies[0] if copies else "undefined"}
    except VaporError as error:
        return {"now": f"not known: {error}"}


def _ended(_ctx: StepContext, _error: VaporError | None) -> None:
    """Nothing of its own: the VMs' operations have written down what became of them."""


PLAN_RUN = OperationType(
    kind=OperationKind.PLAN,
    steps=(
        Step("check", "Look whether all of it can run", _check),
        Step("report", "Look what runs", _report),
    ),
    asks=True,
    ended=_ended,
    steps_of=steps_of,
    stops=True,
)
