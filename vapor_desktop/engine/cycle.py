"""One cycle: the attempt to make the next recovery point. Observe, plan (plan.py), act, tidy.

Order (facts/libvirt §11, DESIGN §5): lock -> newest manifest entry -> reconcile leftovers -> mode per disk ->
freeze if asked, begin for all disks at once, thaw -> send -> publish -> end the job -> delete the old
checkpoint -> retention. Whatever breaks, the guest is thawed and running, and the last point is untouched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from vapor_desktop.engine import records
from vapor_desktop.engine.agent_arrival import AgentArrivals
from vapor_desktop.engine.lease import HeldLease
from vapor_desktop.engine.offline import OfflineImages
from vapor_desktop.engine.plan import CyclePlan, ours, plan_cycle
from vapor_desktop.engine.ports import Clock, Hypervisor, Mover, SiteApi
from vapor_desktop.engine.source_job import SourceJob
from vapor_desktop.model import bandwidth, rpo
from vapor_desktop.model.domain_xml.digest import configuration_digest
from vapor_desktop.model.domains import BackupJob, DomainView
from vapor_desktop.model.eligibility import judge
from vapor_desktop.model.errors import NotFound, TransferCancelled, VaporError
from vapor_desktop.model.manifest import Consistency, DiskMode, Epoch, Manifest
from vapor_desktop.model.policy import Policy, Quiesce
from vapor_desktop.model.sites import Protection
from vapor_desktop.model.tpm import tpm_warning
from vapor_desktop.model.wire import (
    CurrentAsOf,
    DiskTransfer,
    NbdSource,
    PointDraft,
    Progress,
    ReplicaCreate,
    ReplicaView,
    Scrubbed,
    ScrubSlice,
    TpmState,
    TpmSupport,
    Transfer,
    Transferred,
    WriteGrant,
)

JOB_LEAST_S = 10.0
SCRUB_LEAST_BYTES = 4 << 20
SCRUB_MOST_BYTES = 256 << 20
SCRUB_BYTES_S = 100 << 20  # what a modest disk reads while it serves a VM


@dataclass(slots=True)
class Hooks:
    """Where others may look on. ``before_job_end`` runs while the source's frozen export is still open."""

    on_progress: Callable[[Progress], None] = lambda _p: None
    on_plan: Callable[[CyclePlan], None] = lambda _p: None
    on_clock: Callable[[float, float], None] = lambda _offset_s, _error_s: None  # the target's, measured anew
    before_job_end: Callable[[Manifest, str | None], None] = lambda _m, _s: None
    cancelled: Callable[[], bool] = lambda: False
    due: Callable[[Manifest], bool] = lambda _m: True  # by what the manifest says: another console may have been here


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a cycle achieved. ``seq`` None: nothing had changed, or the copy continues in the next job."""

    manifest: Manifest
    seq: int | None
    unchanged: bool
    mode: str
    result: Transferred | None
    warnings: tuple[str, ...]
    source_power: str
    scrubbed: Scrubbed | None = None
    elsewhere: bool = False  # nothing was done: another console's point is fresh enough
    extra_files: int = 0  # files of the replica's deepest chain that are no points: a seed, overlays of drills

    @property
    def mismatch(self) -> bool:
        """Did the scrub find data that differs from its digest, on either side?"""
        found = self.scrubbed
        return found is not None and any((*found.source_mismatch.values(), *found.target_mismatch.values()))


@dataclass(slots=True)
class CycleContext:
    """The outside of one cycle."""

    source_api: SiteApi
    target_api: SiteApi
    hypervisor: Hypervisor
    mover: Mover
    clock: Clock
    holder: str
    holder_name: str
    scratch_dir: str
    scratch_reserve_bytes: int
    target_offset_s: float  # the target's clock minus ours
    hooks: Hooks = field(default_factory=Hooks)
    lease: HeldLease | None = None  # of an operation that runs this cycle as one of its steps
    lapsed: Callable[[str], bool] = lambda _engine_id: False  # see HeldLease
    scrub_whole: bool = False  # compare every block on record, not a slice
    agents: AgentArrivals | None = None


class Cycle:
    """Runs one cycle of one protection. Raises only errors of ``model.errors``."""

    def __init__(self, context: CycleContext, protection: Protection) -> None:
        self._c = context
        self._p = protection
        self._vm = protection.vm_uuid
        self._warnings: list[str] = []
        self._job = SourceJob(
            context.source_api,
            context.hypervisor,
            self._vm,
            protection.vm_name,
            protection.protection_id,
            context.holder,
            context.scratch_dir,
            context.scratch_reserve_bytes,
        )
        self._tpm: TpmState | None = None  # what the next point can hold, of a VM whose TPM can come along

    def _lease(self) -> AbstractContextManager[HeldLease]:
        c = self._c
        if c.lease is not None:
            return nullcontext(c.lease)
        return HeldLease(c.target_api, self._vm, c.holder, c.holder_name, "cycle", lapsed=c.lapsed)

    def run(self) -> Outcome:
        """The whole cycle, under the target's lease for this VM."""
        c = self._c
        asked_at = c.clock.now()
        with self._lease() as lease:
            if c.lease is None:  # only a lease of this very moment tells the target's clock
                self._check_clock(asked_at, lease.granted_at)
            domain = c.hypervisor.domain(self._vm)
            view = self._replica(lease, domain.name)
            if not c.hooks.due(view.manifest):
                return self._made_elsewhere(view, domain)
            if domain.live_id is not None:
                self._job.clear_leftovers()
            plan = self._plan(view, domain, lease)
            c.hooks.on_plan(plan)
            run = self._live if plan.running else self._offline
            return replace(run(plan, view.manifest, domain, lease), extra_files=_extra_files(view))

    @staticmethod
    def _made_elsewhere(view: ReplicaView, domain: DomainView) -> Outcome:
        return Outcome(
            manifest=view.manifest,
            seq=None,
            unchanged=True,
            mode="",
            result=None,
            warnings=(),
            source_power=domain.state,
            elsewhere=True,
            extra_files=_extra_files(view),
        )

    def _check_clock(self, asked_at: datetime, granted_at: datetime) -> None:
        """A point carries the target's time. The lease tells whether that clock was set since it was measured."""
        c = self._c
        told = rpo.ClockOffset.measure(asked_at, granted_at, c.clock.now())
        if abs(told.offset_s - c.target_offset_s) > told.error_s + rpo.CLOCK_NOISE_S:
            _identity, c.target_offset_s, error_s = c.target_api.identity()
            c.hooks.on_clock(c.target_offset_s, error_s)

    # --- observing --------------------------------------------------------------------------------
    def _replica(self, lease: HeldLease, name: str) -> ReplicaView:
        """The replica, made if need be. Its settings are the truth; the VM is its UUID, and its name is followed."""
        try:
            view = self._c.target_api.replica(self._vm)
        except NotFound:
            self._create_replica(lease, None, name)
            view = self._c.target_api.replica(self._vm)
        if view.manifest.vm_name != name:
            self._create_replica(lease, view.manifest, name)
            view = self._c.target_api.replica(self._vm)
        self._p = records.settings_of(view.manifest)(self._p)
        return view

    def _create_replica(self, lease: HeldLease, manifest: Manifest | None, name: str) -> None:
        p = self._p
        self._c.target_api.create_replica(
            self._vm,
            ReplicaCreate(
                grant=self._grant(lease, manifest),
                protection_id=p.protection_id,
                vm_name=name,
                target_site=p.target_site,
                policy=p.policy,
                mappings=p.mappings,
            ),
        )

    def _grant(self, lease: HeldLease, manifest: Manifest | None) -> WriteGrant:
        if manifest is None:
            epoch = Epoch(number=self._p.epoch_number, owner=self._p.source_site)
            return WriteGrant(fence=lease.fence, epoch=epoch, source_site=self._p.source_site, parent_seq=None)
        newest = manifest.newest
        return WriteGrant(
            fence=lease.fence,
            epoch=manifest.epoch,
            source_site=manifest.source_site,
            parent_seq=newest.seq if newest else None,
        )

    def _plan(self, view: ReplicaView, domain: DomainView, lease: HeldLease) -> CyclePlan:
        c = self._c
        verdicts = judge(domain)
        plan = plan_cycle(
            manifest=view.manifest,
            incoming=view.incoming,
            seeded=view.seeded,
            domain=domain,
            verdicts=verdicts,
            checkpoints=c.hypervisor.checkpoints(self._vm),
            valid=lambda name, disks: self._valid(domain, name, disks),
        )
        if domain.live_id is not None:
            for name in plan.stale_checkpoints:
                c.hypervisor.delete_checkpoint(self._vm, name)
        if plan.discard_incoming:
            c.target_api.discard_incoming(self._vm, self._grant(lease, view.manifest))
        if domain.has_tpm and not domain.tpm_obstacle:
            self._tpm = c.mover.tpm_state(self._vm)
        return plan

    def _valid(self, domain: DomainView, checkpoint: str, targets: Sequence[str]) -> bool:
        if domain.live_id is not None:
            return self._c.hypervisor.checkpoint_valid(self._vm, checkpoint, targets)
        return OfflineImages(self._c.mover, domain).bitmap_valid(checkpoint, targets)

    # --- a running VM --------------------------------------------------------------------------------
    def _live(self, plan: CyclePlan, manifest: Manifest, domain: DomainView, lease: HeldLease) -> Outcome:
        c = self._c
        if c.agents is not None:
            c.agents.before_job(c.hypervisor, domain, c.hooks.cancelled)
        self._unless_cancelled()
        with self._job.open(plan, freeze=self._want_freeze(manifest, domain)) as (job, consistency):
            return self._move_live(plan, manifest, domain, lease, job, consistency)

    def _move_live(
        self,
        plan: CyclePlan,
        manifest: Manifest,
        domain: DomainView,
        lease: HeldLease,
        job: BackupJob,
        consistency: Consistency,
    ) -> Outcome:
        c = self._c
        taken_at = job.begun_at + timedelta(seconds=c.target_offset_s)
        disks = tuple(
            DiskTransfer(
                target=d.target,
                size_bytes=d.size_bytes,
                mode=d.mode,
                source=NbdSource(
                    kind="live", path=job.socket_path, export=d.target, bitmap=job.bitmaps.get(d.target)
                ),
            )
            for d in plan.disks
        )
        draft = self._draft(domain, job.checkpoint, taken_at, consistency, plan, job.frozen_s)
        result = self._transfer(plan, manifest, disks, draft, lease)
        after = result.manifest or manifest
        if result.empty:
            after = self._still_current(after, taken_at, lease)
        scrubbed = self._scrub(after, disks, lease) if result.published or result.empty else None
        if result.published or result.empty:  # a part is no point: there is nothing to look at
            c.hooks.before_job_end(after, job.socket_path)
        self._job.end()
        self._drop_checkpoints(manifest, job.checkpoint, result)
        return self._outcome(plan, after, result, domain, scrubbed)

    def _want_freeze(self, manifest: Manifest, domain: DomainView) -> bool:
        policy = self._p.policy
        return (
            policy.quiesce is Quiesce.TRY
            and domain.state == "running"
            and domain.agent_connected
            and manifest.next_seq % policy.quiesce_every == 0
        )

    def _drop_checkpoints(self, before: Manifest, fresh: str | None, result: Transferred) -> None:
        """Between cycles: the newest point's checkpoint, and the unfinished copy's while there is one."""
        hv = self._c.hypervisor
        if result.empty and fresh is not None:
            hv.delete_checkpoint(self._vm, fresh)  # nothing changed: the old bitmap still tells everything
            return
        newest = (result.manifest or before).newest
        kept = {newest.checkpoint if newest else None, None if result.published else fresh}
        for name in hv.checkpoints(self._vm):
            if ours(before.protection_id, name) and name not in kept:
                hv.delete_checkpoint(self._vm, name)

    # --- a VM that is off ------------------------------------------------------------------------------
    def _offline(self, plan: CyclePlan, manifest: Manifest, domain: DomainView, lease: HeldLease) -> Outcome:
        """Read the images of a stopped VM. One that is started meanwhile starts, and nothing is published."""
        c = self._c
        images = OfflineImages(c.mover, domain)
        known = dict(manifest.newest.images) if manifest.newest else {}
        taken_at = c.clock.now() + timedelta(seconds=c.target_offset_s)
        checkpoint = images.prepare(plan)
        disks = tuple(
            DiskTransfer(
                target=d.target,
                size_bytes=d.size_bytes,
                mode=d.mode,
                source=images.source(d),
                known_stamp=known.get(d.target, ""),
            )
            for d in plan.disks
        )
        consistency = Consistency.SAVED if domain.managed_save else Consistency.OFF
        draft = self._draft(domain, checkpoint, taken_at, consistency, plan)
        result = self._transfer(plan, manifest, disks, draft, lease)
        after = result.manifest or manifest
        if result.empty:
            after = self._still_current(after, taken_at, lease, result.images)
        elif result.published and checkpoint is not None:
            stamps = images.forget_sent(checkpoint, result.images)
            after = self._still_current(after, taken_at, lease, stamps)
        scrubbed = None
        if result.published or result.empty:
            stamps = after.newest.images if after.newest else {}
            as_published = tuple(d.model_copy(update={"known_stamp": stamps.get(d.target, "")}) for d in disks)
            scrubbed = self._scrub(after, as_published, lease)
        c.hooks.before_job_end(after, None)
        return self._outcome(plan, after, result, domain, scrubbed)

    # --- both --------------------------------------------------------------------------------------------
    def _draft(
        self,
        domain: DomainView,
        checkpoint: str | None,
        taken_at: datetime,
        consistency: Consistency,
        plan: CyclePlan,
        frozen_s: float = 0.0,
    ) -> PointDraft:
        xml = self._c.hypervisor.domain_xml(self._vm)
        return PointDraft(
            protection_id=self._p.protection_id,
            vm_name=domain.name,
            checkpoint=checkpoint,
            taken_at=taken_at,
            consistency=consistency,
            domain_xml=xml,
            config=configuration_digest(xml),
            nvram_path=domain.nvram_path,
            tpm_dir=domain.tpm_dir if self._tpm is not None and self._tpm.digest is not None else None,
            without_disks=plan.excluded,
            frozen_s=frozen_s,
        )

    def _transfer(
        self,
        plan: CyclePlan,
        manifest: Manifest,
        disks: tuple[DiskTransfer, ...],
        draft: PointDraft,
        lease: HeldLease,
    ) -> Transferred:
        c, policy = self._c, self._p.policy
        only_delta = all(d.mode is DiskMode.DELTA for d in plan.disks)
        request = Transfer(
            vm_uuid=self._vm,
            peer_site=self._p.target_site,
            grant=self._grant(lease, manifest),
            seq=plan.seq,
            disks=disks,
            draft=draft,
            bandwidth_bytes_s=bandwidth.limit_at(policy, c.clock.now()),
            streams=policy.streams,
            resume_incoming=plan.resume_incoming,
            deadline_s=self._deadline_s(policy) if plan.may_pause else None,
            skip_if_empty=only_delta and not plan.resume_incoming and manifest.newest is not None,
            known_config=manifest.newest.config if manifest.newest else "",
        )
        self._unless_cancelled()
        return c.mover.transfer(request, c.hooks.on_progress, lambda: c.hooks.cancelled() or lease.lost())

    def _unless_cancelled(self) -> None:
        if self._c.hooks.cancelled():
            raise TransferCancelled(f"The cycle of “{self._p.vm_name}” was cancelled")

    def _deadline_s(self, policy: Policy) -> float:
        """A job ends where another bandwidth limit begins: the next one goes on under that."""
        change_s = bandwidth.until_change_s(policy, self._c.clock.now())
        longest_s = float(policy.job_longest_s)
        return longest_s if change_s is None else min(longest_s, max(change_s, JOB_LEAST_S))

    def _judge_tpm(self, after: Manifest, domain: DomainView) -> None:
        """Called not fully protected unless the newest point's TPM state would be used at the target."""
        if not domain.has_tpm:
            return
        api, newest = self._c.target_api, after.newest
        try:
            there = api.tpm_support() if newest is None else api.point_tpm(self._vm, newest.seq)
        except VaporError as error:  # the point is complete all the same
            there = TpmSupport(emulates=True, why=f"the target could not be asked: {error.what}")
        warning = tpm_warning(domain.tpm_obstacle, self._tpm, there)
        if warning:
            self._warnings.append(warning)

    def _scrub(self, manifest: Manifest, disks: tuple[DiskTransfer, ...], lease: HeldLease) -> Scrubbed | None:
        """Compare a slice of source and newest point; a whole pass takes the policy's days (DESIGN §5 Digests).

        Its failure is no failure of the cycle: the point is complete. A mismatch is, and is told.
        """
        policy = self._p.policy
        total = sum(d.size_bytes for d in disks)
        share = total * policy.rpo_target_s / (policy.scrub_days * 86400)
        # Long RPO targets have few cycles: a larger slice then, in about a tenth of the time between two.
        most = max(SCRUB_MOST_BYTES, policy.rpo_target_s * SCRUB_BYTES_S // 10)
        request = ScrubSlice(
            vm_uuid=self._vm,
            peer_site=self._p.target_site,
            grant=self._grant(lease, manifest),
            disks=disks,
            budget_bytes=total if self._c.scrub_whole else int(min(max(share, SCRUB_LEAST_BYTES), most)),
            whole=self._c.scrub_whole,
        )
        try:
            return self._c.mover.scrub(request, self._c.hooks.cancelled)
        except VaporError as error:
            if self._c.scrub_whole:
                raise
            self._warnings.append(f"the scrub could not run: {error.what}")
            return None

    def _still_current(
        self, manifest: Manifest, at: datetime, lease: HeldLease, images: dict[str, str] | None = None
    ) -> Manifest:
        newest = manifest.newest
        if newest is None:
            return manifest
        request = CurrentAsOf(grant=self._grant(lease, manifest), seq=newest.seq, at=at, images=images)
        return self._c.target_api.current_as_of(self._vm, request)

    def _outcome(
        self, plan: CyclePlan, after: Manifest, result: Transferred, domain: DomainView, scrubbed: Scrubbed | None
    ) -> Outcome:
        if self._job.resumed:
            self._warnings.append("the scratch of its backup job ran full and paused the guest; it runs again")
        self._judge_tpm(after, domain)
        return Outcome(
            manifest=after,
            seq=result.seq if result.published else None,
            unchanged=result.empty,
            mode=(DiskMode.COMPARE if result.compared and plan.mode is DiskMode.DELTA else plan.mode).value,
            result=result,
            warnings=tuple(self._warnings),
            source_power=domain.state,
            scrubbed=scrubbed,
        )


def _extra_files(view: ReplicaView) -> int:
    points = len(view.manifest.points) + (1 if view.incoming else 0)
    return max(0, view.files_in_chain - points)
