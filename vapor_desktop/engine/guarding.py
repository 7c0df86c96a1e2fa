"""Arming the start guard of a protection's source: once per engine life, epoch, policy and boot of that host.

Called after a cycle, which has just seen under the target's lease that the VM is the source's; so it may also confirm
a boot of the source that cannot ask its peer itself (sites that reach each other through the console only).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import structlog

from vapor_desktop.engine import records
from vapor_desktop.engine.lease import HeldLease
from vapor_desktop.engine.ports import Clock, Repository, SiteApi, SiteGateway
from vapor_desktop.engine.sitewatch import SiteWatch
from vapor_desktop.model.errors import EpochMoved, VaporError
from vapor_desktop.model.manifest import Epoch, Manifest
from vapor_desktop.model.sites import Protection, Site
from vapor_desktop.model.split_brain import overtaken
from vapor_desktop.model.states import Severity
from vapor_desktop.model.wire import EpochRequest, GuardRelease, GuardRequest, GuardState

log = structlog.get_logger(__name__)

RETRY_S = 30.0
Key = tuple[int, str, str, str]


class GuardArmer:
    """``holder``, ``name``: who asks, for leases and for the record. Safe for several threads."""

    def __init__(
        self, repository: Repository, gateway: SiteGateway, sites: SiteWatch, clock: Clock, holder: str, name: str
    ) -> None:
        self._repository = repository
        self._gateway = gateway
        self._sites = sites
        self._clock = clock
        self._holder = holder
        self._name = name
        self._lock = threading.Lock()
        self._armed: dict[str, Key] = {}
        self._not_before: dict[str, float] = {}

    def after_cycle(self, protection: Protection, manifest: Manifest) -> None:
        """Arm it unless that is done; trouble is told once, and tried again later."""
        pid = protection.protection_id
        seen = self._sites.seen(protection.source_site)
        boot_id = seen.identity.boot_id if seen and seen.identity else ""
        epoch = manifest.epoch
        key = (epoch.number, epoch.owner, protection.policy.start_guard.value, boot_id)
        if not self._claim(pid, key):
            return
        source, target = (self._repository.site(s) for s in (protection.source_site, protection.target_site))
        if source is None or target is None or manifest.newest is None or epoch.owner != source.site_id:
            return
        try:
            self._arm(source, target, protection, manifest, boot_id)
        except EpochMoved as error:  # a person on the host took it under a higher epoch: it is guarded already
            if not self._follow(source, target, protection, manifest):
                self._note(protection, f"The start guard at {source.name} was not armed again: {error}")
        except VaporError as error:
            log.info("the start guard is not armed", vm=protection.vm_name, code=error.code, error=str(error))
            return
        self._did(pid, key)

    def _follow(self, source: Site, target: Site, p: Protection, manifest: Manifest) -> bool:
        """The owner's host has gone on to a higher epoch while its replica could not hear of it: raise it there."""
        try:
            higher = overtaken(self._gateway.api(source).guard(p.vm_uuid), manifest.epoch)
            if higher is None:
                return False
            api = self._gateway.api(target)
            with HeldLease(api, p.vm_uuid, self._holder, self._name, "raise epoch", wait_s=5) as lease:
                why = f"a person took it under epoch {higher.number} at {source.name}"
                api.raise_epoch(p.vm_uuid, EpochRequest(fence=lease.fence, new_epoch=higher, reason=why))
        except VaporError as error:
            log.info("the replica's epoch was not raised", vm=p.vm_name, code=error.code, error=str(error))
            return False
        update = {"epoch_number": higher.number, "epoch_owner": higher.owner}
        records.update(self._repository, p.protection_id, lambda q: q.model_copy(update=update))
        self._note(p, f"{target.name} follows to epoch {higher.number}: {source.name} was told to take it")
        return True

    def _arm(self, source: Site, target: Site, p: Protection, manifest: Manifest, boot_id: str) -> None:
        api = self._gateway.api(source)
        with HeldLease(api, p.vm_uuid, self._holder, self._name, "start guard") as lease:
            request = GuardRequest(
                fence=lease.fence,
                epoch=manifest.epoch,
                state=GuardState.OWN,
                vm_name=manifest.vm_name,
                peer_site=p.target_site,
                policy=p.policy.start_guard,
                boot_id=boot_id or None,
                reason=f"protected to {target.name}",
                by=self._name,
            )
            api.arm_guard(p.vm_uuid, request)

    def tell_lost(self, taken_over: Sequence[Protection]) -> None:
        """Tell the old owners' hosts that answer: the VM is another's since the protection's epoch.

        They would ask by themselves after a boot; this is for one that never went down, or cannot reach its peer.
        """
        for protection in taken_over:
            self._tell_lost(protection)

    def _tell_lost(self, p: Protection) -> None:
        pid, key = p.protection_id, (p.epoch_number, p.epoch_owner, "", "")
        seen = self._sites.seen(p.source_site)
        source, target = (self._repository.site(s) for s in (p.source_site, p.target_site))
        if source is None or target is None or p.epoch_owner == p.source_site:
            return
        if seen is None or not seen.status.reachable or not self._claim(pid, key):
            return
        epoch = Epoch(number=p.epoch_number, owner=p.epoch_owner)
        try:
            api = self._gateway.api(source)
            record = api.guard(p.vm_uuid)
            if record is not None and record.state is GuardState.OTHERS and record.epoch == epoch:
                self._did(pid, key)
                return
            with HeldLease(api, p.vm_uuid, self._holder, self._name, "start guard") as lease:
                request = GuardRequest(
                    fence=lease.fence,
                    epoch=epoch,
                    state=GuardState.OTHERS,
                    vm_name=p.vm_name,
                    peer_site=p.target_site,
                    policy=p.policy.start_guard,
                    reason=f"failed over to {target.name}",
                    by=self._name,
                )
                api.arm_guard(p.vm_uuid, request)
            self._note(p, f"{source.name} will not start “{p.vm_name}”: it was told of epoch {p.epoch_number}")
        except EpochMoved as error:
            self._note(p, f"{source.name} does not take the failover for granted: {error}")
        except VaporError as error:
            log.info("the old owner was not told", vm=p.vm_name, code=error.code, error=str(error))
            return
        self._did(pid, key)

    def _claim(self, pid: str, key: Key) -> bool:
        """Whether it is not done, and not tried just now."""
        with self._lock:
            if self._armed.get(pid) == key or self._clock.monotonic() < self._not_before.get(pid, 0.0):
                return False
            self._not_before[pid] = self._clock.monotonic() + RETRY_S
            return True

    def _did(self, pid: str, key: Key) -> None:
        with self._lock:
            self._armed[pid] = key
            self._not_before.pop(pid, None)

    def forget(self, p: Protection) -> None:
        """Its record was changed by somebody else: look at it again with the next cycle."""
        with self._lock:
            self._armed.pop(p.protection_id, None)
            self._not_before.pop(p.protection_id, None)

    def release(self, p: Protection) -> None:
        """The VM is not protected any more: its host may start it as it likes. Raises VaporError."""
        source = self._repository.site(p.source_site)
        if source is None:
            return
        api: SiteApi = self._gateway.api(source)
        record = api.guard(p.vm_uuid)
        if record is None:
            return
        if record.state is not GuardState.OWN:
            self._note(p, f"{source.name} goes on refusing to start “{p.vm_name}”: {record.reason}")
            return
        with HeldLease(api, p.vm_uuid, self._holder, self._name, "start guard", wait_s=5) as lease:
            release = GuardRelease(fence=lease.fence, epoch=record.epoch, reason="not protected", by=self._name)
            api.disarm_guard(p.vm_uuid, release)
        with self._lock:
            self._armed.pop(p.protection_id, None)

    def _note(self, p: Protection, text: str) -> None:
        records.note(
            self._repository,
            self._clock.now(),
            "guard",
            text,
            severity=Severity.WARNING,
            protection_id=p.protection_id,
        )
