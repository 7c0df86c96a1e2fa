"""A cycle's job at the source, with the real guardian and libvirt's edge played by a small host of our own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest

from vapor_desktop.engine.plan import CyclePlan, DiskPlan
from vapor_desktop.engine.ports import Hypervisor, SiteApi
from vapor_desktop.engine.source_job import FREEZE_DEADLINE_S, SourceJob, socket_name
from vapor_desktop.model.domains import GUEST_THAWED, BackupDisk, BackupJob, DomainView
from vapor_desktop.model.errors import (
    DomainBusy,
    HypervisorUnreachable,
    ScratchFull,
    SiteUnreachable,
    TransferInterrupted,
    VaporError,
)
from vapor_desktop.model.manifest import Consistency, DiskMode
from vapor_desktop.model.wire import GuardianEvent, ScratchSpace, WatchFreeze, WatchJob
from vapor_desktop.site.guardian import RETRY_S, Guardian
from vapor_desktop.site.settings import AlarmTargets
from vapor_desktop.site.site_events import EventLog
from vapor_desktop.site.watches import Watches

VM = "8f1d6f0e-2c0b-4f7a-9d52-0a3b6f1f2a11"
MINE, ANOTHER = "11111111-aaaa-4aaa-8aaa-aaaaaaaaaaaa", "22222222-bbbb-4bbb-8bbb-bbbbbbbbbbbb"
GIB = 1 << 30


class Host:
    """One VM behind one libvirt that two clients reach by ways of their own: the engine's can be cut."""

    def __init__(self) -> None:
        self.frozen = False
        self.sockets: list[str] = []
        self.state, self.pause_reason = "running", cast("str | None", None)
        self.errors: dict[str, str] = {}
        self.free = 10 * GIB


class Libvirt:
    """What one client sees. ``at_begin`` is what happens between freeze and thaw."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.cut = False
        self.agent_silent = False  # the thaw times out once
        self.at_begin: Callable[[], None] = lambda: None

    def _reach(self) -> None:
        if self.cut:
            raise HypervisorUnreachable("the connection is gone")

    def begin_backup(
        self, vm_uuid: str, disks: Sequence[BackupDisk], checkpoint: str | None, socket: str, freeze: bool
    ) -> BackupJob:
        self._reach()
        self.host.frozen = freeze
        confirmed = not freeze
        try:
            self.at_begin()
            self._reach()
            self.host.sockets.append(f"/var/lib/libvirt/qemu/domain-1-vm/{socket}")
            if freeze and not self.agent_silent:
                self.host.frozen, confirmed = False, True
        except VaporError as error:
            if freeze and not self.cut:
                self.host.frozen, confirmed = False, True
            error.details[GUEST_THAWED] = confirmed
            raise
        finally:
            self.agent_silent = False
        path = self.host.sockets[-1]
        return BackupJob(VM, path, {}, checkpoint, freeze and confirmed, datetime.now(UTC), 0.1, confirmed)

    def our_job(self, vm_uuid: str) -> str | None:
        self._reach()
        return self.host.sockets[-1] if self.host.sockets else None

    def foreign_job(self, vm_uuid: str) -> str | None:
        self._reach()
        return None

    def end_backup(self, vm_uuid: str, only: str | None = None) -> None:
        self._reach()
        if self.host.sockets and (only is None or self.host.sockets[-1].endswith(f"/{only}")):
            self.host.sockets.pop()
            self.host.free = 10 * GIB

    def thaw(self, vm_uuid: str) -> bool:
        self._reach()
        was, self.host.frozen = self.host.frozen, False
        return was

    def resume(self, vm_uuid: str) -> None:
        self._reach()
        self.host.state, self.host.pause_reason, self.host.errors = "running", None, {}

    def disk_errors(self, vm_uuid: str) -> Mapping[str, str]:
        self._reach()
        return dict(self.host.errors)

    def domain(self, vm_uuid: str) -> DomainView:
        self._reach()
        host = self.host
        return DomainView(
            VM, "vm", host.state, host.pause_reason, True, False, (), (), (), False, None, None, False, "q35", True, 1
        )  # fmt: skip


class Api:
    """The site's guardian as its API offers it; can be cut."""

    def __init__(self, guardian: Guardian, host: Host, scratch: Path) -> None:
        self.guardian, self.host, self.path = guardian, host, scratch
        self.cut = False

    def _reach(self) -> None:
        if self.cut:
            raise SiteUnreachable("no answer")

    def watch_job(self, vm_uuid: str, watch: WatchJob) -> None:
        self._reach()
        self.guardian.watch_job(vm_uuid, watch)

    def unwatch_job(self, vm_uuid: str) -> None:
        self._reach()
        self.guardian.unwatch_job(vm_uuid)

    def watch_freeze(self, vm_uuid: str, watch: WatchFreeze) -> None:
        self._reach()
        self.guardian.watch_freeze(vm_uuid, watch)

    def unwatch_freeze(self, vm_uuid: str) -> bool:
        self._reach()
        return self.guardian.unwatch_freeze(vm_uuid)

    def guardian_events(self, since: datetime | None) -> Sequence[GuardianEvent]:
        self._reach()
        return self.guardian._events.since(since)

    def scratch(self) -> ScratchSpace:
        self._reach()
        return ScratchSpace(
            path=str(self.path), free_bytes=self.host.free, reserve_bytes=GIB, at=datetime.now(UTC)
        )  # fmt: skip


