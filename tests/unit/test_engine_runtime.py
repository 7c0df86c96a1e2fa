"""The loop on a real database, with a gateway whose sites do not answer: what is recorded, and what is not lost."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vapor_desktop.app import SystemClock
from vapor_desktop.engine import records
from vapor_desktop.engine.console import EngineBackend
from vapor_desktop.engine.ports import PointRow
from vapor_desktop.engine.runtime import Engine, new_identity
from vapor_desktop.lab.processes import wait_until
from vapor_desktop.model.errors import NotFound, SiteUnreachable, TokenRevoked, VaporError
from vapor_desktop.model.manifest import Epoch, Manifest
from vapor_desktop.model.operations import OperationState, StepState
from vapor_desktop.model.policy import Mappings, Policy
from vapor_desktop.model.sites import Protection, Site
from vapor_desktop.model.states import Phase, RpoHealth
from vapor_desktop.model.view import ProtectionStatus, SettingsEdit
from vapor_desktop.store.durable import DbosOperations
from vapor_desktop.store.repository import SqlRepository

CLOCK = SystemClock()


class DarkGateway:
    """Every site is unreachable, unless it says something else."""

    def __init__(self) -> None:
        self.crash = False
        self.says: VaporError | None = None
        self.asked, self.hang = threading.Event(), threading.Event()
        self.hang.set()

    def api(self, site: Site) -> Any:
        self.asked.set()
        self.hang.wait(20)
        if self.crash:
            raise ZeroDivisionError("a bug")
        raise self.says or SiteUnreachable(f"{site.name} does not answer")

    hypervisor = api

    def mover(self, source: Site, target: Site) -> Any:
        raise SiteUnreachable("no mover")

    def drop(self, site_id: str) -> None:
        """Nothing is open."""

    def close(self) -> None:
        """Nothing is open."""


def site(site_id: str) -> Site:
    return Site(
        site_id=site_id,
        name=f"site-{site_id}",
        api_url="https://192.0.2.1:7770/api/v1",
        cert_pem="",
        cert_sha256="",
        ssh_host="192.0.2.1",
        ssh_port=22,
        ssh_user="vapor",
        ssh_host_keys=(),
        replica_root="/r",
        paired_at=CLOCK.now(),
    )


@pytest.fixture
def gateway() -> DarkGateway:
    return DarkGateway()


@pytest.fixture
def engine(tmp_path: Path, gateway: DarkGateway) -> Iterator[Engine]:
    repository = SqlRepository(f"sqlite:///{tmp_path / 'v.db'}")
    for name in ("A", "B"):
        repository.save_site(site(name))
    repository.save_protection(
        Protection(
            protection_id="p1",
            vm_uuid="u1",
            vm_name="web",
            source_site="A",
            target_site="B",
            policy=Policy(rpo_target_s=10),
            epoch_owner="A",
            created_at=CLOCK.now(),
        )
    )
    durable = DbosOperations(f"sqlite:///{tmp_path / 'v.db'}")
    made = Engine(repository, gateway, CLOCK, new_identity("console", CLOCK), durable)
    thread = threading.Thread(target=made.run, daemon=True)
    thread.start()
    assert made.wait_active(10)
    yield made
    made.stop()
    thread.join(20)
    assert not thread.is_alive()
    repository.close()


@pytest.fixture
def backend(engine: Engine) -> EngineBackend:
    return EngineBackend(engine, None)  # type: ignore[arg-type]  # no test here pairs


def test_a_dark_source_is_said_and_unknown_is_not_zero(engine: Engine, backend: EngineBackend) -> None:
    wait_until(lambda: backend.snapshot().protections[0].protection.failures > 0, "a failure", timeout_s=20)
    [row] = backend.snapshot().protections
    assert row.protection.phase is Phase.SOURCE_UNREACHABLE
    assert row.rpo_now_s is None
    assert row.rpo_health is RpoHealth.NO_POINT
    assert row.protection.not_before is not None
    assert {b.key for b in backend.snapshot().banners} >= {"site:A", "site:B"}


class Target:
    """B answers one question: what its manifest says."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest

    def replica(self, vm_uuid: str) -> Any:
        return SimpleNamespace(manifest=self._manifest)

    def __getattr__(self, name: str) -> Any:
        raise SiteUnreachable(f"B does not answer {name}")


