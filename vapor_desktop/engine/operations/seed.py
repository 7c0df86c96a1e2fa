"""Seeding: a first copy stands on an image that is at the target already, and only what differs travels."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack

from vapor_desktop.engine.lease import HeldLease, interrupting
from vapor_desktop.engine.ports import Hypervisor, SiteApi
from vapor_desktop.model.errors import InvalidRequest, NotFound, from_wire
from vapor_desktop.model.manifest import Epoch, Manifest
from vapor_desktop.model.sites import Protection
from vapor_desktop.model.wire import ImageFormat, ReplicaCreate, SeedImage, SeedRequest, SeedState, WriteGrant

POLL_S = 0.3
CYCLE_ENDS_S = 60.0


class SeedCopy:
    """Makes the seeds of one protection, under the target's lease, so that no cycle runs meanwhile."""

    def __init__(
        self, api: SiteApi, source: Hypervisor, protection: Protection, holder: str, holder_name: str
    ) -> None:
        self._api = api
        self._source = source
        self._p = protection
        self._holder = f"{holder}/seed"  # another than the engine's: its next cycle waits instead of taking over
        self._holder_name = holder_name

    def run(
        self,
        images: Mapping[str, str],
        image_format: ImageFormat,
        stop_cycle: Callable[[], None],
        on_state: Callable[[SeedState], None],
    ) -> None:
        """``images``: disk target -> absolute path at the target, below its image roots. Until they are copied.

        Raises InvalidRequest for a disk that the VM does not have, Conflict for one that has points already,
        NotAllowed for a path outside the roots, ReplicaFull, StaleLease, SiteUnreachable.
        """
        sizes = {d.target: d.size_bytes for d in self._source.domain(self._p.vm_uuid).disks}
        unknown = sorted(set(images) - set(sizes))
        if unknown or not images:
            have = ", ".join(sorted(sizes))
            raise InvalidRequest(f"“{self._p.vm_name}” has no disk {', '.join(unknown)}", fix=f"It has: {have}")
        wanted = {t: SeedImage(path=p, format=image_format, disk_bytes=sizes[t]) for t, p in images.items()}
        pause = threading.Event()
        with ExitStack() as held:
            lease = interrupting(
                held,
                lambda: HeldLease(self._api, self._p.vm_uuid, self._holder, self._holder_name, "seed"),
                stop_cycle,
                patience_s=0.0,
                longest_s=CYCLE_ENDS_S,
            )
            grant = _grant(lease, self._manifest(lease))
            state = self._api.seed(self._p.vm_uuid, SeedRequest(grant=grant, disks=wanted))
            while state.running:
                on_state(state)
                pause.wait(POLL_S)
                _ = lease.fence  # raises when it was lost: the site stops copying by itself
                state = self._api.seed_state(self._p.vm_uuid)
            if state.error is not None:
                raise from_wire(state.error)
            missing = sorted(set(images) - set(self._api.replica(self._p.vm_uuid).seeded))
            if missing:
                raise NotFound(f"The site forgot the seed of {', '.join(missing)}", fix="Seed again")

    def _manifest(self, lease: HeldLease) -> Manifest:
        p = self._p
        try:
            return self._api.replica(p.vm_uuid).manifest
        except NotFound:
            request = ReplicaCreate(
                grant=WriteGrant(
                    fence=lease.fence,
                    epoch=Epoch(number=p.epoch_number, owner=p.source_site),
                    source_site=p.source_site,
                    parent_seq=None,
                ),
                protection_id=p.protection_id,
                vm_name=p.vm_name,
                target_site=p.target_site,
                policy=p.policy,
                mappings=p.mappings,
            )
            return self._api.create_replica(p.vm_uuid, request)


def _grant(lease: HeldLease, manifest: Manifest) -> WriteGrant:
    newest = manifest.newest
    return WriteGrant(
        fence=lease.fence,
        epoch=manifest.epoch,
        source_site=manifest.source_site,
        parent_seq=newest.seq if newest else None,
    )
