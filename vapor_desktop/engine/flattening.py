"""Becoming flat again (DESIGN §6): a VM on an overlay of its own old replica goes back to one file per disk.

Reprotecting does it once the first reverse point is published; what was in the way then (a point that a person keeps,
a VM that was off) is looked at again between cycles.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

from vapor_desktop.engine import records
from vapor_desktop.engine.lease import HeldLease
from vapor_desktop.engine.ports import Clock, Hypervisor, Repository, SiteApi, SiteGateway
from vapor_desktop.model.errors import DomainNotFound, NotFound, VaporError
from vapor_desktop.model.manifest import Epoch
from vapor_desktop.model.sites import Protection
from vapor_desktop.model.wire import FoldPlan, FoldRequest

log = structlog.get_logger(__name__)

RETRY_S = 60.0


def make_flat(
    api: SiteApi,
    hypervisor: Hypervisor,
    vm_uuid: str,
    epoch: Epoch,
    fence: Callable[[], int],
    cancelled: Callable[[], bool],
) -> FoldPlan:
    """Repeatable, also when it was cut. Raises PointPinned (nothing was changed then), TransferCancelled, …

    ``api``, ``hypervisor``: of the site where the VM runs; ``fence``: of that site's lease.
    """
    plan = api.fold(vm_uuid, FoldRequest(fence=fence(), epoch=epoch))
    for disk, (top, foot) in plan.disks.items():
        if top != foot:
            hypervisor.write_down(vm_uuid, disk, foot, cancelled)
    return api.fold(vm_uuid, FoldRequest(fence=fence(), epoch=epoch, done=True))


class Flattener:
    """``holder``, ``name``: who asks, for leases. Safe for several threads."""

    def __init__(self, repository: Repository, gateway: SiteGateway, clock: Clock, holder: str, name: str) -> None:
        self._repository = repository
        self._gateway = gateway
        self._clock = clock
        self._holder = holder
        self._name = name
        self._lock = threading.Lock()
        self._done: set[tuple[str, int]] = set()
        self._not_before: dict[str, float] = {}

    def after_cycle(self, p: Protection, epoch: int) -> None:
        """Make it flat unless it is; trouble waits for a later gap between cycles."""
        key = (p.protection_id, epoch)
        now = self._clock.monotonic()
        with self._lock:
            if key in self._done or now < self._not_before.get(p.protection_id, 0.0):
                return
            self._not_before[p.protection_id] = now + RETRY_S
        try:
            done = self._flatten(p)
        except VaporError as error:
            log.info("not flat yet", vm=p.vm_name, code=error.code, error=str(error))
            return
        if done:
            with self._lock:
                self._done.add(key)
                self._not_before.pop(p.protection_id, None)

    def _flatten(self, p: Protection) -> bool:
        source = self._repository.site(p.source_site)
        if source is None:
            return True
        api, hypervisor = self._gateway.api(source), self._gateway.hypervisor(source)
        try:
            manifest = api.replica(p.vm_uuid).manifest
        except NotFound:
            return True  # it never ran on a replica here
        if (
            manifest.folded
            or manifest.epoch.owner != source.site_id
            or str(manifest.epoch.number) not in manifest.runs
        ):
            return True
        try:
            if hypervisor.domain(p.vm_uuid).state != "running":
                return False
        except DomainNotFound:
            return True
        with HeldLease(api, p.vm_uuid, self._holder, self._name, "becoming flat") as lease:
            make_flat(api, hypervisor, p.vm_uuid, manifest.epoch, lambda: lease.fence, lease.lost)
        text = f"“{p.vm_name}” is flat again at {source.name}"
        records.note(self._repository, self._clock.now(), "flat", text, protection_id=p.protection_id)
        return True
