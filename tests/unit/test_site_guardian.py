"""The guardian, the alarm and their events, with libvirt's edge played by a small host of our own."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from vapor_desktop.model.domains import DomainView
from vapor_desktop.model.errors import DomainNotFound, HypervisorUnreachable, InvalidRequest, NotFound
from vapor_desktop.model.manifest import Epoch, Manifest, PointEntry
from vapor_desktop.model.policy import Policy
from vapor_desktop.model.wire import ReplicaView, WatchFreeze, WatchJob
from vapor_desktop.site.guardian import RETRY_S, Guardian
from vapor_desktop.site.rpo_alarm import RpoAlarm
from vapor_desktop.site.settings import AlarmTargets
from vapor_desktop.site.site_events import EventLog, event
from vapor_desktop.site.watches import RESTART_GRACE_S, Watches

VM = "8f1d6f0e-2c0b-4f7a-9d52-0a3b6f1f2a11"
GIB = 1 << 30


class Host:
    """One VM on one libvirt: a job, a freeze, a pause; does what libvirt does, and can fail."""

    def __init__(self) -> None:
        self.job: str | None = "/var/lib/libvirt/qemu/domain-1-vm/vapor-x.sock"
        self.frozen = False
        self.state = "running"
        self.pause_reason: str | None = None
        self.errors: dict[str, str] = {}
        self.gone = self.unreachable = False
        self.free = 10 * GIB

    def _reach(self) -> None:
        if self.unreachable:
            raise HypervisorUnreachable("libvirt does not answer")
        if self.gone:
            raise DomainNotFound("no such VM")

    def our_job(self, vm_uuid: str) -> str | None:
        self._reach()
        return self.job

    def end_backup(self, vm_uuid: str) -> None:
        self._reach()
        self.job = None
        self.free = 10 * GIB

    def thaw(self, vm_uuid: str) -> bool:
        self._reach()
        was, self.frozen = self.frozen, False
        return was

    def resume(self, vm_uuid: str) -> None:
        self._reach()
        self.state, self.pause_reason, self.errors = "running", None, {}

    def pause(self, reason: str, **errors: str) -> None:
        self.state, self.pause_reason, self.errors = "paused", reason, errors

    def domain(self, vm_uuid: str) -> DomainView:
        self._reach()
        return DomainView(
            VM, "vm", self.state, self.pause_reason, True, False, (), (), (), False, None, None, False, "q35", True, 1
        )

    def disk_errors(self, vm_uuid: str) -> Mapping[str, str]:
        self._reach()
        return self.errors


class Rig:
    """A guardian whose clock stands still until it is moved."""

    def __init__(self, tmp_path: Path) -> None:
        self.path = tmp_path
        self.now = 5000.0
        self.host = Host()
        (tmp_path / "scratch").mkdir(exist_ok=True)
        self.restart()

    def restart(self) -> None:
        self.events = EventLog(self.path / "events.jsonl", AlarmTargets(), "alpha")
        self.watches = Watches(self.path / "watches", lambda: self.now)
        self.watches.load()
        self.guardian = Guardian(
            self.watches, self.host, self.events, free=lambda _: self.host.free, now_s=lambda: self.now
        )

    def watch(self, ttl_s: float = 60, reserve: int = GIB) -> None:
        scratch = str(self.path / "scratch")
        self.guardian.watch_job(
            VM, WatchJob(holder="engine-1", ttl_s=ttl_s, scratch_dir=scratch, reserve_bytes=reserve)
        )

    def look(self, seconds: float = 0) -> list[str]:
        """Let time pass, look once; the kinds of all events so far."""
        self.now += seconds
        self.guardian.tick()
        self.guardian.settle()
        return [item.what for item in self.events.since(None)]


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def test_a_renewed_job_is_left_alone_and_a_lapsed_one_is_ended(rig: Rig) -> None:
    rig.watch()
    assert rig.look(50) == []
    rig.watch()
    assert rig.look(50) == []
    assert rig.host.our_job(VM) is not None
    assert rig.look(11) == ["job-ended"]
    assert rig.host.our_job(VM) is None
    assert "engine-1 did not renew it for 60 s" in rig.events.since(None)[0].why
    assert rig.look(10) == ["job-ended"]


def test_a_job_that_the_engine_ended_is_not_looked_for(rig: Rig) -> None:
    rig.watch()
    rig.guardian.unwatch_job(VM)
    assert rig.look(3600) == []
    assert rig.host.job is not None


def test_nothing_of_ours_is_open(rig: Rig) -> None:
    rig.host.job = None
    rig.watch()
    assert rig.look(61) == []
    assert rig.watches.all() == {}


def test_scratch_below_its_reserve_ends_the_job_before_it_is_full(rig: Rig) -> None:
    rig.watch(reserve=2 * GIB)
    rig.host.free = 2 * GIB
    assert rig.look(1) == []
    rig.host.free -= 1
    assert rig.look(1) == ["job-ended"]
    assert rig.host.state == "running"


def test_a_guest_paused_by_our_full_scratch_runs_again(rig: Rig) -> None:
    rig.watch(reserve=0)
    rig.host.free = 4096
    rig.host.pause("ioerror", vda="no-space")
    assert rig.look(1) == ["job-ended", "resumed"]
    assert rig.host.state == "running"


@pytest.mark.parametrize(
    ("reason", "errors", "free"),
    [
        ("user", {"vda": "no-space"}, 0),  # a person paused it
        ("ioerror", {"vda": "unspecified"}, 0),  # another disk error
        ("ioerror", {"vda": "no-space"}, 10 * GIB),  # its own disk is full, not our scratch
    ],
)
def test_a_pause_that_is_not_ours_stays(rig: Rig, reason: str, errors: dict[str, str], free: int) -> None:
    rig.watch()
    rig.host.pause(reason, **errors)
    rig.host.free = free
    assert rig.look(61) == ["job-ended"]
    assert rig.host.state == "paused"


def test_libvirt_away_is_tried_again(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.watch()
    rig.host.unreachable = True
    assert rig.look(61) == []
    assert "will try again" in caplog.text
    rig.host.unreachable = False
    assert rig.look(RETRY_S / 2) == []
    assert rig.look(RETRY_S) == ["job-ended"]


def test_a_vm_that_is_gone_is_forgotten(rig: Rig) -> None:
    rig.watch()
    rig.host.gone = True
    assert rig.look(61) == []
    assert rig.watches.all() == {}


def test_a_freeze_taken_back_in_time(rig: Rig) -> None:
    rig.guardian.watch_freeze(VM, WatchFreeze(holder="e", deadline_s=20))
    rig.host.frozen = True
    assert rig.look(19) == []
    assert rig.guardian.unwatch_freeze(VM) is True
    assert rig.look(10) == []


def test_a_forgotten_freeze_is_thawed_and_told_late(rig: Rig) -> None:
    rig.guardian.watch_freeze(VM, WatchFreeze(holder="e", deadline_s=20))
    rig.host.frozen = True
    assert rig.look(21) == ["thawed"]
    assert not rig.host.frozen
    assert rig.look(10) == ["thawed"]
    assert rig.guardian.unwatch_freeze(VM) is False


def test_late_also_when_the_guardian_had_not_looked_yet(rig: Rig) -> None:
    rig.guardian.watch_freeze(VM, WatchFreeze(holder="e", deadline_s=20))
    rig.now += 20.5
    assert rig.guardian.unwatch_freeze(VM) is False


def test_a_thaw_that_fails_is_tried_until_it_works(rig: Rig) -> None:
    rig.guardian.watch_freeze(VM, WatchFreeze(holder="e", deadline_s=20))
    rig.host.frozen = rig.host.unreachable = True
    assert rig.look(21) == []
    rig.host.unreachable = False
    assert rig.look(RETRY_S + 0.1) == ["thawed"]


def test_the_watches_outlive_a_restart(rig: Rig) -> None:
    rig.watch()
    rig.guardian.watch_freeze(VM, WatchFreeze(holder="e", deadline_s=20))
    rig.host.frozen = True
    rig.now += 300
    rig.restart()
    assert rig.look() == ["thawed"]  # a freeze at once
    assert rig.host.job is not None  # nobody could renew while we were away
    assert rig.look(RESTART_GRACE_S + 1) == ["thawed", "job-ended"]
    rig.restart()
    assert [item.what for item in rig.events.since(None)] == ["thawed", "job-ended"]


def test_a_scratch_that_cannot_be_watched_is_refused(rig: Rig) -> None:
    with pytest.raises(InvalidRequest):
        rig.guardian.watch_job(VM, WatchJob(holder="e", scratch_dir="/nowhere", reserve_bytes=0))


def test_the_real_thread_thaws_on_its_own(tmp_path: Path) -> None:
    host = Host()
    host.frozen = True
    thawed = threading.Event()
    original = host.thaw

    def thaw(vm_uuid: str) -> bool:
        try:
            return original(vm_uuid)
        finally:
            thawed.set()

    host.thaw = thaw  # type: ignore[method-assign]
    guardian = Guardian(Watches(tmp_path / "w"), host, EventLog(tmp_path / "e", AlarmTargets(), "a"))
    guardian.start()
    guardian.watch_freeze(VM, WatchFreeze(holder="e", deadline_s=0.2))
    assert thawed.wait(5)
    guardian.stop()
    assert not host.frozen
    assert guardian.unwatch_freeze(VM) is False


def test_events_since_and_a_torn_last_line(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "e", AlarmTargets(), "alpha")
    log.add(event(VM, "thawed", "one"))
    middle = datetime.now(UTC)
    log.add(event(VM, "resumed", "two"))
    with (tmp_path / "e").open("ab") as stream:
        stream.write(b'{"at": "torn')
    again = EventLog(tmp_path / "e", AlarmTargets(), "alpha")
    assert [item.why for item in again.since(None)] == ["one", "two"]
    assert [item.why for item in again.since(middle)] == ["two"]
    again.add(event(VM, "resumed", "three"))
    last = EventLog(tmp_path / "e", AlarmTargets(), "alpha")
    assert [item.why for item in last.since(None)] == ["one", "two", "three"]


def replica(age_s: float, now: datetime, owner: str = "a", valid: bool = True) -> ReplicaView:
    at = now - timedelta(seconds=age_s)
    manifest = Manifest(
        vm_uuid=VM, vm_name="web", protection_id="p", source_site="a", target_site="b",
        epoch=Epoch(number=1, owner=owner), policy=Policy(rpo_target_s=60),
        points=(PointEntry(seq=1, taken_at=at, current_as_of=at, files={"vda": "x.qcow2"}),),
    )  # fmt: skip
    return ReplicaView(manifest=manifest, root="/r", used_bytes=0, incoming=None, files_in_chain=1, valid=valid)


def test_the_alarm_rings_once_per_episode_also_across_a_restart(tmp_path: Path) -> None:
    now = datetime(2026, 11, 22, 12, tzinfo=UTC)
    events = EventLog(tmp_path / "e", AlarmTargets(), "alpha")
    views: list[ReplicaView] = []

    def look() -> list[str]:
        RpoAlarm(lambda: views, events, tmp_path / "alarms.json", 1, lambda: now).look()
        return [item.what for item in events.since(None)]

    views[:] = [replica(60, now)]
    assert look() == []
    views[:] = [replica(61, now)]
    assert look() == ["rpo-alarm"]
    assert look() == ["rpo-alarm"]
    views[:] = [replica(5, now)]
    assert look() == ["rpo-alarm", "rpo-recovered"]
    views[:] = [replica(900, now, valid=False)]  # no age is judged, but that it cannot be read is told, once
    assert look()[2:] == ["rpo-alarm"]
    assert look()[2:] == ["rpo-alarm"]
    assert "read-only" in events.since(None)[2].why
    views[:] = [replica(900, now, owner="b")]  # taken over: no replication is due
    assert look()[2:] == ["rpo-alarm", "rpo-recovered"]
    assert "web is 61 s old here, promised are 60 s" in events.since(None)[0].why


def test_the_alarm_survives_a_store_that_cannot_be_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    asked = threading.Event()

    def broken() -> list[ReplicaView]:
        asked.set()
        raise NotFound("the replica root is not mounted")

    alarm = RpoAlarm(broken, EventLog(tmp_path / "e", AlarmTargets(), "a"), tmp_path / "s", 0.01)
    with caplog.at_level(logging.ERROR):
        alarm.start()
        assert asked.wait(5)
        alarm.stop()
    assert "not mounted" in caplog.text


def _receiver(got: list[dict[str, str]]) -> HTTPServer:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args: object) -> None: ...

    return HTTPServer(("127.0.0.1", 0), Handler)


def test_the_webhook_gets_the_event_and_a_dead_one_holds_nothing_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    got: list[dict[str, str]] = []
    with _receiver(got) as server:
        port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        log = EventLog(tmp_path / "e", AlarmTargets(webhook=f"http://127.0.0.1:{port}/hook"), "alpha")
        log.add(event(VM, "rpo-alarm", "too old"))
        log.close()
        server.shutdown()
        thread.join()
    assert [(item["site"], item["what"], item["why"]) for item in got] == [("alpha", "rpo-alarm", "too old")]
    dead = EventLog(tmp_path / "e2", AlarmTargets(webhook=f"http://127.0.0.1:{port}/hook"), "alpha")
    dead.add(event(VM, "rpo-alarm", "too old"))
    dead.close()
    assert "webhook did not take" in caplog.text
