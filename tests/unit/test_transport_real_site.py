"""The whole way against two real sites: `vapor-site serve`, real sshd, real forced commands."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from memory_secrets import MemorySecrets
from site_server import SiteServer, running_site
from sshd_server import Sshd, make_key, sshd

from vapor_desktop.engine.ports import Hypervisor
from vapor_desktop.model.errors import (
    CertificateChanged,
    LeaseHeld,
    NotAllowed,
    NotFound,
    StaleLease,
    TokenInvalid,
    TokenRevoked,
    VaporError,
)
from vapor_desktop.model.manifest import Consistency, DiskMode, Epoch
from vapor_desktop.model.policy import Mappings, Policy
from vapor_desktop.model.sites import Site
from vapor_desktop.model.view import Check
from vapor_desktop.model.wire import (
    DiskTransfer,
    LeaseRequest,
    NbdSource,
    PointDraft,
    ReplicaCreate,
    Transfer,
    WatchFreeze,
    WriteGrant,
)
from vapor_desktop.store import SqlRepository
from vapor_desktop.transport.api_client import HttpSiteApi
from vapor_desktop.transport.gateway import Gateway
from vapor_desktop.transport.pairing import SitePairing, _peer

CONSOLE = "22222222-2222-4222-8222-222222222222"
VM = "33333333-3333-4333-8333-333333333333"
ENGINE = "44444444-4444-4444-8444-444444444444"
PROTECTION = "55555555-5555-4555-8555-555555555555"


@dataclass
class Host:
    """A site with its sshd."""

    site: SiteServer
    sshd: Sshd


@contextmanager
def host(directory: Path, name: str) -> Iterator[Host]:
    """As installed: sshd reads the keys that vapor-site enrols, and runs it as forced command."""
    directory.mkdir()
    with sshd(directory / "sshd") as ssh:
        command = f"env VAPOR_SITE_CONFIG={directory / 'site.toml'} {sys.executable} -m vapor_desktop.site.dispatch"
        settings = {
            "ssh_port": ssh.port,
            "user": getpass.getuser(),
            "ssh_host_keys": [str(ssh.home / "host.pub")],
            "site_command": command,
        }
        with running_site(directory, name, **settings) as site:
            (ssh.home / "authorized_keys").symlink_to(site.state / ".ssh" / "authorized_keys")
            yield Host(site, ssh)


@pytest.fixture(scope="module")
def alpha(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with host(tmp_path_factory.mktemp("a") / "alpha", "alpha") as running:
        yield running


@pytest.fixture(scope="module")
def beta(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with host(tmp_path_factory.mktemp("b") / "beta", "beta") as running:
        yield running


@pytest.fixture
def secrets() -> MemorySecrets:
    return MemorySecrets()


@pytest.fixture
def pairing(secrets: MemorySecrets) -> SitePairing:
    return SitePairing(secrets, CONSOLE, "desk")


def add(pairing: SitePairing, host: Host) -> Site:
    return pairing.add_site(pairing.probe(host.site.url), host.site.one_time(), lambda check: None)


@pytest.fixture
def gateway(secrets: MemorySecrets, tmp_path: Path) -> Iterator[Gateway]:
    def no_hypervisor(uri: str) -> Hypervisor:
        raise AssertionError(uri)

    repository = SqlRepository(f"sqlite:///{tmp_path}/vapor.db")
    made = Gateway(repository, secrets, no_hypervisor)
    yield made
    made.close()
    repository.close()


def test_what_the_administrator_pastes_pairs_the_site(
    alpha: Host, pairing: SitePairing, secrets: MemorySecrets
) -> None:
    printed = alpha.site.admin("token", "new", "--scope", "admin")
    words = printed.split()
    url = next(word for word in words if word.startswith("https://"))
    token = next(word for word in words if word.startswith("vapor1."))
    checks: list[Check] = []
    seen = pairing.probe(url)
    assert seen.cert_sha256.upper() in printed.replace(":", "").upper()
    site = pairing.add_site(seen, token, checks.append)
    assert (site.name, site.ssh_port, site.ssh_host_keys) == ("alpha", alpha.sshd.port, (alpha.sshd.host_key(),))
    assert site.token_expires_at is not None
    assert {check.state for check in checks} == {"running", "ok"}
    with pytest.raises(TokenInvalid, match="already used"):
        pairing.add_site(seen, token, checks.append)
    state = "".join(path.read_text(errors="replace") for path in alpha.site.state.rglob("*") if path.is_file())
    assert secrets.kept[f"site-token.{site.site_id}"] not in state  # the site keeps hashes


def test_a_token_of_the_other_site_is_not_sent_to_this_one(alpha: Host, beta: Host, pairing: SitePairing) -> None:
    token = beta.site.one_time()
    with pytest.raises(CertificateChanged):
        pairing.add_site(pairing.probe(alpha.site.url), token, lambda check: None)
    assert pairing.add_site(pairing.probe(beta.site.url), token, lambda check: None).name == "beta"


def test_two_sites_are_paired_and_the_movers_meet(
    alpha: Host, beta: Host, pairing: SitePairing, gateway: Gateway
) -> None:
    a, b = add(pairing, alpha), add(pairing, beta)
    last: dict[str, Check] = {}
    assert pairing.pair_sites(a, b, lambda check: last.__setitem__(check.key, check)) == "direct", last
    assert {check.state for check in last.values()} == {"ok"}
    # The mover at A takes our request; the disk it is to read does not exist, and it says so itself.
    disk = DiskTransfer(
        target="vda",
        size_bytes=1 << 20,
        mode=DiskMode.FULL,
        source=NbdSource(kind="live", path="/nonexistent.sock", export="vda", bitmap=None),
    )
    draft = PointDraft(
        protection_id=PROTECTION,
        vm_name="web",
        checkpoint=None,
        taken_at=datetime.now(UTC),
        consistency=Consistency.CRASH,
        domain_xml="<domain/>",
    )
    grant = WriteGrant(fence=1, epoch=Epoch(number=1, owner=a.site_id), source_site=a.site_id, parent_seq=None)
    request = Transfer(vm_uuid=VM, peer_site=b.site_id, grant=grant, seq=1, disks=(disk,), draft=draft)
    with pytest.raises(VaporError) as caught:
        gateway.mover(a, b).transfer(request, lambda progress: None, lambda: False)
    assert "vda" in caught.value.what  # the mover's own words


def test_leases_replicas_and_the_guardian_through_the_port(
    alpha: Host, pairing: SitePairing, gateway: Gateway
) -> None:
    a = add(pairing, alpha)
    api = gateway.api(a)
    identity, offset_s, error_s = api.identity()
    assert identity.site_id == a.site_id
    assert abs(offset_s) <= error_s + 0.01
    assert api.health().checks
    assert [root.path for root in api.storage()] == [a.replica_root]
    assert api.replicas() == ()
    with pytest.raises(NotFound):
        api.replica(VM)

    assert api.lease(VM) is None
    lease = api.acquire_lease(VM, LeaseRequest(holder=ENGINE, holder_name="desk", purpose="cycle"))
    assert api.lease(VM) == lease
    with pytest.raises(LeaseHeld) as caught:
        api.acquire_lease(VM, LeaseRequest(holder=CONSOLE, holder_name="other", purpose="cycle"))
    assert caught.value.details["holder"] == ENGINE
    assert api.renew_lease(VM, lease.fence, 120).expires_at > lease.expires_at
    with pytest.raises(StaleLease):
        api.renew_lease(VM, lease.fence + 1, 60)

    grant = WriteGrant(
        fence=lease.fence, epoch=Epoch(number=1, owner="66666666-6666-4666-8666-666666666666"),
        source_site="66666666-6666-4666-8666-666666666666", parent_seq=None,
    )  # fmt: skip
    made = api.create_replica(
        VM,
        ReplicaCreate(
            grant=grant, protection_id=PROTECTION, vm_name="web", target_site=a.site_id, policy=Policy(),
            mappings=Mappings(),
        ),
    )  # fmt: skip
    assert (made.vm_name, made.points) == ("web", ())
    assert api.replica(VM).manifest == made
    with pytest.raises(StaleLease):
        api.delete_replica(VM, grant.model_copy(update={"fence": lease.fence + 5}))
    api.delete_replica(VM, grant)
    assert api.replicas() == ()

    api.watch_freeze(VM, WatchFreeze(holder=ENGINE))
    assert api.unwatch_freeze(VM) is True
    assert list(api.guardian_events(datetime.now(UTC))) == []
    api.release_lease(VM, lease.fence)
    assert api.lease(VM) is None


def test_a_revoked_console_is_told_so_and_loses_its_ssh_key(
    alpha: Host, gateway: Gateway, secrets: MemorySecrets
) -> None:
    site = add(SitePairing(secrets, "77777777-7777-4777-8777-777777777777", "laptop"), alpha)
    gateway.api(site).storage()
    channel = gateway.mover(site, site)
    alpha.site.admin("token", "revoke", site.token_id)
    with pytest.raises(TokenRevoked):
        gateway.api(site).storage()
    with pytest.raises(NotAllowed):
        channel.image_info("/x.qcow2")


def test_forgetting_a_site_revokes_the_token_there(alpha: Host, pairing: SitePairing, secrets: MemorySecrets) -> None:
    site = add(pairing, alpha)
    token = secrets.kept[f"site-token.{site.site_id}"]
    pairing.forget_site(site)
    api = HttpSiteApi(site.api_url, site.cert_pem, lambda: token)
    with pytest.raises(TokenRevoked):
        api.storage()
    api.close()


def test_pairing_again_leaves_no_old_token_behind(alpha: Host, pairing: SitePairing, secrets: MemorySecrets) -> None:
    site = add(pairing, alpha)
    old = secrets.kept[f"site-token.{site.site_id}"]
    again = add(pairing, alpha)
    assert secrets.kept[f"site-token.{site.site_id}"] != old
    for token, error in ((old, TokenRevoked), (secrets.kept[f"site-token.{site.site_id}"], None)):
        api = HttpSiteApi(again.api_url, again.cert_pem, lambda token=token: token)  # type: ignore[misc]
        if error is None:
            assert len(api.storage()) == 1
        else:
            with pytest.raises(error):
                api.storage()
        api.close()


def test_the_other_site_changes_its_host_key_and_the_pair_notices(
    alpha: Host, beta: Host, pairing: SitePairing
) -> None:
    a, b = add(pairing, alpha), add(pairing, beta)
    make_key(beta.sshd.home, f"new{b.token_id}")
    with sshd(beta.sshd.home, f"new{b.token_id}") as moved:
        beta_moved = b.model_copy(update={"ssh_host_keys": (beta.sshd.host_key(),), "ssh_port": moved.port})
        api = HttpSiteApi(a.api_url, a.cert_pem, lambda: pairing._secrets.get(f"site-token.{a.site_id}") or "")
        ssh = HttpSiteApi(b.api_url, b.cert_pem, lambda: pairing._secrets.get(f"site-token.{b.site_id}") or "")
        api.enrol_peer(_peer(beta_moved, ssh.ssh_info().model_copy(update={"port": moved.port})))
        check = api.check_peer(b.site_id)
        assert not check.reachable
        assert check.error is not None
        assert check.error["code"] == "HOST-KEY-CHANGED"
        ssh.close()
        api.close()
