"""The engine arms the start guard of a real site over its real API: once, and again when something changed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from site_server import SiteServer, running_site

from vapor_desktop.engine.guarding import RETRY_S, GuardArmer
from vapor_desktop.engine.sitewatch import Seen, SiteWatch
from vapor_desktop.model.errors import SiteUnreachable
from vapor_desktop.model.manifest import Epoch, Manifest, PointEntry
from vapor_desktop.model.policy import Policy, StartGuard
from vapor_desktop.model.sites import Protection, Site
from vapor_desktop.model.states import Phase
from vapor_desktop.model.wire import GuardRecord, GuardState, LeaseRequest
from vapor_desktop.site.audit import AuditLog
from vapor_desktop.site.guard_book import GuardBook
from vapor_desktop.site.settings import SiteSettings
from vapor_desktop.store.repository import SqlRepository
from vapor_desktop.transport.api_client import HttpSiteApi

B = "bbbbbbbb-0000-4000-8000-000000000000"
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


class StepClock:
    """Goes on when told."""

    def __init__(self) -> None:
        self.passed_s = 0.0

    def now(self) -> datetime:
        return NOW + timedelta(seconds=self.passed_s)

    def monotonic(self) -> float:
        return 1000.0 + self.passed_s


class OneSite:
    """A gateway to the real site; None when it is dark."""

    def __init__(self, api: HttpSiteApi) -> None:
        self.real = api
        self.dark = False

    def api(self, site: Site) -> Any:
        if self.dark:
            raise SiteUnreachable(f"{site.name} does not answer")
        return self.real


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SiteServer]:
    with running_site(tmp_path_factory.mktemp("site")) as running:
        yield running


class Bench:
    """An engine's parts around the armer."""

    def __init__(self, server: SiteServer, directory: Path) -> None:
        client, answer = server.paired()
        client.close()
        self.api = HttpSiteApi(server.url, (server.state / "tls/cert.pem").read_text(), lambda: answer["token"])
        self.gateway = OneSite(self.api)
        self.clock = StepClock()
        self.repository = SqlRepository(f"sqlite:///{directory / 'v.db'}")
        self.identity = self.api.identity()[0]
        self.here = self.identity.site_id
        for site_id, name in ((self.here, "site-a"), (B, "site-b")):
            self.repository.save_site(_site(site_id, name, server.url))
        self.sites = SiteWatch(self.repository, self.gateway, self.clock)  # type: ignore[arg-type]
        self.vm = str(uuid4())
        self.protection = Protection(
            protection_id=str(uuid4()), vm_uuid=self.vm, vm_name="web01", source_site=self.here, target_site=B,
            policy=Policy(), epoch_owner=self.here, created_at=NOW,
        )  # fmt: skip
        self.protection = self.repository.save_protection(self.protection)
        self.book = GuardBook(SiteSettings(state_dir=server.state), AuditLog(server.state / "audit.log"))
        self.audit = server.state / "audit.log"
        self.fresh()
        self.seen()

    def fresh(self) -> None:
        """Another life of the engine."""
        self.armer = GuardArmer(
            self.repository, self.gateway, self.sites, self.clock, "engine", "desk"  # type: ignore[arg-type]
        )  # fmt: skip

    def seen(self, reachable: bool = True, boot_id: str | None = None) -> None:
        """As the last look at the source found it."""
        [row, _] = self.sites.statuses(list(self.repository.sites()), {})
        identity = self.identity.model_copy(update={"boot_id": boot_id} if boot_id else {})
        self.sites._seen[self.here] = Seen(replace(row, reachable=reachable), identity, (), None)

    def manifest(self, number: int = 1, points: int = 1, owner: str = "") -> Manifest:
        entries = tuple(
            PointEntry(seq=n + 1, taken_at=NOW, current_as_of=NOW, files={"vda": f"{n}.qcow2"}) for n in range(points)
        )
        return Manifest(
            vm_uuid=self.vm, vm_name="web01", protection_id="p", source_site=self.here, target_site=B,
            epoch=Epoch(number=number, owner=owner or self.here), points=entries,
        )  # fmt: skip

    @property
    def record(self) -> GuardRecord | None:
        return self.api.guard(self.vm)

    def arms(self) -> int:
        lines = [json.loads(line) for line in self.audit.read_text().splitlines()]
        return sum(item["act"] == "guard-arm" and item["after"]["vm_uuid"] == self.vm for item in lines)

    def notes(self) -> list[str]:
        return [event.text for event in self.repository.events(self.protection.protection_id)]


def _site(site_id: str, name: str, url: str) -> Site:
    return Site(
        site_id=site_id, name=name, api_url=url, cert_pem="", cert_sha256="", ssh_host="127.0.0.1", ssh_port=22,
        ssh_user="vapor", ssh_host_keys=(), replica_root="/r", paired_at=NOW,
    )  # fmt: skip


@pytest.fixture
def bench(server: SiteServer, tmp_path: Path) -> Iterator[Bench]:
    made = Bench(server, tmp_path)
    yield made
    made.api.close()
    made.repository.close()


