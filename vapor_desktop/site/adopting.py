"""Adopting a VM's original disks at this site: looked at through the root helper, then hung under a new replica."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from vapor_desktop.model.domains import DomainView
from vapor_desktop.model.errors import Conflict, DomainNotFound, NotFound
from vapor_desktop.model.manifest import Manifest
from vapor_desktop.model.wire import AdoptDisk, Adopted, AdoptRequest, FoldPlan, FoldRequest
from vapor_desktop.site.helper_client import HelperClient
from vapor_desktop.site.leases import vm_file_name
from vapor_desktop.site.replica import ReplicaStore
from vapor_desktop.site.replica.adoption import PIN, Original


class DomainLooker(Protocol):
    """What ``LibvirtHypervisor`` offers here."""

    def domain(self, vm_uuid: str) -> DomainView: ...


class Adopting:
    """``digests_dir``: what this site recorded of its VMs' disks while it was their source."""

    def __init__(
        self, store: ReplicaStore, helper: HelperClient, hypervisor: DomainLooker, digests_dir: Path
    ) -> None:
        self._store = store
        self._helper = helper
        self._hypervisor = hypervisor
        self._digests_dir = digests_dir

    def adopt(self, vm: str, request: AdoptRequest) -> Adopted:
        """Raises StaleLease, EpochMoved, PointPinned, Conflict (the VM runs here, nothing of it is left)."""
        self._store.check_fence(vm, request.fence)
        self._must_be_off(vm, request.vm_name)
        before = self._store.adopted(vm, request)
        if before is not None:
            return self._settled(vm, request, before)
        looked = {disk: self._look(vm, disk, wanted, request) for disk, wanted in request.disks.items()}
        found = {disk: original for disk, original in looked.items() if original is not None}
        if not found:
            raise NotFound(f"No disk of “{request.vm_name}” is left at this site", fix="It has to be copied whole")
        return self._settled(vm, request, self._store.adopt(vm, request, found))

    def fold(self, vm: str, request: FoldRequest) -> FoldPlan:
        """``ReplicaStore.fold``; an overlay that libvirt let go of may be root's now, and must be looked at."""
        if request.done:
            for top, foot in self._store.folding(vm).values():
                if top != foot and top.exists():
                    self._helper.image_adopt(str(top))
        return self._store.fold(vm, request)

    def _settled(self, vm: str, request: AdoptRequest, manifest: Manifest) -> Adopted:
        """What was recorded as a source ends with that: what the disks get from now on is in the replica's tables.

        When the VM comes home a new record begins; with the old one going on, a later adoption would take the
        digests of blocks that the other side wrote meanwhile for what lies here.
        """
        for disk in request.disks:
            self._record(vm, disk).unlink(missing_ok=True)
        return self._told(request, manifest)

    def _record(self, vm: str, disk: str) -> Path:
        return self._digests_dir / vm_file_name(vm) / f"{disk}.table"

    def _told(self, request: AdoptRequest, manifest: Manifest) -> Adopted:
        base = next((p for p in manifest.points if PIN in p.pins), None)
        held = set(base.files) if base else set()
        kept = base is not None and any(pin.startswith("user:") for pin in base.pins)
        return Adopted(
            manifest=manifest,
            missing=tuple(sorted(set(request.disks) - held)),
            diverged=tuple(sorted(held)) if kept else (),
        )

    def _must_be_off(self, vm: str, name: str) -> None:
        try:
            domain = self._hypervisor.domain(vm)
        except DomainNotFound:
            return
        if domain.live_id is not None:
            raise Conflict(f"“{name}” is {domain.state} at this site", fix="Switch it off here first")

    def _look(self, vm: str, disk: str, wanted: AdoptDisk, request: AdoptRequest) -> Original | None:
        """None: there is nothing to hang a delta on."""
        path = Path(wanted.path)
        try:
            facts = self._helper.image_adopt(str(path))
        except NotFound:
            return None
        if facts["format"] != "qcow2" or facts["size_bytes"] > wanted.size_bytes:
            return None
        stamp = str(facts["stamp"])
        proven = bool(wanted.expect_stamp) and stamp == wanted.expect_stamp
        if facts["chain"] > 1 and self._store.inside(vm, path):
            path = self._store.flatten(vm, path, request.fence)
            stamp = str(self._helper.image_adopt(str(path))["stamp"])
        record = self._record(vm, disk) if proven else None
        return Original(path, int(facts["size_bytes"]), stamp, proven, record)
