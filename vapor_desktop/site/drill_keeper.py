"""What a drill does while nobody looks: its checks, its limits in time and disk, and its end after a restart.

One thread looks at all drills; each VM whose checks have not all their answer has a thread of its own, because a
guest's agent may take its time.
"""

from __future__ import annotations

import logging
import threading
import time
from datetime import UTC, datetime, timedelta

from vapor_desktop.model.drills import DrillCheck, DrillPhase, DrillRecord, DrillStop, DrillVm
from vapor_desktop.model.errors import DomainNotFound, NotFound, VaporError
from vapor_desktop.site import drill_end
from vapor_desktop.site.drills import Drills
from vapor_desktop.site.leases import boot_id
from vapor_desktop.site.picture import blank
from vapor_desktop.site.replica.space import free_bytes
from vapor_desktop.site.site_events import EventLog, event

_log = logging.getLogger("vapor.drill")

TICK_S, LOOK_S, DISK_S, PROBE_S, AGAIN_S = 1.0, 0.5, 5.0, 5.0, 30.0
UNSTARTED = timedelta(minutes=30)  # whoever was preparing it has left
SITE = "this site"
NOT_ASKED = "it did not ask for one"
_SAID = 2000


class DrillKeeper:
    """Of one site service."""

    def __init__(self, drills: Drills, events: EventLog) -> None:
        self._drills = drills
        self._events = events
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="drills", daemon=True)
        self._watchers: dict[str, threading.Thread] = {}
        self._due: dict[str, float] = {}

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; drills go on, and their probes come again with the next start."""
        self._stop.set()
        for thread in (self._thread, *self._watchers.values()):
            if thread.is_alive():
                thread.join()
        self._drills.probes.close_all()

    def _run(self) -> None:
        while not self._stop.is_set():
            for record in self._open_ones():
                if self._stop.is_set():
                    return
                try:
                    self._keep(record)
                except (VaporError, OSError) as error:  # the others are kept all the same
                    _log.error("drill %s cannot be kept now: %s", record.drill_id, error)
            self._stop.wait(TICK_S)

    def _open_ones(self) -> list[DrillRecord]:
        try:
            return [record for record in self._drills.book.all() if record.open]
        except (VaporError, OSError) as error:
            _log.error("the drills cannot be read: %s", error)
            return []

    # --- one drill ---------------------------------------------------------------------------------
    def _keep(self, record: DrillRecord) -> None:
        why = over(record, datetime.now(UTC), boot_id())
        if why or record.stop is not None:  # a stop that was cut, or could not remove everything, goes on
            self._end(record, why)
            return
        if self._is_due(f"probe {record.drill_id}", PROBE_S):
            self._mend_probes(record)
        for vm in record.vms:
            if vm.started_at is None:
                continue
            if not vm.settled:
                self._watch(record.drill_id, vm)
            if not vm.paused and self._is_due(f"disk {vm.domain_uuid}", DISK_S):
                self._limit(record.drill_id, vm)

    def _is_due(self, key: str, every_s: float) -> bool:
        now = time.monotonic()
        if now < self._due.get(key, float("-inf")):
            return False
        self._due[key] = now + every_s
        return True

    def _end(self, record: DrillRecord, why: str) -> None:
        lock = self._drills.lock(record.drill_id)
        if not lock.acquire(blocking=False):  # somebody is at it
            return
        try:
            if self._is_due(f"end {record.drill_id}", AGAIN_S):
                self._stop_it(self._drills.book.one(record.drill_id), why)
        finally:
            lock.release()

    def _stop_it(self, record: DrillRecord, why: str) -> None:
        if not record.open:
            return
        asked = record.stop or DrillStop(passed=None, by=SITE, why=why)
        told = record.trouble
        try:
            drill_end.stop(self._drills, record.drill_id, asked)
        except VaporError as error:
            if self._drills.book.one(record.drill_id).trouble != told:  # told once, not each time it is tried
                self._tell(record, "drill-stuck", str(error))
            return
        if why:
            self._tell(record, "drill-ended", why)

    def _tell(self, record: DrillRecord, what: str, why: str) -> None:
        for vm in record.vms:
            self._events.add(event(vm.vm_uuid, what, f"the drill of {vm.vm_name} by {record.by}: {why}"))

    def _mend_probes(self, record: DrillRecord) -> None:
        """After a restart of this service, or of the helper. Only where the network still is."""
        if not record.vms or not any(v.defined for v in record.vms):
            return
        there = self._drills.hypervisor.bubbles.all_networks()
        for net in record.nets:
            if net.network in there:
                self._drills.probes.ensure(net)

    def _limit(self, drill_id: str, vm: DrillVm) -> None:
        """A full drill stands still; replication needs the room."""
        try:
            used = self._drills.store.drill_bytes(vm.vm_uuid, drill_id)
        except NotFound:
            return
        settings = self._drills.settings
        root = next((r for r in settings.replica_roots if (r / vm.vm_uuid).is_dir()), settings.replica_roots[0])
        why = ""
        if used > vm.disk_limit_bytes:
            why = f"it has written {used >> 20} MiB, and may write {vm.disk_limit_bytes >> 20} MiB"
        elif free_bytes(root) < settings.replica_reserve_bytes:
            why = f"{root} has only {free_bytes(root) >> 20} MiB left, and replication needs it"
        if not why:
            return
        self._drills.hypervisor.bubbles.suspend(vm.domain_uuid)
        paused = self._change(drill_id, vm, paused=why)
        if paused:
            self._events.add(event(vm.vm_uuid, "drill-paused", f"the drill of {vm.vm_name}: {why}"))

    def _change(self, drill_id: str, vm: DrillVm, **changes: object) -> bool:
        def change(record: DrillRecord) -> DrillRecord:
            now = record.vm(vm.vm_uuid)
            return record if now is None else record.with_vm(now.model_copy(update=changes))

        try:
            self._drills.book.change(drill_id, change)
        except NotFound:
            return False
        return True

    # --- checks ------------------------------------------------------------------------------------
    def _watch(self, drill_id: str, vm: DrillVm) -> None:
        running = self._watchers.get(vm.domain_uuid)
        if running is not None and running.is_alive():
            return
        self._watchers = {k: t for k, t in self._watchers.items() if t.is_alive()}
        thread = threading.Thread(target=self._check, args=(drill_id, vm.vm_uuid), name="drill-check", daemon=True)
        self._watchers[vm.domain_uuid] = thread
        thread.start()

    def _check(self, drill_id: str, vm_uuid: str) -> None:
        """Until every check of the VM has its answer, or the drill is stopped."""
        while not self._stop.is_set():
            record = self._drills.book.one(drill_id)
            vm = record.vm(vm_uuid)
            if vm is None or vm.settled or record.stop is not None or not record.open:
                return
            try:
                changes = self._look(record, vm)
            except VaporError as error:
                _log.warning("the checks of %s wait: %s", vm.domain_name, error)
                changes = {}
            if changes:
                self._change(drill_id, vm, **changes)
            self._stop.wait(LOOK_S)

    def _look(self, record: DrillRecord, vm: DrillVm) -> dict[str, object]:
        """One look; the changes of the VM's record."""
        if vm.started_at is None:
            return {}
        since = (datetime.now(UTC) - vm.started_at).total_seconds()
        late = since > vm.wanted.boot_s
        known = {c.key: c for c in vm.checks}
        checks = [
            known[key] if key in known and known[key].state != "waiting" else self._one(record, vm, key, title, late)
            for key, title in wanted_checks(vm, [n.hosts for n in record.nets])
        ]
        alive = vm.boot_s if vm.boot_s is not None else (since if self._lives(vm, checks) else None)
        boot = DrillCheck(key="boot", title="It boots", state="waiting")
        if alive is not None:
            boot = _answer("boot", "It boots", True, f"first sign of life after {alive:.1f} s")
        elif late:
            boot = _answer("boot", "It boots", False, f"no sign of life within {vm.wanted.boot_s:.0f} s")
        found = [boot, *checks]
        settled = all(c.state != "waiting" for c in found)
        changes: dict[str, object] = {"checks": tuple(found), "boot_s": alive}
        if settled:
            found.append(self._screen(record, vm))
            well = all(c.state == "ok" for c in found)
            changes |= {"checks": tuple(found), "settled": True, "usable_s": since if well else None}
        return changes

    def _lives(self, vm: DrillVm, checks: list[DrillCheck]) -> bool:
        """Its first sign of life: something that was asked for, or its agent all the same."""
        if any(c.state == "ok" and c.text != NOT_ASKED for c in checks):
            return True
        return not vm.wanted.agent and self._drills.hypervisor.agent_ping(vm.domain_uuid)

    def _one(self, record: DrillRecord, vm: DrillVm, key: str, title: str, late: bool) -> DrillCheck:
        kind, _, rest = key.partition(":")
        try:
            if kind == "dhcp":
                return self._dhcp(record, vm, key, title, late)
            if kind == "agent":
                ok, text = self._drills.hypervisor.agent_ping(vm.domain_uuid), "it answers"
            elif kind == "tcp":
                ok, text = self._tcp(record, vm, int(rest))
            else:
                return self._script(vm, key, title, late)
        except DomainNotFound:
            return _answer(key, title, False, "the VM is gone")
        if ok:
            return _answer(key, title, True, text)
        return (
            _answer(key, title, False, text or "no answer")
            if late
            else DrillCheck(key=key, title=title, state="waiting")
        )

    def _dhcp(self, record: DrillRecord, vm: DrillVm, key: str, title: str, late: bool) -> DrillCheck:
        """An address of its own is no failure: many servers never ask for one."""
        mine = _macs(record, vm, self._drills)
        leased = {
            mac: address for net in record.nets for mac, address in self._drills.probes.ensure(net).leases().items()
        }
        got = sorted(leased[mac] for mac in mine if mac in leased)
        if got:
            return _answer(key, title, True, f"it has {', '.join(got)}")
        others = [c for c in vm.checks if c.key != key and c.key != "boot"]
        if late or (others and all(c.state != "waiting" for c in others)):
            return _answer(key, title, True, NOT_ASKED)
        return DrillCheck(key=key, title=title, state="waiting")

    def _tcp(self, record: DrillRecord, vm: DrillVm, port: int) -> tuple[bool, str]:
        mine = _macs(record, vm, self._drills)
        text = "its address is not known"
        for net in record.nets:
            for mac, address in net.hosts.items():
                if mac in mine:
                    ok, text = self._drills.probes.ensure(net).tcp(address, port)
                    if ok:
                        return True, f"{address} accepts"
        return False, text

    def _script(self, vm: DrillVm, key: str, title: str, late: bool) -> DrillCheck:
        """Once, when the agent is there."""
        if not self._drills.hypervisor.agent_ping(vm.domain_uuid):
            return (
                _answer(key, title, False, "the guest's agent did not come")
                if late
                else DrillCheck(key=key, title=title, state="waiting")
            )
        try:
            run = self._drills.hypervisor.agent_run(vm.domain_uuid, vm.wanted.script, vm.wanted.script_s)
        except VaporError as error:
            return _answer(key, title, False, str(error))
        if run.code is None:
            return _answer(key, title, False, f"it did not end within {vm.wanted.script_s:.0f} s")
        said = (run.out + run.err).strip()[:_SAID]
        return _answer(key, title, run.code == 0, f"exit code {run.code}" + (f": {said}" if said else ""))

    def _screen(self, record: DrillRecord, vm: DrillVm) -> DrillCheck:
        png = drill_end.take_picture(self._drills, record.drill_id, vm)
        if png is None:
            return _answer("screen", "Its screen", True, "it has none that could be read")
        return _answer("screen", "Its screen", not blank(png), "blank" if blank(png) else "a picture is kept")


