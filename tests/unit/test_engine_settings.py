"""Settings are edited at the target: a real site service keeps the manifest, the database only follows."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, time
from pathlib import Path
from typing import Any

import pytest
from site_server import SiteServer, running_site

from vapor_desktop.app import SystemClock
from vapor_desktop.engine.console import EngineBackend
from vapor_desktop.engine.operations.failover import FAILOVER
from vapor_desktop.engine.operations.steps import Leases, StepContext, Tools
from vapor_desktop.engine.ports import Hypervisor, SiteApi
from vapor_desktop.engine.runtime import Engine, new_identity
from vapor_desktop.hypervisor.connection import LibvirtHypervisor
from vapor_desktop.model.errors import EditOutdated, InvalidRequest, LeaseHeld, NotFound
from vapor_desktop.model.manifest import Manifest
from vapor_desktop.model.operations import Operation, OperationKind
from vapor_desktop.model.policy import BandwidthWindow, Mappings, Policy, Retention
from vapor_desktop.model.sites import Protection, Site
from vapor_desktop.model.view import SettingsEdit
from vapor_desktop.model.wire import LeaseRequest
from vapor_desktop.store.durable import DbosOperations
from vapor_desktop.store.repository import SqlRepository
from vapor_desktop.transport.api_client import HttpSiteApi

CLOCK = SystemClock()
SOURCE = "66666666-6666-4666-8666-666666666666"
VM = "33333333-3333-4333-8333-333333333333"


@pytest.fixture(scope="module")
def beta(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SiteServer]:
    with running_site(tmp_path_factory.mktemp("beta") / "b", "beta") as site:
        yield site


class TargetOnly:
    """The target answers, with libvirt's own test driver; of the source nothing is needed."""

    def __init__(self, api: SiteApi) -> None:
        self._api = api
        self._hypervisor = LibvirtHypervisor("test:///default")

    def api(self, _site: Site) -> SiteApi:
        return self._api

    def hypervisor(self, _site: Site) -> Hypervisor:
        return self._hypervisor

    def mover(self, source: Site, target: Site) -> Any:
        raise AssertionError("no data moves here")

    def drop(self, site_id: str) -> None:
        """Nothing is suspect."""

    def close(self) -> None:
        self._hypervisor.close()


class Console:
    """A console with a database of its own, and no engine: edits need none."""

    def __init__(self, path: Path, server: SiteServer, vm: str, target: str, token: str) -> None:
        pem = (server.state / "tls" / "cert.pem").read_text()
        self.api = HttpSiteApi(server.url, pem, lambda: token)
        self.repository = SqlRepository(f"sqlite:///{path}")
        self.repository.save_site(
            Site(
                site_id=target, name="beta", api_url=server.url, cert_pem=pem, cert_sha256="", ssh_host="127.0.0.1",
                ssh_port=22, ssh_user="vapor", ssh_host_keys=(), replica_root="/r", paired_at=CLOCK.now(),
            )
        )  # fmt: skip
        self.gateway = TargetOnly(self.api)
        durable = DbosOperations(f"sqlite:///{path}")
        self.engine = Engine(self.repository, self.gateway, CLOCK, new_identity("console", CLOCK), durable)
        self.backend = EngineBackend(self.engine, None)  # type: ignore[arg-type]  # no test here pairs
        self.protection = self.repository.save_protection(
            Protection(
                protection_id=f"p-{vm}", vm_uuid=vm, vm_name="web", source_site=SOURCE, target_site=target,
                policy=Policy(), epoch_owner=SOURCE, created_at=CLOCK.now(),
            )
        )  # fmt: skip

    @property
    def key(self) -> str:
        return self.protection.protection_id

    def manifest(self) -> Manifest:
        return self.api.replica(self.protection.vm_uuid).manifest

    def close(self) -> None:
        self.api.close()
        self.gateway.close()
        self.repository.close()


