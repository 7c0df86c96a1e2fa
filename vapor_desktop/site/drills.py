"""Drills at this site: a bubble, VMs that join it, the proof that nothing leaves it, and its end.

What is about to be made is on record first (``drill_book``), so that whatever is killed, everything can be found and
removed again. No step needs a lease: a drill reads points and writes to nothing that a lease guards.
"""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Protocol
from uuid import uuid4

from vapor_desktop.model.domain_xml.drill import bubble_network, build_drill, leaks, network_leaks
from vapor_desktop.model.domain_xml.parse import parse_domain
from vapor_desktop.model.domains import AgentRun, DomainView
from vapor_desktop.model.drills import (
    DrillCheck,
    DrillJoin,
    DrillNet,
    DrillPhase,
    DrillRecord,
    DrillRequest,
    DrillVm,
    Inventory,
    LeakTarget,
    NetPlan,
    isolated,
)
from vapor_desktop.model.errors import Conflict, DomainNotFound, NotFound, StartFailed
from vapor_desktop.model.tpm import plan_tpm
from vapor_desktop.site import inventory
from vapor_desktop.site.audit import AuditLog
from vapor_desktop.site.bubble_probe import SEALS, address_of
from vapor_desktop.site.drill_book import DrillBook
from vapor_desktop.site.leases import boot_id, vm_file_name
from vapor_desktop.site.probes import Probes, addresses_of, usable
from vapor_desktop.site.replica import ReplicaStore
from vapor_desktop.site.settings import SiteSettings
from vapor_desktop.site.tpm import TpmKeeper

_log = logging.getLogger("vapor.drill")
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
PROOF_AGE = timedelta(seconds=30)


class BubbleNetworks(Protocol):
    """``hypervisor.bubbles.Bubbles``."""

    def create_network(self, name: str, xml: str) -> None: ...
    def destroy_network(self, name: str) -> None: ...
    def network_xml(self, name: str) -> str: ...
    def all_networks(self) -> Sequence[str]: ...
    def live_xml(self, vm_uuid: str) -> str: ...
    def screenshot(self, vm_uuid: str) -> tuple[str, bytes]: ...
    def suspend(self, vm_uuid: str) -> None: ...
    def undefine_copy(self, vm_uuid: str) -> None: ...


class DrillHypervisor(Protocol):
    """What a drill needs of libvirt; ``LibvirtHypervisor`` has it."""

    @property
    def bubbles(self) -> BubbleNetworks: ...
    def domains(self) -> Iterable[DomainView]: ...
    def domain(self, vm_uuid: str) -> DomainView: ...
    def domain_xml(self, vm_uuid: str, *, secure: bool = True) -> str: ...
    def capabilities_xml(self) -> str: ...
    def define(self, xml: str) -> None: ...
    def set_autostart(self, vm_uuid: str, on: bool) -> None: ...
    def start(self, vm_uuid: str, *, paused: bool = False) -> None: ...
    def destroy(self, vm_uuid: str) -> None: ...
    def agent_ping(self, vm_uuid: str) -> bool: ...
    def agent_run(self, vm_uuid: str, script: str, timeout_s: float) -> AgentRun: ...


