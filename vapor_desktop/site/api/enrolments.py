"""``/enrolments``: consoles and peers that may reach this host over SSH."""

from __future__ import annotations

from fastapi import APIRouter

from vapor_desktop.model.errors import NotAllowed, VaporError
from vapor_desktop.model.wire import EnrolConsole, EnrolPeer, PeerCheck
from vapor_desktop.site.api.auth import Admin, Operator, Site, Viewer
from vapor_desktop.site.enrolments import uuid_text
from vapor_desktop.site.peers import check_peer

router = APIRouter(prefix="/enrolments", tags=["enrolments"])


@router.post("/consoles", status_code=204)
def enrol_console(body: EnrolConsole, caller: Operator, site: Site) -> None:
    """Let the asking console's SSH key run ``vapor-site console``. Only for the token's own console."""
    if uuid_text(body.console_id, "console_id") != caller.console_id:
        raise NotAllowed("A console enrols its own key only", fix="Pair this console itself")
    site.enrolments.add_console(body, caller.token_id)


@router.post("/peers", status_code=204)
def enrol_peer(body: EnrolPeer, _caller: Admin, site: Site) -> None:
    """Pin the other site of a pair and let its key run ``vapor-site peer UUID``."""
    site.enrolments.add_peer(body, site.site_id)


@router.delete("/peers/{site_id}", status_code=204)
def remove_peer(site_id: str, _caller: Admin, site: Site) -> None:
    """End the pair on this side. Idempotent."""
    site.enrolments.remove_peer(site_id)


@router.post("/peers/{site_id}/check")
def check(site_id: str, _caller: Viewer, site: Site) -> PeerCheck:
    """Can this site reach that peer over SSH, right now?"""
    peer = site.enrolments.peer(site_id)
    try:
        return PeerCheck(reachable=True, latency_s=check_peer(site.settings, peer))
    except VaporError as error:
        return PeerCheck(reachable=False, error=error.to_wire())
