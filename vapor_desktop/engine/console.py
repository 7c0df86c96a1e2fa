"""The Backend: what a console or vaporctl asks, answered from the database, the sites, and the living engine."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TypeVar

from vapor_desktop.engine import (
    both_sides,
    disks,
    drilling,
    holders,
    preflight,
    records,
    settings,
    site_checks,
    wayhome,
)
from vapor_desktop.engine.backend import OnCheck, OnSeed
from vapor_desktop.engine.leaving import checkpoints_at_target, forget_bitmaps
from vapor_desktop.engine.operations.plan_run import steps_of
from vapor_desktop.engine.operations.seed import SeedCopy
from vapor_desktop.engine.operations.steps import rows as step_rows
from vapor_desktop.engine.operations.switching_off import SHUTDOWN_S
from vapor_desktop.engine.ports import CycleRecord, Event, Pairing, PointRow, RpoSample
from vapor_desktop.engine.recovery_plans import not_ready
from vapor_desktop.engine.runtime import Engine
from vapor_desktop.engine.sitewatch import vm_status
from vapor_desktop.model import retention, rpo
from vapor_desktop.model.drills import DrillPicture, is_copy
from vapor_desktop.model.errors import (
    Conflict,
    InvalidRequest,
    NotFound,
    NotReplicable,
    SiteUnreachable,
    Unexpected,
    VaporError,
    from_wire,
)
from vapor_desktop.model.manifest import Manifest
from vapor_desktop.model.operations import Operation, OperationKind, StepRow
from vapor_desktop.model.plans import Plan, PlanMode, PlanStatus
from vapor_desktop.model.policy import RPO_MAX_S, RPO_MIN_S, Mappings, Policy, Quiesce, Retention, StartGuard
from vapor_desktop.model.sites import Protection, Site
from vapor_desktop.model.states import DrillState, Phase, Severity
from vapor_desktop.model.view import (
    Banner,
    BothSides,
    Check,
    DisksView,
    DrillStatus,
    EngineView,
    FailoverPreview,
    KeptRunView,
    LeaseHolder,
    ProtectionSettings,
    ProtectionStatus,
    ProtectRequest,
    ReprotectPreview,
    SettingsEdit,
    SiteProbe,
    SiteStatus,
    Snapshot,
    Task,
    VmStatus,
)
from vapor_desktop.model.wire import ImageFormat, ReplicaView, Runbook

_T = TypeVar("_T")

VERB_DEADLINE_S = 120.0
TAKEN_WITHIN_S = 30.0
SYNC_DEADLINE_S = 3600.0
LOW_SPACE = 0.1
LATEST_OPERATIONS = 20


_DEMO = (
    Banner("demo", Severity.IDLE, "Demo: both sites and their guests live on this machine only, and go with it"),
)


class EngineBackend:
    """Implements ``engine.backend.Backend`` over one Engine object (active or standing by)."""

    def __init__(self, engine: Engine, pairing: Pairing, *, demo: bool = False) -> None:
        self._engine = engine
        self._repository = engine.repository
        self._gateway = engine.gateway
        self._clock = engine.clock
        self._pairing = pairing
        self._demo = demo

    # --- looking ------------------------------------------------------------------------------------
    def snapshot(self) -> Snapshot:
        """Everything at one moment. Only the database and memory are touched."""
        now = self._clock.now()
        rows = self._engine.statuses()
        sites = list(self._repository.sites())
        pairs = tuple(self._repository.pairs())
        peers: dict[str, list[str]] = {}
        for a, b, _route in pairs:
            peers.setdefault(a, []).append(b)
            peers.setdefault(b, []).append(a)
        covered = {r.protection.vm_uuid for r in rows}
        engines = tuple(self.engines())
        alive = [e for e in engines if e.engine_id != self._engine.identity.engine_id]
        where = "here" if self._engine.active else ("service" if alive else "none")
        alerts = self._engine.alerts()
        site_rows = self._engine.sites.statuses(sites, peers)
        plans = tuple(self._repository.plan_statuses())
        return Snapshot(
            at=now,
            engine=where,
            engine_seen_at=max((e.heartbeat_at for e in alive), default=None) if where != "here" else now,
            sites=site_rows,
            pairs=pairs,
            protections=rows,
            unprotected=tuple(
                vm for vm in self._engine.sites.vms() if vm.vm_uuid not in covered and not is_copy(vm.name)
            ),
            banners=(
                *_DEMO[: int(self._demo)],
                *_banners(rows, where),
                *_site_banners(site_rows),
                *_plan_banners(plans),
            ),
            alerts=alerts,
            tasks=_tasks(rows),
            operations=self._latest_operations(),
            plans=plans,
            engines=engines,
            demo=self._demo,
        )

    def _latest_operations(self) -> tuple[Operation, ...]:
        """Every open one, and the last few."""
        latest = self._repository.operations(limit=LATEST_OPERATIONS)
        found = {o.operation_id: o for o in (*self._repository.operations(open_only=True), *latest)}
        return tuple(sorted(found.values(), key=lambda o: o.started_at, reverse=True))

    def points(self, protection_id: str) -> Sequence[PointRow]:
        """Cached recovery points, oldest first."""
        return self._repository.points(protection_id)

    def rpo_samples(self, protection_id: str, since: datetime) -> Sequence[RpoSample]:
        """For the graph."""
        return self._repository.rpo_samples(protection_id, since)

    def cycles(self, protection_id: str, limit: int = 50) -> Sequence[CycleRecord]:
        """Newest first."""
        return self._repository.cycles(protection_id, limit)

    def events(self, protection_id: str | None = None, limit: int = 200) -> Sequence[Event]:
        """Newest first."""
        return self._repository.events(protection_id, limit)

    # --- sites --------------------------------------------------------------------------------------
    def normalise_url(self, text: str) -> str:
        """Pure. Raises InvalidRequest."""
        return self._pairing.normalise_url(text)

    def probe_site(self, url: str) -> SiteProbe:
        """The first look, before any secret leaves."""
        return self._pairing.probe(url)

    def add_site(self, probe: SiteProbe, token: str, on_check: OnCheck) -> Site:
        """Exchange the token, keep the console's own one in the keyring, learn and enrol keys."""
        site = self._pairing.add_site(probe, token.strip(), on_check)
        if any(s.name == site.name and s.site_id != site.site_id for s in self._repository.sites()):
            site = site.model_copy(update={"name": f"{site.name} ({site.site_id[:4]})"})
        self._repository.save_site(site)
        self._gateway.drop(site.site_id)
        self._note("site-paired", f"Paired with {site.name} ({site.api_url})", site_id=site.site_id)
        site_checks.look_over(self._gateway, site, on_check)
        self._engine.sites.look(site, inventory=True)
        self._engine.retry_soon({site.site_id})
        return site

    def pair_sites(self, site_a: str, site_b: str, on_check: OnCheck) -> str:
        """Both ways. Returns the route."""
        if site_a == site_b:
            raise InvalidRequest("A site cannot be paired with itself")
        route = self._pairing.pair_sites(self._site(site_a), self._site(site_b), on_check)
        self._repository.save_pair(site_a, site_b, route)
        self._engine.retry_soon({site_a, site_b})
        return route

    def remove_site(self, site_id: str) -> None:
        """Forget a site; refused while a protection uses it."""
        site = self._site(site_id)
        used = [p.vm_name for p in self._repository.protections() if site_id in {p.source_site, p.target_site}]
        if used:
            raise Conflict(
                f"{site.name} is used by the protection of {', '.join(sorted(used))}", fix="Unprotect those first"
            )
        self._pairing.forget_site(site)
        self._gateway.drop(site_id)
        self._repository.remove_site(site_id)

    def site_networks(self, site_id: str) -> Sequence[str]:
        """libvirt networks at the site."""
        return self._gateway.hypervisor(self._site(site_id)).networks()

    def look(self, site_id: str) -> None:
        """Look at a site now; what is seen is in the next snapshot."""
        self._engine.sites.look(self._site(site_id), inventory=False)

    # --- virtual machines ---------------------------------------------------------------------------
    def vms(self, site_id: str) -> Sequence[VmStatus]:
        """All VMs of a site, asked now."""
        site = self._site(site_id)
        return [vm_status(d, site) for d in self._gateway.hypervisor(site).domains()]

    def preflight(self, request: ProtectRequest, on_check: OnCheck) -> Sequence[Check]:
        """Everything that would stop the replica from being made or from starting."""
        return preflight.run(
            self._gateway, self._site(request.source_site), self._site(request.target_site), request, on_check
        )

    def protect(self, request: ProtectRequest) -> Sequence[Protection]:
        """Begin to protect. The engine makes the replica with the first cycle."""
        source, target = self._site(request.source_site), self._site(request.target_site)
        if source.site_id == target.site_id:
            raise InvalidRequest("Source and target must be different sites")
        if not any({a, b} == {source.site_id, target.site_id} for a, b, _r in self._repository.pairs()):
            raise InvalidRequest(f"{source.name} and {target.name} are not paired", fix="Pair them first")
        covered = {p.vm_uuid: p for p in self._repository.protections()}
        policy = policy_of(request)
        settings.check(policy, self._chain_limit(target))
        made = []
        hypervisor = self._gateway.hypervisor(source)
        for vm_uuid in request.vm_uuids:
            if vm_uuid in covered:
                raise Conflict(f"“{covered[vm_uuid].vm_name}” is protected already")
            domain = hypervisor.domain(vm_uuid)
            vm = vm_status(domain, source)
            if not vm.protectable:
                fixes = " ".join(d.fix for d in vm.disks if d.kind == "refused" and d.fix)
                raise NotReplicable(f"“{vm.name}” cannot be protected", why=vm.reason, fix=fixes)
            protection = Protection(
                protection_id=str(uuid.uuid4()),
                vm_uuid=vm_uuid,
                vm_name=domain.name,
                source_site=source.site_id,
                target_site=target.site_id,
                policy=policy,
                mappings=Mappings(networks=dict(request.networks)),
                epoch_number=1,
                epoch_owner=source.site_id,
                created_at=self._clock.now(),
            )
            made.append(self._repository.save_protection(protection))
            self._note("protected", f"“{domain.name}” is protected at {target.name}", protection.protection_id)
        self._changed()
        return made

    def unprotect(self, protection_id: str, *, delete_replica: bool) -> None:
        """Stop protecting; the replica is kept unless asked otherwise.

        First the running cycle ends, whichever engine runs it: what it has made would be left behind otherwise.
        """
        p = self._protection(protection_id)
        if p.drill is not DrillState.NONE:
            raise Conflict(f"There is a drill of “{p.vm_name}” at its target", fix="Stop the drill first")
        records.update(self._repository, protection_id, lambda q: q.model_copy(update={"paused": True}))
        self._ask("cancel", {"protection_id": protection_id, "wait": True}, VERB_DEADLINE_S)
        names = checkpoints_at_target(self._gateway, p, self._repository.site(p.target_site))
        if delete_replica:
            self._ask("delete-replica", {"protection_id": protection_id}, VERB_DEADLINE_S)
        self._forget_bitmaps(p, names)
        self._forget_guard(p)
        self._repository.remove_protection(protection_id)
        self._changed()
        kept = "deleted" if delete_replica else "kept"
        self._note("unprotected", f"“{p.vm_name}” is no longer protected; its replica was {kept}")

    def _forget_bitmaps(self, p: Protection, names: set[str]) -> None:
        """Bitmaps cost the guest a little on every write: remove ours. An unreachable source keeps them."""
        source = self._repository.site(p.source_site)
        if source is None:
            return
        try:
            forget_bitmaps(self._gateway, p, source, self._repository.site(p.target_site), names)
        except VaporError as error:
            self._note("leftover", f"Checkpoints of “{p.vm_name}” stay at {source.name}: {error}")

    def _forget_guard(self, p: Protection) -> None:
        """A VM that is not protected starts when its host wants. An unreachable source goes on asking."""
        try:
            self._engine.worker.guards.release(p)
        except VaporError as error:
            fix = f"run `vapor-site guard override {p.vm_name}` there if it is held"
            self._note("leftover", f"The start guard of “{p.vm_name}” stays armed at its source: {error}; {fix}")

    def adopt_replicas(self, site_id: str) -> Sequence[Protection]:
        """Protections as a target's manifests tell them: for a console that knows only that site."""
        site = self._site(site_id)
        known = {p.vm_uuid for p in self._repository.protections()}
        adopted = []
        for view in self._gateway.api(site).replicas():
            m = view.manifest
            if m.vm_uuid in known or m.target_site != site_id or not view.valid or m.folded:
                continue
            protection = self._repository.save_protection(_from_manifest(m, self._clock.now()))
            records.cache_manifest(self._repository, protection.protection_id, m)
            adopted.append(protection)
        self._engine.plans.watch()
        self._changed()
        return adopted

    # --- replication ----------------------------------------------------------------------------------
    def sync_now(self, protection_id: str, *, wait: bool = False) -> None:
        """Start a cycle now. ``wait``: until it is done; raises what it failed with."""
        p = self._protection(protection_id)
        last = next(iter(self._repository.cycles(p.protection_id, 1)), None)
        self._ask("sync", {"protection_id": protection_id}, VERB_DEADLINE_S)
        if not wait:
            return
        deadline = self._clock.monotonic() + SYNC_DEADLINE_S
        pause = threading.Event()
        while self._clock.monotonic() < deadline:
            now = next(iter(self._repository.cycles(p.protection_id, 1)), None)
            if now is not None and now != last:
                if now.outcome in {"point", "unchanged", "partial"}:
                    self._engine.forget_rows()
                    return
                if now.outcome == "failed":
                    raise from_wire({"code": now.error_code, "what": now.error})
            last = now
            pause.wait(0.1)
        raise Unexpected(f"The cycle of “{p.vm_name}” did not end within an hour")

    def wait_for_point(self, protection_id: str) -> None:
        """Until the first recovery point is complete; raises what keeps it from being made (operator's to mend)."""
        deadline = self._clock.monotonic() + SYNC_DEADLINE_S
        pause = threading.Event()
        while self._clock.monotonic() < deadline:
            if self._repository.points(protection_id):
                return
            p = self._protection(protection_id)
            if p.failures >= 3 and p.last_error:
                raise from_wire({"code": p.last_error_code, "what": p.last_error})
            pause.wait(0.1)
        raise Unexpected("The first copy did not end within an hour")

    def seed(
        self,
        protection_id: str,
        images: Mapping[str, str],
        image_format: ImageFormat = "qcow2",
        on_state: OnSeed = lambda _s: None,
    ) -> None:
        """Copy images that are at the target already (disk -> path there) as bases of the disks' first copies."""
        p = self._protection(protection_id)
        source, target = self._site(p.source_site), self._site(p.target_site)
        me = self._engine.identity
        copy = SeedCopy(self._gateway.api(target), self._gateway.hypervisor(source), p, me.engine_id, me.name)
        copy.run(images, image_format, lambda: self._stop_cycle(protection_id), on_state)
        self._note(
            "seeded",
            f"First copies of {', '.join(sorted(images))} begin from images at {target.name}",
            p.protection_id,
        )
        self._engine.wake()

    def pause(self, protection_id: str) -> None:
        """No more cycles until resumed; a running one is cancelled at its next chunk."""
        self._protection(protection_id)

        def change(p: Protection) -> Protection:
            return records.to_phase(Phase.PAUSED)(p).model_copy(update={"paused": True})

        records.update(self._repository, protection_id, change)
        self._stop_cycle(protection_id)
        self._changed()
        self._note("paused", "Replication paused", protection_id)

    def resume(self, protection_id: str) -> None:
        """Cycles again, the first one at once if it is due."""
        p = self._protection(protection_id)
        phase = Phase.PROTECTED if self._repository.points(p.protection_id) else Phase.INITIAL_SYNC

        def change(q: Protection) -> Protection:
            moved = records.to_phase(phase)(q) if q.phase is Phase.PAUSED else q
            return moved.model_copy(update={"paused": False, "not_before": None})

        records.update(self._repository, protection_id, change)
        self._note("resumed", "Replication resumed", protection_id)
        self._changed()

    def settings(self, protection_id: str) -> ProtectionSettings:
        """As the target's manifest has them now; before the replica is made, as they were asked for."""
        p = self._protection(protection_id)
        target = self._site(p.target_site)
        manifest = settings.read(self._gateway.api(target), p)
        policy, mappings = (manifest.policy, manifest.mappings) if manifest else (p.policy, p.mappings)
        seen = next((vm.networks for vm in self._engine.sites.vms() if vm.vm_uuid == p.vm_uuid), ())
        return ProtectionSettings(
            protection_id=protection_id,
            vm_name=p.vm_name,
            target_name=target.name,
            version=manifest.settings_version if manifest else p.settings_version,
            policy=policy,
            mappings=mappings,
            chain_limit=self._chain_limit(target),
            source_networks=tuple(dict.fromkeys((*mappings.networks, *seen))),
            target_networks=tuple(self._gateway.hypervisor(target).networks()),
        )

    def edit(self, protection_id: str, edit: SettingsEdit) -> Protection:
        """Write settings to the target's manifest; the database only follows. A running cycle goes on under them."""
        p = self._protection(protection_id)
        target = self._site(p.target_site)
        settings.check(edit.policy, self._chain_limit(target))
        there = set(self._gateway.hypervisor(target).networks())
        lost = sorted(
            {new for old, new in edit.mappings.networks.items() if p.mappings.networks.get(old) != new} - there
        )
        if lost:
            have = ", ".join(sorted(there)) or "none"
            raise InvalidRequest(f"{target.name} has no network {', '.join(lost)}", fix=f"Networks there: {have}")
        me = self._engine.identity
        change = settings.SettingsChange(self._gateway.api(target), p, me.engine_id, me.name)
        manifest = change.run(edit, lambda: self._stop_cycle(protection_id))
        after = records.update(
            self._repository,
            protection_id,
            lambda q: records.settings_of(manifest)(q).model_copy(update={"not_before": None}),
        )
        self._note("edited", f"Settings changed (version {manifest.settings_version})", protection_id)
        self._changed()
        return after

    def disks(self, protection_id: str) -> DisksView:
        """Each disk. A side that does not answer is said, and its columns are unknown."""
        p = self._protection(protection_id)
        domain, source_trouble = _asked(lambda: self._gateway.hypervisor(self._near(p.source_site)).domain(p.vm_uuid))
        replica, target_trouble = _asked(lambda: self._replica(p))
        newest, lost = None, ""
        if replica is not None and replica.manifest.newest is not None:
            seq, api = replica.manifest.newest.seq, self._gateway.api(self._site(p.target_site))
            newest, lost = _asked(lambda: api.point(p.vm_uuid, seq))
        known = disks.notes(self._repository, protection_id)
        return DisksView(disks.rows(domain, replica, newest, known), source_trouble, target_trouble or lost)

    def cancel(self, task_key: str) -> None:
        """Cancel the cycle of that protection."""
        self._ask("cancel", {"protection_id": task_key.removeprefix("cycle:")}, VERB_DEADLINE_S)

    def pin(self, protection_id: str, seq: int, note: str) -> None:
        """Keep a point whatever the retention says."""
        self._ask("pin", {"protection_id": protection_id, "seq": seq, "note": note or "kept"}, VERB_DEADLINE_S)

    def unpin(self, protection_id: str, seq: int) -> None:
        """Let the user's pins go."""
        self._ask("pin", {"protection_id": protection_id, "seq": seq, "note": None}, VERB_DEADLINE_S)

    # --- recovery ---------------------------------------------------------------------------------------
    def failover_preview(self, protection_id: str) -> FailoverPreview:
        """What the sheet states before the button."""
        return self._engine.recovery.preview(protection_id)

    def runbook(self, protection_id: str, seq: int | None = None) -> Runbook:
        """As the target writes it now. Raises NotFound, SiteUnreachable."""
        p = self._protection(protection_id)
        return self._gateway.api(self._near(p.target_site)).runbook(p.vm_uuid, seq)

    def reprotect_preview(self, protection_id: str) -> ReprotectPreview:
        """What the way home costs, and why."""
        p = self._protection(protection_id)
        return wayhome.preview(self._gateway, p, self._site(p.target_site), self._site(p.source_site))

    def failover(self, protection_id: str, seq: int | None, reason: str, source: str = "leave") -> float:
        """Emergency failover. Returns seconds from the call to running. Raises InvalidRequest when it asks."""
        done = self.wait_operation(
            self.begin_operation(OperationKind.FAILOVER, protection_id, {"seq": seq, "source": source}, reason),
            VERB_DEADLINE_S + SHUTDOWN_S,
        )
        if done.question is not None:
            raise InvalidRequest(
                f"The failover of “{done.vm_name}” asks: {done.question.text}",
                fix=f"vaporctl operation answer {done.operation_id[:8]} "
                + "|".join(c.key for c in done.question.choices),
            )
        if done.error is not None:
            raise from_wire(done.error)
        return float(done.result["running_after_s"])

    def both_sides(self, protection_id: str) -> BothSides:
        """For the resolver of a split brain."""
        p = self._protection(protection_id)
        return both_sides.compare(self._gateway, p, self._site(p.source_site), self._site(p.target_site))

    def kept_runs(self, protection_id: str) -> Sequence[KeptRunView]:
        """Of the replica at the target, asked now."""
        return self._engine.recovery.kept_runs(protection_id)

    def let_go(self, protection_id: str, epoch: int, reason: str) -> None:
        """Delete what a kept run has written."""
        self._ask("let-go", {"protection_id": protection_id, "epoch": epoch, "reason": reason}, VERB_DEADLINE_S)

    # --- durable operations --------------------------------------------------------------------------------
    def begin_operation(
        self, kind: OperationKind, protection_id: str, args: Mapping[str, object], reason: str
    ) -> str:
        """Start an operation; its id. Raises Conflict naming the open operation of that VM."""
        asked: dict[str, object] = {
            "kind": kind.value,
            "protection_id": protection_id,
            "args": dict(args),
            "reason": reason,
            "asked_by": self._engine.identity.name,
        }
        return str(self._ask("begin", asked, VERB_DEADLINE_S)["operation_id"])

    def operations(self, *, open_only: bool = False, limit: int = 200) -> Sequence[Operation]:
        """Newest first."""
        return self._repository.operations(open_only=open_only, limit=limit)

    def operation_steps(self, kind: OperationKind) -> Sequence[StepRow]:
        """What such an operation would do, step by step: the dry run's list."""
        return self._engine.operations.plan(kind)

    def operation(self, operation_id: str) -> Operation:
        """Its journal. Raises NotFound."""
        operation = self._repository.operation(operation_id)
        if operation is None:
            raise NotFound("There is no such operation")
        return operation

    def drills(self) -> Sequence[DrillStatus]:
        """Of every site that answers, asked now; ended ones too, newest first."""
        return drilling.everywhere(self._repository, self._gateway)

    def schedule_drills(self, protection_id: str, days: int | None, *, auto: bool) -> None:
        """An edit of the policy, on the settings as they are now. Raises what ``edit`` raises."""
        now = self.settings(protection_id)
        policy = now.policy.model_copy(update={"drill_days": days, "drill_auto": auto})
        if policy != now.policy:
            self.edit(protection_id, SettingsEdit(now.version, policy, now.mappings))

    def drill_screen(self, protection_id: str) -> bytes:
        """A PNG of the running (else the last) drill's screen. Raises NotFound."""
        p = self._protection(protection_id)
        return drilling.screen(self._gateway.api(self._near(p.target_site)), p)

    def point_proof(self, protection_id: str, seq: int) -> DrillPicture:
        """What the last drill that passed on the point has left. Raises NotFound."""
        p = self._protection(protection_id)
        return self._gateway.api(self._near(p.target_site)).point_proof(p.vm_uuid, seq)

    def answer_question(self, operation_id: str, question_id: str, choice: str) -> None:
        """What a waiting operation asked."""
        self._ask(
            "answer",
            {"operation_id": operation_id, "question_id": question_id, "choice": choice},
            VERB_DEADLINE_S,
        )

    def cancel_operation(self, operation_id: str) -> None:
        """Undo it, up to its point of no return."""
        self._ask("cancel-operation", {"operation_id": operation_id}, VERB_DEADLINE_S)

    def wait_operation(self, operation_id: str, timeout_s: float) -> Operation:
        """Until it ended or asks something. Raises Unexpected when neither happens in time."""
        deadline = self._clock.monotonic() + timeout_s
        pause = threading.Event()
        while True:
            operation = self.operation(operation_id)
            if operation.ended or operation.question is not None:
                self._engine.forget_rows()
                return operation
            if self._clock.monotonic() > deadline:
                raise Unexpected(f"The {operation.kind} of “{operation.vm_name}” has not ended yet")
            pause.wait(0.02)

    # --- recovery plans -------------------------------------------------------------------------------------
    def plans(self) -> Sequence[PlanStatus]:
        """Living ones, by name, with what was last found of them."""
        return self._repository.plan_statuses()

    def save_plan(self, plan: Plan) -> Plan:
        """To every target that it uses. Raises EditOutdated, InvalidRequest, SiteUnreachable."""
        saved = self._engine.plans.save(plan)
        self._engine.plans.look(saved.plan_id)
        return saved

    def delete_plan(self, plan_id: str, version: int) -> None:
        """From every site that keeps it."""
        self._engine.plans.delete(plan_id, version)

    def look_at_plan(self, plan_id: str) -> PlanStatus:
        """Whether it is ready, asked now."""
        return self._engine.plans.look(plan_id)

    def plan_steps(self, plan_id: str, mode: PlanMode) -> Sequence[StepRow]:
        """What a run would do, step by step."""
        plan = self._engine.plans.get(plan_id)
        return step_rows(steps_of({"plan": plan.model_dump(mode="json"), "mode": mode.value}))

    def run_plan(self, plan_id: str, mode: PlanMode, reason: str) -> str:
        """Begin it; the operation's id. Raises Conflict naming an open run that shares a VM."""
        me = self._engine.identity.name
        asked: dict[str, object] = {"plan_id": plan_id, "mode": mode.value, "reason": reason, "asked_by": me}
        return str(self._ask("run-plan", asked, VERB_DEADLINE_S)["operation_id"])

    # --- who is at work ------------------------------------------------------------------------------------
    def engines(self) -> Sequence[EngineView]:
        """Those that live."""
        return holders.engines(self._repository)

    def leases(self, protection_id: str) -> Sequence[LeaseHolder]:
        """Of the VM, at each of its sites, asked now."""
        return holders.leases(self._repository, self._gateway, self._protection(protection_id))

    def take_over_lease(self, protection_id: str, site_id: str, reason: str) -> str:
        """End the lease that somebody holds there; who it was."""
        p, site, me = self._protection(protection_id), self._site(site_id), self._engine.identity.name
        was = holders.take_over(self._gateway, site, p.vm_uuid, me, reason)
        self._note("lease-taken-over", f"The lease at {site.name} was taken over from {was}: {reason}", protection_id)
        return was

    # --- helpers ------------------------------------------------------------------------------------------
    def _ask(self, verb: str, args: dict[str, object], deadline_s: float) -> dict[str, object]:
        """Ask whichever engine lives, through the database, and wait for its answer."""
        command = self._repository.ask(verb, args, self._engine.identity.name, TAKEN_WITHIN_S)
        self._engine.wake()
        try:
            result, error = self._answer_to(command, verb, deadline_s)
        except BaseException:
            # Nobody waits for it any more: it must not be carried out by an engine that starts tomorrow.
            self._repository.withdraw(command)
            raise
        self._engine.forget_rows()
        if error is not None:
            raise from_wire(error)
        return result or {}

    def _answer_to(
        self, command: int, verb: str, deadline_s: float
    ) -> tuple[dict[str, object] | None, dict[str, object] | None]:
        began = self._clock.monotonic()
        pause = threading.Event()
        while (waited := self._clock.monotonic() - began) < deadline_s:
            answer = self._repository.answer_of(command)
            if answer is not None:
                return answer
            if waited > TAKEN_WITHIN_S and self._repository.withdraw(command):
                raise Unexpected(
                    f"No engine took “{verb}” within {TAKEN_WITHIN_S:.0f} s; it will not be done later either",
                    fix="Start the console or vapor-engine, then ask again",
                )
            pause.wait(0.02)
        raise Unexpected(
            f"“{verb}” has not ended within {deadline_s:.0f} s; it may still be at work", fix="Look at the history"
        )

    def _stop_cycle(self, protection_id: str) -> None:
        """Ask, and do not wait: whoever holds the lease is waited for."""
        self._repository.ask("cancel", {"protection_id": protection_id}, self._engine.identity.name, TAKEN_WITHIN_S)
        self._engine.wake()

    def _chain_limit(self, target: Site) -> int:
        return retention.chain_limit_of(self._gateway.api(target).identity()[0].libvirt_version)

    def _replica(self, p: Protection) -> ReplicaView | None:
        """None: it is not made yet."""
        api = self._gateway.api(self._near(p.target_site))
        try:
            return api.replica(p.vm_uuid)
        except NotFound:
            return None

    def _near(self, site_id: str) -> Site:
        """The site, unless the last look found that it does not answer: it is not worth a time-out each time."""
        site = self._site(site_id)
        seen = self._engine.sites.seen(site_id)
        if seen is not None and seen.status.reachable is False:
            raise SiteUnreachable(f"{site.name} does not answer", why=seen.status.error or "")
        return site

    def _changed(self) -> None:
        """What was just done must be in the next snapshot, and may be due now."""
        self._engine.forget_rows()
        self._engine.wake()

    def _note(self, kind: str, text: str, protection_id: str | None = None, *, site_id: str | None = None) -> None:
        records.note(self._repository, self._clock.now(), kind, text, protection_id=protection_id, site_id=site_id)

    def _site(self, site_id: str) -> Site:
        site = self._repository.site(site_id)
        if site is None:
            raise NotFound("That site is not paired with this console")
        return site

    def _protection(self, protection_id: str) -> Protection:
        p = self._repository.protection(protection_id)
        if p is None:
            raise NotFound("That protection does not exist")
        return p


