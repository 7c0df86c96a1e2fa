"""Emergency failover: needs the target alone and never waits for the source.

Order: the target's lease (taken over if need be) -> the epoch and the overlays in one compare-and-set at the
site -> the point's TPM state -> define, autostart off -> start -> *observed* running. Each step looks before
it acts, so a broken failover is finished by doing it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from vapor_desktop.engine import records
from vapor_desktop.engine.operations.fencing import check_way, fence_source
from vapor_desktop.engine.operations.steps import OperationType, Result, Step, StepContext, with_networks
from vapor_desktop.engine.operations.switching_off import vm_state as vm_state
from vapor_desktop.engine.operations.target_guard import tell_target
from vapor_desktop.engine.operations.tpm import look_at_tpm, place_tpm
from vapor_desktop.engine.ports import Clock, Hypervisor
from vapor_desktop.model import rpo
from vapor_desktop.model.domain_xml.mark import Mark, read_mark
from vapor_desktop.model.domain_xml.parse import parse_domain
from vapor_desktop.model.domain_xml.preflight import Finding, preflight
from vapor_desktop.model.domain_xml.target import TargetDomain, build_target
from vapor_desktop.model.errors import DomainNotFound, HypervisorFailed, StartFailed, VaporError
from vapor_desktop.model.manifest import Epoch, Manifest
from vapor_desktop.model.operations import OperationKind
from vapor_desktop.model.sites import Protection
from vapor_desktop.model.states import Phase, Severity
from vapor_desktop.model.takeover import check_strangers, choose_point, home_of, next_epoch
from vapor_desktop.model.takeover import has_kvm as has_kvm
from vapor_desktop.model.view import FailoverPoint
from vapor_desktop.model.wire import Run, RunRequest

START_DEADLINE_S = 30.0
# A provisional failover runs this long before a person is asked to commit it or to roll it back.
COMMIT_ASK = timedelta(hours=1)


def points_of(manifest: Manifest, clock: Clock, target_offset: rpo.ClockOffset | None) -> tuple[FailoverPoint, ...]:
    """The points one can fail over to, newest first."""
    now = clock.now()
    rows = [
        FailoverPoint(
            seq=p.seq,
            taken_at=p.taken_at,
            current_as_of=p.current_as_of,
            age_s=rpo.rpo_now_s(now, p.current_as_of, target_offset),
            consistency=p.consistency.value,
            proven_at=p.proven_at,
            verified=p.verified,
            note="" if p.verified else "its data did not match its digests",
        )
        for p in manifest.points
        if not p.dead
    ]
    return tuple(reversed(rows))


def _check(ctx: StepContext) -> Result:
    """Would it start there? Asked before the epoch moves: after that the source's next cycle is refused for good."""
    p, target = ctx.protection, ctx.protection.target_site
    api = ctx.api(target)
    check_way(ctx.operation.args)
    manifest = api.replica(p.vm_uuid).manifest
    # Another console may have mapped its networks anew since ours last heard of it.
    told = records.update(ctx.tools.repository, p.protection_id, records.settings_of(manifest))
    ctx.protection = with_networks(told, ctx.operation.args)
    seq = wanted_point(manifest, ctx.operation.args.get("seq"))
    carried = api.point_domain(p.vm_uuid, seq)
    epoch, home = next_epoch(manifest, target), home_of(manifest)
    check_target(ctx, carried.domain_xml, carried.disks, nvram=carried.nvram, epoch=epoch, home=home)
    return {"seq": seq}


def check_target(
    ctx: StepContext,
    domain_xml: str,
    disks: Sequence[str],
    *,
    nvram: bool,
    epoch: Epoch,
    home: frozenset[str] = frozenset(),
) -> None:
    """Raises Conflict (a stranger has its name or UUID), StartFailed (the host lacks something). Changes nothing."""
    p, target = ctx.protection, ctx.site(ctx.protection.target_site)
    hv = ctx.hypervisor(target.site_id)
    look_for_strangers(p, hv, epoch, home)
    folder = f"{target.replica_root}/{p.vm_uuid}"
    capabilities = hv.capabilities_xml()
    kvm = has_kvm(capabilities)
    built = build_target(
        domain_xml,
        disks={d: f"{folder}/{d}.qcow2" for d in disks},
        networks=p.mappings.networks,
        nvram=f"{folder}/nvram.fd" if nvram else None,
        fresh_genid=True,
        kvm=kvm,
    )
    lacks = [f for f in target_lacks(hv, built.xml, capabilities, kvm) if f.blocking]
    if lacks:
        raise StartFailed(
            f"“{p.vm_name}” would not start at {target.name}; nothing was changed",
            why="; ".join(f.what for f in lacks),
            fix=" ".join(dict.fromkeys(f.fix for f in lacks if f.fix)),
        )


