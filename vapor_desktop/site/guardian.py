"""The guardian: no guest of this host stays frozen or paused because a console or an engine died.

It watches what the engine registers before it acts (DESIGN §5). It ends a backup job when nobody renews
it, or when the scratch space falls below its reserve; resumes a guest only when this job's full scratch
paused it; thaws a freeze after its deadline. It never touches a job whose socket is not ours.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol

from vapor_desktop.model.domains import DomainView, paused_by_scratch
from vapor_desktop.model.errors import DomainNotFound, InvalidRequest, VaporError
from vapor_desktop.model.wire import SCRATCH_FULL_BYTES, WatchFreeze, WatchJob
from vapor_desktop.site.leases import boot_time_s, vm_file_name
from vapor_desktop.site.site_events import EventLog, event
from vapor_desktop.site.watches import FreezeWatch, JobWatch, VmWatch, Watches

_log = logging.getLogger("vapor.guardian")

TICK_S = 1.0
RETRY_S = 3.0  # after an attempt that failed, or that found nothing to do
WORKERS = 8


class GuardedHypervisor(Protocol):
    """What the guardian needs of libvirt; ``LibvirtHypervisor`` has it."""

    def our_job(self, vm_uuid: str) -> str | None: ...
    def end_backup(self, vm_uuid: str) -> None: ...
    def thaw(self, vm_uuid: str) -> bool: ...
    def resume(self, vm_uuid: str) -> None: ...
    def domain(self, vm_uuid: str) -> DomainView: ...
    def disk_errors(self, vm_uuid: str) -> Mapping[str, str]: ...


def free_bytes(path: Path) -> int:
    """What an ordinary process may still write on the path's file system. Raises OSError."""
    room = os.statvfs(path)
    return room.f_bavail * room.f_frsize