def test_the_first_point_arms_and_the_next_ones_cost_nothing(bench: Bench) -> None:
    bench.armer.after_cycle(bench.protection, bench.manifest(points=0))
    assert bench.record is None  # nothing there that another site could start
    bench.clock.passed_s += RETRY_S
    bench.armer.after_cycle(bench.protection, bench.manifest())
    record = bench.record
    assert record is not None
    assert (record.state, record.epoch.number, record.peer_site) == (GuardState.OWN, 1, B)
    assert record.confirmed_boot_id == bench.identity.boot_id
    assert record.reason == "protected to site-b"
    bench.gateway.dark = True  # a call would raise
    bench.armer.after_cycle(bench.protection, bench.manifest(points=2))
    bench.gateway.dark = False
    bench.fresh()
    bench.armer.after_cycle(bench.protection, bench.manifest())
    assert bench.arms() == 1
    assert bench.api.lease(bench.vm) is None  # it is given back


def test_a_new_epoch_a_new_policy_and_a_new_boot_arm_again(bench: Bench) -> None:
    bench.armer.after_cycle(bench.protection, bench.manifest())
    bench.armer.after_cycle(bench.protection, bench.manifest(number=3))
    assert bench.record is not None
    assert bench.record.epoch.number == 3
    daring = bench.protection.model_copy(update={"policy": Policy(start_guard=StartGuard.START)})
    bench.armer.after_cycle(daring, bench.manifest(number=3))
    assert bench.record.policy is StartGuard.START
    file = bench.book.get(bench.vm).model_copy(update={"confirmed_boot_id": "an older boot"})
    bench.book.change(bench.vm, lambda _old: file, "test")
    bench.seen(boot_id="an older boot")  # the last look was before the boot: its word is not for this one
    bench.armer.after_cycle(daring, bench.manifest(number=3))
    assert bench.record.confirmed_boot_id == "an older boot"
    bench.seen()
    bench.armer.after_cycle(daring, bench.manifest(number=3))
    assert bench.record.confirmed_boot_id == bench.identity.boot_id


def test_a_dark_source_is_tried_later_and_not_at_every_cycle(bench: Bench) -> None:
    bench.gateway.dark = True
    bench.armer.after_cycle(bench.protection, bench.manifest())
    bench.gateway.dark = False
    bench.armer.after_cycle(bench.protection, bench.manifest())
    assert bench.record is None
    bench.clock.passed_s += RETRY_S
    bench.armer.after_cycle(bench.protection, bench.manifest())
    assert bench.record is not None


def test_somebody_who_holds_the_lease_is_not_disturbed(bench: Bench) -> None:
    request = LeaseRequest(holder="migration", holder_name="desk", purpose="planned migration")
    lease = bench.api.acquire_lease(bench.vm, request)
    bench.armer.after_cycle(bench.protection, bench.manifest())
    assert bench.record is None
    bench.api.release_lease(bench.vm, lease.fence)


def test_an_override_stands_and_is_told_once(bench: Bench) -> None:
    bench.armer.after_cycle(bench.protection, bench.manifest())
    bench.book.override(bench.vm, "site b burnt down", None)
    for _ in range(2):
        bench.fresh()
        bench.armer.after_cycle(bench.protection, bench.manifest())
        bench.armer.after_cycle(bench.protection, bench.manifest())
    assert bench.record is not None
    assert bench.record.epoch.number == 2
    assert sum("was not armed again" in text for text in bench.notes()) == 2  # once in each life


def test_the_host_that_lost_a_vm_hears_of_it(bench: Bench) -> None:
    bench.armer.after_cycle(bench.protection, bench.manifest())
    change = {"phase": Phase.FAILED_OVER, "epoch_number": 2, "epoch_owner": B}
    lost = bench.protection.model_copy(update=change)
    bench.seen(reachable=False)
    bench.armer.tell_lost([lost])
    assert bench.record is not None
    assert bench.record.state is GuardState.OWN
    bench.seen()
    for _ in range(2):
        bench.armer.tell_lost([lost])
        bench.armer.tell_lost([lost])
        bench.fresh()
    assert (bench.record.state, bench.record.epoch) == (GuardState.OTHERS, Epoch(number=2, owner=B))
    assert sum("will not start" in text for text in bench.notes()) == 1
    bench.armer.tell_lost([bench.protection])  # not lost at all
    assert bench.record.state is GuardState.OTHERS


def test_unprotected_is_unguarded_unless_it_is_anothers(bench: Bench) -> None:
    bench.armer.release(bench.protection)  # never armed
    bench.armer.after_cycle(bench.protection, bench.manifest())
    bench.armer.release(bench.protection)
    assert bench.record is None
    lost = bench.protection.model_copy(update={"epoch_number": 2, "epoch_owner": B})
    bench.armer.tell_lost([lost])
    bench.armer.release(lost)
    assert bench.record is not None
    assert any("goes on refusing" in text for text in bench.notes())
