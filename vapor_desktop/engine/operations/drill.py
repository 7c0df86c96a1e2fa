"""A drill: a copy of a recovery point runs in a bubble at the target, while replication goes on.

Check → the bubble and the copy → proof that nothing leaves the bubble → start → the checks that were asked for. The
site has all of it on record and runs the checks; so the drill goes on without us, until *stop drill*. Neither
operation takes the VM's lease: cycles, and a failover, go on beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from vapor_desktop.engine import records
from vapor_desktop.engine.operations.failover import has_kvm, target_lacks
from vapor_desktop.engine.operations.steps import OperationType, Result, Step, StepContext
from vapor_desktop.engine.ports import RpoSample
from vapor_desktop.model.domain_xml.drill import build_drill, cards
from vapor_desktop.model.drills import (
    DISK_LIMIT_BYTES,
    LASTS_S,
    DrillEnd,
    DrillJoin,
    DrillRecord,
    DrillRequest,
    DrillStop,
    DrillVm,
    LeakTarget,
    NetPlan,
    Nic,
    Wanted,
    plan_nets,
)
from vapor_desktop.model.errors import Conflict, Fate, InvalidRequest, NotFound, StartFailed, VaporError
from vapor_desktop.model.manifest import Manifest
from vapor_desktop.model.operations import OperationKind
from vapor_desktop.model.states import DrillState, Severity, Verification

CHECKS_MARGIN_S = 90.0
RPO_BEFORE = timedelta(minutes=10)


def _check(ctx: StepContext) -> Result:
    """Would the copy start there, and which addresses does it expect? Nothing is changed."""
    p, target = ctx.protection, ctx.site(ctx.protection.target_site)
    wanted = _wanted(ctx)
    api, hv = ctx.api(target.site_id), ctx.hypervisor(target.site_id)
    seq = _choose(api.replica(p.vm_uuid).manifest, ctx.operation.args.get("seq"))
    carried = api.point_domain(p.vm_uuid, seq)
    capabilities = hv.capabilities_xml()
    networks = {nic.source: "bubble" for nic in cards(carried.domain_xml)}
    built = build_drill(
        carried.domain_xml,
        disks={d: f"{target.replica_root}/{p.vm_uuid}/{d}.qcow2" for d in carried.disks},
        networks=networks,
        nvram=f"{target.replica_root}/{p.vm_uuid}/nvram.fd" if carried.nvram else None,
        kvm=has_kvm(capabilities),
        new_uuid=ctx.operation.operation_id,
        new_name=f"{p.vm_name}-drill",
        tpm=True,
    )
    found = target_lacks(hv, built.xml, capabilities, has_kvm(capabilities))
    lacks = [f for f in found if f.blocking and "network bubble" not in f.what]
    if lacks:
        raise StartFailed(
            f"“{p.vm_name}” would not start at {target.name}; nothing was changed",
            why="; ".join(f.what for f in lacks),
            fix=" ".join(dict.fromkeys(f.fix for f in lacks if f.fix)),
        )
    nets, outside = _addresses(ctx, cards(carried.domain_xml))
    return {
        "seq": seq,
        "wanted": wanted.model_dump(mode="json"),
        "nets": [n.model_dump(mode="json") for n in nets],
        "outside": [t.model_dump(mode="json") for t in outside],
    }


def _choose(manifest: Manifest, wanted: object) -> int:
    """That point, or the newest. Raises NotFound."""
    entry = manifest.newest if wanted is None else manifest.entry(int(str(wanted)))
    if entry is None:
        which = "no complete recovery point" if wanted is None else f"no recovery point {wanted}"
        raise NotFound(f"“{manifest.vm_name}” has {which}")
    return entry.seq


def _wanted(ctx: StepContext) -> Wanted:
    """Of the arguments. Raises InvalidRequest."""
    try:
        return Wanted.model_validate(ctx.operation.args.get("wanted") or {})
    except ValueError as error:
        raise InvalidRequest("The drill's checks do not fit", why=str(error)) from error


def _addresses(ctx: StepContext, point: tuple[Nic, ...]) -> tuple[tuple[NetPlan, ...], list[LeakTarget]]:
    """The bubble's networks with the last known addresses, and whom nothing in it may reach.

    Of the source, if it answers; else each card gets an address out of a range that is nobody's.
    """
    p = ctx.protection
    known: dict[str, str] = {}
    gateways: dict[str, str] = {}
    outside: list[LeakTarget] = []
    try:
        nics, gateways = ctx.hypervisor(p.source_site).nics(p.vm_uuid)
        known = {n.mac: n.address for n in nics if n.address}
    except (NotFound, VaporError) as error:
        ctx.note(f"Its addresses are not known: {error.what}")
    outside += [LeakTarget(name=f"the production {p.vm_name}", address=a) for a in known.values()]
    outside += [LeakTarget(name=f"the gateway of {n}", address=g.split("/")[0]) for n, g in gateways.items()]
    for site_id in (p.source_site, p.target_site):
        site = ctx.tools.repository.site(site_id)
        if site is not None:
            outside.append(LeakTarget(name=site.name, address=site.ssh_host, port=site.ssh_port))
    told = [n.model_copy(update={"address": known.get(n.mac, "")}) for n in point]
    return plan_nets(told, gateways), outside


def _bubble(ctx: StepContext) -> Result:
    """The record first, then networks, overlays and a VM of another name and UUID. Idempotent."""
    p, args = ctx.protection, ctx.operation.args
    api, drill_id, checked = ctx.api(p.target_site), _drill_id(ctx), ctx.done["check"]
    request = DrillRequest(
        reason=ctx.operation.reason,
        by=ctx.operation.asked_by,
        lasts_s=float(args.get("lasts_s") or LASTS_S),
    )
    join = DrillJoin(
        seq=checked["seq"],
        vm_name=p.vm_name,
        protection_id=p.protection_id,
        nets=tuple(NetPlan.model_validate(n) for n in checked["nets"]),
        probes=tuple(LeakTarget.model_validate(t) for t in checked["outside"]),
        wanted=Wanted.model_validate(checked["wanted"]),
        disk_limit_bytes=int(args.get("disk_limit_bytes") or DISK_LIMIT_BYTES),
    )
    api.begin_drill(drill_id, request)
    records.update(ctx.tools.repository, p.protection_id, records.drill(DrillState.RUNNING))
    copy = _copy(api.join_drill(drill_id, p.vm_uuid, join), p.vm_uuid)
    ctx.note(f"“{copy.domain_name}” on overlays of recovery point {copy.seq}")
    return {"drill_id": drill_id, "domain": copy.domain_name, "drill_notes": list(copy.notes)}


def _drill_id(ctx: StepContext) -> str:
    """VMs of one plan run share a bubble: it has the run's id."""
    return ctx.operation.parent_id or ctx.operation.operation_id