class Rig:
    """The engine's job, and a guardian whose clock stands still until it is moved."""

    def __init__(self, tmp_path: Path) -> None:
        scratch = tmp_path / "scratch"
        scratch.mkdir()
        self.now = 5000.0
        self.host = Host()
        self.near, self.far = Libvirt(self.host), Libvirt(self.host)  # the guardian's way, the engine's way
        self.watches = Watches(tmp_path / "watches", lambda: self.now)
        self.events = EventLog(tmp_path / "events", AlarmTargets(), "alpha")
        self.guardian = Guardian(
            self.watches, self.near, self.events, free=lambda _: self.host.free, now_s=lambda: self.now
        )
        self.api = Api(self.guardian, self.host, scratch)
        self.job = self.job_of(MINE)

    def job_of(self, protection_id: str) -> SourceJob:
        api, far = cast("SiteApi", self.api), cast("Hypervisor", self.far)
        return SourceJob(api, far, VM, "vm", protection_id, f"engine/{protection_id}", str(self.api.path), GIB)

    def look(self, seconds: float = 0.0) -> list[str]:
        self.now += seconds
        self.guardian.tick()
        self.guardian.settle()
        return [item.what for item in self.events.since(None)]


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def plan() -> CyclePlan:
    disk = DiskPlan("vda", GIB, DiskMode.FULL, None, True, "first copy")
    return CyclePlan(1, None, "vapor-11111111-1-000001-aaaaaa", (disk,), (), True, False, False, ())


def test_a_confirmed_thaw_disarms_the_dead_man(rig: Rig) -> None:
    with rig.job.open(plan(), freeze=True) as (job, consistency):
        assert consistency is Consistency.FILESYSTEM
        assert job.socket_path.endswith("/vapor-11111111.sock")
        assert rig.watches.get(VM).freeze is None
        rig.job.end()
    assert rig.look(FREEZE_DEADLINE_S + 1) == []
    assert rig.watches.all() == {}


def test_the_connection_dies_inside_the_freeze_and_the_host_thaws_at_once(rig: Rig) -> None:
    def die() -> None:
        rig.far.cut = True

    rig.far.at_begin = die
    with pytest.raises(HypervisorUnreachable), rig.job.open(plan(), freeze=True):
        raise AssertionError("the job cannot be open")
    assert rig.host.frozen
    assert rig.look(0.1) == ["thawed"]
    assert not rig.host.frozen


def test_nothing_answers_any_more_and_the_host_thaws_by_its_first_deadline(rig: Rig) -> None:
    def die() -> None:
        rig.far.cut = rig.api.cut = True

    rig.far.at_begin = die
    with pytest.raises(HypervisorUnreachable), rig.job.open(plan(), freeze=True):
        raise AssertionError("the job cannot be open")
    assert rig.look(FREEZE_DEADLINE_S - 1) == []
    assert rig.look(1.1) == ["thawed"]
    assert not rig.host.frozen


def test_a_thaw_that_timed_out_is_repeated_by_the_host_and_the_point_is_crash_consistent(rig: Rig) -> None:
    rig.far.agent_silent = True
    with rig.job.open(plan(), freeze=True) as (job, consistency):
        assert not job.thawed
        assert consistency is Consistency.CRASH
        rig.near.cut = True  # the host's libvirt does not answer either, for now
        assert rig.look(0.1) == []
        rig.near.cut = False
        assert rig.look(RETRY_S + 0.1) == ["thawed"]
        rig.job.end()
    assert not rig.host.frozen


def test_a_bug_of_ours_inside_the_freeze_leaves_the_dead_man_armed(rig: Rig) -> None:
    def bug() -> None:
        raise ZeroDivisionError

    rig.far.at_begin = bug
    with pytest.raises(ZeroDivisionError), rig.job.open(plan(), freeze=True):
        raise AssertionError("the job cannot be open")
    assert rig.look(FREEZE_DEADLINE_S + 0.1) == ["thawed"]


def test_a_refused_begin_whose_guest_is_free_disarms(rig: Rig) -> None:
    def busy() -> None:
        raise DomainBusy("another job holds the VM")

    rig.far.at_begin = busy
    with pytest.raises(DomainBusy), rig.job.open(plan(), freeze=True):
        raise AssertionError("the job cannot be open")
    rig.host.frozen = True  # by another tool, since: not ours to thaw
    assert rig.look(FREEZE_DEADLINE_S + 1) == []
    assert rig.host.frozen


