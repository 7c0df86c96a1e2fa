"""The repository on SQLite and on a real PostgreSQL server: the same behaviour, the same data back."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, time, timedelta, timezone
from pathlib import Path

import pytest
from store_postgres import new_database, postgres_server

from vapor_desktop.engine.ports import CycleRecord, EngineRow, Event, LiveRow, PointRow, Repository, RpoSample
from vapor_desktop.model.errors import Conflict, NotFound
from vapor_desktop.model.policy import Policy
from vapor_desktop.model.sites import Protection, Site
from vapor_desktop.model.states import Phase, Severity
from vapor_desktop.model.view import Alert
from vapor_desktop.model.wire import Progress
from vapor_desktop.store import SqlRepository

NOON = datetime(2026, 11, 22, 12, 0, 0, 123456, tzinfo=UTC)
_numbers = itertools.count()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgres_server() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/state/vapor.db"
    return new_database(request.getfixturevalue("server"), f"t{next(_numbers)}")


@pytest.fixture
def repo(url: str) -> Iterator[SqlRepository]:
    repository = SqlRepository(url)
    yield repository
    repository.close()


def site(site_id: str, name: str = "") -> Site:
    return Site(
        site_id=site_id,
        name=name or site_id,
        api_url="https://192.0.2.1:7770/api/v1",
        cert_pem="PEM",
        cert_sha256="ab" * 32,
        ssh_host="192.0.2.1",
        ssh_port=22,
        ssh_user="vapor",
        ssh_host_keys=("ssh-ed25519 AAAA",),
        replica_root="/var/lib/libvirt/images/vapor",
        paired_at=NOON,
    )


def protection(key: str = "p1") -> Protection:
    return Protection(
        protection_id=key,
        vm_uuid="vm-" + key,
        vm_name="web",
        source_site="a",
        target_site="b",
        policy=Policy(rpo_target_s=60, at_times=(time(3, 30),)),
        epoch_owner="a",
        created_at=NOON,
        warnings=("vdb is not protected",),
    )


def test_is_the_port(repo: SqlRepository) -> None:
    port: Repository = repo
    assert port.sites() == ()
    assert port.site("nobody") is None
    assert port.protection("nothing") is None
    assert port.clock("nobody") is None
    assert port.setting("nothing") is None
    assert port.take_command("e") is None
    assert port.live() == {}


def test_sites_and_pairs_come_back_as_saved_and_go_together(repo: SqlRepository) -> None:
    repo.save_site(site("b", "beta"))
    repo.save_site(site("a", "zulu"))
    repo.save_site(site("a", "alpha"))
    assert repo.sites() == (site("a", "alpha"), site("b", "beta"))
    assert repo.site("b") == site("b", "beta")
    repo.save_pair("b", "a", "direct")
    repo.save_pair("a", "b", "relay")
    assert repo.pairs() == (("b", "a", "relay"),)
    repo.save_clock("a", -0.25, 0.01, NOON)
    repo.save_clock("a", 0.5, 0.02, NOON)
    assert repo.clock("a") == (0.5, 0.02, NOON)
    repo.remove_site("a")
    assert repo.sites() == (site("b", "beta"),)
    assert repo.pairs() == ()
    assert repo.clock("a") is None
    with pytest.raises(NotFound):
        repo.save_pair("b", "gone", "direct")
    with pytest.raises(NotFound):
        repo.save_clock("gone", 0, 0, NOON)


def test_versions_of_a_protection_are_compared_and_set(repo: SqlRepository) -> None:
    first = repo.save_protection(protection())
    assert first == protection().model_copy(update={"version": 2})
    assert repo.protection("p1") == first
    second = repo.save_protection(first.model_copy(update={"phase": Phase.PROTECTED}), expect_version=2)
    assert second.version == 3
    with pytest.raises(Conflict) as caught:
        repo.save_protection(first.model_copy(update={"paused": True}), expect_version=2)
    assert caught.value.details == {"expected": 2, "stored": 3}
    assert repo.protection("p1") == second
    stale = repo.save_protection(first.model_copy(update={"paused": True}))
    assert (stale.version, stale.paused) == (4, True)
    repo.remove_protection("p1")
    with pytest.raises(Conflict):
        repo.save_protection(stale, expect_version=4)
    assert repo.protections() == ()


def test_of_many_writers_with_one_version_exactly_one_wins(repo: SqlRepository) -> None:
    saved = repo.save_protection(protection())
    barrier = threading.Barrier(8)
    outcomes: list[str] = []

    def write(name: str) -> None:
        barrier.wait()
        try:
            repo.save_protection(saved.model_copy(update={"vm_name": name}), expect_version=saved.version)
            outcomes.append(name)
        except Conflict:
            outcomes.append("conflict")

    threads = [threading.Thread(target=write, args=(f"w{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [name for name in outcomes if name != "conflict"]
    assert len(outcomes) == 8
    assert len(winners) == 1
    stored = repo.protection("p1")
    assert stored is not None
    assert stored.vm_name == winners[0]


def point(seq: int, **changes: object) -> PointRow:
    values: dict[str, object] = {
        "protection_id": "p1",
        "seq": seq,
        "taken_at": NOON + timedelta(minutes=seq),
        "current_as_of": NOON + timedelta(minutes=seq, seconds=30),
        "consistency": "crash-consistent",
        "bytes_sent": 5 * 2**40,
        "pins": ("user:keep", "drill:1"),
        "verified": True,
        "proven_at": None,
    }
    return PointRow(**{**values, **changes})  # type: ignore[arg-type]


def test_points_are_replaced_as_one_and_keep_five_tebibytes(repo: SqlRepository) -> None:
    repo.save_protection(protection())
    repo.replace_points("p1", [point(2, proven_at=NOON, verified=False), point(1)])
    assert repo.points("p1") == (point(1), point(2, proven_at=NOON, verified=False))
    repo.replace_points("p1", [point(3, pins=())])
    assert repo.points("p1") == (point(3, pins=()),)
    with pytest.raises(NotFound):
        repo.replace_points("gone", [point(1, protection_id="gone")])


def test_times_are_kept_as_utc_and_a_naive_one_is_refused(repo: SqlRepository) -> None:
    east = timezone(timedelta(hours=9))
    repo.save_protection(protection())
    repo.replace_points("p1", [point(1, taken_at=datetime(2026, 11, 22, 21, 0, tzinfo=east))])
    taken = repo.points("p1")[0].taken_at
    assert (taken, taken.utcoffset()) == (datetime(2026, 11, 22, 12, 0, tzinfo=UTC), timedelta(0))
    repo.add_rpo_samples([("p1", RpoSample(datetime(2026, 11, 22, 21, 0, tzinfo=east), 1.0, 60))])
    assert repo.rpo_samples("p1", NOON - timedelta(hours=1))[0].at == taken


def test_cycles_and_events_newest_first(repo: SqlRepository) -> None:
    repo.save_protection(protection())
    cycles = [
        CycleRecord("p1", NOON + timedelta(seconds=n), 0.5, "point", n, 2**40, 2**39, "delta") for n in range(3)
    ]
    failed = CycleRecord("p1", NOON + timedelta(hours=1), 3.0, "failed", None, 0, 0, "delta", "VM-BUSY", "busy")
    for record in [*cycles, failed]:
        repo.add_cycle(record)
    assert repo.cycles("p1") == (failed, *reversed(cycles))
    assert repo.cycles("p1", limit=1) == (failed,)
    with pytest.raises(NotFound):
        repo.add_cycle(CycleRecord("gone", NOON, 1, "failed", None, 0, 0, "full"))

    of_vm = Event(NOON, "rpo", "p1", None, 4, "RPO breached")
    of_site = Event(NOON + timedelta(seconds=1), "site", None, "a", 3, "unreachable")
    repo.add_event(of_vm)
    repo.add_event(of_site)
    assert repo.events() == (of_site, of_vm)
    assert repo.events("p1") == (of_vm,)
    repo.remove_protection("p1")
    assert repo.cycles("p1") == ()
    assert repo.events("p1") == (of_vm,)


def test_history_is_thinned(repo: SqlRepository) -> None:
    repo.save_protection(protection())
    old, new = (CycleRecord("p1", NOON - timedelta(days=d), 1, "point", 1, 0, 0, "delta") for d in (91, 89))
    repo.add_cycle(old)
    repo.add_cycle(new)
    repo.add_event(Event(NOON - timedelta(days=401), "x", None, None, 1, "old"))
    repo.thin_history(NOON)
    assert repo.cycles("p1") == (new,)
    assert repo.events() == ()


def test_live_rows_and_engines(repo: SqlRepository) -> None:
    repo.save_protection(protection())
    progress = Progress(done_bytes=1, total_bytes=5 * 2**40, rate_bytes_s=1.5, disk="vda", wire_bytes=2)
    busy = LiveRow("p1", NOON, progress, NOON, None, "running")
    repo.save_live([busy, LiveRow("gone", NOON, None, None, None, None)])
    assert repo.live() == {"p1": busy}
    idle = LiveRow("p1", NOON + timedelta(seconds=1), None, None, NOON + timedelta(minutes=1), None)
    repo.save_live([idle])
    assert repo.live() == {"p1": idle}

    repo.beat(EngineRow("e1", "desk", 42, "console", NOON))
    repo.beat(EngineRow("e2", "desk", 43, "service", NOON + timedelta(seconds=5)))
    repo.beat(EngineRow("e1", "desk", 42, "console", NOON + timedelta(seconds=9)))
    assert [e.engine_id for e in repo.engines()] == ["e1", "e2"]
    repo.drop_engine("e1")
    assert repo.engines() == (EngineRow("e2", "desk", 43, "service", NOON + timedelta(seconds=5)),)


def test_each_command_is_taken_once_whoever_asks(repo: SqlRepository, url: str) -> None:
    asked = [repo.ask("sync", {"protection": f"p{n}", "n": n}, "console", 30) for n in range(20)]
    other = SqlRepository(url)
    taken: dict[str, list[int]] = {"e0": [], "e1": [], "e2": [], "e3": []}
    barrier = threading.Barrier(4)

    def take(engine: str, through: SqlRepository) -> None:
        barrier.wait()
        while (command := through.take_command(engine)) is not None:
            taken[engine].append(command.command_id)

    threads = [threading.Thread(target=take, args=(f"e{n}", (repo, other)[n % 2])) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other.close()
    assert sorted(itertools.chain.from_iterable(taken.values())) == sorted(asked)


def test_a_command_is_answered(repo: SqlRepository) -> None:
    number = repo.ask("pause", {"protection": "p1"}, "vaporctl", 30)
    command = repo.take_command("e1")
    assert command is not None
    assert (command.verb, command.args, command.asked_by) == ("pause", {"protection": "p1"}, "vaporctl")
    assert repo.answer_of(number) is None
    repo.answer(number, None, {"code": "VM-BUSY"})
    assert repo.answer_of(number) == (None, {"code": "VM-BUSY"})
    done = repo.ask("pause", {}, "vaporctl", 30)
    repo.answer(done, {}, None)
    assert repo.answer_of(done) == ({}, None)
    with pytest.raises(NotFound):
        repo.answer(999, None, None)
    with pytest.raises(NotFound):
        repo.answer_of(999)


def test_settings(repo: SqlRepository) -> None:
    repo.set_setting("theme", "dark")
    repo.set_setting("theme", "light")
    assert repo.setting("theme") == "light"


def test_samples_are_rolled_up_the_worst_wins_and_a_gap_stays_a_gap(repo: SqlRepository) -> None:
    repo.save_protection(protection())
    long_ago = datetime(2026, 9, 1, 10, 0, tzinfo=UTC)
    days_ago = datetime(2026, 11, 19, 10, 0, tzinfo=UTC)
    fresh = NOON.replace(microsecond=0) - timedelta(minutes=10)
    repo.add_rpo_samples(
        [
            *(("p1", RpoSample(long_ago + timedelta(minutes=n), float(n), 1200)) for n in range(60)),
            *(("p1", RpoSample(days_ago + timedelta(seconds=10 * n), float(n % 30), 60)) for n in range(60)),
            ("p1", RpoSample(days_ago + timedelta(seconds=5), None, 60)),
            ("p1", RpoSample(days_ago + timedelta(minutes=20), None, 60)),
            ("p1", RpoSample(fresh, 7.0, 60)),
            ("gone", RpoSample(fresh, 7.0, 60)),
        ]
    )
    expected = (
        RpoSample(long_ago, 59.0, 1200, 3600.0),
        RpoSample(days_ago, 29.0, 60, 300.0),
        RpoSample(days_ago + timedelta(seconds=150), None, 60, 150.0),
        RpoSample(days_ago + timedelta(minutes=5), 29.0, 60, 300.0),
        RpoSample(days_ago + timedelta(minutes=20), None, 60, 300.0),
        RpoSample(fresh, 7.0, 60),
    )
    for _ in range(2):  # the second time changes nothing
        repo.thin_samples(NOON)
        assert repo.rpo_samples("p1", long_ago) == expected
    assert repo.rpo_samples("p1", fresh) == expected[-1:]
    # A straggler makes a bucket worse, never better.
    repo.add_rpo_samples(
        [("p1", RpoSample(days_ago + timedelta(seconds=s), v, 60)) for s, v in ((1, 3.0), (302, 99.0), (1201, 4.0))]
    )
    repo.thin_samples(NOON)
    bucket = {(s.at, s.rpo_s) for s in repo.rpo_samples("p1", days_ago)}
    assert (days_ago, 29.0) in bucket
    assert (days_ago + timedelta(minutes=5), 99.0) in bucket
    assert (days_ago + timedelta(minutes=20), 4.0) in bucket
    assert any(at > days_ago + timedelta(minutes=20) and rpo is None for at, rpo in bucket)
    repo.thin_samples(long_ago + timedelta(days=402))
    assert repo.rpo_samples("p1", long_ago)[0].at > long_ago


def test_a_bucket_that_was_looked_at_too_seldom_has_a_gap(repo: SqlRepository) -> None:
    repo.save_protection(protection())
    began = datetime(2026, 11, 19, 10, 0, tzinfo=UTC)
    looks = [began + timedelta(seconds=60 * n) for n in range(5)]  # as the engine looks, for a target of 20 min
    alone = began + timedelta(minutes=7)
    repo.add_rpo_samples([("p1", RpoSample(at, 9.0, 1200)) for at in (*looks, alone)])
    repo.thin_samples(NOON)
    second = began + timedelta(minutes=5)
    assert repo.rpo_samples("p1", began) == (
        RpoSample(began, 9.0, 1200, 300.0),
        RpoSample(second, 9.0, 1200, 300.0),
        RpoSample(second + timedelta(seconds=150), None, 1200, 150.0),
    )


def test_a_command_that_nobody_took_in_time_is_never_carried_out(repo: SqlRepository) -> None:
    old = repo.ask("failover", {}, "console", -1.0)
    assert repo.take_command("e") is None
    assert repo.answer_of(old) is None
    held = repo.ask("failover", {}, "console", 30)
    assert repo.withdraw(held)
    assert repo.take_command("e") is None
    taken = repo.ask("sync", {}, "console", 30)
    found = repo.take_command("e")
    assert found is not None
    assert found.command_id == taken
    assert not repo.withdraw(taken)


def test_alerts_outlive_the_engine_that_raised_them(repo: SqlRepository) -> None:
    now = datetime.now(UTC)
    first = Alert("rpo:p1", now, None, Severity.CRITICAL, "RPO breached: web", "It is 60 s old", "p1")
    repo.save_alerts({"rpo:p1": first})
    assert repo.alerts() == {"rpo:p1": first}
    closed = replace(first, closed_at=now)
    repo.save_alerts({"rpo:p1": closed, "site:a": replace(first, key="site:a", protection_id=None)})
    assert repo.alerts()["rpo:p1"] == closed
    repo.save_alerts({})
    assert repo.alerts() == {}
