"""Looks at every paired site: does it answer, what time is it there, which VMs and how much space has it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import structlog

from vapor_desktop.engine.ports import Clock, Repository, SiteGateway
from vapor_desktop.model.domains import DomainView
from vapor_desktop.model.eligibility import judge
from vapor_desktop.model.errors import VaporError
from vapor_desktop.model.sites import Site
from vapor_desktop.model.view import DiskVerdictView, SiteStatus, VmStatus
from vapor_desktop.model.wire import Identity

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Seen:
    """The last look at a site."""

    status: SiteStatus
    identity: Identity | None
    vms: tuple[VmStatus, ...]
    vms_at: datetime | None


class SiteWatch:
    """Keeps one ``Seen`` per site. ``look`` blocks and is called from workers; the rest only reads."""

    def __init__(self, repository: Repository, gateway: SiteGateway, clock: Clock) -> None:
        self._repository = repository
        self._gateway = gateway
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: dict[str, Seen] = {}
        self.on_domain: Callable[[DomainView], object] = lambda _domain: None  # told of every VM that was looked at

    def seen(self, site_id: str) -> Seen | None:
        """The last look, or None."""
        with self._lock:
            return self._seen.get(site_id)

    def statuses(self, sites: Sequence[Site], peers: dict[str, list[str]]) -> tuple[SiteStatus, ...]:
        """One status per site, in the given order; a site never looked at is "not tried yet"."""
        with self._lock:
            rows = [
                replace(s.status, site=site) if (s := self._seen.get(site.site_id)) else blank_status(site)
                for site in sites
            ]
        return tuple(replace(r, peers=tuple(peers.get(r.site.site_id, ()))) for r in rows)

    def vms(self) -> tuple[VmStatus, ...]:
        """Every VM seen at any site."""
        with self._lock:
            return tuple(vm for s in self._seen.values() for vm in s.vms)

    def look(self, site: Site, *, inventory: bool) -> None:
        """One look: identity and clock, space, and the VMs when ``inventory``. Never raises a VaporError."""
        before = self.seen(site.site_id)
        try:
            seen = self._look(site, before, inventory)
        except VaporError as error:
            old = before.status if before else blank_status(site)
            status = replace(
                old,
                site=site,
                reachable=False,
                error=str(error),
                error_code=error.code,
                fix=error.fix,
                latency_s=None,
            )
            seen = Seen(status, before.identity if before else None, before.vms if before else (), None)
            if before is None or before.status.reachable is not False:
                log.warning("site unreachable", site=site.name, code=error.code, error=str(error))
        with self._lock:
            self._seen[site.site_id] = seen

    def _look(self, site: Site, before: Seen | None, inventory: bool) -> Seen:
        api = self._gateway.api(site)
        identity, offset_s, error_s = api.identity()
        now = self._clock.now()
        self._repository.save_clock(site.site_id, offset_s, error_s, now)
        roots = api.storage()
        vms, vms_at = (before.vms, before.vms_at) if before else ((), None)
        trouble: VaporError | None = None
        if inventory:
            try:
                domains = self._gateway.hypervisor(site).domains()
                vms, vms_at = tuple(vm_status(d, site) for d in domains), now
            except VaporError as error:
                trouble = error  # the service answers, libvirt does not: say so, and keep the old list
            else:
                for domain in domains:
                    self.on_domain(domain)
        status = SiteStatus(
            site=site,
            reachable=True,
            last_seen_at=now,
            clock_offset_s=offset_s,
            clock_error_s=error_s,
            latency_s=error_s * 2,
            version=identity.version,
            libvirt_version=identity.libvirt_version,
            qemu_version=identity.qemu_version,
            free_bytes=roots[0].free_bytes if roots else None,
            total_bytes=roots[0].total_bytes if roots else None,
            peers=(),
            error=str(trouble) if trouble else None,
            error_code=trouble.code if trouble else None,
            fix=trouble.fix if trouble else None,
            guard_proven=identity.guard_proven,
        )
        return Seen(status, identity, vms, vms_at)


def blank_status(site: Site) -> SiteStatus:
    """A site nobody has looked at yet."""
    return SiteStatus(site, None, None, None, None, None, None, None, None, None, None, ())


def vm_status(domain: DomainView, site: Site) -> VmStatus:
    """A VM as a candidate for protection, each disk with what can be done with it."""
    verdicts = judge(domain)
    sizes = {d.target: d.size_bytes for d in domain.disks}
    disks = tuple(DiskVerdictView(v.target, v.kind, v.reason, v.fix, sizes.get(v.target)) for v in verdicts)
    refused = [v for v in verdicts if v.kind == "refused"]
    usable = any(v.kind in {"delta", "compare"} for v in verdicts)
    reason = ""
    if not domain.persistent:
        reason = "It has no persistent definition; define it first"
    elif refused:
        reason = "; ".join(f"{v.target}: {v.reason}" for v in refused)
    elif not usable:
        reason = "It has no disk that can be replicated"
    return VmStatus(
        domain.vm_uuid,
        domain.name,
        site.site_id,
        site.name,
        domain.state,
        domain.networks,
        disks,
        not reason,
        reason,
    )