def _remove(ctx: StepContext) -> None:
    """Undo: nothing of it is left, and it was looked. What others share goes with the last stop."""
    p = ctx.protection
    if ctx.operation.parent_id:
        ctx.note("It stays in the bubble that it shares, off, until that drill is stopped")
        return
    stop = DrillStop(passed=None, by=ctx.operation.asked_by, why="it was undone")
    try:
        ctx.api(p.target_site).stop_drill(_drill_id(ctx), stop)
    except NotFound:
        ctx.note("There was nothing to remove")
    records.update(ctx.tools.repository, p.protection_id, records.drill(DrillState.NONE))


def _isolation(ctx: StepContext) -> Result:
    """Proven, or nothing is started."""
    record = ctx.api(ctx.protection.target_site).isolate_drill(_drill_id(ctx))
    bad = [c for c in record.isolation if c.state != "ok"]
    if bad or not record.isolation:
        why = "; ".join(f"{c.title}: {c.text}" for c in bad)
        raise StartFailed("The bubble is not isolated; nothing was started", why=why)
    ctx.note(f"{len(record.isolation)} looks, nothing leaves the bubble")
    return {"isolation": [f"{c.title}: {c.text}" for c in record.isolation]}


def _start(ctx: StepContext) -> Result:
    p = ctx.protection
    api = ctx.api(p.target_site)
    copy = _copy(api.start_drill(_drill_id(ctx), p.vm_uuid), p.vm_uuid)
    seconds = (ctx.tools.clock.now() - ctx.operation.started_at).total_seconds()
    ctx.note(f"“{copy.domain_name}” runs after {seconds:.1f} s")
    return {"drill_to_running_s": seconds}


