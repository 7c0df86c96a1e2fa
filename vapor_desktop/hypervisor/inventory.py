"""What is there: domains, their disks, networks, capabilities."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import libvirt

from vapor_desktop.hypervisor.errors import NO_DOMAIN, code_of
from vapor_desktop.hypervisor.link import Link
from vapor_desktop.hypervisor.views import internal_snapshots, make_view, read_facts, read_view, state_words
from vapor_desktop.model.domain_xml.parse import DomainFacts
from vapor_desktop.model.domains import DomainView

# What no event announces (a disk that grew or got a snapshot) is in the list after this long.
REREAD_S = 30.0

# Each of these means that the domain's XML may have changed.
_EVENTS = (
    libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE,
    libvirt.VIR_DOMAIN_EVENT_ID_DISK_CHANGE,
    libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_ADDED,
    libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED,
    libvirt.VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2,
    libvirt.VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE,
)


@dataclass(frozen=True, slots=True)
class _Known:
    live_id: int
    changes: int
    until: float
    facts: DomainFacts


@dataclass
class _Memory:
    """What one connection's events keep true."""

    known: dict[str, _Known] = field(default_factory=dict)
    changes: dict[str, int] = field(default_factory=dict)  # events heard, by UUID
    compat: dict[str, str | None] = field(default_factory=dict)
    compat_until: float = 0.0


class Inventory:
    """Reads; changes nothing.

    A list of all domains costs six round trips, and a few more for each domain that an event named, that
    started or stopped, or whose facts are older than REREAD_S. A single domain is always read afresh.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._lock = threading.Lock()
        self._memory = _Memory()
        link.on_open = self._opened

    def domains(self) -> Sequence[DomainView]:
        """All domains of the host. One that vanishes while it is read is left out."""
        with self._link.call("Could not list the VMs") as conn:
            every = conn.listAllDomains(0)
            states = {
                dom.UUIDString(): stats for dom, stats in conn.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_STATE)
            }
            persistent = _uuids(conn, libvirt.VIR_CONNECT_LIST_DOMAINS_PERSISTENT)
            autostart = _uuids(conn, libvirt.VIR_CONNECT_LIST_DOMAINS_AUTOSTART)
            saved = _uuids(conn, libvirt.VIR_CONNECT_LIST_DOMAINS_MANAGEDSAVE)
            with_snapshots = _uuids(conn, libvirt.VIR_CONNECT_LIST_DOMAINS_HAS_SNAPSHOT)
            found = []
            for dom in every:
                uuid = dom.UUIDString()
                stats = states.get(uuid)
                read = self._facts(dom) if stats else None
                if stats is None or read is None:
                    continue
                found.append(
                    make_view(
                        read,
                        state_words(stats["state.state"], stats["state.reason"]),
                        int(dom.ID()),
                        persistent=uuid in persistent,
                        autostart=uuid in autostart,
                        managed_save=uuid in saved,
                        internal_snapshots=internal_snapshots(dom) if uuid in with_snapshots else (),
                    )
                )
        return found

    def domain(self, vm_uuid: str) -> DomainView:
        """One domain, read afresh; the next list reads it again too. Raises DomainNotFound."""
        with self._lock:
            self._memory.known.pop(vm_uuid, None)
        with self._link.domain(vm_uuid, "Could not read the VM") as dom:
            return read_view(dom, self._compat())

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

    def _facts(self, dom: Any) -> DomainFacts | None:
        uuid, live_id, now = dom.UUIDString(), int(dom.ID()), time.monotonic()
        with self._lock:
            memory = self._memory
            changes = memory.changes.get(uuid, 0)
            known = memory.known.get(uuid)
        if known is not None and known.live_id == live_id and known.changes == changes and now < known.until:
            return known.facts
        try:
            facts = read_facts(dom, self._compat())
        except libvirt.libvirtError as error:
            if code_of(error) == NO_DOMAIN:
                return None
            raise
        with self._lock:  # with the count from before the reading: an event that came meanwhile is not lost
            memory.known[uuid] = _Known(live_id, changes, now + REREAD_S, facts)
        return facts

    def _compat(self) -> dict[str, str | None]:
        with self._lock:
            if time.monotonic() > self._memory.compat_until:
                self._memory.compat, self._memory.compat_until = {}, time.monotonic() + REREAD_S
            return self._memory.compat

    def _opened(self, conn: Any) -> list[int]:
        """A new connection: what was announced meanwhile was not heard."""
        with self._lock:
            self._memory = memory = _Memory()

        def changed(_conn: Any, dom: Any, *_details: Any) -> None:  # in libvirt's event thread: no call from here
            with self._lock:
                memory.changes[dom.UUIDString()] = memory.changes.get(dom.UUIDString(), 0) + 1

        return [int(conn.domainEventRegisterAny(None, event, changed, None)) for event in _EVENTS]


def _uuids(conn: Any, flag: int) -> set[str]:
    return {dom.UUIDString() for dom in conn.listAllDomains(flag)}
