"""``/plans``: the recovery plans that use this site as a target; ``/probes/tcp``: what they wait for."""

from __future__ import annotations

from fastapi import APIRouter

from vapor_desktop.model.plans import Plan
from vapor_desktop.model.wire import PlanWrite, TcpProbe, TcpProbed
from vapor_desktop.site import tcp_probe
from vapor_desktop.site.api.auth import Operator, Site, Viewer

router = APIRouter(tags=["plans"])


@router.get("/plans")
def every(_caller: Viewer, site: Site) -> list[Plan]:
    """Every plan, and the tombstones of deleted ones."""
    return site.plans.all()


@router.get("/plans/{plan}")
def one(plan: str, _caller: Viewer, site: Site) -> Plan:
    """One plan."""
    return site.plans.get(plan)


@router.put("/plans/{plan}")
def write(plan: str, body: PlanWrite, caller: Operator, site: Site) -> Plan:
    """Keep it; 409 when the copy here has moved since it was read. Idempotent."""
    site.audit(
        "plan",
        plan_id=plan,
        name=body.plan.name,
        version=body.plan.version,
        deleted=body.plan.deleted,
        token_id=caller.token_id,
        console=caller.console_name,
    )
    return site.plans.write(plan, body)


@router.post("/probes/tcp")
def probe_tcp(body: TcpProbe, _caller: Operator, _site: Site) -> TcpProbed:
    """Does that port take a connection from this host?"""
    return tcp_probe.probe(body)
