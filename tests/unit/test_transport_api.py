"""The site API's client against a real TLS server: pinning, keep-alive, errors told by their kind."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tls_server import Certificate, Request, TlsServer, make_certificate, raw_server, tls_server

from vapor_desktop.engine.ports import SiteApi
from vapor_desktop.model.errors import (
    ApiVersionMismatch,
    CertificateChanged,
    KeyringLocked,
    LeaseHeld,
    NotAVaporSite,
    SiteUnreachable,
    TokenRevoked,
    Unexpected,
)
from vapor_desktop.model.manifest import Epoch, Manifest, seal
from vapor_desktop.model.wire import Lease, LeaseRequest, WatchFreeze, WatchJob, WriteGrant
from vapor_desktop.transport import pinned
from vapor_desktop.transport.api_client import HttpSiteApi

TOKEN = "vapor1.secret"
IDENTITY = {
    "site_id": "a",
    "name": "alpha",
    "version": "0.1.0",
    "api_version": 1,
    "mover_protocol": 1,
    "libvirt_version": None,
    "qemu_version": "7.2.22",
    "boot_id": "b",
    "replica_root": "/r",
}
GRANT = WriteGrant(fence=3, epoch=Epoch(number=2, owner="a"), source_site="a", parent_seq=7)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"), "site")


@pytest.fixture
def server(certificate: Certificate) -> Iterator[TlsServer]:
    with tls_server(certificate) as running:
        yield running


@pytest.fixture
def api(server: TlsServer, certificate: Certificate) -> Iterator[HttpSiteApi]:
    client = HttpSiteApi(server.url, certificate.pem, lambda: TOKEN)
    yield client
    client.close()


def manifest() -> Manifest:
    return seal(
        Manifest(
            vm_uuid="v",
            vm_name="web",
            protection_id="p",
            source_site="a",
            target_site="b",
            epoch=Epoch(number=1, owner="a"),
        )
    )


def test_is_the_port_and_keeps_its_connection(api: HttpSiteApi, server: TlsServer) -> None:
    port: SiteApi = api
    server.answers["GET", "/storage"] = (
        200,
        [{"path": "/r", "total_bytes": 5 * 2**40, "free_bytes": 2**40, "reserve_bytes": 1}],
    )
    for _ in range(3):
        (root,) = port.storage()
        assert root.total_bytes == 5 * 2**40
    assert {request.headers["authorization"] for request in server.requests} == {f"Bearer {TOKEN}"}
    assert len({request.client for request in server.requests}) == 1


def test_the_clock_offset_is_measured(api: HttpSiteApi, server: TlsServer) -> None:
    def answer(_: Request) -> tuple[int, Any]:
        return 200, {**IDENTITY, "now": (datetime.now(UTC) + timedelta(seconds=90)).isoformat()}

    server.answers["GET", "/identity"] = answer
    identity, offset_s, error_s = api.identity()
    assert identity.name == "alpha"
    assert abs(offset_s - 90) <= error_s + 0.001
    assert 0 < error_s < 1


def test_verbs_carry_their_grant_and_bring_back_values(api: HttpSiteApi, server: TlsServer) -> None:
    body = manifest().model_dump(mode="json")
    for method, path in (
        ("POST", "/replicas/v/points/7/drop"),
        ("POST", "/replicas/v/points/7/pins"),
        ("DELETE", "/replicas/v/points/7/pins"),
    ):
        server.answers[method, path] = (200, body)
    server.answers["DELETE", "/replicas/v"] = (204, None)
    assert api.drop_point("v", 7, GRANT) == manifest()
    assert api.pin("v", 7, "user:x", GRANT) == manifest()
    assert api.unpin("v", 7, "user:x", GRANT) == manifest()
    api.delete_replica("v", GRANT)
    grant = GRANT.model_dump(mode="json")
    assert [(r.method, r.path, r.body) for r in server.requests] == [
        ("POST", "/api/v1/replicas/v/points/7/drop", {"grant": grant}),
        ("POST", "/api/v1/replicas/v/points/7/pins", {"grant": grant, "pin": "user:x"}),
        ("DELETE", "/api/v1/replicas/v/points/7/pins", {"grant": grant, "pin": "user:x"}),
        ("DELETE", "/api/v1/replicas/v", grant),
    ]


def test_leases_and_guardian(api: HttpSiteApi, server: TlsServer) -> None:
    lease = Lease(vm_uuid="v", holder="e", holder_name="desk", purpose="cycle", fence=4, expires_at=datetime.now(UTC))
    server.answers["POST", "/leases/v"] = (200, lease.model_dump(mode="json"))
    server.answers["PUT", "/leases/v/4"] = (200, lease.model_dump(mode="json"))
    server.answers["DELETE", "/leases/v/4"] = (204, None)
    server.answers["GET", "/leases/v"] = (200, None)
    server.answers["PUT", "/guardian/v/job"] = (204, None)
    server.answers["PUT", "/guardian/v/freeze"] = (204, None)
    server.answers["DELETE", "/guardian/v/freeze"] = (200, {"in_time": False})
    server.answers["GET", "/guardian/events"] = (
        200,
        [{"at": "2026-11-22T12:00:00Z", "vm_uuid": "v", "what": "thawed", "why": "deadline"}],
    )
    assert api.acquire_lease("v", LeaseRequest(holder="e", holder_name="desk", purpose="cycle")) == lease
    assert api.renew_lease("v", 4, 60) == lease
    api.release_lease("v", 4)
    assert api.lease("v") is None
    api.watch_job("v", WatchJob(holder="e", scratch_dir="/s", reserve_bytes=1))
    api.watch_freeze("v", WatchFreeze(holder="e"))
    assert api.unwatch_freeze("v") is False
    (event,) = api.guardian_events(datetime(2026, 11, 22, tzinfo=UTC))
    assert (event.what, event.at) == ("thawed", datetime(2026, 11, 22, 12, tzinfo=UTC))
    assert [r.path for r in server.requests if "?" in r.path] == [
        "/api/v1/leases/v/4?ttl_s=60.0",
        "/api/v1/guardian/events?since=2026-11-22T00%3A00%3A00%2B00%3A00",
    ]


def test_the_sites_own_errors_come_back_whole(api: HttpSiteApi, server: TlsServer) -> None:
    error = LeaseHeld("The lease of web is held", why="a cycle runs", fix="Wait", holder="other", fence=9)
    server.problem("POST", "/leases/v", 409, title="x", **error.to_wire())
    with pytest.raises(LeaseHeld) as caught:
        api.acquire_lease("v", LeaseRequest(holder="e", holder_name="desk", purpose="cycle"))
    assert caught.value.to_wire() == error.to_wire()
    server.problem("GET", "/storage", 500, code="FROM-THE-FUTURE", what="new kind", details={"a": 1})
    with pytest.raises(Unexpected, match="new kind"):
        api.storage()
    server.answers["GET", "/storage"] = (502, {"detail": "a proxy"})
    with pytest.raises(NotAVaporSite, match="502"):
        api.storage()
    server.answers["GET", "/storage"] = (200, [{"path": "/r", "colour": "red"}])
    with pytest.raises(ApiVersionMismatch, match="shape"):
        api.storage()
    server.answers["GET", "/identity"] = (
        200,
        {**IDENTITY, "api_version": 2, "now": datetime.now(UTC).isoformat()},
    )
    with pytest.raises(ApiVersionMismatch, match="version 2"):
        api.identity()


def test_a_refused_token_is_asked_for_again(server: TlsServer, certificate: Certificate) -> None:
    tokens = iter(["old", "new"])
    api = HttpSiteApi(server.url, certificate.pem, lambda: next(tokens))

    def answer(request: Request) -> tuple[int, Any]:
        if request.headers["authorization"] == "Bearer old":
            return 401, {"problem": True, **TokenRevoked("revoked").to_wire()}
        return 200, []

    server.answers["GET", "/storage"] = answer
    with pytest.raises(TokenRevoked):
        api.storage()
    assert api.storage() == ()
    api.close()


def test_a_locked_keyring_is_what_it_is(server: TlsServer, certificate: Certificate) -> None:
    def locked() -> str:
        raise KeyringLocked("locked")

    api = HttpSiteApi(server.url, certificate.pem, locked)
    with pytest.raises(KeyringLocked):
        api.storage()
    assert server.requests == []
    api.close()


def test_another_certificate_is_refused_before_anything_is_sent(
    server: TlsServer, certificate: Certificate, tmp_path: Path
) -> None:
    """Also one of the very same name, and also on a connection made again."""
    twin = make_certificate(tmp_path, "site")
    asked: list[str] = []

    def token() -> str:
        asked.append("token")
        return TOKEN

    api = HttpSiteApi(server.url, twin.pem, token)
    with pytest.raises(CertificateChanged):
        api.storage()
    assert server.requests == []
    api.close()

    server.answers["GET", "/storage"] = (200, [])
    good = HttpSiteApi(server.url, certificate.pem, token)
    assert good.storage() == ()
    good.close()


def test_a_site_whose_certificate_changes_between_calls(tmp_path: Path) -> None:
    first, second = make_certificate(tmp_path, "first"), make_certificate(tmp_path, "second")
    with tls_server(first) as server:
        server.answers["GET", "/storage"] = (200, [])
        port = server.port
        api = HttpSiteApi(server.url, first.pem, lambda: TOKEN)
        assert api.storage() == ()
    with tls_server(second, port) as other:
        other.answers["GET", "/storage"] = (200, [])
        with pytest.raises((CertificateChanged, SiteUnreachable)) as caught:
            api.storage()
        if isinstance(caught.value, SiteUnreachable):  # the old connection's end was seen first
            with pytest.raises(CertificateChanged):
                api.storage()
        assert other.requests == []
    api.close()


def test_a_pinned_certificate_does_not_grow_old(tmp_path: Path) -> None:
    expired = make_certificate(tmp_path, "expired", days=(-20, -10))
    with tls_server(expired) as server:
        server.answers["GET", "/storage"] = (200, [])
        api = HttpSiteApi(server.url, expired.pem, lambda: TOKEN)
        assert api.storage() == ()
        api.close()


def api_at(port: int, certificate: Certificate, host: str = "127.0.0.1") -> HttpSiteApi:
    return HttpSiteApi(f"https://{host}:{port}/api/v1", certificate.pem, lambda: TOKEN)


def test_nothing_listens(certificate: Certificate) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    api = api_at(port, certificate)
    with pytest.raises(SiteUnreachable) as caught:
        api.storage()
    assert caught.value.why.startswith("the connection was refused")
    api.close()


def test_an_unknown_name(certificate: Certificate) -> None:
    api = api_at(7770, certificate, "no-such-host.invalid")
    with pytest.raises(SiteUnreachable) as caught:
        api.storage()
    assert caught.value.why == "that name is not known"
    api.close()


def test_a_host_that_never_answers(certificate: Certificate, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listener whose queue is full drops the connection's first packet, as a firewall does."""
    monkeypatch.setattr(pinned, "CONNECT_TIMEOUT_S", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        port = silent.getsockname()[1]
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        api = api_at(port, certificate)
        with pytest.raises(SiteUnreachable) as caught:
            api.storage()
        assert caught.value.why == "the connection timed out"
        api.close()
        for filler in fillers:
            filler.close()


def test_a_site_that_takes_the_request_and_says_nothing(
    api: HttpSiteApi, server: TlsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()

    def answer(_: Request) -> tuple[int, Any]:
        release.wait(5)
        return 200, []

    server.answers["GET", "/storage"] = answer
    monkeypatch.setattr(pinned, "READ_TIMEOUT_S", 0.3)
    with pytest.raises(SiteUnreachable, match=r"no answer within 0\.3 s"):
        api.storage()
    release.set()
    assert len(server.requests) == 1


@pytest.mark.parametrize("said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n", b"\x00" * 64])
def test_something_that_does_not_speak_tls(certificate: Certificate, said: bytes) -> None:
    got = bytearray()

    def talk(connection: socket.socket) -> None:
        got.extend(connection.recv(4096))
        connection.sendall(said)
        connection.recv(4096)

    with raw_server(talk) as port:
        api = api_at(port, certificate)
        with pytest.raises(NotAVaporSite):
            api.storage()
        api.close()
    assert TOKEN.encode() not in got


def test_a_get_on_a_connection_the_site_just_closed_is_asked_once_more(
    server: TlsServer, certificate: Certificate
) -> None:
    """The idle connection dies under the request: not a reason to call the site unreachable."""
    api = HttpSiteApi(server.url, certificate.pem, lambda: TOKEN)
    times = iter([(200, []), "hang up", (200, [])])

    def answer(_: Request) -> tuple[int, Any]:
        what = next(times)
        if what == "hang up":
            raise ConnectionAbortedError
        assert isinstance(what, tuple)
        return what

    server.answers["GET", "/storage"] = answer
    assert api.storage() == ()
    assert api.storage() == ()
    assert len(server.requests) == 3
    api.close()


def test_closing_while_a_request_runs_lets_it_finish_and_refuses_the_next(
    api: HttpSiteApi, server: TlsServer
) -> None:
    """A worker that finds a site dead drops its connections; other workers may be using them."""
    asked, go_on = threading.Event(), threading.Event()

    def slow(_request: Request) -> tuple[int, Any]:
        asked.set()
        assert go_on.wait(20)
        return 200, {"vm_uuid": "v", "holder": "e", "holder_name": "n", "purpose": "cycle", "fence": 4} | {
            "expires_at": "2026-01-01T00:01:00Z"
        }  # fmt: skip

    server.answers["GET", "/leases/v"] = slow
    found: list[Lease | None] = []
    running = threading.Thread(target=lambda: found.append(api.lease("v")))
    running.start()
    assert asked.wait(20)
    api.close()
    go_on.set()
    running.join(20)
    assert [lease.fence for lease in found if lease is not None] == [4]
    with pytest.raises(SiteUnreachable, match="given up meanwhile"):
        api.lease("v")
    with pytest.raises(SiteUnreachable):
        api.release_lease("v", 4)
