"""Plans between consoles and the sites that keep them: the sites' own books, two databases, a site that is away."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from vapor_desktop.app import SystemClock
from vapor_desktop.engine.recovery_plans import RecoveryPlans
from vapor_desktop.engine.worker import EngineIdentity
from vapor_desktop.model.errors import EditOutdated, InvalidRequest, NotFound, SiteUnreachable
from vapor_desktop.model.plans import Plan, PlanVm, Tier
from vapor_desktop.model.policy import Policy
from vapor_desktop.model.sites import Protection, Site
from vapor_desktop.model.wire import PlanWrite
from vapor_desktop.site.plan_book import PlanBook
from vapor_desktop.store.repository import SqlRepository

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


class Sites:
    """A is where the VMs run; B and C are targets. Each keeps its plans in a book of its own."""

    def __init__(self, folder: Path) -> None:
        self.books = {name: PlanBook(folder / name) for name in "ABC"}
        self.away: set[str] = set()
        self.asked: list[str] = []

    def api(self, site: Site) -> Any:
        return _Api(self, site.site_id)

    def hypervisor(self, site: Site) -> Any:
        raise SiteUnreachable(f"libvirt of {site.name} does not answer")


class _Api:
    def __init__(self, sites: Sites, name: str) -> None:
        self._sites, self._name = sites, name

    def _book(self) -> PlanBook:
        self._sites.asked.append(self._name)
        if self._name in self._sites.away:
            raise SiteUnreachable(f"site-{self._name} does not answer")
        return self._sites.books[self._name]

    def plans(self) -> list[Plan]:
        return self._book().all()

    def write_plan(self, request: PlanWrite) -> Plan:
        return self._book().write(request.plan.plan_id, request)


class Console:
    def __init__(self, path: Path, sites: Sites, name: str) -> None:
        self.repository = SqlRepository(f"sqlite:///{path}")
        for site_id in "ABC":
            self.repository.save_site(_site(site_id))
        for vm, target in (("web", "B"), ("db", "C")):
            self.repository.save_protection(_protection(vm, target))
        clock = SystemClock()
        self.plans = RecoveryPlans(
            self.repository, sites, clock, EngineIdentity(name, name, "console"), lambda _site: True
        )  # type: ignore[arg-type]  # the gateway's half that is used

    def names(self) -> list[str]:
        return [s.plan.name for s in self.repository.plan_statuses()]


def _site(site_id: str) -> Site:
    return Site(
        site_id=site_id, name=f"site-{site_id}", api_url="https://192.0.2.1:7770/api/v1", cert_pem="", cert_sha256="",
        ssh_host="192.0.2.1", ssh_port=22, ssh_user="vapor", ssh_host_keys=(), replica_root="/r", paired_at=NOW,
    )  # fmt: skip


def _protection(vm: str, target: str) -> Protection:
    return Protection(
        protection_id=f"p-{vm}", vm_uuid=f"u-{vm}", vm_name=vm, source_site="A", target_site=target, policy=Policy(),
        epoch_owner="A", created_at=NOW,
    )  # fmt: skip


@pytest.fixture
def sites(tmp_path: Path) -> Sites:
    return Sites(tmp_path)


@pytest.fixture
def two(tmp_path: Path, sites: Sites) -> Iterator[tuple[Console, Console]]:
    consoles = Console(tmp_path / "1.db", sites, "anna"), Console(tmp_path / "2.db", sites, "bob")
    yield consoles
    for console in consoles:
        console.repository.close()


def shop(*vms: str, **more: Any) -> Plan:
    tiers = (Tier(vms=tuple(PlanVm(vm_uuid=f"u-{vm}", name=vm) for vm in vms or ("web", "db"))),)
    return Plan(**({"plan_id": "", "name": "Shop", "tiers": tiers, "changed_at": NOW} | more))


def kept(sites: Sites) -> dict[str, list[tuple[int, bool]]]:
    return {name: [(p.version, p.deleted) for p in book.all()] for name, book in sites.books.items()}


def test_a_plan_lies_at_each_target_it_uses_and_nowhere_else(two: tuple[Console, Console], sites: Sites) -> None:
    one, other = two
    saved = one.plans.save(shop())
    assert kept(sites) == {"A": [], "B": [(1, False)], "C": [(1, False)]}
    assert (saved.version, saved.changed_by) == (1, "anna")
    other.plans.watch()
    assert other.names() == ["Shop"]


def test_of_two_consoles_the_second_is_told(two: tuple[Console, Console]) -> None:
    one, other = two
    saved = one.plans.save(shop())
    other.plans.watch()
    one.plans.save(saved.model_copy(update={"name": "Shop 2"}))
    with pytest.raises(EditOutdated):
        other.plans.save(saved.model_copy(update={"name": "Bob's"}))
    assert other.names() == ["Shop 2"], "it has read the newest meanwhile"


def test_a_target_that_was_away_gets_it_when_it_answers(two: tuple[Console, Console], sites: Sites) -> None:
    one, _ = two
    sites.away = {"C"}
    saved = one.plans.save(shop())
    assert kept(sites)["C"] == []
    assert "site-C gets it when it answers again" in " ".join(e.text for e in one.repository.events())
    one.plans.save(saved.model_copy(update={"parallel": 2}))
    sites.away = set()
    one.plans.watch()
    assert kept(sites) == {"A": [], "B": [(2, False)], "C": [(2, False)]}
    sites.away = {"B", "C"}
    with pytest.raises(SiteUnreachable):
        one.plans.save(one.plans.get(saved.plan_id))


def test_a_deleted_plan_is_not_brought_back_by_a_site_that_was_away(
    two: tuple[Console, Console], sites: Sites
) -> None:
    one, other = two
    saved = one.plans.save(shop())
    other.plans.watch()
    sites.away = {"C"}
    one.plans.delete(saved.plan_id, saved.version)
    sites.away = set()
    other.plans.watch()
    assert (one.names(), other.names()) == ([], [])
    assert kept(sites) == {"A": [], "B": [(2, True)], "C": [(2, True)]}
    with pytest.raises(NotFound):
        other.plans.get(saved.plan_id)


def test_a_run_asks_the_targets_alone(two: tuple[Console, Console], sites: Sites) -> None:
    """A source that is lost is never waited for."""
    one, other = two
    saved = one.plans.save(shop("web"))
    other.plans.watch()
    other.plans.save(saved.model_copy(update={"parallel": 7}))
    sites.asked.clear()
    assert one.plans.current(saved.plan_id).parallel == 7
    assert set(sites.asked) == {"B"}


def test_a_name_and_a_protected_vm_are_needed(two: tuple[Console, Console]) -> None:
    one, _ = two
    one.plans.save(shop())
    with pytest.raises(InvalidRequest, match="called"):
        one.plans.save(shop("web"))
    with pytest.raises(InvalidRequest, match="protected"):
        one.plans.save(shop("stranger", name="Other"))


def test_what_could_not_be_looked_at_is_not_ready(two: tuple[Console, Console]) -> None:
    one, _ = two
    saved = one.plans.save(shop())
    status = one.plans.look(saved.plan_id)
    assert status.ready is False
    assert [p.words for p in status.problems] == [
        "site-B cannot be looked at: libvirt of site-B does not answer. "
        "Check the address, the port, the firewall and that vapor-site runs there",
        "site-C cannot be looked at: libvirt of site-C does not answer. "
        "Check the address, the port, the firewall and that vapor-site runs there",
    ]
    assert one.repository.plan_statuses() == (status,)
    one.plans.save(saved)
    assert one.repository.plan_statuses()[0].ready is None, "of the new version nothing is known yet"