def policy_of(request: ProtectRequest) -> Policy:
    """The policy that a request asks for. Raises InvalidRequest naming the limit."""
    _check_rpo(request.rpo_target_s)
    return Policy(
        rpo_target_s=request.rpo_target_s,
        retention=Retention(newest=request.newest, hourly=request.hourly, daily=request.daily),
        bandwidth_bytes_s=request.bandwidth_bytes_s,
        quiesce=Quiesce(request.quiesce),
        bandwidth_windows=request.bandwidth_windows,
        at_times=request.at_times,
        streams=request.streams,
        priority=request.priority,
        start_guard=StartGuard(request.start_guard),
    )


def _check_rpo(rpo_target_s: int) -> None:
    if not RPO_MIN_S <= rpo_target_s <= RPO_MAX_S:
        raise InvalidRequest(
            f"An RPO target of {rpo_target_s} s is not possible", fix=f"Choose {RPO_MIN_S} s to {RPO_MAX_S // 3600} h"
        )


def _asked(look: Callable[[], _T]) -> tuple[_T | None, str]:
    """What was found, or why it cannot be told."""
    try:
        return look(), ""
    except VaporError as error:
        return None, str(error)


def _from_manifest(m: Manifest, now: datetime) -> Protection:
    return Protection(
        protection_id=m.protection_id,
        vm_uuid=m.vm_uuid,
        vm_name=m.vm_name,
        source_site=m.source_site,
        target_site=m.target_site,
        policy=m.policy,
        mappings=m.mappings,
        settings_version=m.settings_version,
        epoch_number=m.epoch.number,
        epoch_owner=m.epoch.owner,
        phase=_phase_of(m),
        commit_ask_at=now if _phase_of(m) is Phase.PROVISIONAL else None,
        created_at=now,
    )


