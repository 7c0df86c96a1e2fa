"""Planned migration: the VM moves, and nothing is lost (DESIGN §7).

Check → sync while it runs, with every block on record compared → shut down (asked, never by a timer) → the source's
guard armed, its autostart off → last sync from the stopped disks → epoch + 1 at the target → started paused, a
checkpoint for the way home → *resume, the point of no return* → the source's guard says whose it is.
Whatever fails before that: the VM is given back to the source under a new epoch and runs there again.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from vapor_desktop.engine import records
from vapor_desktop.engine.operations.failover import (
    check_target,
    define_run,
    vm_state,
)
from vapor_desktop.engine.operations.reread import wanted, with_reread
from vapor_desktop.engine.operations.steps import UNDO, Ask, OperationType, Result, Step, StepContext
from vapor_desktop.engine.operations.switching_off import require_off
from vapor_desktop.engine.operations.target_guard import tell_target
from vapor_desktop.engine.plan import checkpoint_name
from vapor_desktop.model.domain_xml.mark import read_mark
from vapor_desktop.model.errors import Conflict, DigestMismatch, DomainNotFound, StartFailed, VaporError
from vapor_desktop.model.manifest import Consistency, Epoch
from vapor_desktop.model.operations import Choice, OperationKind
from vapor_desktop.model.reprotect import size_text
from vapor_desktop.model.states import Phase, Severity
from vapor_desktop.model.takeover import home_of
from vapor_desktop.model.wire import GiveBackRequest, GuardRequest, GuardState, Run, RunRequest

SHUTDOWN_S = 120.0
ACPI_AFTER_S = 10.0
ASK_EVERY_S = 0.5
RUNNING_S = 30.0
PRE_SYNCS = 3

WAIT = Choice(key="wait", text="Wait on for it to shut down")
FORCE = Choice(key="force", text="Switch it off now, as a power cut would")


def _check(ctx: StepContext) -> Result:
    """Would it start at the target? Nothing is changed; the phase says what is going on."""
    p = ctx.protection
    source = ctx.hypervisor(p.source_site)
    domain = source.domain(p.vm_uuid)
    api = ctx.api(p.target_site)
    manifest = api.replica(p.vm_uuid).manifest
    if manifest.epoch.owner != p.source_site:
        raise Conflict(f"“{p.vm_name}” does not belong to its source any more (epoch {manifest.epoch.number})")
    disks = tuple(manifest.newest.files) if manifest.newest else ()
    epoch = Epoch(number=manifest.epoch.number + 1, owner=p.target_site)
    nvram, home = domain.nvram_path is not None, home_of(manifest)
    check_target(ctx, source.domain_xml(p.vm_uuid), disks, nvram=nvram, epoch=epoch, home=home)
    records.update(ctx.tools.repository, p.protection_id, records.to_phase(Phase.MIGRATING))
    return {"epoch": manifest.epoch.number, "was_running": domain.live_id is not None, "autostart": domain.autostart}


def _not_migrating(ctx: StepContext) -> None:
    records.update(
        ctx.tools.repository,
        ctx.protection.protection_id,
        lambda p: records.to_phase(Phase.PROTECTED)(p) if p.phase is Phase.MIGRATING else p,
    )


def _pre_sync(ctx: StepContext) -> Result:
    """Cycles while it runs, so that the last one is short; every block on record compared on both sides."""
    p = ctx.protection
    lease = ctx.lease(p.target_site)
    for attempt in range(PRE_SYNCS):
        began = ctx.tools.clock.monotonic()
        outcome = ctx.tools.worker.run_in_operation(p.protection_id, lease, scrub_whole=True)
        if outcome.mismatch:
            ctx.note("The replica differed from its digests; compared again")
            continue
        if outcome.scrubbed is not None:
            checked = outcome.scrubbed.checked_bytes
            ctx.note(f"{checked / 2**20:.0f} MiB compared on both sides")
            took = {"compare_s": round(ctx.tools.clock.monotonic() - began, 2), "cycles": attempt + 1}
            return {"compared_bytes": checked, "compared": dict(outcome.scrubbed.checked), **took}
    raise DigestMismatch(f"The replica of “{p.vm_name}” still differs from its source after {PRE_SYNCS} cycles")


def _shut_down(ctx: StepContext) -> Result:
    """The guest is asked, through its agent and then by ACPI; after the deadline a person is."""
    p = ctx.protection
    hv = ctx.hypervisor(p.source_site)
    answer = ctx.answers.get("shut-down")
    if vm_state(hv, p.vm_uuid) == "shutoff":
        return {"how": "it was off", "downtime_from": ctx.tools.clock.now().isoformat()}
    if answer == FORCE.key:
        hv.destroy(p.vm_uuid)
        how = "switched off by the operator"
    else:
        how = _ask_guest(ctx)
    if vm_state(hv, p.vm_uuid) != "shutoff":
        raise Ask(f"“{p.vm_name}” has not shut down within {_deadline_s(ctx):.0f} s", WAIT, FORCE, UNDO)
    return {"how": how, "downtime_from": ctx.tools.clock.now().isoformat()}


def _ask_guest(ctx: StepContext) -> str:
    """Until it is off or the deadline: its agent as soon as that answers, the power button when it does not."""
    hv, vm, clock = ctx.hypervisor(ctx.protection.source_site), ctx.protection.vm_uuid, ctx.tools.clock
    began, asked = clock.monotonic(), list[str]()
    while (waited := clock.monotonic() - began) < _deadline_s(ctx):
        if "its agent" not in asked and hv.domain(vm).agent_connected:
            asked.append("its agent")
            try:
                hv.shut_down(vm, agent=True)
            except VaporError as error:
                ctx.note(f"Its agent did not take it: {error.what}")
        elif "the power button" not in asked and waited > ACPI_AFTER_S:
            asked.append("the power button")
            hv.shut_down(vm, agent=False)
        if ctx.wait_until(lambda: vm_state(hv, vm) == "shutoff", ASK_EVERY_S):
            break
    return " and ".join(asked)


def _deadline_s(ctx: StepContext) -> float:
    return float(ctx.operation.args.get("shutdown_s") or SHUTDOWN_S)


def _start_again(ctx: StepContext) -> None:
    """Undo: it runs at the source as before. Only if it ran, and only while it is the source's."""
    p = ctx.protection
    if ctx.done["check"]["was_running"]:
        hv = ctx.hypervisor(p.source_site)
        if vm_state(hv, p.vm_uuid) == "running" and "shut-down" not in ctx.done:
            ctx.note("It was asked to shut down and may still do so; it is not started again by itself then")
            return
        hv.start(p.vm_uuid)
        if not ctx.wait_until(lambda: vm_state(hv, p.vm_uuid) == "running", RUNNING_S):
            raise StartFailed(f"“{p.vm_name}” was started again at its source but does not run")


