"""From a virDomain to a ``DomainView``: what costs a round trip, and what does not change unseen."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import libvirt

from vapor_desktop.hypervisor.errors import NO_DOMAIN, code_of
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
    return state_words(number, reason)


def state_words(number: int, reason: int) -> tuple[str, str | None]:
    """The same, of libvirt's numbers."""
    state = _STATES.get(number, "other")
    return state, _PAUSES.get(reason, "unknown") if state == "paused" else None


def read_facts(dom: Any, compat: dict[str, str | None]) -> DomainFacts:
    """The domain's XML with the disks' sizes; ``compat`` remembers the qcow2 version by path."""
    facts = parse_domain(dom.XMLDesc(0))
    return replace(facts, disks=tuple(_sized(dom, disk, compat) for disk in facts.disks))


def make_view(
    facts: DomainFacts,
    state: tuple[str, str | None],
    live_id: int,
    *,
    persistent: bool,
    autostart: bool,
    managed_save: bool,
    internal_snapshots: tuple[str, ...],
) -> DomainView:
    """Put together what was read apart."""
    return DomainView(
        vm_uuid=facts.vm_uuid,
        name=facts.name,
        state=state[0],
        pause_reason=state[1],
        persistent=persistent,
        autostart=autostart,
        disks=facts.disks,
        networks=facts.networks,
        internal_snapshots=internal_snapshots,
        has_tpm=facts.has_tpm,
        nvram_path=facts.nvram_path,
        tpm_dir=facts.tpm_dir,
        managed_save=managed_save,
        machine=facts.machine,
        agent_connected=facts.agent_connected,
        agent_channel=facts.agent_channel,
        live_id=live_id if live_id >= 0 else None,
        tpm_obstacle=facts.tpm_obstacle,
    )


def read_view(dom: Any, compat: dict[str, str | None]) -> DomainView:
    """Everything of one domain, read afresh."""
    return make_view(
        read_facts(dom, compat),
        state_of(dom),
        int(dom.ID()),
        persistent=bool(dom.isPersistent()),
        autostart=bool(dom.autostart()),
        managed_save=bool(dom.hasManagedSaveImage()),
        internal_snapshots=internal_snapshots(dom),
    )


def internal_snapshots(dom: Any) -> tuple[str, ...]:
    """Names of the snapshots that live inside the images."""
    return tuple(snap.getName() for snap in dom.listAllSnapshots(libvirt.VIR_DOMAIN_SNAPSHOT_LIST_INTERNAL))


def _sized(dom: Any, disk: DiskView, compat: dict[str, str | None]) -> DiskView:
    if disk.source_kind == "none" or disk.device in ("cdrom", "floppy"):
        return disk
    if disk.source_kind in ("file", "block") and disk.driver_format == "qcow2" and disk.source:
        if disk.source not in compat:
            compat[disk.source] = _qcow2_compat(dom, disk.source)
        disk = replace(disk, qcow2_compat=compat[disk.source])
    try:
        capacity, allocation, _physical = dom.blockInfo(disk.target)
    except libvirt.libvirtError as error:
        if code_of(error) == NO_DOMAIN or not dom.connect().isAlive():
            raise
        _log.info("the size of %s of %s cannot be told: %s", disk.target, dom.name(), error)
        return disk
    return replace(disk, size_bytes=int(capacity), allocated_bytes=int(allocation))


def _qcow2_compat(dom: Any, path: str) -> str | None:
    """The qcow2 version of an image in a storage pool; nothing else tells it without reading as root."""
    try:
        root = parse_root(dom.connect().storageVolLookupByPath(path).XMLDesc(0))
    except libvirt.libvirtError as error:
        if not dom.connect().isAlive():
            raise
        _log.debug("no storage pool tells the version of %s: %s", path, error)
        return None
    if root.find("./target/format[@type='qcow2']") is None:
        return None
    return root.findtext("./target/compat") or "0.10"