def _phase_of(m: Manifest) -> Phase:
    if m.epoch.owner != m.target_site:
        return Phase.SOURCE_UNREACHABLE
    return Phase.PROVISIONAL if m.provisional == m.epoch.number else Phase.FAILED_OVER


def _banners(rows: Sequence[ProtectionStatus], engine: str) -> tuple[Banner, ...]:
    found = []
    if engine == "none":
        found.append(Banner("engine", Severity.CRITICAL, "No engine runs: nothing is replicated now"))
    over = [r for r in rows if r.protection.phase is Phase.FAILED_OVER]
    if over:
        names = ", ".join(r.protection.vm_name for r in over[:3])
        text = f"{names} {'was' if len(over) == 1 else 'were'} failed over and not protected now"
        found.append(Banner("failed-over", Severity.WARNING, text, "open-vm", over[0].key))
    for r in rows:
        if r.protection.phase is Phase.PROVISIONAL:
            name = r.protection.vm_name
            text = f"{name} runs at {r.target_name} provisionally: commit the failover, or roll it back"
            found.append(Banner(f"provisional:{r.key}", Severity.WARNING, text, "open-vm", r.key))
        found += [
            Banner(f"warning:{r.key}:{text}", Severity.WARNING, f"{r.protection.vm_name}: {text}", "open-vm", r.key)
            for text in r.protection.warnings
        ]
    return tuple(found)