def _guard(ctx: StepContext) -> Result:
    """From here on nothing but this operation starts it at the source."""
    p = ctx.protection
    require_off(ctx)
    _arm(ctx, GuardState.MOVING, ctx.done["check"]["epoch"], p.source_site, "a planned migration moves it")
    ctx.hypervisor(p.source_site).set_autostart(p.vm_uuid, False)
    return {}


def _unguard(ctx: StepContext) -> None:
    p = ctx.protection
    epoch = ctx.api(p.target_site).replica(p.vm_uuid).manifest.epoch
    _arm(ctx, GuardState.OWN, epoch.number, p.source_site, "the migration was undone")
    ctx.hypervisor(p.source_site).set_autostart(p.vm_uuid, bool(ctx.done["check"]["autostart"]))


def _arm(ctx: StepContext, state: GuardState, epoch: int, owner: str, reason: str) -> None:
    p = ctx.protection
    api = ctx.api(p.source_site)
    request = GuardRequest(
        fence=ctx.lease(p.source_site).fence,
        epoch=Epoch(number=epoch, owner=owner),
        state=state,
        vm_name=p.vm_name,
        peer_site=p.target_site,
        operation_id=ctx.operation.operation_id,
        policy=p.policy.start_guard,
        boot_id=api.identity()[0].boot_id if state is GuardState.OWN else None,
        reason=reason,
        by=ctx.tools.identity.name,
    )
    api.arm_guard(p.vm_uuid, request)


