"""Backup jobs: begin with freeze and thaw around, find, end."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

import libvirt

from vapor_desktop.hypervisor import backup_xml
from vapor_desktop.hypervisor.agent import freeze, limited, thaw
from vapor_desktop.hypervisor.checkpoints import Checkpoints
from vapor_desktop.hypervisor.errors import NO_DOMAIN_BACKUP, code_of
from vapor_desktop.hypervisor.link import Link
from vapor_desktop.hypervisor.views import state_of
from vapor_desktop.model.domain_xml.parse import parse_domain
from vapor_desktop.model.domains import GUEST_THAWED, BackupDisk, BackupJob
from vapor_desktop.model.errors import BackupJobLost, DomainBusy, HypervisorFailed, InvalidRequest, VaporError

_log = logging.getLogger(__name__)

PRESERVE_SHUTDOWN_DOMAIN = 1 << 1  # newer than the oldest binding we build against
PRESERVE_SINCE = 11_010_000
# libvirt 9.0 ends no job while an agent's event waits 30 s for one (engine/agent_arrival.py).
END_DEADLINE_S = 45.0

_JOBS = {
    libvirt.VIR_DOMAIN_JOB_OPERATION_SAVE: "is being saved",
    libvirt.VIR_DOMAIN_JOB_OPERATION_RESTORE: "is being restored",
    libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_IN: "is migrating in",
    libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT: "is migrating away",
    libvirt.VIR_DOMAIN_JOB_OPERATION_SNAPSHOT: "is taking a snapshot",
    libvirt.VIR_DOMAIN_JOB_OPERATION_SNAPSHOT_REVERT: "is reverting to a snapshot",
    libvirt.VIR_DOMAIN_JOB_OPERATION_DUMP: "is being dumped",
    libvirt.VIR_DOMAIN_JOB_OPERATION_BACKUP: "is being backed up by another tool",
}
_BLOCK_JOBS = {
    libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_PULL: "block pull",
    libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_COPY: "block copy",
    libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_COMMIT: "block commit",
    libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_ACTIVE_COMMIT: "active block commit",
}


@dataclass(slots=True)
class _Hold:
    """What became of one begin's freeze. ``confirmed``: the guest is certainly not frozen by it."""

    frozen: bool = False
    thawed: int | None = None
    confirmed: bool = True


