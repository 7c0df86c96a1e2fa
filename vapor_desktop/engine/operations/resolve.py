"""Resolving a split brain, or the risk of one: a person chooses whose VM goes on, and the other's work is kept.

Both sides are compared and told before the choice. The loser is switched off (asked first, cut only on a person's
word), its host's guard or its definition keeps it off, and its disks stay: at the target as a kept run, at the old
primary where they are, until a reprotect makes them a point of their own. Then the winner has the highest epoch.
"""

from __future__ import annotations

from lxml import etree

from vapor_desktop.engine import both_sides, records
from vapor_desktop.engine.operations.failover import START_DEADLINE_S, vm_state
from vapor_desktop.engine.operations.steps import UNDO, Ask, OperationType, Result, Step, StepContext
from vapor_desktop.engine.operations.switching_off import OFF, switch_off
from vapor_desktop.engine.operations.target_guard import tell_target
from vapor_desktop.model.domain_xml.mark import Mark, read_mark, write_mark
from vapor_desktop.model.domain_xml.parse import parse_root
from vapor_desktop.model.errors import Conflict, DomainNotFound, InvalidRequest, NotFound, StartFailed, VaporError
from vapor_desktop.model.manifest import Epoch
from vapor_desktop.model.operations import Choice, OperationKind
from vapor_desktop.model.states import Phase, Severity
from vapor_desktop.model.view import BothSides
from vapor_desktop.model.wire import (
    CommitRequest,
    EpochRequest,
    GiveBackRequest,
    GuardRequest,
    GuardState,
)

SOURCE, TARGET = "source", "target"
_OPEN = frozenset({Phase.SPLIT_BRAIN, Phase.SPLIT_BRAIN_RISK})


def _compare(ctx: StepContext) -> Result:
    """Both sides, looked at now; and the choice, if it was not given with the request."""
    p = ctx.protection
    if p.phase not in _OPEN:
        raise Conflict(f"“{p.vm_name}” is in the phase {p.phase.value}: there is nothing to resolve")
    source, target = ctx.site(p.source_site), ctx.site(p.target_site)
    found = both_sides.compare(ctx.tools.gateway, p, source, target)
    text = " ".join(found.lines())
    ctx.note(text)
    asked = str(ctx.operation.args.get("winner") or "")
    answer = ctx.answers.get("compare", "")  # also that of another question: "try again", "go on"
    winner = {source.site_id: SOURCE, target.site_id: TARGET}.get(asked, asked)
    winner = answer if answer in {SOURCE, TARGET} else winner
    if not winner:
        keep_source = Choice(key=SOURCE, text=f"Go on with what {source.name} has")
        keep_target = Choice(key=TARGET, text=f"Go on with what {target.name} has")
        raise Ask(f"{text} Whose goes on? The other's is switched off and kept.", keep_source, keep_target, UNDO)
    if winner not in {SOURCE, TARGET}:
        raise InvalidRequest(f"“{winner}” is neither of the two sites", fix=f"One of: {source.name}, {target.name}")
    ends = (p.source_site, p.target_site) if winner == SOURCE else (p.target_site, p.source_site)
    numbers = [p.epoch_number, *(n for n in (found.source.epoch, found.target.epoch) if n is not None)]
    return {"winner": ends[0], "loser": ends[1], "epoch": max(numbers) + 1, "compared": list(found.lines())}


def _source_wins(ctx: StepContext) -> bool:
    return bool(ctx.done["compare"]["winner"] == ctx.protection.source_site)


def _switch_off(ctx: StepContext) -> Result:
    how = switch_off(ctx, ctx.done["compare"]["loser"], "switch-off", UNDO)
    ctx.note(how)
    return {"how": how}


def _settle(ctx: StepContext) -> Result:
    """The winner gets the highest epoch; the loser cannot start any more, and what it wrote has a name."""
    p, loser = ctx.protection, ctx.done["compare"]["loser"]
    state = vm_state(ctx.hypervisor(loser), p.vm_uuid)
    if state not in OFF:
        raise Conflict(f"“{p.vm_name}” is {state} at {ctx.site(loser).name} again", fix="Switch it off and try again")
    kept = _settle_at_source(ctx) if _source_wins(ctx) else _settle_at_target(ctx)
    state = vm_state(ctx.hypervisor(loser), p.vm_uuid)
    if state not in OFF:
        raise Conflict(f"“{p.vm_name}” is {state} at {ctx.site(loser).name} again", fix="Switch it off and try again")
    ctx.note(kept)
    return {"kept": kept}


def _settle_at_target(ctx: StepContext) -> str:
    """The old primary lost. Its disks are not touched."""
    p, number = ctx.protection, ctx.done["compare"]["epoch"]
    api, fence = ctx.api(p.target_site), ctx.lease(p.target_site).fence
    reason = ctx.operation.reason
    epoch = Epoch(number=number, owner=p.target_site)
    api.raise_epoch(p.vm_uuid, EpochRequest(fence=fence, new_epoch=epoch, reason=reason))
    api.commit(p.vm_uuid, CommitRequest(fence=fence, epoch=number, reason=reason))
    tell_target(ctx, epoch, f"the split brain was resolved: {reason}")
    _mark_again(ctx, number)
    _guard(ctx, GuardState.OTHERS, epoch, None)
    hv, name = ctx.hypervisor(p.source_site), ctx.site(p.source_site).name
    try:
        disks = [d.source for d in hv.domain(p.vm_uuid).disks if d.device == "disk" and d.source]
    except DomainNotFound:
        return f"{name} has no such VM any more; nothing of it is kept there"
    return f"What {name} wrote is kept there, untouched: {', '.join(disks)}"


