"""Reprotect: the VM stays where it runs, and is protected to the side that it came from (DESIGN §7).

Look → the old side off (asked, never by a timer) and guarded → its original disks adopted there, where they lie →
*the direction turned, the point of no return* → the first reverse point → flat again where it runs. What the old side
wrote after the failover is a point of its own there, and stays until it is let go.
"""

from __future__ import annotations

from vapor_desktop.engine import records, wayhome
from vapor_desktop.engine.flattening import make_flat
from vapor_desktop.engine.operations.failover import vm_state
from vapor_desktop.engine.operations.steps import UNDO, Ask, EngineStopping, OperationType, Result, Step, StepContext
from vapor_desktop.engine.wayhome import WayHome
from vapor_desktop.model.errors import Conflict, NotFound, PointPinned, TransferCancelled, VaporError
from vapor_desktop.model.manifest import Epoch, Manifest
from vapor_desktop.model.operations import Choice, OperationKind
from vapor_desktop.model.reprotect import size_text
from vapor_desktop.model.sites import Protection
from vapor_desktop.model.states import Phase, Severity
from vapor_desktop.model.wire import AdoptRequest, GuardRequest, GuardState

SHUTDOWN_S = 120.0

SHUT_DOWN = Choice(key="shut-down", text="Ask the guest there to shut down")
FORCE = Choice(key="force", text="Switch it off there now, as a power cut would")


def _ends(ctx: StepContext) -> tuple[str, str]:
    """(where it runs, where it came from); the same before and after the turn."""
    p = ctx.protection
    return (p.epoch_owner, p.target_site if p.epoch_owner == p.source_site else p.source_site)


def _look(ctx: StepContext) -> WayHome:
    here, there = _ends(ctx)
    return wayhome.look(ctx.tools.gateway, ctx.protection, ctx.site(here), ctx.site(there))


def _check(ctx: StepContext) -> Result:
    """Is there a way home, and what does it cost? Nothing is changed but the phase."""
    p = ctx.protection
    wayhome.must_be_over(p)
    if p.epoch_owner != p.target_site:
        raise Conflict(f"“{p.vm_name}” belongs to its source: there is nothing to reprotect")
    cost = _look(ctx).price
    records.update(ctx.tools.repository, p.protection_id, records.to_phase(Phase.REPROTECTING))
    ctx.note(f"{cost.text} ({cost.why})")
    return {"price": cost.text, "method": cost.method.value, "priced_send_bytes": cost.send_bytes}


def _as_before(ctx: StepContext) -> None:
    records.update(
        ctx.tools.repository,
        ctx.protection.protection_id,
        lambda p: records.to_phase(Phase.FAILED_OVER)(p) if p.phase is Phase.REPROTECTING else p,
    )


def _old_side(ctx: StepContext) -> Result:
    """Off, guarded, autostart off. One that never noticed the failover runs: a person says how it ends."""
    p = ctx.protection
    here, there = _ends(ctx)
    hv = ctx.hypervisor(there)
    answer = ctx.answers.get("old-side")
    if vm_state(hv, p.vm_uuid) not in {"shutoff", "undefined"}:
        if answer == FORCE.key:
            hv.destroy(p.vm_uuid)
        elif answer == SHUT_DOWN.key:
            hv.shut_down(p.vm_uuid, agent=hv.domain(p.vm_uuid).agent_connected)
            ctx.wait_until(lambda: vm_state(hv, p.vm_uuid) == "shutoff", SHUTDOWN_S)
        state = vm_state(hv, p.vm_uuid)
        if state != "shutoff":
            text = f"“{p.vm_name}” is {state} at {ctx.site(there).name} too, with data of its own"
            raise Ask(text, SHUT_DOWN, FORCE, UNDO)
    owner = ctx.api(here).replica(p.vm_uuid).manifest.epoch
    _arm(ctx, there, here, owner, GuardState.OTHERS, f"it is protected from {ctx.site(here).name} now")
    record = ctx.api(there).guard(p.vm_uuid)
    if vm_state(hv, p.vm_uuid) != "undefined":
        hv.set_autostart(p.vm_uuid, False)
    return {"autostart": record is not None and record.was_autostart}


