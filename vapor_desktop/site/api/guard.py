"""``/guard``: which VMs this host may start. Override is not here: it belongs to a person on the host."""

from __future__ import annotations

from fastapi import APIRouter

from vapor_desktop.model.wire import GuardRecord, GuardRelease, GuardRequest
from vapor_desktop.site.api.auth import Operator, Site, Viewer

router = APIRouter(prefix="/guard", tags=["guard"])


@router.get("")
def guards(_caller: Viewer, site: Site) -> list[GuardRecord]:
    """Every record, by VM name."""
    return site.guard.all()


@router.get("/{vm}")
def guard(vm: str, _caller: Viewer, site: Site) -> GuardRecord:
    """One record; 404 for a VM that is not guarded."""
    return site.guard.get(vm)


@router.put("/{vm}")
def arm(vm: str, body: GuardRequest, _caller: Operator, site: Site) -> GuardRecord:
    """Write the record; 409 for a stale lease, a lower epoch, or another operation's VM. Idempotent.

    MOVING and OTHERS also switch libvirt's autostart off, OWN gives it back.
    """
    site.guard.arm(vm, body)
    return site.keeper.settle(vm)


@router.delete("/{vm}", status_code=204)
def disarm(vm: str, body: GuardRelease, _caller: Operator, site: Site) -> None:
    """Guard it no more. Idempotent."""
    site.guard.disarm(vm, body)