class BackupJobs:
    """Pull-mode jobs of ours; others' are seen, named, and left alone.

    ``link`` is for calls that answer at once; ``slow`` for those that may wait for the guest or a lock.
    """

    def __init__(self, link: Link, slow: Link, checkpoints: Checkpoints) -> None:
        self._link = link
        self._slow = slow
        self._checkpoints = checkpoints

    def begin(
        self, vm_uuid: str, disks: Sequence[BackupDisk], checkpoint: str | None, socket_name: str, frozen: bool
    ) -> BackupJob:
        """Freeze if asked, backupBegin for all disks at once, thaw.

        Raises DomainBusy when any job is open already, CheckpointInconsistent for a lost bitmap,
        HypervisorFailed otherwise; a checkpoint made by a call that failed is removed again. An error's
        ``details["thawed"]`` is False where the thaw was not confirmed (``GUEST_THAWED``).
        """
        hold = _Hold()
        try:
            return self._guarded(vm_uuid, disks, checkpoint, socket_name, frozen, hold)
        except VaporError as error:
            error.details[GUEST_THAWED] = hold.confirmed
            raise

    def _guarded(
        self,
        vm_uuid: str,
        disks: Sequence[BackupDisk],
        checkpoint: str | None,
        socket_name: str,
        frozen: bool,
        hold: _Hold,
    ) -> BackupJob:
        _check_request(disks, checkpoint)
        with self._slow.domain(vm_uuid, "Could not look at the VM before its backup job") as dom:
            if not dom.isActive():
                raise HypervisorFailed("The VM is off: it has no backup job", fix="Read its images instead")
            _refuse_open_job(dom)
            known = {c.getName() for c in dom.listAllCheckpoints(0)} if checkpoint else set()
        if checkpoint in known:
            raise InvalidRequest(f"The checkpoint {checkpoint} exists already", fix="Names are never used again")
        try:
            return self._begin(vm_uuid, disks, checkpoint, socket_name, frozen, hold)
        except VaporError as error:
            if checkpoint:
                self._forget_checkpoint(vm_uuid, checkpoint)
            raise self._named(vm_uuid, error) from error

    def _begin(
        self,
        vm_uuid: str,
        disks: Sequence[BackupDisk],
        checkpoint: str | None,
        socket_name: str,
        frozen: bool,
        hold: _Hold,
    ) -> BackupJob:
        with self._slow.domain(vm_uuid, "libvirt did not begin the backup job") as dom:
            state, _reason = state_of(dom)
            live_xml = dom.XMLDesc(0)
            facts = parse_domain(live_xml)
            taking_part = {disk.target for disk in disks}
            without = [disk.target for disk in facts.disks if disk.target not in taking_part]
            path = backup_xml.socket_path(backup_xml.domain_dir(live_xml, dom.ID(), facts.name), socket_name)
            job_xml = backup_xml.backup_xml(path, disks, without)
            tracked = [disk.target for disk in disks if disk.with_checkpoint]
            others = [disk.target for disk in facts.disks if disk.target not in tracked]
            moment_xml = backup_xml.checkpoint_xml(checkpoint, tracked, without=others) if checkpoint else None
            flags = PRESERVE_SHUTDOWN_DOMAIN if self._slow.version() >= PRESERVE_SINCE else 0
            asked = frozen and state == "running" and facts.agent_connected
            frozen_s = 0.0
            with limited(dom) if asked else nullcontext():
                asked_at = time.monotonic()
                try:
                    if asked:
                        hold.confirmed = False
                        hold.frozen = freeze(dom)
                    begun_at = datetime.now(UTC)
                    dom.backupBegin(job_xml, moment_xml, flags)
                finally:
                    if asked:  # also after a freeze that timed out: the guest may freeze later [facts/libvirt 5]
                        hold.thawed = thaw(dom)
                        hold.confirmed = hold.thawed is not None
                if hold.frozen:
                    frozen_s = time.monotonic() - asked_at
        return BackupJob(
            vm_uuid=vm_uuid,
            socket_path=path,
            bitmaps=dict(backup_xml.bitmaps(disks)),
            checkpoint=checkpoint,
            frozen=hold.frozen and bool(hold.thawed),
            begun_at=begun_at,
            frozen_s=frozen_s,
            thawed=hold.confirmed,
        )

    def our_socket(self, vm_uuid: str) -> str | None:
        """Socket path of our open job, else None."""
        with self._link.domain(vm_uuid, "Could not look for a backup job") as dom:
            socket = _job_socket(dom)
        return socket if socket and backup_xml.is_ours(socket) else None

    def foreign(self, vm_uuid: str) -> str | None:
        """A sentence naming another tool's job on the VM, else None."""
        with self._link.domain(vm_uuid, "Could not look for other jobs on the VM") as dom:
            if not dom.isActive():
                return None
            socket = _job_socket(dom)
            if socket is not None:
                # No job statistics while a backup runs: they can crash libvirtd before 10.8 [facts/libvirt 9.1].
                return None if backup_xml.is_ours(socket) else _foreign_backup(dom, socket)
            return _async_job(dom) or _block_job(dom)

    def end(self, vm_uuid: str, only: str | None = None) -> None:
        """Abort our job and wait until it, its scratch files and its socket are gone. Idempotent.

        ``only``: the name of the socket that the job must have; one with another name is left alone.
        abortJob is a pull job's normal end. Raises DomainBusy when the open job is another tool's,
        HypervisorFailed when it does not end within 45 s.
        """
        with self._slow.domain(vm_uuid, "Could not end the backup job") as dom:
            socket = _job_socket(dom)
            if socket is None or (only is not None and PurePosixPath(socket).name != only):
                return
            if not backup_xml.is_ours(socket):
                raise DomainBusy("The open backup job is another tool's", why=socket or "a job without a socket")
            _abort(dom)
            deadline = time.monotonic() + END_DEADLINE_S
            pause_s = 0.002
            # libvirt drops the job's description last, after scratch and socket [qemu_backup.c].
            while _job_socket(dom) == socket:
                if time.monotonic() > deadline:
                    raise HypervisorFailed(
                        "The backup job did not end", why=f"still open after {END_DEADLINE_S:.0f} s"
                    )
                time.sleep(pause_s)
                pause_s = min(pause_s * 1.5, 0.1)

    def thaw(self, vm_uuid: str) -> bool:
        """Thaw the guest's file systems; True if any was frozen. False for a VM that is off.

        Raises DomainBusy for a paused one: its agent cannot answer, so nothing is known until it runs again.
        """
        with self._slow.domain(vm_uuid, "Could not thaw the guest") as dom:
            state = state_of(dom)[0]
            if state == "paused":
                raise DomainBusy("The guest cannot be thawed while it is paused", fix="It is tried again by itself")
            if state != "running":
                return False
            with limited(dom):
                return bool(thaw(dom, quiet=False))

    def _forget_checkpoint(self, vm_uuid: str, checkpoint: str) -> None:
        """backupBegin can fail after it made the checkpoint [facts/libvirt 0.5]."""
        try:
            if checkpoint in self._checkpoints.names(vm_uuid):
                self._checkpoints.delete(vm_uuid, checkpoint)
        except VaporError as error:  # the next cycle's reconcile finds it; the first error is the one to tell
            _log.warning("checkpoint %s of a failed job could not be removed: %s", checkpoint, error)

    def _named(self, vm_uuid: str, error: VaporError) -> VaporError:
        """A refusal that another job explains is DomainBusy, whatever code libvirt gave it."""
        if type(error) is not HypervisorFailed:
            return error
        try:
            foreign = self.foreign(vm_uuid)
        except VaporError as second:
            _log.warning("looking for the reason of a refusal failed too: %s", second)
            return error
        return error if foreign is None else DomainBusy(error.what, why=foreign)