class Drills:
    """Of one site service. Thread-safe; one thing at a time per drill."""

    def __init__(
        self,
        settings: SiteSettings,
        book: DrillBook,
        hypervisor: DrillHypervisor,
        store: ReplicaStore,
        tpm: TpmKeeper,
        audit: AuditLog,
        peers: Callable[[], Sequence[LeakTarget]],
    ) -> None:
        self.settings = settings
        self.book = book
        self.hypervisor = hypervisor
        self.store = store
        self.probes = Probes(settings.bubble_socket, settings.port)
        self._tpm = tpm
        self._audit = audit
        self._peers = peers
        self._locks: defaultdict[str, threading.RLock] = defaultdict(threading.RLock)

    def lock(self, drill_id: str) -> threading.RLock:
        """Held while something of that drill is made or removed."""
        return self._locks[vm_file_name(drill_id)]

    # --- making ------------------------------------------------------------------------------------
    def open(self, drill_id: str, request: DrillRequest) -> DrillRecord:
        """Put it on record, with the inventory of before. Idempotent while it is open. Raises Conflict."""
        drill_id = vm_file_name(drill_id)
        with self.lock(drill_id):
            try:
                found = self.book.one(drill_id)
            except NotFound:
                now = datetime.now(UTC)
                self._audit("drill", drill_id=drill_id, by=request.by, reason=request.reason)
                return self.book.add(
                    DrillRecord(
                        drill_id=drill_id,
                        reason=request.reason,
                        by=request.by,
                        created_at=now,
                        expires_at=now + timedelta(seconds=request.lasts_s),
                        boot_id=boot_id(),
                        before=self.inventory(()),
                    )
                )
            _require_open(found)
            return found

    def join(self, drill_id: str, vm: str, join: DrillJoin) -> DrillRecord:
        """Networks, overlays and a VM of another name and UUID, off. Idempotent.

        Raises Conflict (the VM is in another drill), NotFound (no such point), NotAllowed (no bubble helper), …
        """
        vm = vm_file_name(vm)
        with self.lock(drill_id):
            record = self.book.one(drill_id)
            _require_open(record)
            other = next((r for r in self.book.all() if r.open and r.drill_id != record.drill_id and r.vm(vm)), None)
            if other is not None:
                raise Conflict(
                    f"“{join.vm_name}” is in a drill already",
                    why=f"of {other.by}: {other.reason}",
                    fix="Stop that one",
                )
            record = self.book.change(drill_id, lambda r: _planned(r, vm, join))
            self._make_networks(record)
            copy = record.vm(vm)
            if copy is None:
                raise NotFound("That VM is not in this drill")
            if not copy.defined:
                notes = self._define(record, copy)
                copy = copy.model_copy(update={"defined": True, "notes": notes})
                record = self.book.change(drill_id, lambda r: r.with_vm(copy))
            return record

    def _make_networks(self, record: DrillRecord) -> None:
        for net in record.nets:
            self.hypervisor.bubbles.create_network(net.network, bubble_network(net.network, net.bridge))
            self.probes.ensure(net).hosts(net.hosts)

    def _define(self, record: DrillRecord, copy: DrillVm) -> tuple[str, ...]:
        files = self.store.open_drill(copy.vm_uuid, record.drill_id, copy.seq)
        facts = parse_domain(files.domain_xml)
        tpm = plan_tpm(facts.tpm_obstacle, self._tpm.of_point(copy.vm_uuid, copy.seq)) if facts.has_tpm else None
        capabilities = self.hypervisor.capabilities_xml()
        built = build_drill(
            files.domain_xml,
            disks=files.disks,
            networks={n.source: n.network for n in record.nets},
            nvram=files.nvram,
            kvm="<domain type='kvm'" in capabilities,
            new_uuid=copy.domain_uuid,
            new_name=copy.domain_name,
            tpm=tpm is None or tpm.device,
        )
        self.hypervisor.define(built.xml)
        self.hypervisor.set_autostart(copy.domain_uuid, False)
        # After the definition: from here on libvirt removes the state with it, whoever is killed.
        if tpm is not None and tpm.place:
            self._tpm.place_copy(copy.vm_uuid, copy.seq, copy.domain_uuid)
        return (*built.notes, *((tpm.note,) if tpm is not None and tpm.note else ()))

    # --- the proof ---------------------------------------------------------------------------------
    def isolate(self, drill_id: str) -> DrillRecord:
        """Look whether anything could leave the bubble, by every way we know. The record says what was found."""
        with self.lock(drill_id):
            record = self.book.one(drill_id)
            _require_open(record)
            checks = self._look(record)
            return self.book.change(drill_id, lambda r: r.model_copy(update={"isolation": tuple(checks)}))

    def _look(self, record: DrillRecord) -> list[DrillCheck]:
        return [self._card_check(record), *(check for net in record.nets for check in self._look_at(record, net))]

    def _look_at(self, record: DrillRecord, net: DrillNet) -> list[DrillCheck]:
        link = self.probes.ensure(net)
        ports, taps = inventory.ports_of(net.bridge), self._taps(record)
        wrong = network_leaks(self.hypervisor.bubbles.network_xml(net.network), net.bridge)
        heard = [*addresses_of(net.bridge), *(s for s in SEALS if _setting(s, net.bridge) != SEALS[s])]
        inside = {address_of(net.gateway), *(net.hosts.values() if any(v.started_at for v in record.vms) else ())}
        targets = usable([*self.probes.outsiders(link), *self._peers(), *record.probes])
        targets = [t for t in targets if t.address not in inside]
        answers = link.leaks(targets)
        reached = [f"{t.name} {t.address}: {a}" for t, a in zip(targets, answers, strict=True) if a]
        asked = "; ".join(f"{t.name} {t.address}" for t in targets)
        title, name = f"Network {net.network}, in place of {net.source}", net.network
        return [
            _check(f"definition:{name}", f"{title}: no forward, no address of the host", wrong, "as libvirt has it"),
            _check(
                f"uplink:{name}",
                f"{title}: no uplink",
                [p for p in ports if p != net.port and p not in taps],
                f"on {net.bridge}: {', '.join(ports) or 'nothing'}",
            ),
            _check(f"sealed:{name}", f"{title}: the host does not listen", heard, "what comes in is dropped"),
            _check(
                f"probes:{name}",
                f"{title}: probes reach nobody outside",
                reached,
                f"asked for on its wire, nobody answered: {asked}",
            ),
        ]

    def _card_check(self, record: DrillRecord) -> DrillCheck:
        """Of every VM, as libvirt has it defined."""
        bubble = {n.network for n in record.nets}
        found = [
            f"{v.domain_name}: {leak}"
            for v in record.vms
            for leak in leaks(self.hypervisor.domain_xml(v.domain_uuid, secure=False), bubble)
        ]
        names = ", ".join(v.domain_name for v in record.vms)
        return _check("vms", "The VMs have no device that leads out of the bubble", found, f"looked at: {names}")

    def _taps(self, record: DrillRecord) -> set[str]:
        """The host's ends of the cards of this drill's running VMs."""
        found: set[str] = set()
        for vm in record.vms:
            if vm.started_at is not None:
                try:
                    found |= _targets(self.hypervisor.bubbles.live_xml(vm.domain_uuid))
                except DomainNotFound:
                    continue
        return found

    # --- starting ----------------------------------------------------------------------------------
    def start(self, drill_id: str, vm: str) -> DrillRecord:
        """Start the copy, once it is proven that nothing leaves the bubble. Idempotent. Raises StartFailed."""
        with self.lock(drill_id):
            record = self.book.one(drill_id)
            _require_open(record)
            copy = record.vm(vm_file_name(vm))
            if copy is None or not copy.defined:
                raise NotFound("That VM has not joined this drill")
            if copy.started_at is not None and self.hypervisor.domain(copy.domain_uuid).live_id is not None:
                return record
            newest = min((c.at for c in record.isolation if c.at), default=None)
            if newest is None or datetime.now(UTC) - newest > PROOF_AGE:
                record = self.isolate(drill_id)
            if not isolated(record.isolation):
                bad = "; ".join(f"{c.title}: {c.text}" for c in record.isolation if c.state != "ok")
                raise StartFailed(f"“{copy.vm_name}” is not started: the bubble is not isolated", why=bad)
            # Recorded first: a VM that may have run must be looked for when this process is killed now.
            copy = copy.model_copy(update={"started_at": datetime.now(UTC)})
            record = self.book.change(drill_id, lambda r: r.with_vm(copy))
            try:
                self.hypervisor.start(copy.domain_uuid)
            except StartFailed:
                never = copy.model_copy(update={"started_at": None})
                self.book.change(drill_id, lambda r: r.with_vm(never))
                raise
            return self.book.change(drill_id, lambda r: r.model_copy(update={"phase": DrillPhase.RUNNING}))

    # --- looking -----------------------------------------------------------------------------------
    def inventory(self, uuids: Sequence[str]) -> Inventory:
        """What is on the host now."""
        return inventory.take(
            self.hypervisor.domains(),
            self.hypervisor.bubbles.all_networks(),
            [view.manifest for view in self.store.list()],
            self.settings.replica_roots,
            self.settings.helper_tpm_root,
            uuids,
        )