def over(record: DrillRecord, now: datetime, boot: str) -> str:
    """Why this drill must end by itself; "" while it need not. Pure."""
    if record.boot_id != boot:
        return "the host was restarted meanwhile"
    if now >= record.expires_at:
        return "its time is over"
    if record.phase is DrillPhase.PREPARING and now - record.created_at > UNSTARTED:
        return "nobody went on with it"
    return ""


def wanted_checks(vm: DrillVm, hosts: list[dict[str, str]]) -> list[tuple[str, str]]:
    """(key, title) of what this VM must show, besides that it boots. Pure."""
    found = [("dhcp", "It gets its address")] if any(hosts) else []
    if vm.wanted.agent:
        found.append(("agent", "Its guest agent answers"))
    found += [(f"tcp:{port}", f"Port {port} accepts") for port in vm.wanted.tcp_ports]
    if vm.wanted.script:
        found.append(("script", "The script in the guest"))
    return found


def _answer(key: str, title: str, ok: bool, text: str) -> DrillCheck:
    return DrillCheck(key=key, title=title, state="ok" if ok else "failed", text=text, at=datetime.now(UTC))


def _macs(record: DrillRecord, vm: DrillVm, drills: Drills) -> set[str]:
    """The cards of this VM among all of the bubble."""
    if len(record.vms) == 1:
        return {mac for net in record.nets for mac in net.hosts}
    from vapor_desktop.model.domain_xml.drill import cards

    return {nic.mac for nic in cards(drills.hypervisor.domain_xml(vm.domain_uuid, secure=False))}