def _mark_again(ctx: StepContext, number: int) -> None:
    """The definition at the target says which epoch it is of: the same run, under its new number."""
    p = ctx.protection
    hv = ctx.hypervisor(p.target_site)
    xml = hv.domain_xml(p.vm_uuid)
    mark = read_mark(xml)
    if mark is None or mark.epoch == number:
        return
    root = parse_root(xml)
    write_mark(root, Mark(mark.protection_id, number, mark.seq))
    hv.define(etree.tostring(root, encoding="unicode"))


def _settle_at_source(ctx: StepContext) -> str:
    """The run at the target lost: its overlays stay under a name, and it is defined there no more."""
    p, number = ctx.protection, ctx.done["compare"]["epoch"]
    api, fence, target = ctx.api(p.target_site), ctx.lease(p.target_site).fence, ctx.site(p.target_site).name
    hv, epoch = ctx.hypervisor(p.target_site), Epoch(number=number, owner=p.source_site)
    if vm_state(hv, p.vm_uuid) != "undefined":
        mark = read_mark(hv.domain_xml(p.vm_uuid, secure=False))
        if mark is None or mark.protection_id != p.protection_id:
            raise Conflict(f"The VM at {target} is not of this protection", fix="Undefine it there by hand")
        hv.undefine(p.vm_uuid)
    manifest = api.replica(p.vm_uuid).manifest
    kept = f"what ran at {target} until the split brain was resolved"
    reason, old = ctx.operation.reason, manifest.epoch
    if old.owner == p.target_site:
        back = GiveBackRequest(fence=fence, new_epoch=epoch, run_epoch=old.number, reason=reason, keep_as=kept)
        api.give_back(p.vm_uuid, back)
    elif old != epoch:
        api.raise_epoch(p.vm_uuid, EpochRequest(fence=fence, new_epoch=epoch, reason=reason))
    tell_target(ctx, epoch, f"the split brain was resolved: {reason}")
    _guard(ctx, GuardState.OWN, epoch, ctx.api(p.source_site).identity()[0].boot_id)
    return f"{target} keeps “{kept}”; let it go when it was looked through"


def _guard(ctx: StepContext, state: GuardState, epoch: Epoch, boot_id: str | None) -> None:
    p = ctx.protection
    request = GuardRequest(
        fence=ctx.lease(p.source_site).fence,
        epoch=epoch,
        state=state,
        vm_name=p.vm_name,
        peer_site=p.target_site,
        policy=p.policy.start_guard,
        boot_id=boot_id,
        reason=f"the split brain was resolved: {ctx.operation.reason}",
        by=ctx.tools.identity.name,
    )
    ctx.api(p.source_site).arm_guard(p.vm_uuid, request)


def _run(ctx: StepContext) -> Result:
    """The winner runs, observed; the loser does not."""
    p, ends = ctx.protection, ctx.done["compare"]
    hv = ctx.hypervisor(ends["winner"])
    if vm_state(hv, p.vm_uuid) in OFF:
        if vm_state(hv, p.vm_uuid) == "undefined":
            raise NotFound(f"“{p.vm_name}” is not defined at {ctx.site(ends['winner']).name}")
        hv.start(p.vm_uuid)
    elif vm_state(hv, p.vm_uuid) == "paused":
        hv.resume(p.vm_uuid)
    if not ctx.wait_until(lambda: vm_state(hv, p.vm_uuid) == "running", START_DEADLINE_S):
        raise StartFailed(f"“{p.vm_name}” does not run at {ctx.site(ends['winner']).name}")
    return {"running": ends["winner"]}


def _ended(ctx: StepContext, error: VaporError | None) -> None:
    if "settle" not in ctx.done:
        return
    p, repository = ctx.protection, ctx.tools.repository
    number, source = ctx.done["compare"]["epoch"], _source_wins(ctx)
    phase = Phase.PROTECTED if source else Phase.FAILED_OVER
    update = {
        "epoch_number": number,
        "epoch_owner": ctx.done["compare"]["winner"],
        "commit_ask_at": None,
        "last_error": str(error) if error else None,
        "last_error_code": error.code if error else None,
        "not_before": None,
    }
    to_phase = records.to_phase(phase)
    records.update(repository, p.protection_id, lambda q: to_phase(q).model_copy(update=update))
    winner = ctx.site(ctx.done["compare"]["winner"]).name
    lines = (*ctx.done["compare"]["compared"], f"{winner} was chosen. {ctx.done['settle']['kept']}")
    for line in lines:
        now = ctx.tools.clock.now()
        records.note(repository, now, "resolved", line, severity=Severity.WARNING, protection_id=p.protection_id)


RESOLVE = OperationType(
    kind=OperationKind.RESOLVE,
    steps=(
        Step("compare", "Compare what both sides wrote, and choose", _compare),
        Step("switch-off", "Switch the other one off", _switch_off, no_return=True),
        Step("settle", "Keep what it wrote, and keep it from starting", _settle),
        Step("run", "See that the chosen one runs", _run),
    ),
    asks=True,
    ended=_ended,
)


def resolve_effects(found: BothSides, winner: str) -> tuple[str, ...]:
    """What choosing ``winner`` ("source" or "target") will do, for the sheet before the button."""
    loser = found.target if winner == SOURCE else found.source
    best = found.source if winner == SOURCE else found.target
    after = (
        f"Replication from {best.site_name} goes on; what cannot be told by a bitmap is compared."
        if winner == SOURCE
        else f"It stays at {best.site_name}, committed; reprotect it from there."
    )
    return (
        f"“{found.vm_name}” goes on at {best.site_name}, under the highest epoch.",
        f"At {loser.site_name} it is shut off: its guest is asked first, its power is cut only on your word.",
        f"What {loser.site_name} wrote since the common point is kept until you let it go; it is not merged.",
        after,
    )
