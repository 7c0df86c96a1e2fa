"""The real site service over TLS on loopback: pairing, tokens, leases, enrolments, limits."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from site_server import CONSOLE, SiteServer, running_site

from vapor_desktop.model import wire
from vapor_desktop.model.errors import NotFound, TooManyAttempts
from vapor_desktop.site.api.limits import BODY_LIMIT_BYTES, FAILURES, FailedTokens

VM = "8f1d6f0e-2c0b-4f7a-9d52-0a3b6f1f2a11"
PEER = "22222222-2222-4222-8222-222222222222"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SiteServer]:
    with running_site(tmp_path_factory.mktemp("site")) as server:
        yield server


@pytest.fixture
def console(site: SiteServer) -> Iterator[httpx2.Client]:
    client, _ = site.paired()
    with client:
        yield client


def public_key() -> str:
    key = ed25519.Ed25519PrivateKey.generate().public_key()
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


def problem(answer: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert (body["code"], body["status"]) == (code, status)
    assert body["what"]
    return body


def test_url_and_token_pair_by_themselves(site: SiteServer) -> None:
    shown = json.loads(site.admin("token", "new", "--json"))
    pinned = base64.urlsafe_b64decode(shown["token"].removeprefix("vapor1."))[:32]
    served = ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(("127.0.0.1", site.port)))
    assert shown["url"] == site.url
    assert hashlib.sha256(served).digest() == pinned
    assert site.admin("fingerprint").strip() == pinned.hex(":").upper() == shown["fingerprint"]
    with site.client() as anybody:
        assert anybody.get("/hello").json() == {"product": "vapor-site", "api_version": 1}
    with site.client(shown["token"]) as once:
        answer = once.post("/tokens/exchange", json={"console_name": "desk", "console_id": CONSOLE})
    token = wire.ConsoleToken.model_validate(answer.json())
    with site.client(token.token) as console:
        identity = wire.Identity.model_validate(console.get("/identity").json())
    assert identity.name == "alpha"
    assert identity.libvirt_version is not None
    assert identity.site_id == json.loads((site.state / "site.json").read_text())["site_id"]
    assert abs((datetime.now(UTC) - identity.now).total_seconds()) < 5


def test_another_certificate_is_refused_before_anything_is_sent(site: SiteServer, tmp_path: Path) -> None:
    with running_site(tmp_path / "other", "beta") as other:
        context_of_other = other.client("vapor1.secret")
        context_of_other.base_url = site.url
        with context_of_other, pytest.raises(httpx2.ConnectError, match="certificate verify failed"):
            context_of_other.get("/identity")


def test_only_hashes_at_rest_and_private_files(site: SiteServer) -> None:
    text = site.one_time()
    client, answer = site.paired()
    client.close()
    for path in site.state.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert text.encode() not in content
            assert answer["token"].encode() not in content
    assert hashlib.sha256(answer["token"].encode()).hexdigest() in (site.state / "tokens.json").read_text()
    for name in ("tokens.json", "tls/key.pem", "ssh/id_ed25519"):
        assert (site.state / name).stat().st_mode & 0o077 == 0
    assert answer["token"] not in "".join(site.log)


def test_a_one_time_token_works_once(site: SiteServer) -> None:
    with site.client(site.one_time()) as once:
        body = {"console_name": "c", "console_id": CONSOLE}
        assert once.post("/tokens/exchange", json=body).status_code == 200
        assert "already used" in problem(once.post("/tokens/exchange", json=body), 401, "TOKEN-INVALID")["what"]


def test_racing_exchanges_have_one_winner(site: SiteServer) -> None:
    token = site.one_time()

    def exchange(_: int) -> int:
        with site.client(token) as once:
            return int(once.post("/tokens/exchange", json={"console_name": "c", "console_id": CONSOLE}).status_code)

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(exchange, range(4))) == [200, 401, 401, 401]


def test_a_one_time_token_opens_nothing_else(site: SiteServer) -> None:
    with site.client(site.one_time()) as once:
        problem(once.get("/identity"), 401, "TOKEN-INVALID")


def test_expired(site: SiteServer) -> None:
    token = site.one_time(ttl_s=-1)
    assert json.loads(site.admin("token", "list", "--json"))[-1]["state"] == "expired"
    with site.client(token) as once:
        body = {"console_name": "c", "console_id": CONSOLE}
        problem(once.post("/tokens/exchange", json=body), 401, "TOKEN-EXPIRED")


def test_revoked_by_the_administrator_takes_the_ssh_key_too(site: SiteServer) -> None:
    console_id = "33333333-3333-4333-8333-333333333333"
    client, answer = site.paired(console_id=console_id)
    keys = site.state / ".ssh" / "authorized_keys"
    with client:
        body = {"console_id": console_id, "console_name": "c", "public_key": public_key()}
        assert client.post("/enrolments/consoles", json=body).status_code == 204
        assert f"console:{console_id}" in keys.read_text()
        site.admin("token", "revoke", answer["token_id"])
        problem(client.get("/identity"), 401, "TOKEN-REVOKED")
    assert f"console:{console_id}" not in keys.read_text()
    assert site.admin("token", "revoke", "00000000", code=1) == ""


def test_a_console_gives_its_token_back(site: SiteServer) -> None:
    client, _ = site.paired()
    with client:
        assert client.delete("/tokens/self").status_code == 204
        problem(client.get("/identity"), 401, "TOKEN-REVOKED")


def test_scopes(site: SiteServer) -> None:
    viewer, _ = site.paired("view")
    operator, _ = site.paired("operate")
    lease = {"holder": "h", "holder_name": "h", "purpose": "p"}
    peer = {
        "site_id": PEER, "name": "b", "public_key": public_key(), "host_keys": [public_key()],
        "address": "192.0.2.1", "port": 22, "user": "vapor",
    }  # fmt: skip
    with viewer, operator:
        assert viewer.get("/storage").status_code == 200
        problem(viewer.post(f"/leases/{VM}", json=lease), 403, "NOT-ALLOWED")
        assert operator.post(f"/leases/{VM}", json=lease).status_code == 200
        problem(operator.post("/enrolments/peers", json=peer), 403, "NOT-ALLOWED")


def test_without_and_with_damaged_tokens(site: SiteServer) -> None:
    with site.client() as nobody:
        answer = nobody.get("/identity")
        problem(answer, 401, "TOKEN-INVALID")
        assert answer.headers["www-authenticate"] == "Bearer"
    with site.client("vapor1.damaged") as damaged:
        assert "damaged" in problem(damaged.get("/identity"), 401, "TOKEN-INVALID")["what"]


def test_failures_are_limited_and_a_known_console_is_not_locked_out(tmp_path: Path) -> None:
    with running_site(tmp_path) as site:
        known, _ = site.paired()
        late = site.one_time()
        with known, site.client("vapor1.wrong") as wrong, site.client(late) as right:
            assert known.get("/identity").status_code == 200
            codes = [wrong.get("/identity").status_code for _ in range(FAILURES + 1)]
            assert codes == [401] * FAILURES + [429]
            body = {"console_name": "c", "console_id": CONSOLE}
            answer = right.post("/tokens/exchange", json=body)
            problem(answer, 429, "TOO-MANY-ATTEMPTS")
            assert answer.headers["retry-after"] == "60"
            assert known.get("/identity").status_code == 200


def test_the_limit_is_per_address_and_passes() -> None:
    now = [0.0]
    limit = FailedTokens(lambda: now[0])
    for _ in range(FAILURES):
        limit.check("a", "x")
        limit.failed("a")
    with pytest.raises(TooManyAttempts):
        limit.check("a", "right")
    limit.check("b", "right")
    now[0] = 61.0
    limit.check("a", "right")


def test_leases_over_the_api(console: httpx2.Client) -> None:
    url = "/leases/0b1ff6d5-1c2d-4a58-8a0c-0f3f1d0f9a77"
    problem(console.get(url), 404, NotFound.code)
    first = wire.Lease.model_validate(
        console.post(url, json={"holder": "e1", "holder_name": "Engine 1", "purpose": "cycle"}).json()
    )
    body = {"holder": "e2", "holder_name": "Engine 2", "purpose": "failover"}
    held = problem(console.post(url, json=body), 409, "LEASE-HELD")
    assert held["details"]["holder_name"] == "Engine 1"
    renewed = console.put(f"{url}/{first.fence}?ttl_s=120").json()
    assert renewed["expires_at"] > first.expires_at.isoformat()
    second = console.post(url, json={**body, "takeover_reason": "the site burns"}).json()
    assert second["fence"] > first.fence
    problem(console.put(f"{url}/{first.fence}?ttl_s=60"), 409, "STALE-LEASE")
    assert console.delete(f"{url}/{second['fence']}").status_code == 204
    problem(console.get(url), 404, "NOT-FOUND")
    problem(console.get("/leases/not-a-uuid"), 422, "INVALID-REQUEST")
    problem(console.post(url, json={**body, "ttl_s": -1}), 422, "INVALID-REQUEST")


def test_enrolment_writes_authorized_keys_and_keeps_others_lines(site: SiteServer, console: httpx2.Client) -> None:
    keys = site.state / ".ssh" / "authorized_keys"
    foreign = f"{public_key()} somebody@else\n# a comment\n"
    keys.write_text(foreign + (keys.read_text() if keys.exists() else ""))
    first, second, peer_key, host_key = public_key(), public_key(), public_key(), public_key()
    for key in (first, second):
        body = {"console_id": CONSOLE, "console_name": "desk", "public_key": f"{key} me@desk"}
        assert console.post("/enrolments/consoles", json=body).status_code == 204
    peer = {
        "site_id": PEER, "name": "beta", "public_key": peer_key, "host_keys": [host_key],
        "address": "192.0.2.7", "port": 2222, "user": "vapor",
    }  # fmt: skip
    assert console.post("/enrolments/peers", json=peer).status_code == 204
    text = keys.read_text()
    assert text.startswith(foreign)
    assert first not in text
    assert f'restrict,command="vapor-site console" {second} console:{CONSOLE}\n' in text
    assert f'restrict,command="vapor-site peer {PEER}" {peer_key} peer:{PEER}\n' in text
    assert keys.stat().st_mode & 0o777 == 0o600
    assert f"vapor-{PEER} {host_key}\n" in (site.state / "ssh" / "known_hosts").read_text()
    assert console.delete(f"/enrolments/peers/{PEER}").status_code == 204
    assert f"peer:{PEER}" not in keys.read_text()
    assert PEER not in (site.state / "ssh" / "known_hosts").read_text()
    assert keys.read_text().startswith(foreign)
    acts = [json.loads(line)["act"] for line in (site.state / "audit.log").read_text().splitlines()]
    assert acts[-4:] == ["enrol-console", "enrol-console", "enrol-peer", "remove-peer"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("public_key", 'ssh-ed25519 AAAA",command="sh'),
        ("public_key", "ssh-ed25519 AAAAC3NzaC1yc2E="),
        ("address", "-oProxyCommand=touch /tmp/owned"),
        ("address", "a b"),
        ("user", "-l"),
        ("port", 0),
        ("site_id", "x"),
        ("host_keys", []),
    ],
)
def test_a_bad_peer_is_refused_and_nothing_is_written(
    site: SiteServer, console: httpx2.Client, field: str, value: object
) -> None:
    peer: dict[str, object] = {
        "site_id": PEER, "name": "beta", "public_key": public_key(), "host_keys": [public_key()],
        "address": "192.0.2.7", "port": 22, "user": "vapor",
    }  # fmt: skip
    problem(console.post("/enrolments/peers", json={**peer, field: value}), 422, "INVALID-REQUEST")
    problem(console.post(f"/enrolments/peers/{PEER}/check"), 404, "NOT-FOUND")


def test_a_console_enrols_only_itself(console: httpx2.Client) -> None:
    body = {"console_id": PEER, "console_name": "x", "public_key": public_key()}
    problem(console.post("/enrolments/consoles", json=body), 403, "NOT-ALLOWED")


def test_a_peer_that_does_not_answer(console: httpx2.Client) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    peer = {
        "site_id": PEER, "name": "beta", "public_key": public_key(), "host_keys": [public_key()],
        "address": "127.0.0.1", "port": port, "user": "vapor",
    }  # fmt: skip
    assert console.post("/enrolments/peers", json=peer).status_code == 204
    check = wire.PeerCheck.model_validate(console.post(f"/enrolments/peers/{PEER}/check").json())
    assert not check.reachable
    assert check.error is not None
    assert check.error["code"] == "SITE-UNREACHABLE"
    assert console.delete(f"/enrolments/peers/{PEER}").status_code == 204


def test_views_of_a_site_without_replicas(site: SiteServer, console: httpx2.Client) -> None:
    assert console.get("/replicas").json() == []
    problem(console.get(f"/replicas/{VM}"), 404, "NOT-FOUND")
    root = wire.StorageRoot.model_validate(console.get("/storage").json()[0])
    assert root.path == str(site.directory / "replicas")
    assert 0 < root.free_bytes <= root.total_bytes
    ssh = wire.SshInfo.model_validate(console.get("/ssh").json())
    assert ssh.user_key.startswith("ssh-ed25519 ")
    health = wire.Health.model_validate(console.get("/health").json())
    assert health.libvirt
    assert not health.helper
    assert not health.guard_proven
    assert all(check.ok or check.fix for check in health.checks)


def test_a_seed_needs_operate_a_lease_a_replica_and_the_helper(site: SiteServer, console: httpx2.Client) -> None:
    vm, here = str(uuid4()), console.get("/identity").json()["site_id"]
    asked = {"holder": "e1", "holder_name": "e1", "purpose": "seed", "ttl_s": 600}
    fence = console.post(f"/leases/{vm}", json=asked).json()["fence"]
    grant = {"fence": fence, "epoch": {"number": 1, "owner": PEER}, "source_site": PEER, "parent_seq": None}
    body = {"grant": grant, "disks": {"vda": {"path": "/etc/passwd", "format": "raw"}}}
    problem(console.post(f"/replicas/{vm}/seed", json=body), 404, "NOT-FOUND")
    replica = {
        "grant": grant, "protection_id": str(uuid4()), "vm_name": "vm", "target_site": here,
        "policy": {}, "mappings": {},
    }  # fmt: skip
    assert console.put(f"/replicas/{vm}", json=replica).status_code == 200
    viewer, _ = site.paired("view")
    with viewer:
        problem(viewer.post(f"/replicas/{vm}/seed", json=body), 403, "NOT-ALLOWED")
        assert viewer.get(f"/replicas/{vm}/seed").json()["running"] is False
    stale = {**body, "grant": {**grant, "fence": fence + 1}}
    problem(console.post(f"/replicas/{vm}/seed", json=stale), 409, "STALE-LEASE")
    problem(console.post(f"/replicas/{vm}/seed", json={**body, "disks": {}}), 422, "INVALID-REQUEST")
    assert console.post(f"/replicas/{vm}/seed", json=body).status_code == 202
    deadline = time.monotonic() + 20
    while (state := wire.SeedState.model_validate(console.get(f"/replicas/{vm}/seed").json())).running:
        assert time.monotonic() < deadline
    assert state.error is not None
    assert state.error["code"] == "NOT-ALLOWED"  # no root helper runs here
    assert "seed" in (site.state / "audit.log").read_text()
    assert console.request("DELETE", f"/replicas/{vm}", json=grant).status_code == 204


def test_watches_over_the_api(site: SiteServer, console: httpx2.Client) -> None:
    scratch = str(site.directory / "scratch")
    job = {"holder": "e1", "ttl_s": 60, "scratch_dir": scratch, "reserve_bytes": 1}
    assert console.put(f"/guardian/{VM}/job", json=job).status_code == 204
    assert (site.state / "watches" / f"{VM}.json").exists()
    assert console.delete(f"/guardian/{VM}/job").status_code == 204
    assert not (site.state / "watches" / f"{VM}.json").exists()
    problem(console.put(f"/guardian/{VM}/job", json={**job, "scratch_dir": "/nowhere"}), 422, "INVALID-REQUEST")
    assert console.put(f"/guardian/{VM}/freeze", json={"holder": "e1", "deadline_s": 30}).status_code == 204
    assert console.delete(f"/guardian/{VM}/freeze").json() == {"in_time": True}
    assert console.delete(f"/guardian/{VM}/freeze").json() == {"in_time": False}
    assert console.get("/guardian/events", params={"since": "2026-01-01T00:00:00Z"}).json() == []


def test_bodies_are_bounded_announced_or_not(console: httpx2.Client) -> None:
    big = b'{"holder": "' + b"x" * BODY_LIMIT_BYTES + b'"}'
    problem(console.post(f"/leases/{VM}", content=big), 413, "INVALID-REQUEST")
    answer = console.post(f"/leases/{VM}", content=iter([big[:700_000], big[700_000:]]))
    problem(answer, 413, "INVALID-REQUEST")


def test_unknown_paths_and_methods_are_problems(console: httpx2.Client) -> None:
    problem(console.get("/nothing"), 404, "NOT-FOUND")
    problem(console.delete("/identity"), 405, "INVALID-REQUEST")


def test_the_api_is_published(site: SiteServer) -> None:
    with site.client() as anybody:
        paths = anybody.get("/openapi.json").json()["paths"]
    told = {
        "/hello", "/tokens/exchange", "/tokens/self", "/identity", "/health", "/storage", "/ssh",
        "/enrolments/consoles", "/enrolments/peers", "/enrolments/peers/{site_id}",
        "/enrolments/peers/{site_id}/check",
        "/leases/{vm}", "/leases/{vm}/{fence}", "/replicas", "/replicas/{vm}", "/replicas/{vm}/points/{seq}",
        "/replicas/{vm}/points/{seq}/domain", "/replicas/{vm}/points/{seq}/drop",
        "/replicas/{vm}/points/{seq}/pins", "/replicas/{vm}/incoming",
        "/tpm", "/replicas/{vm}/points/{seq}/tpm",
        "/replicas/{vm}/seed", "/replicas/{vm}/settings", "/replicas/{vm}/current-as-of",
        "/replicas/{vm}/commit", "/replicas/{vm}/epoch", "/replicas/{vm}/runs/{epoch}/let-go",
        "/replicas/{vm}/adopt", "/replicas/{vm}/fold",
        "/replicas/{vm}/runs", "/replicas/{vm}/give-back", "/guardian/{vm}/job", "/guardian/{vm}/freeze",
        "/replicas/{vm}/runbook",
        "/drills", "/drills/{drill_id}", "/drills/{drill_id}/isolation", "/drills/{drill_id}/vms/{vm}",
        "/drills/{drill_id}/vms/{vm}/start", "/drills/{drill_id}/vms/{vm}/screen",
        "/replicas/{vm}/points/{seq}/drill",
        "/guardian/events", "/guardian/scratch", "/guard", "/guard/{vm}", "/plans", "/plans/{plan}", "/probes/tcp",
    }  # fmt: skip
    assert set(paths) == {f"/api/v1{path}" for path in told}


def test_identity_and_trust_survive_a_restart(tmp_path: Path) -> None:
    with running_site(tmp_path) as site:
        client, answer = site.paired()
        with client:
            before = client.get("/identity").json()
            fence = client.post(
                f"/leases/{VM}", json={"holder": "h", "holder_name": "h", "purpose": "p", "ttl_s": 600}
            ).json()["fence"]
        fingerprint = site.admin("fingerprint")
    with running_site(tmp_path) as site, site.client(answer["token"]) as client:
        assert client.get("/identity").json()["site_id"] == before["site_id"]
        assert site.admin("fingerprint") == fingerprint
        assert client.get(f"/leases/{VM}").json()["fence"] == fence


def test_answers_do_not_wait_for_delayed_acknowledgements(console: httpx2.Client) -> None:
    """Nagle's algorithm would add 40 ms to each call of a cycle; the fastest of many tells."""
    times = []
    for _ in range(50):
        begun = time.perf_counter()
        assert console.get("/hello").status_code == 200
        times.append(time.perf_counter() - begun)
    assert min(times) < 0.03