@pytest.fixture
def two(beta: SiteServer, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Console, Console]]:
    """Two consoles on the same protection of a VM that only this test knows."""
    serial = abs(hash(request.node.name)) % 10**12
    vm = f"{VM[:24]}{serial:012d}"
    token = beta.paired()[1]["token"]
    target = HttpSiteApi(beta.url, (beta.state / "tls" / "cert.pem").read_text(), lambda: token)
    site_id = target.identity()[0].site_id
    target.close()
    pair = tuple(Console(tmp_path / f"{n}.db", beta, vm, site_id, token) for n in "12")
    yield pair[0], pair[1]
    for console in pair:
        console.close()


def edit(console: Console, **policy: Any) -> SettingsEdit:
    now = console.backend.settings(console.key)
    return SettingsEdit(now.version, now.policy.model_copy(update=policy), now.mappings)


def test_an_edit_is_in_the_manifest_and_in_a_second_console(two: tuple[Console, Console]) -> None:
    one, other = two
    windows = (BandwidthWindow(start=time(8), end=time(18), bandwidth_bytes_s=1 << 20),)
    wanted = edit(
        one, rpo_target_s=7200, at_times=(time(6), time(18, 30)), retention=Retention(newest=3, hourly=2, daily=1),
        bandwidth_bytes_s=5 << 20, bandwidth_windows=windows,
    )  # fmt: skip
    wanted = SettingsEdit(wanted.version, wanted.policy, Mappings(networks={"lan-a": "default"}))
    saved = one.backend.edit(one.key, wanted)
    assert (saved.policy, saved.mappings) == (wanted.policy, wanted.mappings)
    manifest = one.manifest()  # made by the edit: no cycle has run
    assert (manifest.policy, manifest.mappings, manifest.points) == (wanted.policy, wanted.mappings, ())
    seen = other.backend.settings(other.key)
    assert (seen.policy, seen.mappings, seen.version) == (wanted.policy, wanted.mappings, 1)
    assert "default" in seen.target_networks
    assert seen.source_networks == ("lan-a",)

    again = one.backend.edit(one.key, edit(one, rpo_target_s=60))
    assert again.settings_version == one.manifest().settings_version == 2
    assert one.manifest().policy.at_times == (time(6), time(18, 30))


def test_an_edit_on_an_old_version_is_refused_and_changes_nothing(two: tuple[Console, Console]) -> None:
    one, other = two
    one.backend.edit(one.key, edit(one, rpo_target_s=600))
    late = edit(other, rpo_target_s=30)
    one.backend.edit(one.key, edit(one, rpo_target_s=1200))
    with pytest.raises(EditOutdated) as caught:
        other.backend.edit(other.key, late)
    assert caught.value.details == {"expected": 1, "found": 2}
    assert "changed meanwhile" in str(caught.value)
    assert one.manifest().policy.rpo_target_s == 1200
    other.backend.edit(other.key, edit(other, rpo_target_s=30))
    assert one.manifest().policy.rpo_target_s == 30