def look_for_strangers(p: Protection, hv: Hypervisor, epoch: Epoch, home: frozenset[str] = frozenset()) -> None:
    """Raises Conflict for a domain at the target that has its name or its UUID and is not this failover's."""
    domains, xml = hv.domains(), lambda vm: hv.domain_xml(vm, secure=False)
    check_strangers(p.vm_uuid, p.vm_name, p.protection_id, epoch, domains, xml, home)


def _take_over(ctx: StepContext) -> Result:
    """The lease (from whoever has it), then epoch and overlays in one compare-and-set at the site."""
    p, target = ctx.protection, ctx.protection.target_site
    api, reason = ctx.api(target), ctx.operation.reason
    records.update(ctx.tools.repository, p.protection_id, records.to_phase(Phase.FAILING_OVER))
    lease = ctx.lease(target, takeover=reason)
    manifest = api.replica(p.vm_uuid).manifest
    # The newest of now: a cycle may have published one more since the check. Never an older one than was checked.
    chosen = wanted_point(manifest, ctx.operation.args.get("seq"))
    epoch = next_epoch(manifest, target)
    request = RunRequest(fence=lease.fence, new_epoch=epoch, seq=chosen, reason=reason, provisional=True)
    run = api.run(p.vm_uuid, request)
    tell_target(ctx, run.epoch, "failed over")
    ctx.note(f"Overlays on recovery point {run.seq}, epoch {epoch.number}")
    # Done again, after it broke off or when it stands already: a commit of before is not taken back.
    stands = manifest.epoch == epoch and manifest.provisional != epoch.number
    return {"seq": run.seq, "epoch": epoch.number, "stands": stands}


def _start(ctx: StepContext) -> Result:
    """Define, no autostart, start; done when libvirt says that it runs."""
    p, target = ctx.protection, ctx.protection.target_site
    hv, vm = ctx.hypervisor(target), p.vm_uuid
    taken = ctx.done["take-over"]
    notes: tuple[str, ...] = ()
    if vm_state(hv, vm) != "running":
        # Asked again rather than recorded: the XML may hold secrets. Idempotent for the same epoch.
        epoch = Epoch(number=taken["epoch"], owner=target)
        request = RunRequest(
            fence=ctx.lease(target, takeover=ctx.operation.reason).fence,
            new_epoch=epoch,
            seq=taken["seq"],
            reason=ctx.operation.reason,
            provisional=True,
        )
        notes = define_run(ctx, ctx.api(target).run(vm, request), request.fence, fresh_genid=True)
        if vm_state(hv, vm) == "paused":
            hv.resume(vm)
        else:
            hv.start(vm)
    if not ctx.wait_until(lambda: vm_state(hv, vm) == "running", START_DEADLINE_S, 0.05):
        raise StartFailed(f"“{p.vm_name}” was started at the target but is {vm_state(hv, vm)}")
    look_for_strangers(p, hv, Epoch(number=taken["epoch"], owner=target))
    seconds = (ctx.tools.clock.now() - ctx.operation.started_at).total_seconds()
    ctx.note(f"Running after {seconds:.1f} s")
    return {"running_after_s": seconds, "notes": list(notes)}


def _ended(ctx: StepContext, error: VaporError | None) -> None:
    repository, p, now = ctx.tools.repository, ctx.protection, ctx.tools.clock.now()
    if error is not None or "start" not in ctx.done:
        if p.phase is Phase.FAILING_OVER:
            text = f"The failover is incomplete: {error}" if error else "The failover was cancelled; nothing moved"
            if error is None and "take-over" in ctx.done:  # the epoch has moved: that is not taken back
                text = "The failover was cancelled after the target took the VM over: fail over again to finish it"
            code = error.code if error else None
            records.update(
                repository,
                p.protection_id,
                lambda q: records.to_phase(Phase.ERROR)(q).model_copy(
                    update={"last_error": text, "last_error_code": code}
                ),
            )
        return
    taken = ctx.done["take-over"]
    change = records.provisional(taken["epoch"], p.target_site, now + COMMIT_ASK)
    if taken["stands"]:
        change = records.failed_over(taken["epoch"], p.target_site)
    records.update(repository, p.protection_id, change)
    text = f"Failed over from point {taken['seq']} in {ctx.done['start']['running_after_s']:.1f} s"
    text += "" if taken["stands"] else "; not committed yet"
    lines = [(text, "failed-over"), *((n, "failover-note") for n in ctx.done["start"]["notes"])]
    for line, kind in lines:
        records.note(repository, now, kind, line, severity=Severity.WARNING, protection_id=p.protection_id)


