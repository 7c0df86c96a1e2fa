"""``/leases``: who may act on one VM at this site."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from vapor_desktop.model.wire import Lease, LeaseRequest
from vapor_desktop.site import leases
from vapor_desktop.site.api.auth import Operator, Site

router = APIRouter(prefix="/leases/{vm}", tags=["leases"])

Ttl = Annotated[float, Query(gt=0, le=3600)]


@router.get("")
def current(vm: str, _caller: Operator, site: Site) -> Lease:
    """The living lease; 404 when nobody holds one."""
    return leases.current(site.settings.leases_dir, vm)


@router.post("")
def acquire(vm: str, body: LeaseRequest, _caller: Operator, site: Site) -> Lease:
    """The VM's lease under the next fencing number; 409 names a living holder."""
    return leases.acquire(site.settings.leases_dir, vm, body, site.audit)


@router.put("/{fence}")
def renew(vm: str, fence: int, _caller: Operator, site: Site, ttl_s: Ttl = 60.0) -> Lease:
    """Prolong; 409 when it ended or another took it."""
    return leases.renew(site.settings.leases_dir, vm, fence, ttl_s)


@router.delete("/{fence}", status_code=204)
def release(vm: str, fence: int, _caller: Operator, site: Site) -> None:
    """Give it back. Idempotent."""
    leases.release(site.settings.leases_dir, vm, fence)
