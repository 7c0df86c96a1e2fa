"""The start guard over the real API: leases, epochs, idempotence, the audit log, and libvirt's autostart."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from site_server import SiteServer, running_site

from vapor_desktop.model import wire
from vapor_desktop.model.manifest import Epoch

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
        record = client.get(f"/guard/{VM}")
        if record.status_code == 200:
            (site.state / "guard" / f"{VM}.json").unlink()


def here(site: SiteServer) -> str:
    return str(json.loads((site.state / "site.json").read_text())["site_id"])


def lease(console: httpx2.Client, holder: str = "engine") -> int:
    body = wire.LeaseRequest(holder=holder, holder_name="desk", purpose="guard", takeover_reason="test")
    return int(console.post(f"/leases/{VM}", json=body.model_dump(mode="json")).json()["fence"])


def arm(console: httpx2.Client, fence: int, number: int, owner: str, **change: Any) -> httpx2.Response:
    state = change.pop("state", wire.GuardState.OWN)
    body = wire.GuardRequest(
        fence=fence, epoch=Epoch(number=number, owner=owner), state=state, vm_name="web01", peer_site=PEER,
        reason="protected to beta", by="desk", **change,
    )  # fmt: skip
    return console.put(f"/guard/{VM}", json=body.model_dump(mode="json"))


def release(console: httpx2.Client, fence: int, number: int, owner: str) -> httpx2.Response:
    body = wire.GuardRelease(fence=fence, epoch=Epoch(number=number, owner=owner), reason="unprotected", by="desk")
    return console.request("DELETE", f"/guard/{VM}", json=body.model_dump(mode="json"))


def code(answer: httpx2.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def acts(site: SiteServer) -> list[dict[str, Any]]:
    lines = (site.state / "audit.log").read_text().splitlines()
    return [item for item in map(json.loads, lines) if str(item["act"]).startswith("guard-")]


def test_armed_read_again_and_taken_away(site: SiteServer, console: httpx2.Client) -> None:
    assert console.get("/guard").json() == []
    assert code(console.get(f"/guard/{VM}")) == (404, "NOT-FOUND")
    boot = console.get("/identity").json()["boot_id"]
    fence = lease(console)
    before = len(acts(site))
    made = wire.GuardRecord.model_validate(arm(console, fence, 1, here(site), boot_id=boot).json())
    assert (made.state, made.epoch.number, made.confirmed_boot_id) == (wire.GuardState.OWN, 1, boot)
    assert console.get("/guard").json() == [json.loads(made.model_dump_json())]
    file = site.state / "guard" / f"{VM}.json"
    written = file.stat().st_mtime_ns
    assert arm(console, fence, 1, here(site), boot_id=boot).json() == json.loads(made.model_dump_json())
    assert file.stat().st_mtime_ns == written
    assert release(console, fence, 1, here(site)).status_code == 204
    assert release(console, fence, 1, here(site)).status_code == 204
    assert not file.exists()
    said = acts(site)[before:]
    assert [item["act"] for item in said] == ["guard-arm", "guard-disarm"]
    assert said[0]["after"]["changed_by"] == "desk"


def test_lower_epochs_and_stale_leases_write_nothing(site: SiteServer, console: httpx2.Client) -> None:
    old, me = lease(console, "old"), here(site)
    fence = lease(console, "new")
    assert code(arm(console, old, 5, me)) == (409, "STALE-LEASE")
    assert code(console.get(f"/guard/{VM}")) == (404, "NOT-FOUND")
    assert arm(console, fence, 5, PEER, state=wire.GuardState.OTHERS).status_code == 200
    kept = console.get(f"/guard/{VM}").json()
    assert code(arm(console, fence, 4, me)) == (409, "EPOCH-MOVED")
    assert code(arm(console, fence, 5, me)) == (409, "EPOCH-MOVED")
    assert code(arm(console, old, 6, me)) == (409, "STALE-LEASE")
    assert code(release(console, fence, 4, me)) == (409, "EPOCH-MOVED")
    assert code(release(console, old, 6, me)) == (409, "STALE-LEASE")
    assert code(arm(console, fence, 6, PEER)) == (422, "INVALID-REQUEST")
    assert console.get(f"/guard/{VM}").json() == kept
    assert arm(console, fence, 6, me).json()["state"] == "own"


def test_only_its_operation_moves_a_moving_vm(site: SiteServer, console: httpx2.Client) -> None:
    fence, me = lease(console), here(site)
    moving = wire.GuardState.MOVING
    assert arm(console, fence, 1, me, state=moving, operation_id="op-1").status_code == 200
    assert code(arm(console, fence, 1, me)) == (409, "CONFLICT")
    assert code(arm(console, fence, 1, me, state=moving, operation_id="op-2")) == (409, "CONFLICT")
    assert code(release(console, fence, 1, me)) == (409, "CONFLICT")
    assert arm(console, fence, 1, me, operation_id="op-1").json()["state"] == "own"


def test_a_viewer_reads_and_does_not_write(site: SiteServer) -> None:
    client, _ = site.paired("view", "33333333-3333-4333-8333-333333333333")
    with client:
        assert client.get("/guard").status_code == 200
        assert code(arm(client, 1, 1, here(site))) == (403, "NOT-ALLOWED")


def test_a_damaged_record_is_an_error_not_a_missing_one(site: SiteServer, console: httpx2.Client) -> None:
    fence, me = lease(console), here(site)
    file = site.state / "guard" / f"{VM}.json"
    arm(console, fence, 1, me)
    file.write_text("{")
    assert code(console.get(f"/guard/{VM}")) == (500, "UNEXPECTED")
    assert code(arm(console, fence, 2, me)) == (500, "UNEXPECTED")
    assert file.read_text() == "{"
    assert console.get("/guard").json() == []
    file.unlink()


def test_a_hook_that_is_not_there_is_no_guard(site: SiteServer, console: httpx2.Client) -> None:
    assert console.get("/identity").json()["guard_proven"] is False
    health = wire.Health.model_validate(console.get("/health").json())
    assert not health.guard_proven
    line = next(check for check in health.checks if check.name == "start guard")
    assert not line.ok
    assert "guard install" in line.fix