@pytest.mark.parametrize(("provisional", "phase"), [(2, Phase.PROVISIONAL), (0, Phase.FAILED_OVER)])
def test_with_a_dark_source_the_target_is_asked_who_owns_the_vm(
    engine: Engine, gateway: DarkGateway, monkeypatch: pytest.MonkeyPatch, provisional: int, phase: Phase
) -> None:
    """A person took it over on the target's own host, without a console."""
    told = Manifest(
        vm_uuid="u1",
        vm_name="web",
        protection_id="p1",
        source_site="A",
        target_site="B",
        epoch=Epoch(number=2, owner="B"),
        provisional=provisional,
    )
    dark = gateway.api
    monkeypatch.setattr(gateway, "api", lambda site: Target(told) if site.site_id == "B" else dark(site))

    def seen() -> bool:
        p = engine.repository.protection("p1")
        return p is not None and (p.phase, p.epoch_number, p.epoch_owner) == (phase, 2, "B")

    wait_until(seen, "what was done there", timeout_s=30)


def test_a_breach_opens_one_alert_and_a_known_age_grows(engine: Engine, backend: EngineBackend) -> None:
    old = CLOCK.now() - timedelta(seconds=60)
    engine.repository.replace_points("p1", [PointRow("p1", 1, old, old, "powered off", 1, (), True, None)])
    assert backend.snapshot().protections[0].rpo_now_s is None  # the target's clock was never measured
    engine.repository.save_clock("B", 0.0, 0.01, CLOCK.now())
    engine.forget_rows()
    wait_until(lambda: bool([a for a in backend.snapshot().alerts if a.key == "rpo:p1"]), "the alert", timeout_s=10)
    [row] = backend.snapshot().protections
    assert row.rpo_health is RpoHealth.BREACHED
    assert row.rpo_now_s is not None
    assert row.rpo_now_s >= 60


def test_a_bug_in_a_cycle_backs_off_like_any_failure(
    engine: Engine, backend: EngineBackend, gateway: DarkGateway
) -> None:
    gateway.crash = True
    backend.sync_now("p1")

    def backed_off() -> bool:  # asking for a cycle forgets an earlier wait; the failure sets a new one
        p = backend.snapshot().protections[0].protection
        return p.last_error_code == "UNEXPECTED" and p.not_before is not None

    wait_until(backed_off, "the back-off", timeout_s=20)


def test_a_site_that_refuses_us_is_not_called_silent(
    engine: Engine, backend: EngineBackend, gateway: DarkGateway
) -> None:
    """Nobody may conclude from a revoked token that the source is dead."""
    gateway.says = TokenRevoked("This token was revoked on the host")
    backend.look("A")
    [seen, _b] = backend.snapshot().sites
    assert (seen.reachable, seen.refuses, seen.error_code) == (False, True, "TOKEN-REVOKED")
    told = next(b.text for b in backend.snapshot().banners if b.key == "site:A")
    assert told.startswith("site-A cannot be used: This token was revoked")
    wait_until(lambda: any(a.key == "site:A" for a in backend.snapshot().alerts), "the alert", timeout_s=10)
    wait_until(
        lambda: any(a.title == "site-A cannot be used" for a in backend.snapshot().alerts), "its title", timeout_s=10
    )
    backend.sync_now("p1")
    wait_until(
        lambda: backend.snapshot().protections[0].protection.last_error_code == "TOKEN-REVOKED",
        "the cycle's error",
        timeout_s=20,
    )
    assert backend.snapshot().protections[0].protection.phase is Phase.ERROR


def test_a_cycle_that_hung_while_the_vm_was_failed_over_ends_unheard(
    engine: Engine, backend: EngineBackend, gateway: DarkGateway
) -> None:
    wait_until(lambda: backend.snapshot().protections[0].protection.failures > 0, "a failure", timeout_s=20)
    gateway.hang.clear()
    gateway.asked.clear()
    backend.sync_now("p1")
    assert gateway.asked.wait(20)
    records.update(engine.repository, "p1", records.failed_over(2, "B"))
    before = engine.repository.protection("p1")
    cycles = len(engine.repository.cycles("p1", 50))
    gateway.hang.set()
    wait_until(lambda: len(engine.repository.cycles("p1", 50)) > cycles, "the end of the cycle", timeout_s=20)
    wait_until(lambda: backend.snapshot().protections[0].cycle_started_at is None, "it is reaped", timeout_s=20)
    assert engine.repository.protection("p1") == before


def test_a_cycle_that_was_paused_as_it_began_leaves_the_row_paused(engine: Engine, backend: EngineBackend) -> None:
    """It had just said *syncing* when the person said *pause*."""
    wait_until(lambda: backend.snapshot().protections[0].protection.failures > 0, "a failure", timeout_s=20)
    backend.pause("p1")
    wait_until(lambda: backend.snapshot().protections[0].cycle_started_at is None, "no cycle", timeout_s=20)
    records.update(engine.repository, "p1", records.to_phase(Phase.SYNCING))
    cycles = len(engine.repository.cycles("p1", 50))
    backend.sync_now("p1")
    wait_until(lambda: len(engine.repository.cycles("p1", 50)) > cycles, "the end of the cycle", timeout_s=20)
    wait_until(lambda: backend.snapshot().protections[0].protection.phase is Phase.PAUSED, "paused", timeout_s=10)


