"""What is there: domains, their disks, networks, capabilities."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import libvirt

from vapor_desktop.hypervisor.errors import NO_DOMAIN
from vapor_desktop.hypervisor.link import Link
from vapor_desktop.model.domain_xml.parse import DomainFacts, parse_domain, parse_root
from vapor_desktop.model.domains import DiskView, DomainView

_log = logging.getLogger(__name__)

_STATES = {
    libvirt.VIR_DOMAIN_RUNNING: "running",
    libvirt.VIR_DOMAIN_BLOCKED: "running",
    libvirt.VIR_DOMAIN_PAUSED: "paused",
    libvirt.VIR_DOMAIN_SHUTOFF: "shutoff",
    libvirt.VIR_DOMAIN_CRASHED: "crashed",
}
_PAUSES = {
    libvirt.VIR_DOMAIN_PAUSED_USER: "user",
    libvirt.VIR_DOMAIN_PAUSED_MIGRATION: "migration",
    libvirt.VIR_DOMAIN_PAUSED_SAVE: "save",
    libvirt.VIR_DOMAIN_PAUSED_DUMP: "dump",
    libvirt.VIR_DOMAIN_PAUSED_IOERROR: "ioerror",
    libvirt.VIR_DOMAIN_PAUSED_WATCHDOG: "watchdog",
    libvirt.VIR_DOMAIN_PAUSED_FROM_SNAPSHOT: "from-snapshot",
    libvirt.VIR_DOMAIN_PAUSED_SHUTTING_DOWN: "shutting-down",
    libvirt.VIR_DOMAIN_PAUSED_SNAPSHOT: "snapshot",
    libvirt.VIR_DOMAIN_PAUSED_CRASHED: "crashed",
    libvirt.VIR_DOMAIN_PAUSED_STARTING_UP: "starting-up",
    libvirt.VIR_DOMAIN_PAUSED_POSTCOPY: "postcopy",
    libvirt.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED: "postcopy-failed",
}


def state_of(dom: Any) -> tuple[str, str | None]:
    """(state, reason of a pause or None) in the words of DomainView."""
    number, reason = dom.state()
    state = _STATES.get(number, "other")
    return state, _PAUSES.get(reason, "unknown") if state == "paused" else None


class Inventory:
    """Reads; changes nothing."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def domains(self) -> Sequence[DomainView]:
        """All domains of the host. One that vanishes while it is read is left out."""
        with self._link.call("Could not list the VMs") as conn:
            found = [_gone_is_none(dom) for dom in conn.listAllDomains(0)]
        return [view for view in found if view is not None]

    def domain(self, vm_uuid: str) -> DomainView:
        """One domain, read afresh. Raises DomainNotFound."""
        with self._link.domain(vm_uuid, "Could not read the VM") as dom:
            return _view(dom)

    def domain_xml(self, vm_uuid: str, *, secure: bool = True) -> str:
        """The persistent configuration (a transient domain's live one), with secrets when ``secure``."""
        with self._link.domain(vm_uuid, "Could not read the VM's configuration") as dom:
            flags = libvirt.VIR_DOMAIN_XML_INACTIVE if dom.isPersistent() else 0
            return str(dom.XMLDesc(flags | (libvirt.VIR_DOMAIN_XML_SECURE if secure else 0)))

    def networks(self) -> Sequence[str]:
        """Names of the active libvirt networks."""
        with self._link.call("Could not list the networks") as conn:
            return sorted(net.name() for net in conn.listAllNetworks(libvirt.VIR_CONNECT_LIST_NETWORKS_ACTIVE))

    def capabilities_xml(self) -> str:
        """The host's ``<capabilities>``."""
        with self._link.call("Could not read the host's capabilities") as conn:
            return str(conn.getCapabilities())

    def domain_capabilities_xml(self, arch: str, machine: str | None, virt_type: str) -> str:
        """``<domainCapabilities>``; HypervisorFailed when the host lacks the machine type or virt type."""
        with self._link.call(f"The host offers no {virt_type} machine {machine or ''} for {arch}") as conn:
            return str(conn.getDomainCapabilities(None, arch, machine, virt_type, 0))

    def disk_errors(self, vm_uuid: str) -> Mapping[str, str]:
        """Disks that stopped a running VM: target → "no-space" | "unspecified" [facts/libvirt 0.1]."""
        names = {
            libvirt.VIR_DOMAIN_DISK_ERROR_NO_SPACE: "no-space",
            libvirt.VIR_DOMAIN_DISK_ERROR_UNSPEC: "unspecified",
        }
        with self._link.domain(vm_uuid, "Could not read the VM's disk errors") as dom:
            errors = dom.diskErrors() if dom.isActive() else {}
        return {target: names.get(kind, "unspecified") for target, kind in (errors or {}).items()}


def _gone_is_none(dom: Any) -> DomainView | None:
    try:
        return _view(dom)
    except libvirt.libvirtError as error:
        if error.get_error_code() == NO_DOMAIN:
            return None
        raise


def _view(dom: Any) -> DomainView:
    state, pause_reason = state_of(dom)
    facts = parse_domain(dom.XMLDesc(0))
    live_id = int(dom.ID())
    return DomainView(
        vm_uuid=facts.vm_uuid,
        name=facts.name,
        state=state,
        pause_reason=pause_reason,
        persistent=bool(dom.isPersistent()),
        autostart=bool(dom.autostart()),
        disks=tuple(_sized(dom, disk) for disk in facts.disks),
        networks=facts.networks,
        internal_snapshots=_internal_snapshots(dom, facts),
        has_tpm=facts.has_tpm,
        nvram_path=facts.nvram_path,
        tpm_dir=facts.tpm_dir,
        managed_save=bool(dom.hasManagedSaveImage()),
        machine=facts.machine,
        agent_connected=facts.agent_connected,
        live_id=live_id if live_id >= 0 else None,
    )


def _sized(dom: Any, disk: DiskView) -> DiskView:
    if disk.source_kind == "none" or disk.device in ("cdrom", "floppy"):
        return disk
    known = _qcow2_compat(dom, disk)
    try:
        capacity, allocation, _physical = dom.blockInfo(disk.target)
    except libvirt.libvirtError as error:
        if error.get_error_code() == NO_DOMAIN or not dom.connect().isAlive():
            raise
        _log.info("the size of %s of %s cannot be told: %s", disk.target, dom.name(), error)
        return replace(disk, qcow2_compat=known)
    return replace(disk, size_bytes=int(capacity), allocated_bytes=int(allocation), qcow2_compat=known)


def _internal_snapshots(dom: Any, facts: DomainFacts) -> tuple[str, ...]:
    if not any(disk.driver_format == "qcow2" for disk in facts.disks):
        return ()
    return tuple(snap.getName() for snap in dom.listAllSnapshots(libvirt.VIR_DOMAIN_SNAPSHOT_LIST_INTERNAL))


def _qcow2_compat(dom: Any, disk: DiskView) -> str | None:
    """The qcow2 version of a disk that lies in a storage pool; nothing else tells it without reading as root."""
    if disk.source_kind not in ("file", "block") or disk.driver_format != "qcow2" or not disk.source:
        return None
    try:
        root = parse_root(dom.connect().storageVolLookupByPath(disk.source).XMLDesc(0))
    except libvirt.libvirtError as error:
        if error.get_error_code() in (libvirt.VIR_ERR_NO_STORAGE_VOL, libvirt.VIR_ERR_NO_SUPPORT):
            return None
        raise
    if root.find("./target/format[@type='qcow2']") is None:
        return None
    return root.findtext("./target/compat") or "0.10"