def _check_request(disks: Sequence[BackupDisk], checkpoint: str | None) -> None:
    if not disks:
        raise InvalidRequest("A backup job needs at least one disk")
    if checkpoint is not None and not checkpoint.startswith(backup_xml.OURS):
        raise InvalidRequest(f"The checkpoint name {checkpoint!r} does not start with {backup_xml.OURS!r}")
    if checkpoint is not None and not any(disk.with_checkpoint for disk in disks):
        raise InvalidRequest("A checkpoint needs at least one disk that can hold a bitmap")


def _refuse_open_job(dom: Any) -> None:
    """Any of these would make backupBegin wait 30 s for the lock; a block job makes it fail at once by itself."""
    socket = _job_socket(dom)
    if socket is not None and backup_xml.is_ours(socket):
        raise DomainBusy("An earlier backup job of ours is still open", why=socket)
    foreign = _foreign_backup(dom, socket) if socket is not None else _async_job(dom)
    if foreign is not None:
        raise DomainBusy("Another job holds the VM", why=foreign)


def _foreign_backup(dom: Any, socket: str) -> str:
    return f"{dom.name()} {_JOBS[libvirt.VIR_DOMAIN_JOB_OPERATION_BACKUP]}" + (
        f" (socket {socket})" if socket else ""
    )


def _job_socket(dom: Any) -> str | None:
    """The socket of the open backup job ("" when it has none), None when no backup job is open."""
    try:
        return backup_xml.backup_facts(dom.backupGetXMLDesc(0))[0]
    except libvirt.libvirtError as error:
        if code_of(error) == NO_DOMAIN_BACKUP:
            return None
        raise


def _abort(dom: Any) -> None:
    try:
        dom.abortJob()
    except libvirt.libvirtError:
        if _job_socket(dom) is not None:
            raise
        # it ended between the look and the abort


def _async_job(dom: Any) -> str | None:
    try:
        stats = dom.jobStats(0)
    except libvirt.libvirtError as error:
        if code_of(error) == libvirt.VIR_ERR_INTERNAL_ERROR:  # asked only where libvirt knows of no backup job
            raise _lost(dom.name()) from error
        raise
    if stats.get("type", libvirt.VIR_DOMAIN_JOB_NONE) == libvirt.VIR_DOMAIN_JOB_NONE:
        return None
    return f"{dom.name()} {_JOBS.get(stats.get('operation'), 'has another job running')}"


def _lost(name: str) -> BackupJobLost:
    return BackupJobLost(
        f"libvirt holds a backup job of “{name}” that nothing can end",
        why="libvirtd ended while it began that job, and has lost its record",
        fix=f"On its host, with the VM running: stop libvirtd, delete the line “<job … async='backup' …/>” from "
        f"/run/libvirt/qemu/{name}.xml, start libvirtd. Or switch the VM off, restart libvirtd, start the VM",
    )


def _block_job(dom: Any) -> str | None:
    for disk in parse_domain(dom.XMLDesc(0)).disks:
        if disk.source_kind == "none":
            continue
        info = dom.blockJobInfo(disk.target, 0)
        if info:
            return f"A {_BLOCK_JOBS.get(info['type'], 'block job')} runs on {disk.target} of {dom.name()}"
    return None