def test_what_changes_while_rows_are_made_is_in_the_next_ones(
    engine: Engine, backend: EngineBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = engine._make_rows
    inside, go = threading.Event(), threading.Event()

    def slow() -> tuple[ProtectionStatus, ...]:
        rows = made()
        inside.set()
        assert go.wait(20)
        return rows

    monkeypatch.setattr(engine, "_make_rows", slow)
    engine.forget_rows()
    assert inside.wait(20)  # the loop has read the old state
    monkeypatch.setattr(engine, "_make_rows", made)
    backend.pause("p1")
    go.set()
    assert backend.snapshot().protections[0].protection.paused


def test_what_is_mended_is_tried_at_once(engine: Engine, backend: EngineBackend) -> None:
    wait_until(lambda: backend.snapshot().protections[0].protection.failures > 1, "failures", timeout_s=30)
    records.update(
        engine.repository,
        "p1",
        lambda p: p.model_copy(update={"not_before": CLOCK.now() + timedelta(hours=1), "failures": 9}),
    )
    engine.retry_soon({"somewhere else"})
    assert backend.snapshot().protections[0].protection.failures == 9
    engine.retry_soon({"B"})
    wait_until(lambda: backend.snapshot().protections[0].protection.failures > 9, "the next try", timeout_s=20)


def test_a_second_engine_on_the_database_only_looks(engine: Engine, tmp_path: Path) -> None:
    durable = DbosOperations(f"sqlite:///{tmp_path / 'v.db'}")
    second = Engine(engine.repository, DarkGateway(), CLOCK, new_identity("console", CLOCK), durable)
    thread = threading.Thread(target=second.run, daemon=True)
    thread.start()
    try:
        assert not second.wait_active(1.5)
        assert EngineBackend(second, None).snapshot().engine == "service"  # type: ignore[arg-type]
    finally:
        second.stop()
        thread.join(20)


def test_pause_resume_and_limits(backend: EngineBackend) -> None:
    backend.pause("p1")
    assert backend.snapshot().protections[0].protection.phase is Phase.PAUSED
    assert backend.snapshot().protections[0].next_due_at is None
    backend.resume("p1")
    assert not backend.snapshot().protections[0].protection.paused
    edit = SettingsEdit(1, Policy(rpo_target_s=60), Mappings())
    with pytest.raises(SiteUnreachable):  # the target's manifest is the truth: without it nothing is changed
        backend.edit("p1", edit)
    assert backend.snapshot().protections[0].protection.policy.rpo_target_s == 10
    with pytest.raises(NotFound):
        backend.pause("nothing")


def test_a_stand_by_tells_the_alerts_of_the_engine_that_acts(engine: Engine, tmp_path: Path) -> None:
    """The always-on set-up: vapor-engine acts, the console beside it must notify all the same."""
    old = CLOCK.now() - timedelta(seconds=60)
    engine.repository.replace_points("p1", [PointRow("p1", 1, old, old, "powered off", 1, (), True, None)])
    engine.repository.save_clock("B", 0.0, 0.01, CLOCK.now())
    durable = DbosOperations(f"sqlite:///{tmp_path / 'v.db'}")
    viewer = Engine(engine.repository, DarkGateway(), CLOCK, new_identity("console", CLOCK), durable)
    thread = threading.Thread(target=viewer.run, daemon=True)
    thread.start()
    try:
        desk = EngineBackend(viewer, None)  # type: ignore[arg-type]
        wait_until(lambda: bool([a for a in desk.snapshot().alerts if a.key == "rpo:p1"]), "the alert", timeout_s=10)
        assert not viewer.active
    finally:
        viewer.stop()
        thread.join(20)


def test_a_failover_that_fails_says_so_and_leaves_the_phase_truthful(engine: Engine, backend: EngineBackend) -> None:
    with pytest.raises(VaporError) as caught:
        backend.failover("p1", None, "the source is dark")
    assert caught.value.code == "SITE-UNREACHABLE"
    [operation] = backend.operations()
    assert operation.state is OperationState.FAILED
    assert operation.step("check").state is StepState.FAILED
    assert operation.step("take-over").state is StepState.PENDING
    assert backend.snapshot().protections[0].protection.phase is not Phase.FAILED_OVER


def test_a_damaged_point_is_an_alert(engine: Engine, backend: EngineBackend) -> None:
    now = CLOCK.now()
    engine.repository.replace_points("p1", [PointRow("p1", 1, now, now, "powered off", 1, (), False, None)])
    engine.forget_rows()
    wait_until(lambda: "mismatch:p1" in {a.key for a in backend.snapshot().alerts}, "the alert", timeout_s=10)