def _watch(ctx: StepContext) -> Result:
    """Until the site has an answer to every check. A failed check is a finding, not a failure of the drill."""
    p, drill_id = ctx.protection, _drill_id(ctx)
    api = ctx.api(p.target_site)
    wanted = Wanted.model_validate(ctx.done["check"]["wanted"])
    last: list[DrillRecord] = []

    def settled() -> bool:
        try:
            last[:] = [api.drill(drill_id)]
        except VaporError as error:
            if error.fate is not Fate.RETRY:
                raise
            ctx.note(f"The drill goes on; it cannot be looked at now: {error.what}")
            return False
        copy = last[0].vm(p.vm_uuid)
        if copy is not None:
            ctx.note("; ".join(f"{c.title}: {c.text or c.state}" for c in copy.checks))
        return copy is None or copy.settled or not last[0].open or last[0].stop is not None

    ctx.wait_until(settled, wanted.boot_s + wanted.script_s + CHECKS_MARGIN_S, 0.3)
    copy = last[0].vm(p.vm_uuid) if last else None
    if copy is None:
        return {"checks": [], "usable_s": None, "boot_s": None}
    return {
        "checks": [c.model_dump(mode="json") for c in copy.checks],
        "boot_s": copy.boot_s,
        "usable_s": copy.usable_s,
    }


def _ended(ctx: StepContext, error: VaporError | None) -> None:
    p, repository, now = ctx.protection, ctx.tools.repository, ctx.tools.clock.now()
    if "start" not in ctx.done:
        if "check" in ctx.done:
            try:
                _remove(ctx)
            except VaporError as trouble:
                records.update(repository, p.protection_id, records.drill(DrillState.CLEANUP_NEEDED))
                text = f"Not everything of the drill of “{p.vm_name}” could be removed: {trouble}"
                records.note(
                    repository, now, "drill-stuck", text, severity=Severity.WARNING, protection_id=p.protection_id
                )
        return
    failed = [c["title"] for c in ctx.done.get("checks", {}).get("checks", ()) if c["state"] != "ok"]
    text = f"A drill of “{p.vm_name}” runs on recovery point {ctx.done['check']['seq']}"
    text += f"; not well: {', '.join(failed)}" if failed else ""
    records.note(repository, now, "drill-running", text, protection_id=p.protection_id)


# --- stopping -----------------------------------------------------------------------------------------------
def _find(ctx: StepContext) -> Result:
    """Which drill of this VM there is."""
    p = ctx.protection
    asked = ctx.operation.args.get("drill_id")
    for record in ctx.api(p.target_site).drills():
        if record.vm(p.vm_uuid) is not None and (record.open if asked is None else record.drill_id == asked):
            return {"drill_id": record.drill_id, "began_at": record.created_at.isoformat()}
    raise NotFound(f"There is no drill of “{p.vm_name}” at its target")


def _stop(ctx: StepContext) -> Result:
    """Everything of it goes, and the site looks whether anything is left."""
    p, args = ctx.protection, ctx.operation.args
    passed = ctx.done["checks"]["usable_s"] is not None if args.get("scheduled") else args.get("passed")
    request = DrillStop(
        passed=None if passed is None else bool(passed),
        note="judged by its checks" if args.get("scheduled") else str(args.get("note") or ""),
        by=ctx.operation.asked_by,
        force=bool(args.get("force")),
    )
    api = ctx.api(p.target_site)
    record = api.stop_drill(ctx.done["find"]["drill_id"], request)
    if record.end is None:
        raise Conflict("The site has not ended the drill", why=record.trouble)
    looked = ", ".join(f"{len(things)} × {kind}" for kind, things in record.end.after.things.items() if things)
    ctx.note(f"Nothing of it is left on the host, which has {looked}")
    return _report(record, record.end, record.vm(p.vm_uuid))


def _report(record: DrillRecord, end: DrillEnd, copy: DrillVm | None) -> Result:
    return {
        "left": list(end.left),
        "appeared": list(end.appeared),
        "gone": list(end.gone),
        "inventory": {kind: len(things) for kind, things in end.after.things.items()},
        "isolation": [f"{c.title}: {c.text}" for c in record.isolation],
        "checks": [c.model_dump(mode="json") for c in copy.checks] if copy else [],
        "boot_s": copy.boot_s if copy else None,
        "usable_s": copy.usable_s if copy else None,
        "passed": end.passed,
        "proven_seq": end.proven.get(copy.vm_uuid) if copy else None,
        "vms": [v.vm_uuid for v in record.vms],
    }