class Guardian:
    """One thread that looks every second, and workers that act, so that one hanging guest delays no other."""

    def __init__(
        self,
        watches: Watches,
        hypervisor: GuardedHypervisor,
        events: EventLog,
        free: Callable[[Path], int] = free_bytes,
        now_s: Callable[[], float] = boot_time_s,
    ) -> None:
        self._watches = watches
        self._hypervisor = hypervisor
        self._events = events
        self._free = free
        self._now_s = now_s
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="guardian", daemon=True)
        self._workers = ThreadPoolExecutor(WORKERS, "guardian")
        self._busy: dict[tuple[str, str], Future[None]] = {}
        self._not_before: dict[tuple[str, str], float] = {}

    # --- what the API asks ---------------------------------------------------------------------------
    def watch_job(self, vm_uuid: str, watch: WatchJob) -> None:
        """Begin or renew. Raises InvalidRequest when the scratch directory is not there: it could not be watched."""
        if not Path(watch.scratch_dir).is_dir():
            raise InvalidRequest("The scratch directory does not exist on this host", why=watch.scratch_dir)
        job = JobWatch(watch, self._now_s() + watch.ttl_s)
        self._watches.change(vm_uuid, lambda old: replace(old, job=job))
        self._wake.set()

    def unwatch_job(self, vm_uuid: str) -> None:
        """The engine ended the job itself. Idempotent."""
        self._watches.change(vm_uuid, lambda old: replace(old, job=None))

    def watch_freeze(self, vm_uuid: str, watch: WatchFreeze) -> None:
        """Arm the dead-man thaw."""
        freeze = FreezeWatch(watch, self._now_s() + watch.deadline_s)
        self._not_before.pop((vm_file_name(vm_uuid), "freeze"), None)
        self._watches.change(vm_uuid, lambda old: replace(old, freeze=freeze))
        self._wake.set()

    def unwatch_freeze(self, vm_uuid: str) -> bool:
        """Disarm; True only when the deadline had not passed (else the point is crash-consistent)."""
        old = self._watches.change(vm_uuid, lambda old: replace(old, freeze=None)).freeze
        return old is not None and not old.thawed and self._now_s() <= old.ends_s

    # --- the thread ----------------------------------------------------------------------------------
    def start(self) -> None:
        """Read the watches of an earlier life and begin."""
        self._watches.load()
        self._thread.start()

    def stop(self) -> None:
        """End the thread; what is being done is finished first. The watches stay on file."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()
        self._workers.shutdown()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.tick()
            except OSError as error:
                _log.error("the watches cannot be written: %s", error)
            self._wake.wait(self._pause_s())
            self._wake.clear()

    def _pause_s(self) -> float:
        """Until the next deadline, at most a second: a freeze is thawed on time."""
        now = self._now_s()
        ends = [w.freeze.ends_s - now for w in self._watches.all().values() if w.freeze]
        return min([TICK_S, *(left + 0.005 for left in ends if left > 0)])

    def tick(self) -> None:
        """Look at every watch once; hand what is due to a worker."""
        now = self._now_s()
        for vm, watch in self._watches.all().items():
            if watch.freeze is not None and not watch.freeze.thawed and now > watch.freeze.ends_s:
                self._do(vm, "freeze", self._thaw)
            cause, reason = self._job_reason(watch, now)
            if reason:
                self._do(vm, "job", partial(self._end_job, why=reason, cause=cause))

    def settle(self) -> None:
        """Wait for everything handed to workers so far."""
        for future in list(self._busy.values()):
            future.result()

    def _job_reason(self, watch: VmWatch, now: float) -> tuple[str, str | None]:
        """(cause, why) to end the job; why is None when it may go on."""
        if watch.job is None:
            return "", None
        if now > watch.job.ends_s:
            return "lapsed", f"{watch.job.watch.holder} did not renew it for {watch.job.watch.ttl_s:.0f} s"
        return "scratch", self._scratch_trouble(watch.job)

    def _scratch_trouble(self, job: JobWatch) -> str | None:
        try:
            free = self._free(Path(job.watch.scratch_dir))
        except OSError as error:
            _log.error("the scratch directory %s cannot be watched: %s", job.watch.scratch_dir, error)
            return None
        reserve = max(job.watch.reserve_bytes, SCRATCH_FULL_BYTES)
        return f"the scratch space has {free} bytes left, its reserve is {reserve}" if free < reserve else None

    def _do(self, vm: str, what: str, act: Callable[[str], None]) -> None:
        """In a worker, once at a time per VM and kind, and not again right after."""
        key = vm, what
        running = self._busy.get(key)
        if (running is not None and not running.done()) or self._now_s() < self._not_before.get(key, 0.0):
            return
        self._not_before[key] = self._now_s() + RETRY_S
        self._busy[key] = self._workers.submit(self._act, vm, what, act)
        self._busy[key].add_done_callback(_report)

    def _act(self, vm: str, what: str, act: Callable[[str], None]) -> None:
        try:
            act(vm)
        except DomainNotFound:
            _log.info("VM %s is gone; nothing to guard any more", vm)
            self._watches.change(vm, lambda _old: VmWatch())
        except (VaporError, OSError) as error:
            _log.error("guarding the %s of VM %s failed, will try again: %s", what, vm, error)

    def _thaw(self, vm: str) -> None:
        """The guest first; that the point is late follows from the clock, on file or not."""
        watch = self._watches.get(vm).freeze
        if self._hypervisor.thaw(vm):
            self._events.add(event(vm, "thawed", "the freeze was not taken back before its deadline"))
        self._watches.change(vm, lambda old: _mark_thawed(old) if old.freeze == watch else old)  # not a newer freeze

    def _end_job(self, vm: str, why: str, cause: str) -> None:
        """End our job if it is there; then let the guest run if it was this job that stopped it."""
        if self._hypervisor.our_job(vm) is None:
            self._forget_if_lapsed(vm)
            return
        full = self._scratch_full(vm)
        errors = self._hypervisor.disk_errors(vm)
        self._hypervisor.end_backup(vm)
        self._events.add(event(vm, "job-ended", why, cause))
        if errors:
            self._resume(vm, errors, full)
        self._forget_if_lapsed(vm)

    def _scratch_full(self, vm: str) -> bool:
        """Looked at before the job ends: ending it frees the space."""
        job = self._watches.get(vm).job
        return job is not None and self._scratch_trouble(job) is not None

    def _resume(self, vm: str, errors: Mapping[str, str], full: bool) -> None:
        if paused_by_scratch(self._hypervisor.domain(vm), errors, scratch_low=full):
            self._hypervisor.resume(vm)
            why = f"it was paused because the job's scratch space was full ({', '.join(sorted(errors))})"
            self._events.add(event(vm, "resumed", why))

    def _forget_if_lapsed(self, vm: str) -> None:
        """A renewal that came meanwhile keeps its watch."""
        now = self._now_s()
        self._watches.change(
            vm_file_name(vm), lambda old: replace(old, job=None) if old.job and now > old.job.ends_s else old
        )


def _mark_thawed(old: VmWatch) -> VmWatch:
    return replace(old, freeze=replace(old.freeze, thawed=True)) if old.freeze else old


def _report(future: Future[None]) -> None:
    """An error that none of ours fits is a bug; it must not vanish with its worker."""
    error = future.exception()
    if error is not None:
        _log.error("the guardian failed unexpectedly", exc_info=error)