def _require_open(record: DrillRecord) -> None:
    if not record.open or record.stop is not None:
        raise Conflict("That drill has ended, or is about to")


def _planned(record: DrillRecord, vm: str, join: DrillJoin) -> DrillRecord:
    """The record with the networks and the copy that are about to be made."""
    short = record.drill_id[:8]
    nets = list(record.nets)
    for plan in join.nets:
        at = next((n for n, net in enumerate(nets) if net.source == plan.source), None)
        if at is None:
            digit = _DIGITS[len(nets)]
            names = {
                "network": f"vapor-drill-{short}-{digit}",
                "bridge": f"vdb{short}{digit}",
                "port": f"vdp{short}{digit}",
            }
            nets.append(DrillNet(source=plan.source, gateway=plan.gateway, hosts=plan.hosts, **names))
        else:
            nets[at] = _joined(nets[at], plan)
    probes = {t.address: t for t in (*record.probes, *join.probes)}
    record = record.model_copy(update={"nets": tuple(nets), "probes": tuple(probes.values())})
    if record.vm(vm) is not None:
        return record
    return record.with_vm(
        DrillVm(
            vm_uuid=vm,
            vm_name=join.vm_name,
            protection_id=join.protection_id,
            seq=join.seq,
            domain_uuid=str(uuid4()),
            domain_name=f"{join.vm_name}-drill-{short}",
            wanted=join.wanted,
            disk_limit_bytes=join.disk_limit_bytes,
        )
    )


def _joined(net: DrillNet, plan: NetPlan) -> DrillNet:
    """Hosts of both; a card whose address another one has already gets a free one."""
    hosts = dict(net.hosts)
    network = IPv4Interface(net.gateway).network
    for mac, address in plan.hosts.items():
        taken = {a for m, a in hosts.items() if m != mac} | {address_of(net.gateway)}
        free = (str(a) for a in network.hosts() if str(a) not in taken)
        hosts[mac] = address if address not in taken else next(free)
    return net.model_copy(update={"hosts": hosts})


def _check(key: str, title: str, wrong: Sequence[str], well: str) -> DrillCheck:
    state = "failed" if wrong else "ok"
    return DrillCheck.model_validate(
        {"key": key, "title": title, "state": state, "text": "; ".join(wrong) or well, "at": datetime.now(UTC)}
    )


def _setting(name: str, bridge: str) -> str:
    try:
        return (Path("/proc/sys/net") / name.format(bridge)).read_text().strip()
    except FileNotFoundError:  # a kernel without IPv6
        return SEALS[name] if name.startswith("ipv6") else ""


def _targets(live_xml: str) -> set[str]:
    from vapor_desktop.model.domain_xml.parse import parse_root

    return {str(node.get("dev")) for node in parse_root(live_xml).findall("./devices/interface/target")}