def test_a_thaw_of_an_old_freeze_does_not_disarm_a_new_one(rig: Rig) -> None:
    rig.guardian.watch_freeze(VM, WatchFreeze(holder="gone", deadline_s=1))
    thaw = rig.near.thaw

    def thaw_while_another_begins(vm_uuid: str) -> bool:
        was = thaw(vm_uuid)
        rig.guardian.watch_freeze(VM, WatchFreeze(holder="new", deadline_s=20))
        rig.near.thaw = thaw  # type: ignore[method-assign]
        return was

    rig.near.thaw = thaw_while_another_begins  # type: ignore[method-assign]
    rig.host.frozen = True
    assert rig.look(2) == ["thawed"]
    rig.host.frozen = True
    assert rig.look(21) == ["thawed", "thawed"]
    assert not rig.host.frozen


# --- a guest that the job's full scratch stopped -------------------------------------------------------
def stop_guest(rig: Rig, reason: str = "ioerror", free: int = 4096, **errors: str) -> None:
    rig.host.state, rig.host.pause_reason, rig.host.errors, rig.host.free = "paused", reason, errors, free


def test_the_engine_resumes_a_guest_that_its_job_stopped_within_the_guardians_second(rig: Rig) -> None:
    with rig.job.open(plan(), freeze=False):
        stop_guest(rig, vda="no-space")
        rig.job.end()
    assert rig.host.state == "running"
    assert rig.look(5) == []


def test_the_engine_resumes_it_after_a_failed_cycle_too(rig: Rig) -> None:
    def lose_the_target() -> None:
        stop_guest(rig, vda="no-space")
        raise SiteUnreachable("the target is gone")

    with pytest.raises(SiteUnreachable), rig.job.open(plan(), freeze=False):
        lose_the_target()
    assert rig.host.state == "running"


def test_a_dead_engines_job_that_stopped_the_guest_is_ended_and_the_guest_runs(rig: Rig) -> None:
    rig.far.begin_backup(VM, [], None, socket_name(MINE), False)
    stop_guest(rig, vda="no-space")
    rig.job.clear_leftovers()
    assert rig.host.sockets == []
    assert rig.host.state == "running"


@pytest.mark.parametrize(
    ("reason", "errors", "free"),
    [
        ("user", {"vda": "no-space"}, 0),  # a person paused it
        ("ioerror", {"vda": "unspecified"}, 0),  # another disk error
        ("ioerror", {"vda": "no-space"}, 10 * GIB),  # its own disk is full, not our scratch
    ],
)
def test_the_engine_leaves_a_pause_that_is_not_its_jobs(
    rig: Rig, reason: str, errors: dict[str, str], free: int
) -> None:
    with rig.job.open(plan(), freeze=False):
        stop_guest(rig, reason, free, **errors)
        rig.job.end()
    assert rig.host.state == "paused"


# --- the guardian's word --------------------------------------------------------------------------------
def test_no_job_begins_where_the_scratch_is_below_its_reserve(rig: Rig) -> None:
    rig.host.free = GIB - 1
    with pytest.raises(ScratchFull, match="1023 MiB are free"), rig.job.open(plan(), freeze=True):
        raise AssertionError("the job cannot be open")
    assert rig.host.sockets == []
    assert rig.watches.all() == {}


def test_a_job_that_the_guardian_ended_for_its_scratch_fails_with_that_word(rig: Rig) -> None:
    def go_on() -> None:
        rig.host.free = GIB - 1
        assert rig.look(1) == ["job-ended"]
        raise TransferInterrupted("The export broke off")

    with pytest.raises(ScratchFull, match="its reserve is"), rig.job.open(plan(), freeze=False):
        go_on()


def test_a_job_that_nobody_renewed_fails_with_that_word(rig: Rig) -> None:
    def go_on() -> None:
        assert rig.look(61) == ["job-ended"]
        raise TransferInterrupted("The export broke off")

    with pytest.raises(TransferInterrupted, match="did not renew"), rig.job.open(plan(), freeze=False):
        go_on()


def test_an_error_that_is_not_the_guardians_doing_keeps_its_own_words(rig: Rig) -> None:
    rig.guardian.watch_job(ANOTHER, WatchJob(holder="e", ttl_s=1, scratch_dir=str(rig.api.path), reserve_bytes=GIB))
    rig.host.sockets.append("/vapor-of-another-vm.sock")
    assert rig.look(2) == ["job-ended"]

    def go_on() -> None:
        raise TransferInterrupted("The export broke off")

    with pytest.raises(TransferInterrupted, match="broke off"), rig.job.open(plan(), freeze=False):
        go_on()


# --- two consoles, one VM -------------------------------------------------------------------------------
def test_another_consoles_job_is_not_ended(rig: Rig) -> None:
    other: Any = rig.job_of(ANOTHER)
    with rig.job.open(plan(), freeze=False) as (job, _):
        with pytest.raises(DomainBusy, match="Another console"):
            other.clear_leftovers()
        other._end_job()
        assert rig.host.sockets == [job.socket_path]
        rig.job.end()
    other.clear_leftovers()
    assert rig.host.sockets == []
