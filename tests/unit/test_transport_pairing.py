"""Pairing against real TLS servers: what leaves this machine, and when."""

from __future__ import annotations

import base64
import os
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory_secrets import MemorySecrets
from tls_server import Certificate, Request, TlsServer, make_certificate, raw_server, tls_server

from vapor_desktop.engine.ports import Pairing
from vapor_desktop.model.errors import (
    ApiVersionMismatch,
    CertificateChanged,
    InvalidRequest,
    KeyringLocked,
    NotAllowed,
    NotAVaporSite,
    SiteUnreachable,
    TokenInvalid,
    VaporError,
)
from vapor_desktop.model.view import Check
from vapor_desktop.transport.address import normalise_url
from vapor_desktop.transport.pairing import SitePairing, probe, token_pin


@pytest.mark.parametrize(
    ("typed", "url"),
    [
        ("https://192.168.122.129:7770/api/v1", "https://192.168.122.129:7770/api/v1"),
        ("  192.168.122.129 \n", "https://192.168.122.129:7770/api/v1"),
        ("192.168.122.129:8443", "https://192.168.122.129:8443/api/v1"),
        ("KVM-B.example.org.", "https://kvm-b.example.org:7770/api/v1"),
        ("kvm_b", "https://kvm_b:7770/api/v1"),
        ("https://kvm-b/", "https://kvm-b:7770/api/v1"),
        ("HTTPS://kvm-b:7770/api/v1/", "https://kvm-b:7770/api/v1"),
        ("kvm-b/api/v1", "https://kvm-b:7770/api/v1"),
        ("<https://kvm-b>", "https://kvm-b:7770/api/v1"),
        ("2001:db8::1", "https://[2001:db8::1]:7770/api/v1"),
        ("[2001:DB8:0:0::1]:444", "https://[2001:db8::1]:444/api/v1"),
        ("https://[2001:db8::1]/api/v1", "https://[2001:db8::1]:7770/api/v1"),
        ("2001:db8::1/api/v1", "https://[2001:db8::1]:7770/api/v1"),
        ("bücher.example", "https://xn--bcher-kva.example:7770/api/v1"),
    ],
)
def test_what_people_type(typed: str, url: str) -> None:
    assert normalise_url(typed) == url
    assert normalise_url(url) == url


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("", "no address"),
        ("   ", "no address"),
        ("http://kvm-b:7770/api/v1", "by https"),
        ("ssh://kvm-b", "by https"),
        ("kvm b", "no spaces"),
        ("https://kvm-b:99999", "port"),
        ("kvm-b:0", "port"),
        ("kvm-b:abc", "port"),
        ("https://kvm-b:7770/api/v2", "path"),
        ("https://kvm-b?x=1", "ends with its path"),
        ("https://me:pw@kvm-b", "No user or password"),
        ("192.168.122.999", "IPv4"),
        ("192.168.122", "IPv4"),
        ("0.0.0.0", "one host"),  # noqa: S104 - refused is what it must be
        ("::", "one host"),
        ("224.0.0.1", "one host"),
        ("fe80::1%eth0", "zone"),
        ("[2001:db8::zz]", "IPv6"),
        ("https://[2001:db8::1", "IPv6"),
        ("-kvm", "host name"),
        ("kvm..b", "host name"),
        ("https://", "host is missing"),
        ("vapor1.abcdef", "a token"),
    ],
)
def test_what_does_not_fit_says_why(typed: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        normalise_url(typed)
    assert "pw" not in str(caught.value)
    assert "abcdef" not in str(caught.value)


@given(st.text())
def test_any_text_is_an_address_or_refused(text: str) -> None:
    try:
        url = normalise_url(text)
    except InvalidRequest:
        return
    assert normalise_url(url) == url


def token_for(sha256: bytes) -> str:
    return "vapor1." + base64.urlsafe_b64encode(sha256 + os.urandom(24)).decode()


def test_a_token_carries_its_pin() -> None:
    pin = os.urandom(32)
    token = token_for(pin)
    assert token_pin(token) == pin
    assert token_pin(f"  {token[:40]}\n  {token[40:]}\n") == pin
    for bad in (
        "",
        "vapor1.",
        token[:-4],
        token + "AAAA",
        token.removeprefix("vapor1."),
        token[:20] + "é" + token[21:],
    ):
        with pytest.raises(TokenInvalid) as caught:
            token_pin(bad)
        assert caught.value.__cause__ is None


class FakeSite:
    """The answers of a site's API while it is paired, on a real TLS server."""

    def __init__(self, server: TlsServer, certificate: Certificate, site_id: str, port: int) -> None:
        self.server, self.certificate, self.site_id = server, certificate, site_id
        self.one_time, self.own = token_for(certificate.sha256), token_for(certificate.sha256)
        self.reachable = True
        answers = server.answers
        answers["GET", "/hello"] = (200, {"product": "vapor-site", "api_version": 1})
        answers["POST", "/tokens/exchange"] = self._exchange
        answers["GET", "/identity"] = self._identity
        ssh = {"port": port, "user": "vapor", "host_keys": [f"ssh-ed25519 H{site_id}"], "user_key": f"k {site_id}"}
        answers["GET", "/ssh"] = (200, ssh)
        answers["POST", "/enrolments/consoles"] = (204, None)
        answers["POST", "/enrolments/peers"] = (204, None)
        answers["DELETE", "/tokens/self"] = (204, None)

    def _exchange(self, request: Request) -> tuple[int, Any]:
        if request.headers["authorization"] != f"Bearer {self.one_time}":
            return 401, {"problem": True, **TokenInvalid("unknown").to_wire()}
        return 200, {"token": self.own, "token_id": "t1", "scope": "admin", "expires_at": None}

    def _identity(self, request: Request) -> tuple[int, Any]:
        assert request.headers["authorization"] == f"Bearer {self.own}"
        return 200, {
            "site_id": self.site_id,
            "name": f"site {self.site_id}",
            "version": "0.1.0",
            "api_version": 1,
            "mover_protocol": 1,
            "libvirt_version": "9.0.0",
            "qemu_version": "7.2",
            "boot_id": "b",
            "replica_root": "/r",
            "now": datetime.now(UTC).isoformat(),
        }

    def asked(self) -> list[str]:
        return [f"{r.method} {r.path.removeprefix('/api/v1')}" for r in self.server.requests]

    def sent(self) -> str:
        return repr(self.server.requests)


def new_site(tmp_path: Path, site_id: str) -> Iterator[FakeSite]:
    certificate = make_certificate(tmp_path, site_id)
    with tls_server(certificate) as server:
        yield FakeSite(server, certificate, site_id, 2200 + ord(site_id))


@pytest.fixture
def site_a(tmp_path: Path) -> Iterator[FakeSite]:
    yield from new_site(tmp_path, "a")


@pytest.fixture
def site_b(tmp_path: Path) -> Iterator[FakeSite]:
    yield from new_site(tmp_path, "b")


@pytest.fixture
def secrets() -> MemorySecrets:
    return MemorySecrets()


@pytest.fixture
def pairing(secrets: MemorySecrets) -> SitePairing:
    return SitePairing(secrets, "console-1", "desk")


def test_a_site_is_paired(site_a: FakeSite, pairing: SitePairing, secrets: MemorySecrets) -> None:
    port: Pairing = pairing
    seen = port.probe(f"127.0.0.1:{site_a.server.port}")
    assert seen.cert_sha256 == site_a.certificate.sha256.hex()
    assert seen.cert_pem.split() == site_a.certificate.pem.split()
    checks: list[Check] = []
    site = port.add_site(seen, f" {site_a.one_time}\n", checks.append)
    assert (site.site_id, site.name, site.ssh_host, site.ssh_port) == ("a", "site a", "127.0.0.1", 2297)
    assert (site.ssh_host_keys, site.token_id, site.api_url) == (("ssh-ed25519 Ha",), "t1", site_a.server.url)
    assert secrets.kept["site-token.a"] == site_a.own
    enrolled = next(r.body for r in site_a.server.requests if r.path.endswith("/enrolments/consoles"))
    assert (enrolled["console_id"], enrolled["console_name"]) == ("console-1", "desk")
    assert enrolled["public_key"].startswith("ssh-ed25519 AAAA")
    private = secrets.kept["console-ssh-key"]
    assert "PRIVATE" in private
    assert private not in site_a.sent()
    assert site_a.own not in repr(site)
    done = [check.key for check in checks if check.state == "ok"]
    assert done == ["keyring", "pin", "token", "identity", "ssh", "enrol", "keep"]

    second = port.add_site(seen, site_a.one_time, lambda check: None)
    assert second.site_id == "a"
    assert secrets.kept["console-ssh-key"] == private  # one key for all sites

    port.forget_site(site)
    assert "site-token.a" not in secrets.kept
    assert site_a.asked()[-1] == "DELETE /tokens/self"


def test_a_token_of_another_certificate_is_never_sent(site_a: FakeSite, pairing: SitePairing) -> None:
    """Another host, or somebody in between with a certificate of his own."""
    seen = pairing.probe(site_a.server.url)
    token = token_for(os.urandom(32))
    checks: list[Check] = []
    with pytest.raises(CertificateChanged):
        pairing.add_site(seen, token, checks.append)
    with pytest.raises(TokenInvalid):
        pairing.add_site(seen, token[:-3], checks.append)
    assert site_a.asked() == ["GET /hello"]
    assert (checks[-1].key, checks[-1].state, checks[-1].code) == ("pin", "failed", "TOKEN-INVALID")


def test_a_certificate_that_changes_between_look_and_token(tmp_path: Path, pairing: SitePairing) -> None:
    honest, other = make_certificate(tmp_path, "honest"), make_certificate(tmp_path, "other")
    with tls_server(honest) as server:
        FakeSite(server, honest, "a", 22)
        seen = pairing.probe(server.url)
        port = server.port
    with tls_server(other, port) as imposter:
        FakeSite(imposter, other, "a", 22)
        with pytest.raises(CertificateChanged):
            pairing.add_site(seen, token_for(honest.sha256), lambda check: None)
        assert imposter.requests == []


def test_a_keyring_that_is_locked_spends_no_token(
    site_a: FakeSite, pairing: SitePairing, secrets: MemorySecrets
) -> None:
    seen = pairing.probe(site_a.server.url)
    secrets.locked = True
    with pytest.raises(KeyringLocked):
        pairing.add_site(seen, site_a.one_time, lambda check: None)
    assert site_a.asked() == ["GET /hello"]


def test_a_token_that_cannot_be_used_further_is_given_back(
    site_a: FakeSite, pairing: SitePairing, secrets: MemorySecrets
) -> None:
    seen = pairing.probe(site_a.server.url)
    site_a.server.problem("POST", "/enrolments/consoles", 403, **NotAllowed("no").to_wire())
    with pytest.raises(NotAllowed):
        pairing.add_site(seen, site_a.one_time, lambda check: None)
    assert site_a.asked()[-1] == "DELETE /tokens/self"
    assert "site-token.a" not in secrets.kept


@pytest.mark.parametrize(
    ("hello", "error"),
    [
        ((200, {"product": "other"}), NotAVaporSite),
        ((200, []), NotAVaporSite),
        ((200, b"<html>"), NotAVaporSite),
        ((404, {}), NotAVaporSite),
        ((302, {}), NotAVaporSite),
        ((200, {"product": "vapor-site", "api_version": 2}), ApiVersionMismatch),
    ],
)
def test_somebody_elses_https_server(site_a: FakeSite, hello: tuple[int, Any], error: type[VaporError]) -> None:
    site_a.server.answers["GET", "/hello"] = hello
    with pytest.raises(error):
        probe(site_a.server.url)
    assert [set(r.headers) & {"authorization", "cookie"} for r in site_a.server.requests] == [set()]


@pytest.mark.parametrize("said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n", b""])
def test_something_without_tls(said: bytes) -> None:
    def talk(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(said)

    with raw_server(talk) as port, pytest.raises(NotAVaporSite):
        probe(f"127.0.0.1:{port}")


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    with pytest.raises(SiteUnreachable, match="refused"):
        probe(f"127.0.0.1:{port}")
    with pytest.raises(SiteUnreachable, match="name is not known"):
        probe("no-such-host.invalid")


def paired(pairing: SitePairing, site: FakeSite) -> Any:
    return pairing.add_site(pairing.probe(site.server.url), site.one_time, lambda check: None)


@pytest.mark.parametrize(("back", "route"), [(True, "direct"), (False, "relay")])
def test_two_sites_learn_each_other(
    site_a: FakeSite, site_b: FakeSite, pairing: SitePairing, back: bool, route: str
) -> None:
    a, b = paired(pairing, site_a), paired(pairing, site_b)
    site_a.server.answers["POST", "/enrolments/peers/b/check"] = (200, {"reachable": True, "latency_s": 0.012})
    error = None if back else SiteUnreachable("no route").to_wire()
    site_b.server.answers["POST", "/enrolments/peers/a/check"] = (200, {"reachable": back, "error": error})
    checks: list[Check] = []
    assert pairing.pair_sites(a, b, checks.append) == route
    told_a = next(r.body for r in site_a.server.requests if r.path.endswith("/enrolments/peers"))
    assert told_a == {
        "site_id": "b",
        "name": "site b",
        "public_key": "k b",
        "host_keys": ["ssh-ed25519 Hb"],
        "address": "127.0.0.1",
        "port": 2298,
        "user": "vapor",
    }
    told_b = next(r.body for r in site_b.server.requests if r.path.endswith("/enrolments/peers"))
    assert (told_b["site_id"], told_b["public_key"], told_b["host_keys"]) == ("a", "k a", ["ssh-ed25519 Ha"])
    last = {check.key: (check.state, check.text) for check in checks}
    assert last["reach-a"] == ("ok", "12 ms")
    assert last["reach-b"][0] == ("ok" if back else "warning")


def test_half_a_pair_is_taken_back(site_a: FakeSite, site_b: FakeSite, pairing: SitePairing) -> None:
    a, b = paired(pairing, site_a), paired(pairing, site_b)
    site_b.server.problem("POST", "/enrolments/peers", 403, **NotAllowed("not an admin").to_wire())
    site_a.server.answers["DELETE", "/enrolments/peers/b"] = (204, None)
    with pytest.raises(NotAllowed):
        pairing.pair_sites(a, b, lambda check: None)
    assert site_a.asked()[-1] == "DELETE /enrolments/peers/b"


def test_a_site_that_cannot_be_told_is_forgotten_here_all_the_same(
    site_a: FakeSite, pairing: SitePairing, secrets: MemorySecrets
) -> None:
    site = paired(pairing, site_a)
    gone = site.model_copy(update={"api_url": "https://127.0.0.1:1/api/v1"})
    with pytest.raises(SiteUnreachable):
        pairing.forget_site(gone)
    assert "site-token.a" not in secrets.kept
    with pytest.raises(TokenInvalid, match="holds no token"):
        pairing.forget_site(site)