FAILOVER = OperationType(
    kind=OperationKind.FAILOVER,
    steps=(
        # In an emergency a person hears at once that the target is dark too, and may try again.
        Step("check", "Look whether it would start at the target", _check, retry_after_s=(0.5,)),
        Step("take-over", "Take the VM over at the target", _take_over),
        Step("fence", "Fence its source, if that is asked for and it answers", fence_source),
        Step("start", "Start it", _start, no_return=True),
    ),
    asks=False,
    ended=_ended,
)


def define_run(ctx: StepContext, run: Run, fence: int, *, fresh_genid: bool) -> tuple[str, ...]:
    """Define the VM on the run's overlays at the target, its TPM in place, no autostart. What a person should know.

    Asked of the site again rather than recorded: the XML may hold secrets.
    """
    p, target = ctx.protection, ctx.protection.target_site
    api, hv, vm = ctx.api(target), ctx.hypervisor(target), ctx.protection.vm_uuid
    tpm = look_at_tpm(api, vm, run.seq, run.domain_xml)
    domain = target_domain(p, hv, run, tpm=tpm is None or tpm.device, fresh_genid=fresh_genid)
    # Defined from this very run before: its TPM is in place, and the guest may have used it since.
    placed = () if _mark_there(hv, vm) == run_mark(p, run) else place_tpm(api, tpm, vm, run.seq, fence)
    hv.define(domain.xml)
    hv.set_autostart(vm, False)
    return (*domain.notes, *placed)


def target_lacks(hypervisor: Hypervisor, xml: str, capabilities_xml: str, kvm: bool) -> list[Finding]:
    """What the host lacks to start this very domain."""
    facts = parse_domain(xml)
    try:
        offers: str | None = hypervisor.domain_capabilities_xml(facts.arch, facts.machine, "kvm" if kvm else "qemu")
    except HypervisorFailed:
        offers = None
    return preflight(
        xml, networks=hypervisor.networks(), capabilities_xml=capabilities_xml, domain_capabilities_xml=offers
    )


def run_mark(protection: Protection, run: Run) -> Mark:
    """What a domain that was defined for this run carries."""
    return Mark(protection.protection_id, run.epoch.number, run.seq)


def target_domain(
    protection: Protection, hypervisor: Hypervisor, run: Run, *, tpm: bool = True, fresh_genid: bool = True
) -> TargetDomain:
    """The domain to define at the target for this run.

    ``tpm`` False: without the TPM that the source had. ``fresh_genid``: not after a move that lost nothing.
    """
    return build_target(
        run.domain_xml,
        disks=run.disks,
        networks=protection.mappings.networks,
        nvram=run.nvram,
        fresh_genid=fresh_genid,
        kvm=has_kvm(hypervisor.capabilities_xml()),
        mark=run_mark(protection, run),
        tpm=tpm,
    )


def _mark_there(hypervisor: Hypervisor, vm_uuid: str) -> Mark | None:
    try:
        return read_mark(hypervisor.domain_xml(vm_uuid, secure=False))
    except DomainNotFound:
        return None


def wanted_point(manifest: Manifest, wanted: object) -> int:
    """``wanted``: a point's number as the operation's arguments hold it; None for the newest."""
    return choose_point(manifest, None if wanted is None else int(str(wanted)))


def effects(protection: Protection, source: str, target: str, networks: Sequence[str]) -> tuple[str, ...]:
    """What will happen, sentence by sentence, for the sheet before the button."""
    where = ", ".join(networks) or "none"
    return (
        f"“{protection.vm_name}” starts at {target} on a new overlay; no recovery point is changed.",
        f"Its networks at {target}: {where}. Autostart stays off.",
        f"{target} becomes its owner (epoch {protection.epoch_number + 1}); replication from {source} stops.",
        f"What was written at {source} after the chosen point is not at {target}.",
        "It is provisional until you commit it; until then you can roll back to another point.",
        f"If “{protection.vm_name}” still runs at {source}, it will run twice, unless {source} is fenced.",
    )