def _final_sync(ctx: StepContext) -> Result:
    """The last delta, read from the disks of the stopped VM: the point is the VM, bit for bit."""
    p = ctx.protection
    require_off(ctx)
    outcome = ctx.tools.worker.run_in_operation(p.protection_id, ctx.lease(p.target_site))
    newest = outcome.manifest.newest
    if newest is None or outcome.mismatch:
        raise DigestMismatch(f"The last sync of “{p.vm_name}” did not come to a point whose data is its digests'")
    if not outcome.unchanged and newest.consistency is not Consistency.OFF:
        raise Conflict(f"“{p.vm_name}” was not off while its last point was made")
    require_off(ctx)
    sent = outcome.result.data_bytes if outcome.result else 0
    ctx.note(f"Recovery point {newest.seq}: {sent / 2**20:.1f} MiB from the stopped disks")
    return {"seq": newest.seq, "final_bytes": sent}


def _take_over(ctx: StepContext) -> Result:
    """Epoch + 1 at the target, and an overlay on the last point."""
    require_off(ctx)
    run = _run(ctx)
    tell_target(ctx, run.epoch, "a planned migration brings it here")
    return {"run_epoch": run.epoch.number}


def _run(ctx: StepContext) -> Run:
    p = ctx.protection
    epoch = Epoch(number=ctx.done["check"]["epoch"] + 1, owner=p.target_site)
    request = RunRequest(
        fence=ctx.lease(p.target_site).fence,
        new_epoch=epoch,
        seq=ctx.done["final-sync"]["seq"],
        reason=ctx.operation.reason,
    )
    return ctx.api(p.target_site).run(p.vm_uuid, request)


def _give_back(ctx: StepContext) -> None:
    """Undo: the source owns it again, under an epoch above the one the target had."""
    p = ctx.protection
    api = ctx.api(p.target_site)
    manifest = api.replica(p.vm_uuid).manifest
    taken = ctx.done["check"]["epoch"] + 1
    if manifest.epoch.owner == p.source_site and manifest.epoch.number != taken + 1:
        return  # it was never taken over
    request = GiveBackRequest(
        fence=ctx.lease(p.target_site).fence,
        new_epoch=Epoch(number=taken + 1, owner=p.source_site),
        run_epoch=taken,
        reason=ctx.operation.reason,
    )
    after = api.give_back(p.vm_uuid, request)
    tell_target(ctx, after.epoch, "the migration was undone")
    update = {"epoch_number": after.epoch.number, "epoch_owner": after.epoch.owner}
    records.update(ctx.tools.repository, p.protection_id, lambda q: q.model_copy(update=update))


def _start_paused(ctx: StepContext) -> Result:
    """Defined, paused, with a checkpoint from its very first write on: the way home is a delta."""
    p = ctx.protection
    hv = ctx.hypervisor(p.target_site)
    run = _run(ctx)
    notes: tuple[str, ...] = ()
    if vm_state(hv, p.vm_uuid) != "paused":
        notes = define_run(ctx, run, ctx.lease(p.target_site).fence, fresh_genid=False)
        hv.start(p.vm_uuid, paused=True)
    prefix = checkpoint_name(p.protection_id, run.epoch.number, 0).rpartition("-")[0]
    known = next((n for n in hv.checkpoints(p.vm_uuid) if n.startswith(prefix)), None)
    name = known or checkpoint_name(p.protection_id, run.epoch.number, 0)
    hv.create_checkpoint(p.vm_uuid, name, sorted(run.disks))
    return {"reverse_checkpoint": name, "notes": list(notes)}


def _remove_paused(ctx: StepContext) -> None:
    """Undo: a VM that never ran goes again. One that runs is not ours to stop."""
    p = ctx.protection
    hv = ctx.hypervisor(p.target_site)
    try:
        mark = read_mark(hv.domain_xml(p.vm_uuid, secure=False))
    except DomainNotFound:
        return
    if mark is None or mark.protection_id != p.protection_id:
        return
    state = vm_state(hv, p.vm_uuid)
    if state == "running":
        raise Conflict(f"“{p.vm_name}” runs at the target: there is no way back any more")
    hv.destroy(p.vm_uuid)
    for name in hv.checkpoints(p.vm_uuid):
        hv.delete_checkpoint(p.vm_uuid, name)
    hv.undefine(p.vm_uuid)