def test_the_site_itself_refuses_a_race(two: tuple[Console, Console], monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look and the write somebody else writes: compare-and-set at the site decides."""
    one, other = two
    one.backend.edit(one.key, edit(one, rpo_target_s=600))
    late, write = edit(other, rpo_target_s=30), other.api.write_settings

    def overtaken(vm: str, request: Any) -> Manifest:
        held = other.api.lease(vm)
        assert held is not None
        grant = request.grant
        write(vm, request.model_copy(update={"policy": Policy(rpo_target_s=77), "grant": grant}))
        return write(vm, request)

    monkeypatch.setattr(other.api, "write_settings", overtaken)
    with pytest.raises(EditOutdated):
        other.backend.edit(other.key, late)
    assert one.manifest().policy.rpo_target_s == 77


def test_the_same_settings_again_are_no_new_version(two: tuple[Console, Console]) -> None:
    one, other = two
    wanted = edit(one, rpo_target_s=600)
    one.backend.edit(one.key, wanted)
    generation = one.manifest().generation
    other.backend.edit(other.key, wanted)  # as after an answer that got lost
    assert (one.manifest().generation, one.manifest().settings_version) == (generation, 1)


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        ({"retention": Retention(newest=24, hourly=24, daily=24)}, "do not fit"),
        ({"bandwidth_windows": (BandwidthWindow(start=time(8), end=time(8)),)}, "empty"),
        ({"at_times": tuple(time(0, n) for n in range(49))}, "too many"),
        ({"at_times": (time(8, tzinfo=UTC),)}, "without a zone"),
    ],
)
def test_what_cannot_be_kept_is_refused(two: tuple[Console, Console], policy: dict[str, Any], says: str) -> None:
    one, _ = two
    with pytest.raises(InvalidRequest, match=says):
        one.backend.edit(one.key, edit(one, **policy))
    assert one.backend.settings(one.key).policy == Policy()


def test_a_network_that_the_target_lacks_is_refused(two: tuple[Console, Console]) -> None:
    one, _ = two
    wanted = SettingsEdit(1, Policy(rpo_target_s=60), Mappings(networks={"lan-a": "nowhere"}))
    with pytest.raises(InvalidRequest, match="nowhere") as caught:
        one.backend.edit(one.key, wanted)
    assert "default" in caught.value.fix


def test_a_running_cycle_is_asked_to_stop_and_waited_for(two: tuple[Console, Console]) -> None:
    one, _ = two
    vm = one.protection.vm_uuid
    lease = one.api.acquire_lease(vm, LeaseRequest(holder="engine/cycle", holder_name="desk", purpose="cycle"))
    asked = threading.Event()

    def engine() -> None:
        """What an engine does: take the command, end the cycle, give the lease back."""
        while (command := one.repository.take_command("engine")) is None:
            if asked.wait(0.05):
                return
        assert (command.verb, command.args) == ("cancel", {"protection_id": one.key})
        asked.set()
        one.api.release_lease(vm, lease.fence)

    thread = threading.Thread(target=engine)
    thread.start()
    one.backend.edit(one.key, edit(one, rpo_target_s=600))
    thread.join(10)
    assert asked.is_set()
    assert one.manifest().policy.rpo_target_s == 600


def test_who_holds_the_lease_for_good_is_named(two: tuple[Console, Console], monkeypatch: pytest.MonkeyPatch) -> None:
    one, _ = two
    monkeypatch.setattr("vapor_desktop.engine.settings.PATIENCE_S", 0.0)
    monkeypatch.setattr("vapor_desktop.engine.settings.LONGEST_S", 0.5)
    one.api.acquire_lease(
        one.protection.vm_uuid, LeaseRequest(holder="x/drill", holder_name="anna@desk", purpose="drill")
    )
    with pytest.raises(LeaseHeld, match="anna@desk"):
        one.backend.edit(one.key, edit(one, rpo_target_s=600))
    assert one.repository.protection(one.key) == one.protection


def test_disks_of_a_replica_without_points_and_a_vm_that_is_elsewhere(two: tuple[Console, Console]) -> None:
    one, _ = two
    view = one.backend.disks(one.key)
    assert view.disks == ()
    assert "not paired" in view.source_trouble
    assert view.target_trouble == ""


def test_a_failover_goes_by_what_another_console_mapped(two: tuple[Console, Console]) -> None:
    """With the source dark no cycle tells this console of the edit: the failover's first look must."""
    one, other = two
    other.backend.edit(other.key, SettingsEdit(1, Policy(), Mappings(networks={"lan-a": "default"})))
    engine = one.engine
    tools = Tools(one.repository, one.gateway, engine.sites, CLOCK, engine.identity, engine.worker)
    operation = Operation(
        operation_id="o", kind=OperationKind.FAILOVER, protection_id=one.key, vm_uuid=one.protection.vm_uuid,
        vm_name="web", asked_by="anna", engine_id="e", started_at=CLOCK.now(), seen_at=CLOCK.now(),
    )  # fmt: skip
    context = StepContext(
        tools, operation, one.protection, Leases(operation, "anna"), threading.Event(), note=lambda _text: None
    )
    with pytest.raises(NotFound, match="no complete recovery point"):
        FAILOVER.steps[0].act(context)
    known = one.repository.protection(one.key)
    assert known is not None
    assert known.mappings.networks == context.protection.mappings.networks == {"lan-a": "default"}
