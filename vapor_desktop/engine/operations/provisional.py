"""While a failover is provisional: commit it, or roll back to another recovery point.

Commit changes nothing that runs; it says at the target that the failover stands. Roll back shuts the running VM off,
keeps what it has written since as a run of its own, and starts the VM from another point under a new epoch.
"""

from __future__ import annotations

from vapor_desktop.engine import records
from vapor_desktop.engine.operations.failover import (
    COMMIT_ASK,
    START_DEADLINE_S,
    check_target,
    define_run,
    look_for_strangers,
    vm_state,
    wanted_point,
)
from vapor_desktop.engine.operations.steps import UNDO, OperationType, Result, Step, StepContext
from vapor_desktop.engine.operations.switching_off import OFF, switch_off
from vapor_desktop.engine.operations.target_guard import tell_target
from vapor_desktop.model.errors import Conflict, StartFailed, VaporError
from vapor_desktop.model.manifest import Epoch, Manifest
from vapor_desktop.model.operations import OperationKind
from vapor_desktop.model.sites import Protection
from vapor_desktop.model.states import Phase, Severity
from vapor_desktop.model.wire import CommitRequest, Run, RunRequest

_OPEN = frozenset({Phase.PROVISIONAL, Phase.SPLIT_BRAIN_RISK})


# --- commit -----------------------------------------------------------------------------------------------
def _commit(ctx: StepContext) -> Result:
    """Written down at the target first; the database follows."""
    p, target = ctx.protection, ctx.protection.target_site
    if p.phase not in _OPEN | {Phase.FAILED_OVER}:
        raise Conflict(f"“{p.vm_name}” is in the phase {p.phase.value}: there is nothing to commit", fix=_fix(p))
    api = ctx.api(target)
    lease = ctx.lease(target)
    manifest = api.replica(p.vm_uuid).manifest
    if manifest.epoch.owner != target:
        raise Conflict(f"“{p.vm_name}” does not belong to its target (epoch {manifest.epoch.number})")
    number = manifest.epoch.number
    api.commit(p.vm_uuid, CommitRequest(fence=lease.fence, epoch=number, reason=ctx.operation.reason))
    state = vm_state(ctx.hypervisor(target), p.vm_uuid)
    if state != "running":
        ctx.note(f"It is {state} at the target")
    return {"epoch": number, "state": state}


def _fix(p: Protection) -> str:
    return "Resolve the split brain first" if p.phase is Phase.SPLIT_BRAIN else ""


def _committed(ctx: StepContext, error: VaporError | None) -> None:
    if error is not None or "commit" not in ctx.done:
        return
    p, repository = ctx.protection, ctx.tools.repository
    records.update(repository, p.protection_id, records.failed_over(ctx.done["commit"]["epoch"], p.target_site))
    records.note(
        repository,
        ctx.tools.clock.now(),
        "committed",
        f"The failover stands: {ctx.operation.reason}",
        severity=Severity.WARNING,
        protection_id=p.protection_id,
    )


COMMIT = OperationType(
    kind=OperationKind.COMMIT,
    steps=(Step("commit", "Let the failover stand", _commit, no_return=True),),
    asks=False,
    ended=_committed,
)


# --- roll back --------------------------------------------------------------------------------------------
def _check(ctx: StepContext) -> Result:
    """Which point, and would it start from it? Nothing that runs is touched."""
    p, target = ctx.protection, ctx.protection.target_site
    if p.phase not in _OPEN | {Phase.FAILING_OVER}:
        raise Conflict(f"“{p.vm_name}” is in the phase {p.phase.value}: there is nothing to roll back", fix=_fix(p))
    api = ctx.api(target)
    ctx.lease(target)
    manifest = api.replica(p.vm_uuid).manifest
    if manifest.epoch.owner != target or manifest.provisional != manifest.epoch.number:
        raise Conflict(
            f"The failover of “{p.vm_name}” is not provisional at its target (epoch {manifest.epoch.number})",
            fix="Reprotect it, then migrate it",
        )
    seq = wanted_point(manifest, ctx.operation.args.get("seq"))
    carried = api.point_domain(p.vm_uuid, seq)
    check_target(ctx, carried.domain_xml, carried.disks, nvram=carried.nvram, epoch=manifest.epoch)
    running = vm_state(ctx.hypervisor(target), p.vm_uuid) not in OFF
    records.update(ctx.tools.repository, p.protection_id, records.to_phase(Phase.FAILING_OVER))
    ctx.note(f"From recovery point {runs_on(manifest)} to {seq}")
    return {"epoch": manifest.epoch.number, "seq": seq, "ran_on": runs_on(manifest), "was_running": running}


def runs_on(manifest: Manifest) -> int | None:
    """The point that the VM's present run at the target stands on."""
    pin = f"run:{manifest.epoch.number}"
    return next((e.seq for e in manifest.points if pin in e.pins), None)


def _still_provisional(ctx: StepContext) -> None:
    """Undo: it is what it was."""
    records.update(
        ctx.tools.repository,
        ctx.protection.protection_id,
        lambda p: records.to_phase(Phase.PROVISIONAL)(p) if p.phase is Phase.FAILING_OVER else p,
    )


