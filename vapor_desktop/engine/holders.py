"""Who holds a VM's leases, taking one over with a reason, and which engines live: for people."""

from __future__ import annotations

from collections.abc import Sequence

from vapor_desktop.engine import sharing
from vapor_desktop.engine.ports import Repository, SiteGateway
from vapor_desktop.model.errors import InvalidRequest, NotFound, VaporError
from vapor_desktop.model.sites import Protection, Site
from vapor_desktop.model.view import EngineView, LeaseHolder
from vapor_desktop.model.wire import LeaseRequest

_BY_HAND_S = 5.0  # held for no longer than it takes to give it back


def leases(repository: Repository, gateway: SiteGateway, p: Protection) -> tuple[LeaseHolder, ...]:
    """At the VM's source and target, asked now. A site that does not answer is told, not raised."""
    found = []
    for site_id in (p.source_site, p.target_site):
        site = repository.site(site_id)
        if site is None:
            continue
        try:
            lease = gateway.api(site).lease(p.vm_uuid)
        except VaporError as error:
            found.append(LeaseHolder(site_id, site.name, None, str(error)))
        else:
            found.append(LeaseHolder(site_id, site.name, lease))
    return tuple(found)


def take_over(gateway: SiteGateway, site: Site, vm_uuid: str, by: str, reason: str) -> str:
    """End the lease that somebody holds there, and who it was. Its holder's writes are refused from then on.

    The reason is kept in the site's audit log. Raises InvalidRequest without one, NotFound when nobody holds it,
    LeaseHeld when another holder came meanwhile.
    """
    if not reason.strip():
        raise InvalidRequest("Taking a lease over wants a reason", fix="Write why, for those who come after")
    api = gateway.api(site)
    held = api.lease(vm_uuid)
    if held is None:
        raise NotFound(f"Nobody holds this VM's lease at {site.name}", fix="Do again what was refused")
    request = LeaseRequest(
        holder=f"{by}/take-over",
        holder_name=by,
        purpose="take-over",
        ttl_s=_BY_HAND_S,
        takeover_reason=reason.strip(),
        takeover_from=held.holder,
    )
    api.release_lease(vm_uuid, api.acquire_lease(vm_uuid, request).fence)
    return f"{held.holder_name} ({held.purpose})"


def engines(repository: Repository) -> Sequence[EngineView]:
    """Those that live, the leading one first, then the others that act."""
    now = repository.time()
    living = [e for e in repository.engines() if sharing.lives(e, now)]
    acting = sharing.acting(living, shared=repository.shared())
    held = list(repository.claims().values())
    views = [
        EngineView(e.engine_id, e.host, e.pid, e.kind, e.heartbeat_at, e.engine_id in acting, held.count(e.engine_id))
        for e in living
    ]
    return sorted(views, key=lambda v: (not v.acts, v.engine_id))