def _resume(ctx: StepContext) -> Result:
    """The source is off and guarded, looked at now; then it runs at the target."""
    p = ctx.protection
    hv = ctx.hypervisor(p.target_site)
    if vm_state(hv, p.vm_uuid) != "running":
        require_off(ctx)
        record = ctx.api(p.source_site).guard(p.vm_uuid)
        if record is None or record.state is not GuardState.MOVING:
            raise Conflict(f"The start guard of “{p.vm_name}” at its source is not armed for this migration")
        hv.resume(p.vm_uuid)
    if not ctx.wait_until(lambda: vm_state(hv, p.vm_uuid) == "running", RUNNING_S, 0.05):
        raise StartFailed(f"“{p.vm_name}” was resumed at the target but is {vm_state(hv, p.vm_uuid)}")
    now = ctx.tools.clock.now()
    off_since = datetime.fromisoformat(ctx.done["shut-down"]["downtime_from"])
    return {"running_at": now.isoformat(), "downtime_s": round((now - off_since).total_seconds(), 2)}


def _settle(ctx: StepContext) -> Result:
    """The source's guard learns whose it is. A source that went dark meanwhile is told later by the engine."""
    p = ctx.protection
    epoch = ctx.done["take-over"]["run_epoch"]
    try:
        _arm(ctx, GuardState.OTHERS, epoch, p.target_site, "migrated")
    except VaporError as error:
        ctx.note(f"The source was not told yet: {error.what}")
    return {}


def _ended(ctx: StepContext, error: VaporError | None) -> None:
    repository, p = ctx.tools.repository, ctx.protection
    if "resume" not in ctx.done:
        _not_migrating(ctx)
        return
    epoch = ctx.done["take-over"]["run_epoch"]
    records.update(repository, p.protection_id, records.failed_over(epoch, p.target_site))
    records.note(
        repository,
        ctx.tools.clock.now(),
        "migrated",
        zero_loss_statement(ctx.done),
        severity=Severity.WARNING,
        protection_id=p.protection_id,
    )


def zero_loss_statement(done: Mapping[str, Result]) -> str:
    """What was compared, how, what was not read again, and the downtime. Of a finished migration's results."""
    seen = done["pre-sync"]
    final, seq = done["final-sync"]["final_bytes"], done["final-sync"]["seq"]
    reread = done.get("reread", {}).get("reread")
    again = "Blocks not written since the comparison were not read again"
    if reread:
        again = f"Read again from the stopped disks, {_per_disk(reread)} were equal on both sides"
    down_s = done["resume"].get("downtime_s")  # unknown to a migration that an older program resumed
    took = "" if down_s is None else f". From off at the source to running at the target: {down_s:.1f} s"
    compared = _per_disk(seen.get("compared", {})) or size_text(seen["compared_bytes"])
    return (
        f"Nothing lost up to recovery point {seq}: {compared} were read at the source and compared block by block "
        "with the replica's digests, and the replica with its own, while the VM ran; what it wrote after that "
        f"({size_text(final)}) was read from its stopped disks and verified on arrival. {again}{took}"
    )


def _per_disk(checked: Mapping[str, int]) -> str:
    return ", ".join(f"{disk} {size_text(size)}" for disk, size in sorted(checked.items()))


def _steps_of(args: Mapping[str, Any]) -> tuple[Step, ...]:
    return with_reread(_STEPS) if wanted(args) else _STEPS


_STEPS = (
    Step("check", "Look whether it would start at the target", _check, undo=_not_migrating),
    Step("pre-sync", "Sync while it runs, and compare both sides", _pre_sync),
    Step("shut-down", "Shut it down", _shut_down, undo=_start_again),
    Step("guard", "Guard the source against a start", _guard, undo=_unguard),
    Step("final-sync", "Send what it wrote last", _final_sync),
    Step("take-over", "Take it over at the target", _take_over, undo=_give_back),
    Step("start-paused", "Start it paused, with a checkpoint for the way home", _start_paused, _remove_paused),
    Step("resume", "Let it run at the target", _resume, no_return=True),
    Step("settle", "Tell the source whose it is", _settle),
)

MIGRATION = OperationType(
    kind=OperationKind.MIGRATION,
    steps=_STEPS,
    asks=True,
    ended=_ended,
    steps_of=_steps_of,
)