def _shut_down(ctx: StepContext) -> Result:
    how = switch_off(ctx, ctx.protection.target_site, "shut-down", UNDO)
    ctx.note(how)
    return {"how": how}


def _start_again(ctx: StepContext) -> None:
    """Undo: what ran before runs again."""
    p = ctx.protection
    hv = ctx.hypervisor(p.target_site)
    if not ctx.done["check"]["was_running"]:
        return
    hv.start(p.vm_uuid)
    if not ctx.wait_until(lambda: vm_state(hv, p.vm_uuid) == "running", START_DEADLINE_S):
        raise StartFailed(f"“{p.vm_name}” was started again but does not run")


def _take_over(ctx: StepContext) -> Result:
    """A new epoch, new overlays; the run before stays under a name."""
    p = ctx.protection
    state = vm_state(ctx.hypervisor(p.target_site), p.vm_uuid)
    if state not in OFF:
        raise Conflict(f"“{p.vm_name}” is {state} at the target", fix="Shut it down, or undo")
    run = _run(ctx)
    ctx.note(f"Overlays on recovery point {run.seq}, epoch {run.epoch.number}; the run before is kept")
    return {"run_epoch": run.epoch.number, "kept_epoch": ctx.done["check"]["epoch"]}


def _run(ctx: StepContext) -> Run:
    p, before = ctx.protection, ctx.done["check"]
    request = RunRequest(
        fence=ctx.lease(p.target_site).fence,
        new_epoch=Epoch(number=before["epoch"] + 1, owner=p.target_site),
        seq=before["seq"],
        reason=ctx.operation.reason,
        provisional=True,
        keep_as=f"before the roll back from point {before['ran_on']} to point {before['seq']}",
    )
    return ctx.api(p.target_site).run(p.vm_uuid, request)


def _start(ctx: StepContext) -> Result:
    """Done when libvirt says that it runs, from this very run."""
    p = ctx.protection
    hv = ctx.hypervisor(p.target_site)
    run = _run(ctx)
    notes: tuple[str, ...] = ()
    if vm_state(hv, p.vm_uuid) in OFF:
        tell_target(ctx, run.epoch, f"rolled back: {ctx.operation.reason}")
        notes = define_run(ctx, run, ctx.lease(p.target_site).fence, fresh_genid=True)
        hv.start(p.vm_uuid)
    elif vm_state(hv, p.vm_uuid) == "paused":
        hv.resume(p.vm_uuid)
    if not ctx.wait_until(lambda: vm_state(hv, p.vm_uuid) == "running", START_DEADLINE_S, 0.05):
        raise StartFailed(f"“{p.vm_name}” was started at the target but is {vm_state(hv, p.vm_uuid)}")
    look_for_strangers(p, hv, run.epoch)
    return {"notes": list(notes)}


def _rolled_back(ctx: StepContext, error: VaporError | None) -> None:
    repository, p, now = ctx.tools.repository, ctx.protection, ctx.tools.clock.now()
    if "start" in ctx.done:
        epoch = ctx.done["take-over"]["run_epoch"]
        records.update(repository, p.protection_id, records.provisional(epoch, p.target_site, now + COMMIT_ASK))
        text = (
            f"Rolled back to point {ctx.done['check']['seq']}; what ran before is kept as the run of epoch "
            f"{ctx.done['take-over']['kept_epoch']}"
        )
        lines = [(text, "rolled-back"), *((n, "failover-note") for n in ctx.done["start"]["notes"])]
        for line, kind in lines:
            records.note(repository, now, kind, line, severity=Severity.WARNING, protection_id=p.protection_id)
    elif "take-over" in ctx.done:
        text = f"The roll back is incomplete: fail over to point {ctx.done['check']['seq']} to finish it ({error})"
        change = {"last_error": text, "last_error_code": error.code if error else None}
        to_error = records.to_phase(Phase.ERROR)
        records.update(repository, p.protection_id, lambda q: to_error(q).model_copy(update=change))
    else:
        _still_provisional(ctx)


ROLLBACK = OperationType(
    kind=OperationKind.ROLLBACK,
    steps=(
        Step("check", "Look whether it would start from that point", _check, undo=_still_provisional),
        Step("shut-down", "Shut off what runs at the target", _shut_down, undo=_start_again),
        Step("take-over", "Keep what it wrote, make new overlays", _take_over, no_return=True),
        Step("start", "Start it", _start),
    ),
    asks=True,
    ended=_rolled_back,
)


def roll_back_effects(protection: Protection, target: str, seq: int) -> tuple[str, ...]:
    """What will happen, sentence by sentence, for the sheet before the button."""
    name, epoch = protection.vm_name, protection.epoch_number
    return (
        f"“{name}” is shut off at {target}: its guest is asked first, its power is cut only on your word.",
        f"What it wrote there since then is kept as the run of epoch {epoch}, until it is let go.",
        f"It starts at {target} from recovery point {seq}, on new overlays, under epoch {epoch + 1}.",
        "It stays provisional.",
    )
