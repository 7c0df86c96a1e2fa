"""One protection's work, run on a worker thread: a cycle with all that belongs to it before and after."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

import structlog

from vapor_desktop.engine import disks, records
from vapor_desktop.engine.agent_arrival import AgentArrivals
from vapor_desktop.engine.cycle import Cycle, CycleContext, Hooks, Outcome
from vapor_desktop.engine.flattening import Flattener
from vapor_desktop.engine.guarding import GuardArmer
from vapor_desktop.engine.lease import HeldLease
from vapor_desktop.engine.plan import CyclePlan
from vapor_desktop.engine.ports import Clock, CycleRecord, Repository, SiteGateway
from vapor_desktop.engine.scheduler import backoff_s, due_at, expected_duration_s
from vapor_desktop.engine.sitewatch import SiteWatch
from vapor_desktop.model import retention
from vapor_desktop.model.errors import (
    EpochMoved,
    HostKeyChanged,
    HypervisorUnreachable,
    LeaseHeld,
    NotFound,
    PointPinned,
    ReplicaFull,
    Unexpected,
    VaporError,
)
from vapor_desktop.model.manifest import DiskMode, Manifest
from vapor_desktop.model.sites import Protection, Site
from vapor_desktop.model.states import Phase, Severity
from vapor_desktop.model.wire import Progress, WriteGrant

log = structlog.get_logger(__name__)

# Block numbers of a mismatch in a log line.
TOLD_BLOCKS = 20
# Not failures: somebody else is at work, the next try will see.
_WAIT_ONLY = {"VM-BUSY", "LEASE-HELD", "TRANSFER-CANCELLED"}
# Of the RPO target, until that next try.
WAIT_SHARE = 0.1
_SITE_GONE = {"SITE-UNREACHABLE", "LIBVIRT-UNREACHABLE"}
_TAKEN_OVER = {
    Phase.REPROTECTING,  # its operation says what became of it
    Phase.FAILING_OVER,
    Phase.PROVISIONAL,
    Phase.FAILED_OVER,
    Phase.SPLIT_BRAIN_RISK,
    Phase.SPLIT_BRAIN,
}


@dataclass(frozen=True, slots=True)
class EngineIdentity:
    """Who this engine is, for leases and heart-beats."""

    engine_id: str
    name: str  # shown to people: user@host
    kind: str  # console | service | command


class ProtectionWorker:
    """Runs cycles; records what came of them. One instance serves all protections."""

    def __init__(
        self,
        repository: Repository,
        gateway: SiteGateway,
        sites: SiteWatch,
        clock: Clock,
        identity: EngineIdentity,
    ) -> None:
        self._repository = repository
        self._gateway = gateway
        self._sites = sites
        self._clock = clock
        self._identity = identity
        self.guards = GuardArmer(repository, gateway, sites, clock, identity.engine_id, identity.name)
        self._agents = AgentArrivals(clock)
        sites.on_domain = self._agents.awaited_s  # VMs that start together are awaited together
        self.flattener = Flattener(repository, gateway, clock, identity.engine_id, identity.name)
        self._jitter = random.Random()  # noqa: S311  (spreads retries; no secret)
        self._lock = threading.Lock()
        self._progress: dict[str, Progress] = {}
        self._cancelled: set[str] = set()
        self.lapsed: Callable[[str], bool] = lambda _engine_id: False  # an engine of ours that ended unseen
        self.before_job_end: Callable[[str, Manifest, str | None], None] | None = None

    def progress(self, protection_id: str) -> Progress | None:
        """Of the running transfer."""
        with self._lock:
            return self._progress.get(protection_id)

    def cancel(self, protection_id: str) -> None:
        """Ask the running cycle to stop; it is noticed at the next chunk."""
        with self._lock:
            self._cancelled.add(protection_id)

    def run(self, protection_id: str, *, asked: bool = False) -> Outcome | None:
        """One cycle with its records. Returns None when it did not come to a point; raises only our bugs.

        ``asked``: by a person, and run however fresh another console's recovery point is.
        """
        protection = self._repository.protection(protection_id)
        if protection is None:
            return None
        began = self._clock.monotonic()
        try:
            outcome = self._cycle(protection, asked=asked)
        except VaporError as error:
            self._failed(protection, self._cause(protection, error), self._clock.monotonic() - began)
            if isinstance(error, ReplicaFull):
                self._make_room(protection)
            return None
        finally:
            with self._lock:
                self._progress.pop(protection_id, None)
                self._cancelled.discard(protection_id)
        self._succeeded(protection, outcome, self._clock.monotonic() - began)
        self.guards.after_cycle(protection, outcome.manifest)
        self.flattener.after_cycle(protection, outcome.manifest.epoch.number)
        self._trim(protection, outcome.manifest, outcome.extra_files)
        return outcome

    def run_in_operation(self, protection_id: str, lease: HeldLease, *, scrub_whole: bool = False) -> Outcome:
        """One cycle as a step of an operation, under its lease. Raises what keeps it from a point."""
        protection = self._repository.protection(protection_id)
        if protection is None:
            raise NotFound("That protection does not exist any more")
        began = self._clock.monotonic()
        try:
            outcome = self._cycle(protection, lease, scrub_whole=scrub_whole)
        except VaporError as error:
            self._failed(protection, error, self._clock.monotonic() - began)
            raise
        finally:
            with self._lock:
                self._progress.pop(protection_id, None)
                self._cancelled.discard(protection_id)
        self._succeeded(protection, outcome, self._clock.monotonic() - began)
        return outcome

    # --- the cycle ---------------------------------------------------------------------------------
    def _cycle(
        self,
        protection: Protection,
        lease: HeldLease | None = None,
        *,
        scrub_whole: bool = False,
        asked: bool = False,
    ) -> Outcome:
        source = self._site(protection.source_site)
        target = self._site(protection.target_site)
        gateway = self._gateway
        clock_row = self._repository.clock(target.site_id)
        if clock_row is None:
            self._sites.look(target, inventory=False)
            clock_row = self._repository.clock(target.site_id)
        seen = self._sites.seen(source.site_id)
        if seen is None or seen.identity is None:
            self._sites.look(source, inventory=False)
            seen = self._sites.seen(source.site_id)
        identity = seen.identity if seen else None
        if identity is None:
            identity = gateway.api(source).identity()[0]  # raises what keeps us from it
        pid = protection.protection_id
        observer = self.before_job_end
        hooks = Hooks(
            on_progress=lambda p: self._note_progress(pid, p),
            on_plan=lambda plan: self._note_plan(pid, plan),
            on_clock=lambda offset_s, error_s: self._repository.save_clock(
                target.site_id, offset_s, error_s, self._clock.now()
            ),
            before_job_end=(lambda m, s: observer(pid, m, s)) if observer else (lambda _m, _s: None),
            cancelled=lambda: pid in self._cancelled,
            due=(lambda _m: True) if asked or lease else partial(self._due, pid, clock_row[0] if clock_row else 0.0),
        )
        context = CycleContext(
            source_api=gateway.api(source),
            target_api=gateway.api(target),
            hypervisor=gateway.hypervisor(source),
            mover=gateway.mover(source, target),
            clock=self._clock,
            holder=self._identity.engine_id,
            holder_name=self._identity.name,
            scratch_dir=identity.scratch_dir,
            scratch_reserve_bytes=identity.scratch_reserve_bytes,
            target_offset_s=clock_row[0] if clock_row else 0.0,
            hooks=hooks,
            lease=lease,
            lapsed=self.lapsed,
            scrub_whole=scrub_whole,
            agents=self._agents,
        )
        return Cycle(context, protection).run()

    def _due(self, protection_id: str, target_offset_s: float, manifest: Manifest) -> bool:
        """False when another console made a recovery point that is fresh enough to leave it at that."""
        newest = manifest.newest
        known = max((p.current_as_of for p in self._repository.points(protection_id)), default=None)
        if newest is None or (known is not None and newest.current_as_of <= known):
            return True
        worked = [c.duration_s for c in self._repository.cycles(protection_id, 10) if c.outcome == "point"]
        ours = newest.current_as_of - timedelta(seconds=target_offset_s)
        now = self._clock.now()
        return due_at(manifest.policy, ours, expected_duration_s(worked), now) <= now

    def _site(self, site_id: str) -> Site:
        site = self._repository.site(site_id)
        if site is None:
            raise NotFound("A site of this protection is not paired with this console", fix="Pair it again")
        return site

    def _note_progress(self, protection_id: str, progress: Progress) -> None:
        with self._lock:
            self._progress[protection_id] = progress

    def _note_plan(self, protection_id: str, plan: CyclePlan) -> None:
        if plan.parent_seq is None:
            phase = Phase.INITIAL_SYNC
        elif any(d.mode is DiskMode.COMPARE for d in plan.disks):
            phase = Phase.COMPARING
        else:
            phase = Phase.SYNCING
        records.update(self._repository, protection_id, records.to_cycle_phase(phase))
        disks.note_plan(self._repository, protection_id, plan)
        for disk in plan.disks:
            if disk.mode is not DiskMode.DELTA:
                log.info("disk is not sent by delta", disk=disk.target, mode=disk.mode.value, why=disk.why)

    # --- afterwards ------------------------------------------------------------------------------------
    def crashed(self, protection_id: str, error: BaseException) -> None:
        """A bug of ours ended a cycle: it is told like any failure, and tried again like any."""
        protection = self._repository.protection(protection_id)
        if protection is not None:
            self._failed(protection, Unexpected("The cycle ended in an error of this program", why=repr(error)), 0.0)

    def _succeeded(self, protection: Protection, outcome: Outcome, duration_s: float) -> None:
        pid = protection.protection_id
        records.cache_manifest(self._repository, pid, outcome.manifest)
        result = outcome.result
        kind = "unchanged" if outcome.unchanged else ("point" if outcome.seq is not None else "partial")
        newest = outcome.manifest.newest
        cycle = CycleRecord(
            protection_id=pid,
            started_at=self._clock.now() - timedelta(seconds=duration_s),
            duration_s=duration_s,
            outcome="skipped" if outcome.elsewhere else kind,
            seq=outcome.seq,
            data_bytes=result.data_bytes if result else 0,
            wire_bytes=result.wire_bytes if result else 0,
            mode=outcome.mode,
            error=f"Another console made recovery point {newest.seq}" if outcome.elsewhere and newest else None,
        )

        def change(p: Protection) -> Protection:
            phase = Phase.PAUSED if p.paused else Phase.PROTECTED
            if outcome.manifest.newest is None:
                phase = Phase.INITIAL_SYNC
            moved = records.to_cycle_phase(phase)(p)
            fresh = {
                "failures": 0,
                "not_before": None,
                "last_error": None,
                "last_error_code": None,
                "vm_name": outcome.manifest.vm_name,
                "warnings": outcome.warnings,
                "epoch_number": outcome.manifest.epoch.number,
                "epoch_owner": outcome.manifest.epoch.owner,
            }
            return moved.model_copy(update=fresh)

        before = self._repository.protection(pid)
        records.update(self._repository, pid, change)
        self._repository.add_cycle(cycle)  # last: whoever waits for the cycle's end then reads the row
        if outcome.scrubbed is not None:
            disks.note_scrub(self._repository, pid, outcome.scrubbed)
        self._judge_scrub(protection, outcome)
        if before is not None and before.failures:
            records.note(
                self._repository, self._clock.now(), "recovered", "Replication works again", protection_id=pid
            )

    def _judge_scrub(self, protection: Protection, outcome: Outcome) -> None:
        """A mismatch is critical: said at once, and the next cycle compares everything, which repairs it."""
        pid = protection.protection_id
        if not outcome.mismatch:
            return
        found = outcome.scrubbed
        sides = "source" if found and any(found.source_mismatch.values()) else "replica"
        text = f"The scrub found data at the {sides} that differs from its digests; the next cycle compares all"
        log.error(
            "scrub mismatch",
            vm=protection.vm_name,
            side=sides,
            source_blocks=_first(found.source_mismatch) if found else {},
            target_blocks=_first(found.target_mismatch) if found else {},
        )
        records.note(
            self._repository, self._clock.now(), "scrub-mismatch", text, severity=Severity.CRITICAL, protection_id=pid
        )

    def _cause(self, protection: Protection, error: VaporError) -> VaporError:
        """libvirt can only say that its ssh failed. A new connection begins with the host key, and can say why."""
        source = self._repository.site(protection.source_site)
        if source is None or not isinstance(error, HypervisorUnreachable):
            return error
        self._gateway.drop(source.site_id)
        try:
            self._gateway.hypervisor(source)
        except HostKeyChanged as changed:
            return changed
        except VaporError as other:
            log.info("why libvirt does not answer is not known", vm=protection.vm_name, code=other.code)
        return error

    def _failed(self, protection: Protection, error: VaporError, duration_s: float) -> None:
        pid = protection.protection_id
        now = self._clock.now()
        waiting = error.code in _WAIT_ONLY
        log.warning("cycle failed", vm=protection.vm_name, code=error.code, error=str(error))
        cycle = CycleRecord(
            protection_id=pid,
            started_at=now - timedelta(seconds=duration_s),
            duration_s=duration_s,
            outcome="skipped" if waiting else "failed",
            seq=None,
            data_bytes=0,
            wire_bytes=0,
            mode="",
            error_code=error.code,
            error=str(error),
        )
        phase = self._phase_after(protection, error)
        # A dark source: it may have been taken over on the target's own host, by a person without a console.
        ask = isinstance(error, EpochMoved) or phase is Phase.SOURCE_UNREACHABLE
        moved_to = self._manifest_there(protection) if ask else None
        if error.code == LeaseHeld.code:
            self._look_at_points(protection)

        def change(p: Protection) -> Protection:
            failures = p.failures if waiting else p.failures + 1
            again_s = min(max(WAIT_SHARE * p.policy.rpo_target_s, 1.0), 5.0)
            wait_s = again_s if waiting else backoff_s(failures, error.fate, self._jitter)
            if p.phase in _TAKEN_OVER:
                return p  # it was failed over while this cycle hung: its end is nobody's business any more
            if moved_to is not None and moved_to.epoch.owner == p.target_site:
                return records.taken_over(moved_to, now)(p)
            moved = records.to_cycle_phase(_resting(p, phase, waiting))(p)
            return moved.model_copy(
                update={
                    "failures": failures,
                    "not_before": now + timedelta(seconds=wait_s),
                    "last_error": str(error),
                    "last_error_code": error.code,
                }
            )

        after = records.update(self._repository, pid, change)
        self._repository.add_cycle(cycle)  # last: whoever waits for the cycle's end then reads the row
        if after.failures == 1 and not waiting:
            records.note(
                self._repository, now, "cycle-failed", str(error), severity=Severity.WARNING, protection_id=pid
            )

    def _manifest_there(self, protection: Protection) -> Manifest | None:
        """Who owns the VM by the target's word; None when it cannot be asked."""
        try:
            return self._gateway.api(self._site(protection.target_site)).replica(protection.vm_uuid).manifest
        except VaporError as error:
            log.info("owner is not known", vm=protection.vm_name, code=error.code, error=str(error))
            return None

    def _look_at_points(self, protection: Protection) -> None:
        """Whoever holds the lease may be another console whose cycles make points: the RPO shown must know them."""
        there = self._manifest_there(protection)
        if there is not None and there.target_site == protection.target_site:
            records.cache_manifest(self._repository, protection.protection_id, there)

    def _phase_after(self, protection: Protection, error: VaporError) -> Phase:
        if error.code in _SITE_GONE and not self._answers(protection.source_site):
            return Phase.SOURCE_UNREACHABLE
        return Phase.ERROR

    def _answers(self, site_id: str) -> bool:
        """Look at the site now. A dead one's connections are forgotten: they may hang rather than fail."""
        site = self._repository.site(site_id)
        if site is None:
            return False
        self._sites.look(site, inventory=False)
        seen = self._sites.seen(site_id)
        if seen is not None and seen.status.reachable is False:
            self._gateway.drop(site_id)
            return seen.status.refuses
        return True

    def _chain_limit(self, target: Site) -> int:
        """How many files a chain may have at the target; the smaller number while its libvirt is unknown."""
        seen = self._sites.seen(target.site_id)
        return retention.chain_limit_of(seen.status.libvirt_version if seen else None)

    def _make_room(self, protection: Protection) -> None:
        """A full target: let go now of what the policy no longer keeps, for no cycle will come to it."""
        try:
            view = self._gateway.api(self._site(protection.target_site)).replica(protection.vm_uuid)
        except VaporError as error:
            log.info("retention waits", vm=protection.vm_name, code=error.code, error=str(error))
            return
        self._trim(protection, view.manifest, max(0, view.files_in_chain - len(view.manifest.points)))

    # --- retention ---------------------------------------------------------------------------------------
    def _trim(self, protection: Protection, manifest: Manifest, extra_files: int) -> None:
        """Drop what the policy no longer keeps, in the gap between cycles. A failure waits for the next gap."""
        target = self._repository.site(protection.target_site)
        if target is None:
            return
        limit = self._chain_limit(target) - extra_files
        clock_row = self._repository.clock(target.site_id)
        now = self._clock.now() + timedelta(seconds=clock_row[0] if clock_row else 0.0)  # the points' own clock
        if not _to_drop(manifest, now, limit):
            return
        api = self._gateway.api(target)
        refused: set[int] = set()
        try:
            with HeldLease(
                api,
                protection.vm_uuid,
                self._identity.engine_id,
                self._identity.name,
                "retention",
                lapsed=self.lapsed,
            ) as lease:
                while due := _to_drop(manifest, now, limit, refused):
                    newest = manifest.newest
                    grant = WriteGrant(
                        fence=lease.fence,
                        epoch=manifest.epoch,
                        source_site=manifest.source_site,
                        parent_seq=newest.seq if newest else None,
                    )
                    try:
                        manifest = api.drop_point(protection.vm_uuid, due[0], grant)
                    except PointPinned as error:  # something hangs on it that no manifest knows: the others can go
                        log.info("point stays", vm=protection.vm_name, seq=due[0], error=str(error))
                        refused.add(due[0])
        except VaporError as error:
            log.info("retention waits", vm=protection.vm_name, code=error.code, error=str(error))
        records.cache_manifest(self._repository, protection.protection_id, manifest)


def _resting(p: Protection, failed: Phase, waiting: bool) -> Phase:
    """What a protection is once its cycle came to no point: never "syncing" when nothing runs."""
    if p.paused:
        return Phase.PAUSED
    if waiting:
        return Phase.PROTECTED if p.phase in {Phase.SYNCING, Phase.COMPARING} else p.phase
    return failed


def _to_drop(manifest: Manifest, now: datetime, limit: int, refused: Collection[int] = ()) -> list[int]:
    living = [p for p in manifest.points if not p.dead]
    rule = manifest.policy.retention
    return retention.plan(living, rule, now, refused=refused, chain_limit=limit)


def _first(blocks: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
    """The first few of each disk, for a log."""
    return {disk: list(numbers[:TOLD_BLOCKS]) for disk, numbers in blocks.items() if numbers}