def _arm(ctx: StepContext, site: str, peer: str, epoch: Epoch, state: GuardState, reason: str) -> None:
    p = ctx.protection
    api = ctx.api(site)
    request = GuardRequest(
        fence=ctx.lease(site).fence,
        epoch=epoch,
        state=state,
        vm_name=p.vm_name,
        peer_site=peer,
        policy=p.policy.start_guard,
        boot_id=api.identity()[0].boot_id if state is GuardState.OWN else None,
        reason=reason,
        by=ctx.tools.identity.name,
    )
    api.arm_guard(p.vm_uuid, request)


def _adopt(ctx: StepContext) -> Result:
    """The original disks become the foot of the new replica; by their stamps the site says what they are."""
    p = ctx.protection
    _here, there = _ends(ctx)
    home = _look(ctx)
    if not home.originals or home.old is None:
        ctx.note("No disk is left there: all of it is copied")
        return {"base_seq": None, "diverged": []}
    try:
        made = ctx.api(there).adopt(p.vm_uuid, _request(ctx, home))
    except NotFound as error:
        ctx.note(f"{error.what}: all of it is copied")
        return {"base_seq": None, "diverged": []}
    base = made.manifest.points[0]
    if made.diverged:
        ctx.note(f"What was written there after the failover is kept as recovery point {base.seq}")
    return {"base_seq": base.seq, "diverged": list(made.diverged), "copied_whole": list(made.missing)}


def _request(ctx: StepContext, home: WayHome) -> AdoptRequest:
    p = ctx.protection
    here, there = _ends(ctx)
    manifest, point = home.manifest, home.point
    usable = all(f.bitmap for f in home.facts)
    return AdoptRequest(
        fence=ctx.lease(there).fence,
        protection_id=p.protection_id,
        vm_name=p.vm_name,
        source_site=here,
        epoch=manifest.epoch,
        policy=manifest.policy,
        mappings=wayhome.inverse(manifest.mappings),
        settings_version=manifest.settings_version + 1,
        seq=point.seq,
        next_seq=manifest.next_seq,
        taken_at=point.taken_at,
        current_as_of=point.current_as_of,
        checkpoint=home.checkpoint if usable else None,
        consistency=point.consistency,
        domain_xml=ctx.hypervisor(there).domain_xml(p.vm_uuid),
        disks=home.originals,
        kept_as=f"what {ctx.site(there).name} wrote after epoch {manifest.epoch.number} began",
        reason=ctx.operation.reason,
    )


def _turn(ctx: StepContext) -> Result:
    """From here on it is protected the other way; each host's guard says whose it is."""
    p = ctx.protection
    here, there = _ends(ctx)
    manifest = ctx.api(here).replica(p.vm_uuid).manifest
    if ctx.done["adopt"]["base_seq"] is None:
        settings = (manifest.policy, wayhome.inverse(manifest.mappings), 1)
    else:
        adopted = ctx.api(there).replica(p.vm_uuid).manifest
        settings = (adopted.policy, adopted.mappings, adopted.settings_version)
    epoch = manifest.epoch
    turned = records.turned((here, there), settings, epoch)
    ctx.protection = records.update(ctx.tools.repository, p.protection_id, turned)
    _arm(ctx, here, there, epoch, GuardState.OWN, f"protected to {ctx.site(there).name}")
    if ctx.done["old-side"]["autostart"]:
        ctx.hypervisor(here).set_autostart(p.vm_uuid, True)
    return {"source": here, "target": there, "epoch": epoch.number}


