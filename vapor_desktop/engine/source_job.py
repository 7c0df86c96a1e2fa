"""The backup job of one cycle at the source, under the guardian's eye from before the freeze until it is gone.

Whatever breaks, the guest must end up thawed and running (DESIGN §8.5). What this engine cannot confirm stays the
guardian's, on the host: a watch is taken back only for what was seen to be undone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath

import structlog

from vapor_desktop.engine.plan import CyclePlan
from vapor_desktop.engine.ports import Hypervisor, SiteApi
from vapor_desktop.model.domains import GUEST_THAWED, BackupDisk, BackupJob, paused_by_scratch
from vapor_desktop.model.errors import DomainBusy, ScratchFull, TransferCancelled, TransferInterrupted, VaporError
from vapor_desktop.model.manifest import Consistency
from vapor_desktop.model.wire import WatchFreeze, WatchJob

log = structlog.get_logger(__name__)

JOB_TTL_S = 60.0
FREEZE_DEADLINE_S = 20.0


def socket_name(protection_id: str) -> str:
    """Of a protection's jobs: two consoles that protect one VM to different targets know their own."""
    return f"vapor-{protection_id[:8]}.sock"


@dataclass(slots=True)
class SourceJob:
    """One VM's job for one protection. Every call raises only errors of ``model.errors``."""

    api: SiteApi
    hypervisor: Hypervisor
    vm_uuid: str
    vm_name: str
    protection_id: str
    holder: str
    scratch_dir: str
    scratch_reserve_bytes: int
    resumed: bool = False  # the guest, which the job's full scratch had paused

    def clear_leftovers(self) -> None:
        """A dead engine's job would block every snapshot and backup of the VM: end it. Others' jobs are theirs.

        Raises DomainBusy naming another tool's job, or another console's.
        """
        socket = self.hypervisor.our_job(self.vm_uuid)
        if socket is not None:
            self._must_be_mine(socket)
            self._end_job()
        foreign = self.hypervisor.foreign_job(self.vm_uuid)
        if foreign is not None:
            raise DomainBusy(
                f"Another job holds “{self.vm_name}”", why=foreign, fix="It will be tried again by itself"
            )

    def _must_be_mine(self, socket: str) -> None:
        if PurePosixPath(socket).name != socket_name(self.protection_id):
            raise DomainBusy(
                f"Another console's replication holds “{self.vm_name}”",
                why=f"its job answers at {socket}",
                fix="It will be tried again by itself",
            )

    @contextmanager
    def open(self, plan: CyclePlan, *, freeze: bool) -> Iterator[tuple[BackupJob, Consistency]]:
        """The job, watched and renewed. The caller ends it (``end``); when the block fails it is ended here.

        Raises ScratchFull when there is too little room to begin, or when the guardian ended the job for it.
        """
        space = self.api.scratch()
        if space.low:
            free, reserve = space.free_bytes >> 20, space.reserve_bytes >> 20
            raise ScratchFull(
                f"There is too little room for the scratch of a backup job of “{self.vm_name}”",
                why=f"{free} MiB are free in {space.path} at the source, its reserve is {reserve} MiB",
            )
        self.api.watch_job(self.vm_uuid, self._watch())
        try:
            job = self._begin(plan, freeze)
            with _Renewal(lambda: self.api.watch_job(self.vm_uuid, self._watch())):
                yield job
        except VaporError as error:
            self._abandon()
            ended = None if isinstance(error, TransferCancelled) else self._ended_by_guardian(space.at)
            if ended is None:
                raise
            raise ended from error
        except BaseException:
            self._abandon()
            raise

    def _ended_by_guardian(self, since: datetime) -> VaporError | None:
        """The guardian's word, where it is what ended the job: a broken connection is only what that looks like."""
        try:
            events = self.api.guardian_events(since)
        except VaporError as error:
            log.info("the guardian cannot be asked", vm=self.vm_name, error=str(error))
            return None
        for event in events:
            if event.vm_uuid == self.vm_uuid and event.what == "job-ended":
                kind = ScratchFull if event.cause == "scratch" else TransferInterrupted
                return kind(f"The source's guardian ended the backup job of “{self.vm_name}”", why=event.why)
        return None

    def end(self) -> None:
        """The job's normal end; the guardian may look away."""
        self._end_job()
        self.api.unwatch_job(self.vm_uuid)

    def _end_job(self) -> None:
        """End it; then let the guest run if it was this job's full scratch that stopped it.

        The guardian looks once a second; a guest that its job stopped just now would otherwise stay stopped,
        for with the job its reason to act is gone.
        """
        low, errors = self._scratch_low(), dict(self.hypervisor.disk_errors(self.vm_uuid))
        self.hypervisor.end_backup(self.vm_uuid, socket_name(self.protection_id))
        errors |= self.hypervisor.disk_errors(self.vm_uuid)
        if errors and paused_by_scratch(self.hypervisor.domain(self.vm_uuid), errors, scratch_low=low):
            self.hypervisor.resume(self.vm_uuid)
            self.resumed = True
            log.warning("resumed after the job's full scratch paused it", vm=self.vm_name, disks=sorted(errors))

    def _scratch_low(self) -> bool:
        """Unknown counts as low: a guest whose own disk is full stops again at its next write, and that is all."""
        try:
            return self.api.scratch().low
        except VaporError as error:
            log.warning("the scratch space cannot be looked at", vm=self.vm_name, error=str(error))
            return True

    def _watch(self) -> WatchJob:
        return WatchJob(
            holder=self.holder,
            ttl_s=JOB_TTL_S,
            scratch_dir=self.scratch_dir,
            reserve_bytes=self.scratch_reserve_bytes,
        )

    def _begin(self, plan: CyclePlan, freeze: bool) -> tuple[BackupJob, Consistency]:
        disks = [
            BackupDisk(
                target=d.target,
                scratch_path=f"{self.scratch_dir}/vapor-{self.protection_id[:8]}-{plan.seq}-{d.target}.scratch",
                incremental_from=d.from_checkpoint,
                with_checkpoint=d.with_checkpoint,
                export=d.target,
            )
            for d in plan.disks
        ]
        name = socket_name(self.protection_id)
        if not freeze:
            return self.hypervisor.begin_backup(self.vm_uuid, disks, plan.checkpoint, name, False), Consistency.CRASH
        self.api.watch_freeze(self.vm_uuid, WatchFreeze(holder=self.holder, deadline_s=FREEZE_DEADLINE_S))
        try:
            job = self.hypervisor.begin_backup(self.vm_uuid, disks, plan.checkpoint, name, True)
        except VaporError as error:
            # Any other exception leaves the dead-man armed as it is.
            if error.details.get(GUEST_THAWED) is True:
                self._disarm_quietly()
            else:
                self._thaw_now()
            raise
        if not job.thawed:
            self._thaw_now()
            return job, Consistency.CRASH
        in_time = self.api.unwatch_freeze(self.vm_uuid)
        return job, Consistency.FILESYSTEM if job.frozen and in_time else Consistency.CRASH

    def _thaw_now(self) -> None:
        """Nobody confirmed the thaw: the dead-man does it from the host, at once and until the guest answers."""
        try:
            self.api.watch_freeze(self.vm_uuid, WatchFreeze(holder=self.holder, deadline_s=0.0))
        except VaporError as error:  # it stays armed with its first deadline
            log.warning("the dead-man could not be hastened", vm=self.vm_name, error=str(error))

    def _disarm_quietly(self) -> None:
        try:
            self.api.unwatch_freeze(self.vm_uuid)
        except VaporError as error:  # a thaw of a guest that is not frozen does no harm
            log.warning("the dead-man could not be disarmed", vm=self.vm_name, error=str(error))

    def _abandon(self) -> None:
        """After a failure: the guest must be free. What cannot be reached is the guardian's, on the host."""
        try:
            self.end()
        except VaporError as error:
            log.warning("the job is left to the guardian", vm=self.vm_name, error=str(error))


class _Renewal:
    """Tells the guardian, three times per time-out, that this engine still lives."""

    def __init__(self, renew: Callable[[], None]) -> None:
        self._renew = renew
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="guardian-renewal", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while not self._done.wait(JOB_TTL_S / 3):
            try:
                self._renew()
            except VaporError:
                continue  # the next one may get through; if none does, the guardian rightly ends the job
