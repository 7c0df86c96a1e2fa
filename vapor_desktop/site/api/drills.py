"""``/drills``: copies of recovery points running in a bubble. They need no lease."""

from __future__ import annotations

import base64
from datetime import datetime

from fastapi import APIRouter

from vapor_desktop.model.drills import DrillJoin, DrillPicture, DrillRecord, DrillRequest, DrillStop
from vapor_desktop.model.errors import NotFound
from vapor_desktop.site import drill_end
from vapor_desktop.site.api.auth import Operator, Site, Viewer
from vapor_desktop.site.enrolments import uuid_text
from vapor_desktop.site.leases import vm_file_name

router = APIRouter(tags=["drills"])


@router.get("/drills")
def every(_caller: Viewer, site: Site) -> list[DrillRecord]:
    """Oldest first, the last ended ones too."""
    return site.drills.book.all()


@router.get("/drills/{drill_id}")
def one(drill_id: str, _caller: Viewer, site: Site) -> DrillRecord:
    """One drill."""
    return site.drills.book.one(drill_id)


@router.put("/drills/{drill_id}")
def begin(drill_id: str, body: DrillRequest, _caller: Operator, site: Site) -> DrillRecord:
    """Put it on record."""
    return site.drills.open(drill_id, body)


@router.delete("/drills/{drill_id}")
def stop(drill_id: str, body: DrillStop, caller: Operator, site: Site) -> DrillRecord:
    """End it and remove everything of it; of an ended one the record."""
    site.audit("drill-stop", drill_id=drill_id, passed=body.passed, by=body.by, token_id=caller.token_id)
    return drill_end.stop(site.drills, drill_id, body)


@router.put("/drills/{drill_id}/vms/{vm}")
def join(drill_id: str, vm: str, body: DrillJoin, _caller: Operator, site: Site) -> DrillRecord:
    """Networks, overlays and a VM, off."""
    return site.drills.join(drill_id, uuid_text(vm, "the VM"), body)


@router.post("/drills/{drill_id}/isolation")
def isolate(drill_id: str, _caller: Operator, site: Site) -> DrillRecord:
    """Look whether anything could leave the bubble."""
    return site.drills.isolate(drill_id)


@router.post("/drills/{drill_id}/vms/{vm}/start")
def start(drill_id: str, vm: str, _caller: Operator, site: Site) -> DrillRecord:
    """Start it, if the bubble is proven."""
    return site.drills.start(drill_id, uuid_text(vm, "the VM"))


@router.get("/drills/{drill_id}/vms/{vm}/screen")
def screen(drill_id: str, vm: str, _caller: Viewer, site: Site) -> DrillPicture:
    """Its screen now, or the last picture of it."""
    record = site.drills.book.one(drill_id)
    found = record.vm(vm_file_name(vm))
    png = None if found is None else site.drills.book.picture(drill_id, found.vm_uuid)
    if found is not None and record.open:
        png = drill_end.take_picture(site.drills, drill_id, found)
    if found is None or png is None:
        raise NotFound("There is no picture of that VM's screen")
    at = found.started_at or record.created_at
    return DrillPicture(png=base64.b64encode(png).decode(), boot_s=found.boot_s, at=at)


@router.get("/replicas/{vm}/points/{seq}/drill")
def proof(vm: str, seq: int, _caller: Viewer, site: Site) -> DrillPicture:
    """What the last drill that passed on the point has left: its picture and how long the boot took."""
    import json

    raw, png = site.store.proof(uuid_text(vm, "the VM"), seq)
    report = json.loads(raw)
    picture = base64.b64encode(png).decode() if png is not None else ""
    return DrillPicture(png=picture, boot_s=report["boot_s"], at=datetime.fromisoformat(report["at"]))