def _site_banners(sites: Sequence[SiteStatus]) -> list[Banner]:
    found = []
    for s in sites:
        site_id, name = s.site.site_id, s.site.name
        if s.reachable is False:
            text = f"{name} {'cannot be used' if s.refuses else 'does not answer'}: {s.error}"
            found.append(Banner(f"site:{site_id}", Severity.CRITICAL, text, "open-site", site_id))
        if s.free_bytes is not None and s.total_bytes and s.free_bytes < LOW_SPACE * s.total_bytes:
            text = f"{name} has {s.free_bytes / 2**30:.1f} GiB left for replicas"
            found.append(Banner(f"space:{site_id}", Severity.WARNING, text, "open-site", site_id))
        if s.clock_offset_s is not None and abs(s.clock_offset_s) > rpo.CLOCK_TELLS_S:
            text = f"The clock of {name} is {s.clock_offset_s:+.0f} s off; ages are computed with that offset"
            found.append(Banner(f"clock:{site_id}", Severity.WARNING, text, "open-site", site_id))
    return found


def _plan_banners(plans: Sequence[PlanStatus]) -> list[Banner]:
    return [Banner(f"plan:{key}", Severity.WARNING, text, "open-plan", key) for key, text in not_ready(plans)]


def _tasks(rows: Sequence[ProtectionStatus]) -> tuple[Task, ...]:
    return tuple(
        Task(
            f"cycle:{r.key}",
            f"{r.protection.phase.value.capitalize()}: {r.protection.vm_name}",
            r.key,
            r.cycle_started_at,
            None,
            r.progress,
            None,
        )
        for r in rows
        if r.cycle_started_at is not None
    )