def _first_sync(ctx: StepContext) -> Result:
    """Until the first reverse point is complete and durable; a long one is made of several jobs."""
    p = ctx.protection
    base = ctx.done["adopt"]["base_seq"] or 0
    began = sent = wire = 0
    while True:
        if ctx.stopping.is_set():
            raise EngineStopping
        began += 1
        outcome = ctx.tools.worker.run_in_operation(p.protection_id, ctx.lease(p.target_site))
        sent += outcome.result.data_bytes if outcome.result else 0
        wire += outcome.result.wire_bytes if outcome.result else 0
        newest = outcome.manifest.newest
        if newest is not None and newest.seq > base:
            ctx.note(f"Recovery point {newest.seq}: {size_text(sent)} by {outcome.mode}")
            return {"first_seq": newest.seq, "first_bytes": sent, "first_wire_bytes": wire, "mode": outcome.mode}
        if outcome.unchanged and newest is not None and newest.seq == base:
            return {"first_seq": newest.seq, "first_bytes": 0, "first_wire_bytes": 0, "mode": outcome.mode}


def _flat(ctx: StepContext) -> Result:
    """The overlay that it runs on is no more needed as a delta: one file per disk again, and the XML names it."""
    p = ctx.protection
    here, _there = _ends(ctx)
    hv, api = ctx.hypervisor(here), ctx.api(here)
    if vm_state(hv, p.vm_uuid) != "running":
        ctx.note("It is off: it stays on its overlay, and its disks are flattened when it goes home")
        return {"flat": False}
    epoch = api.replica(p.vm_uuid).manifest.epoch
    try:
        done = make_flat(api, hv, p.vm_uuid, epoch, lambda: ctx.lease(here).fence, ctx.stopping.is_set)
    except PointPinned as error:
        ctx.note(f"It stays on its overlay: {error}")
        return {"flat": False}
    except TransferCancelled as error:
        raise EngineStopping from error
    _validate(ctx, ctx.api(p.target_site).replica(p.vm_uuid).manifest)
    return {"flat": True, "disks": {disk: foot for disk, (_top, foot) in done.disks.items()}}


def _validate(ctx: StepContext, manifest: Manifest) -> None:
    newest = manifest.newest
    if newest is None or newest.checkpoint is None:
        return
    here, _there = _ends(ctx)
    if not ctx.hypervisor(here).checkpoint_valid(ctx.protection.vm_uuid, newest.checkpoint, sorted(newest.files)):
        ctx.note("Its bitmap did not survive: the next cycle compares")


def _ended(ctx: StepContext, error: VaporError | None) -> None:
    repository, p = ctx.tools.repository, ctx.protection
    if "turn" not in ctx.done:
        _as_before(ctx)
        return

    def change(q: Protection) -> Protection:
        if q.phase is not Phase.REPROTECTING:
            return q
        to = Phase.PROTECTED if "first-sync" in ctx.done else Phase.INITIAL_SYNC
        to = Phase.PAUSED if q.paused else to
        return records.to_phase(to)(q).model_copy(update={"failures": 0, "not_before": None})

    records.update(repository, p.protection_id, change)
    here, there = (ctx.site(s).name for s in _ends(ctx))
    text = f"Protected from {here} to {there} now"
    if "first-sync" in ctx.done:
        text += f"; recovery point {ctx.done['first-sync']['first_seq']} took {ctx.done['check']['price']}"
    now = ctx.tools.clock.now()
    records.note(repository, now, "reprotected", text, severity=Severity.WARNING, protection_id=p.protection_id)


REPROTECT = OperationType(
    kind=OperationKind.REPROTECT,
    steps=(
        Step("check", "Look at both sides, and price the way home", _check, undo=_as_before),
        Step("old-side", "Have the VM off and guarded at the side that it left", _old_side),
        Step("adopt", "Adopt its original disks there", _adopt),
        Step("turn", "Turn the direction", _turn, no_return=True),
        Step("first-sync", "Send what differs: the first reverse recovery point", _first_sync),
        Step("flat", "Make it flat again where it runs", _flat),
    ),
    asks=True,
    ended=_ended,
)