def _settle(ctx: StepContext) -> Result:
    """What the protection's record says, and the RPO before and during the drill."""
    p, repository = ctx.protection, ctx.tools.repository
    began = datetime.fromisoformat(ctx.done["find"]["began_at"])
    samples = repository.rpo_samples(p.protection_id, began - RPO_BEFORE)
    passed = ctx.done["stop"]["passed"]

    def change(q: Any) -> Any:
        update: dict[str, Any] = {"drill": DrillState.NONE}
        if passed is not None:
            update["verification"] = Verification.PASSED if passed else Verification.FAILED
        return q.model_copy(update=update)

    shared = [q for q in repository.protections() if q.vm_uuid in ctx.done["stop"]["vms"]]
    for q in shared:  # one bubble, one verdict
        records.update(repository, q.protection_id, change)
        records.cache_manifest(repository, q.protection_id, ctx.api(p.target_site).replica(q.vm_uuid).manifest)
    before, during = ([s for s in samples if (s.at < began) is early] for early in (True, False))
    worst = {"rpo_before_s": worst_rpo(before), "rpo_during_s": worst_rpo(during)}
    said = {name: "unknown" if value is None else f"{value:.1f} s" for name, value in worst.items()}
    ctx.note(
        f"Worst RPO in the {RPO_BEFORE.total_seconds() / 60:.0f} min before {said['rpo_before_s']}, "
        f"during {said['rpo_during_s']}; the target is {p.policy.rpo_target_s} s"
    )
    return {"rpo_target_s": p.policy.rpo_target_s, **worst}


def worst_rpo(samples: list[RpoSample]) -> float | None:
    """The largest that was known; None when none was."""
    return max((s.rpo_s for s in samples if s.rpo_s is not None), default=None)


def _stopped(ctx: StepContext, error: VaporError | None) -> None:
    p, repository, now = ctx.protection, ctx.tools.repository, ctx.tools.clock.now()
    if "settle" not in ctx.done:
        return
    done = ctx.done["stop"]
    verdict = {True: "passed", False: "failed", None: "stopped without a verdict"}[done["passed"]]
    text = f"The drill of “{p.vm_name}” {verdict}; nothing of it is left"
    if done["proven_seq"] is not None:
        text += f"; recovery point {done['proven_seq']} is proven"
    severity = Severity.WARNING if done["passed"] is False else Severity.OK
    records.note(repository, now, "drill-ended", text, severity=severity, protection_id=p.protection_id)


def _copy(record: DrillRecord, vm_uuid: str) -> DrillVm:
    copy = record.vm(vm_uuid)
    if copy is None:
        raise NotFound("The VM is not in this drill (any more)")
    return copy


_BEGIN = (
    Step("check", "Look whether a copy would start at the target", _check),
    Step("bubble", "Make the bubble, and a copy on overlays of the point", _bubble, undo=_remove),
    Step("isolation", "Prove that nothing leaves the bubble", _isolation),
    Step("start", "Start the copy", _start, no_return=True),
    Step("checks", "Wait for its checks", _watch),
)
_END = (
    Step("find", "Look which drill there is", _find),
    Step("stop", "Remove everything of it, and look whether anything is left", _stop),
    Step("settle", "Write down what it has shown", _settle),
)


def _steps_of(args: Mapping[str, Any]) -> tuple[Step, ...]:
    """A drill that began by itself ends by itself, judged by its checks."""
    return (*_BEGIN, *_END) if args.get("scheduled") else _BEGIN


def _ended_or_stopped(ctx: StepContext, error: VaporError | None) -> None:
    (_stopped if "settle" in ctx.done else _ended)(ctx, error)


DRILL = OperationType(kind=OperationKind.DRILL, steps=_BEGIN, asks=False, ended=_ended_or_stopped, steps_of=_steps_of)
STOP_DRILL = OperationType(kind=OperationKind.STOP_DRILL, steps=_END, asks=False, ended=_stopped)
