"""Verbs that need the engine (leases, movers, libvirt), run by whichever engine lives."""

from __future__ import annotations

from collections.abc import Callable

from vapor_desktop.engine import records
from vapor_desktop.engine.lease import HeldLease
from vapor_desktop.engine.operations.failover import effects, points_of
from vapor_desktop.engine.ports import Clock, Repository, SiteGateway
from vapor_desktop.engine.reaching import reach
from vapor_desktop.engine.sitewatch import SiteWatch
from vapor_desktop.engine.worker import EngineIdentity
from vapor_desktop.model import rpo
from vapor_desktop.model.errors import NotFound
from vapor_desktop.model.manifest import Manifest
from vapor_desktop.model.sites import Protection, Site
from vapor_desktop.model.tpm import NOT_FULLY
from vapor_desktop.model.view import FailoverPreview, KeptRunView
from vapor_desktop.model.wire import LetGoRequest, WriteGrant


class Recovery:
    """What is asked of the target directly: the failover sheet, pins, deleting a replica."""

    def __init__(
        self,
        repository: Repository,
        gateway: SiteGateway,
        sites: SiteWatch,
        clock: Clock,
        identity: EngineIdentity,
    ) -> None:
        self._repository = repository
        self._gateway = gateway
        self._sites = sites
        self._clock = clock
        self._identity = identity

    def preview(self, protection_id: str) -> FailoverPreview:
        """The failover sheet. Asks the target; what is known of the source comes from the last looks."""
        p = self._protection(protection_id)
        target = self._site(p.target_site)
        manifest = self._gateway.api(target).replica(p.vm_uuid).manifest
        records.cache_manifest(self._repository, protection_id, manifest)
        p = self._protection(protection_id)  # with the mappings that the manifest tells
        row = self._repository.clock(target.site_id)
        offset = rpo.ClockOffset(row[0], row[1]) if row else None
        source = self._repository.site(p.source_site)
        seen = self._sites.seen(p.source_site)
        newest = manifest.newest
        reached = reach(self._gateway, source, p.vm_uuid, newest.checkpoint if newest else None) if source else None
        answers = reached.answers if reached else None
        networks = self._gateway.hypervisor(target).networks()
        wanted = set(p.mappings.networks.values())
        missing = sorted(wanted - set(networks))
        return FailoverPreview(
            protection_id=protection_id,
            vm_name=p.vm_name,
            target_name=target.name,
            source_name=source.name if source else "the source (not paired here)",
            source_reachable=answers if answers or seen is None or not seen.status.refuses else None,
            source_last_seen_at=self._clock.now() if answers else (seen.status.last_seen_at if seen else None),
            tried=reached.tried if reached else ("This console is not paired with the source",),
            source_state=reached.state if reached else None,
            unsent_bytes=self._unsent(protection_id, reached.unsent_bytes if reached else None),
            points=points_of(manifest, self._clock, offset),
            effects=effects(p, source.name if source else "the source", target.name, sorted(wanted))
            + tuple(f"“{p.vm_name}” is {text}." for text in p.warnings if text.startswith(NOT_FULLY)),
            blockers=tuple(f"Network “{n}” does not exist at {target.name}" for n in missing),
        )

    def _unsent(self, protection_id: str, dirty_bytes: int | None) -> int | None:
        """By the bitmap; else what the cycle that was cut had still to send."""
        if dirty_bytes is not None:
            return dirty_bytes
        live = self._repository.live().get(protection_id)
        progress = live.progress if live else None
        return max(progress.total_bytes - progress.done_bytes, 0) if progress else None

    def pin(self, protection_id: str, seq: int, note: str | None) -> None:
        """Pin a point (note) or let the user's pins go (None).

        What is kept at the source, since the VM came home from another direction, is let go there.
        """

        def act(manifest: Manifest, grant: WriteGrant, vm: str, site: Site) -> Manifest:
            api = self._gateway.api(site)
            if note is not None:
                return api.pin(vm, seq, f"user:{note}", grant)
            entry = manifest.entry(seq)
            for pin in entry.pins if entry else ():
                if pin.startswith("user:"):
                    manifest = api.unpin(vm, seq, pin, grant)
            return manifest

        p = self._protection(protection_id)
        at_source = (
            note is None
            and self._gateway.api(self._site(p.target_site)).replica(p.vm_uuid).manifest.entry(seq) is None
        )
        self._under_lease(protection_id, "pin", act, at=p.source_site if at_source else p.target_site)

    def delete_replica(self, protection_id: str) -> None:
        """Delete the replica at the target (the caller has asked for the typed confirmation)."""

        def act(manifest: Manifest, grant: WriteGrant, vm: str, site: Site) -> Manifest:
            self._gateway.api(site).delete_replica(vm, grant)
            return manifest

        self._under_lease(protection_id, "delete replica", act)

    def kept_runs(self, protection_id: str) -> tuple[KeptRunView, ...]:
        """Asked of the target; oldest first."""
        p = self._protection(protection_id)
        view = self._gateway.api(self._site(p.target_site)).replica(p.vm_uuid)
        rows = (
            KeptRunView(int(n), k.name, k.at, k.seq, sum(view.run_bytes.get(n, {}).values()))
            for n, k in view.manifest.kept.items()
        )
        return tuple(sorted(rows, key=lambda k: k.epoch))

    def let_go(self, protection_id: str, epoch: int, reason: str) -> None:
        """Delete what a kept run has written."""

        def act(_manifest: Manifest, grant: WriteGrant, vm: str, site: Site) -> Manifest:
            return self._gateway.api(site).let_go(vm, epoch, LetGoRequest(fence=grant.fence, reason=reason))

        self._under_lease(protection_id, "let go", act)

    def _under_lease(
        self,
        protection_id: str,
        purpose: str,
        act: Callable[[Manifest, WriteGrant, str, Site], Manifest],
        at: str | None = None,
    ) -> None:
        """``at``: another site than the target; what is there is no cache of ours."""
        p = self._protection(protection_id)
        site = self._site(at or p.target_site)
        api = self._gateway.api(site)
        with HeldLease(api, p.vm_uuid, self._identity.engine_id, self._identity.name, purpose, wait_s=30) as lease:
            manifest = api.replica(p.vm_uuid).manifest
            newest = manifest.newest
            grant = WriteGrant(
                fence=lease.fence,
                epoch=manifest.epoch,
                source_site=manifest.source_site,
                parent_seq=newest.seq if newest else None,
            )
            after = act(manifest, grant, p.vm_uuid, site)
        if site.site_id == p.target_site:
            records.cache_manifest(self._repository, protection_id, after)

    def _protection(self, protection_id: str) -> Protection:
        p = self._repository.protection(protection_id)
        if p is None:
            raise NotFound("That protection does not exist any more")
        return p

    def _site(self, site_id: str) -> Site:
        site = self._repository.site(site_id)
        if site is None:
            raise NotFound("The target site is not paired with this console", fix="Pair it first")
        return site
