"""Recovery plans over the real API: compare-and-set, tombstones, who may; and a port tried from the host."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx2
import pytest
from site_server import SiteServer, running_site

from vapor_desktop.model.plans import Plan, PlanVm, Tier
from vapor_desktop.model.wire import PlanWrite

PLAN = Plan(
    plan_id="33333333-3333-4333-8333-333333333333",
    name="Shop",
    version=1,
    tiers=(Tier(vms=(PlanVm(vm_uuid="u", name="web"),)),),
    changed_at=datetime(2026, 11, 22, tzinfo=UTC),
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SiteServer]:
    with running_site(tmp_path_factory.mktemp("site")) as server:
        yield server


@pytest.fixture
def console(site: SiteServer) -> Iterator[httpx2.Client]:
    client, _ = site.paired()
    with client:
        yield client
        for file in (site.state / "plans").glob("*.json"):
            file.unlink()


def put(console: httpx2.Client, plan: Plan, expect: int) -> httpx2.Response:
    body = PlanWrite(plan=plan, expect_version=expect).model_dump(mode="json")
    return console.put(f"/plans/{plan.plan_id}", json=body)


def test_a_plan_is_kept_and_an_outdated_edit_is_refused(site: SiteServer, console: httpx2.Client) -> None:
    assert put(console, PLAN, 0).status_code == 200
    assert put(console, PLAN, 0).status_code == 200, "the very same again is no conflict"
    second = PLAN.model_copy(update={"version": 2, "name": "Shop and stock"})
    other = PLAN.model_copy(update={"version": 2, "name": "Of another console"})
    assert put(console, second, 1).status_code == 200
    refused = put(console, other, 1)
    assert (refused.status_code, refused.json()["code"]) == (409, "EDIT-OUTDATED")
    assert refused.json()["details"]["version"] == 2
    assert [Plan.model_validate(p) for p in console.get("/plans").json()] == [second]
    with site.paired()[0] as another:
        assert Plan.model_validate(another.get(f"/plans/{PLAN.plan_id}").json()) == second


def test_a_tombstone_stays_so_that_nobody_brings_it_back(console: httpx2.Client) -> None:
    assert put(console, PLAN, 0).status_code == 200
    gone = PLAN.model_copy(update={"version": 2, "deleted": True, "tiers": ()})
    assert put(console, gone, 1).status_code == 200
    assert put(console, PLAN, 0).status_code == 409
    assert [p["deleted"] for p in console.get("/plans").json()] == [True]


def test_what_is_no_plan_is_refused(console: httpx2.Client) -> None:
    body: dict[str, Any] = PlanWrite(plan=PLAN, expect_version=0).model_dump(mode="json")
    assert console.put("/plans/../x", json=body).status_code == 404
    assert console.put("/plans/44444444-4444-4444-8444-444444444444", json=body).status_code == 422
    body["plan"]["plan_format"] = 2
    assert console.put(f"/plans/{PLAN.plan_id}", json=body).status_code == 422
    assert console.get(f"/plans/{PLAN.plan_id}").status_code == 404


def test_who_may_only_look_changes_nothing(site: SiteServer) -> None:
    with site.paired("view")[0] as viewer:
        assert viewer.get("/plans").json() == []
        assert put(viewer, PLAN, 0).status_code == 403
        assert viewer.post("/probes/tcp", json={"address": "127.0.0.1", "port": 9}).status_code == 403


def test_a_port_is_tried_from_the_host(console: httpx2.Client) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        there = {"address": "127.0.0.1", "port": listener.getsockname()[1]}
        assert console.post("/probes/tcp", json=there).json() == {"open": True, "why": ""}
    closed = console.post("/probes/tcp", json=there).json()
    assert closed["open"] is False
    assert "refused" in closed["why"]
    assert console.post("/probes/tcp", json={"address": "example", "port": 80}).status_code == 422
