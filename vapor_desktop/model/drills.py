"""Drills as values: what is asked of a site, and what the site keeps on record from before the first thing is made.

A *drill* is one bubble; any number of VMs may join it. Times are on the site's clock.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from ipaddress import IPv4Interface
from typing import Annotated, Literal

from pydantic import Field

from vapor_desktop.model.policy import Value

# A bubble whose VMs have no known address: documentation range (RFC 5737), so that it is nobody's.
UNKNOWN_NET = "192.0.2.1/24"
LASTS_S, LASTS_MAX_S = 4 * 3600.0, 7 * 86400.0
DISK_LIMIT_BYTES = 10 << 30
BOOT_S = 300.0
_FIRST_HOST = 10
_COPY = re.compile(r".+-drill-[0-9a-f]{8}")


class DrillPhase(StrEnum):
    """Where a drill stands. The text is what UI, CLI and docs show."""

    PREPARING = "preparing"
    RUNNING = "running"
    CLEANUP = "cleanup needed"
    ENDED = "ended"


class Nic(Value):
    """A network card of the VM as its source last knew it. ``address``: "192.168.1.20", "" = not known."""

    mac: str
    source: str  # network, bridge or device of the point's configuration
    address: str = ""


class NetPlan(Value):
    """One network of the bubble: in place of the source's network ``source``; ``gateway`` as "192.168.1.1/24"."""

    source: str
    gateway: str
    hosts: dict[str, str] = {}  # MAC -> address


class LeakTarget(Value):
    """Somebody whom nothing in the bubble may reach. ``port``: tried by TCP."""

    name: str
    address: str
    port: Annotated[int, Field(ge=1, le=65535)] = 22


class Wanted(Value):
    """What must be true for the VM to count as usable."""

    boot_s: Annotated[float, Field(gt=0)] = BOOT_S  # how long it may take
    agent: bool = True
    tcp_ports: tuple[Annotated[int, Field(ge=1, le=65535)], ...] = ()
    script: str = ""  # run by the guest's shell through its agent; exit code 0 passes
    script_s: Annotated[float, Field(gt=0)] = 60.0


class DrillRequest(Value):
    """PUT /drills/{id}: put the drill on record. Nothing is made yet."""

    reason: str
    by: str
    lasts_s: Annotated[float, Field(gt=0, le=LASTS_MAX_S)] = LASTS_S


class DrillJoin(Value):
    """PUT /drills/{id}/vms/{vm}: networks, overlays on ``seq``, a VM of another name and UUID, off."""

    seq: int
    vm_name: str
    protection_id: str
    nets: tuple[NetPlan, ...] = ()
    probes: tuple[LeakTarget, ...] = ()
    wanted: Wanted = Wanted()
    disk_limit_bytes: Annotated[int, Field(gt=0)] = DISK_LIMIT_BYTES


class DrillCheck(Value):
    """One thing that was looked at."""

    key: str
    title: str
    state: Literal["waiting", "ok", "failed"]
    text: str = ""
    at: datetime | None = None


class DrillNet(Value):
    """A network of the bubble on the host, in place of the source's network ``source``."""

    source: str
    network: str
    bridge: str
    port: str  # the probe's
    gateway: str
    hosts: dict[str, str] = {}


class DrillVm(Value):
    """The copy of one VM."""

    vm_uuid: str
    vm_name: str
    protection_id: str
    seq: int
    domain_uuid: str
    domain_name: str
    wanted: Wanted = Wanted()
    disk_limit_bytes: int = DISK_LIMIT_BYTES
    defined: bool = False
    started_at: datetime | None = None
    boot_s: float | None = None  # from its start to its first sign of life
    usable_s: float | None = None  # … to the last check that was asked for
    settled: bool = False  # every check has its answer
    checks: tuple[DrillCheck, ...] = ()
    notes: tuple[str, ...] = ()
    paused: str = ""  # why the site paused it


class Inventory(Value):
    """Everything on the host that a drill could leave behind, by kind, sorted."""

    things: dict[str, tuple[str, ...]]

    def ours(self, words: Iterable[str]) -> tuple[str, ...]:
        """What of it bears one of these names."""
        wanted = tuple(words)
        found = (f"{kind}: {t}" for kind, names in self.things.items() for t in names if any(w in t for w in wanted))
        return tuple(sorted(found))

    def beyond(self, other: Inventory) -> tuple[str, ...]:
        """What is here and not in ``other``."""
        return tuple(
            sorted(
                f"{kind}: {thing}"
                for kind, names in self.things.items()
                for thing in set(names) - set(other.things.get(kind, ()))
            )
        )


class DrillEnd(Value):
    """How a drill ended. ``left``: what of its own is still there (empty is the promise, and it was looked)."""

    at: datetime
    why: str
    passed: bool | None  # None: nobody judged it
    note: str = ""
    by: str = ""
    before: Inventory
    after: Inventory
    left: tuple[str, ...] = ()
    appeared: tuple[str, ...] = ()  # not the drill's, but new on the host since
    gone: tuple[str, ...] = ()  # not the drill's, and no longer there
    proven: dict[str, int] = {}  # VM -> the point that is proven by it


class DrillStop(Value):
    """DELETE /drills/{id}. ``force``: what cannot be removed now does not hold up the rest."""

    passed: bool | None
    note: str = ""
    by: str
    why: str = "stopped"
    force: bool = False


class DrillRecord(Value):
    """One drill, whole, as the site keeps it."""

    drill_id: str
    phase: DrillPhase = DrillPhase.PREPARING
    reason: str
    by: str
    created_at: datetime
    expires_at: datetime
    boot_id: str
    probes: tuple[LeakTarget, ...] = ()
    nets: tuple[DrillNet, ...] = ()
    vms: tuple[DrillVm, ...] = ()
    isolation: tuple[DrillCheck, ...] = ()
    before: Inventory
    stop: DrillStop | None = None  # asked for, durable before anything is removed
    trouble: str = ""
    end: DrillEnd | None = None

    @property
    def open(self) -> bool:
        """Is there anything of it on the host?"""
        return self.phase is not DrillPhase.ENDED

    def vm(self, vm_uuid: str) -> DrillVm | None:
        """The copy of that VM."""
        return next((v for v in self.vms if v.vm_uuid == vm_uuid), None)

    def with_vm(self, vm: DrillVm) -> DrillRecord:
        """The same with that copy in the place of the one of its VM, or added."""
        others = tuple(v for v in self.vms if v.vm_uuid != vm.vm_uuid)
        return self.model_copy(update={"vms": (*others, vm)})

    def names(self) -> tuple[str, ...]:
        """What marks a thing as this drill's: parts of names that nobody else has."""
        nets = [word for n in self.nets for word in (n.network, n.bridge, n.port)]
        return (self.drill_id, *nets, *(v.domain_uuid for v in self.vms))


class DrillPicture(Value):
    """GET /drills/{id}/vms/{vm}/screen and /replicas/{vm}/points/{seq}/drill: a PNG in base64, and what was told."""

    png: str
    boot_s: float | None
    at: datetime


def is_copy(domain_name: str) -> bool:
    """Is that a drill's copy, by the name that a site gives it?"""
    return _COPY.fullmatch(domain_name) is not None


def overdue(days: int | None, last: datetime | None, protected_since: datetime, now: datetime) -> bool:
    """Should a drill have passed since? ``days``: the policy's; ``last``: when one did."""
    return days is not None and now - (last or protected_since) > timedelta(days=days)


def isolated(checks: Sequence[DrillCheck]) -> bool:
    """Was it looked at, and was all of it well?"""
    return bool(checks) and all(c.state == "ok" for c in checks)


def plan_nets(nics: Sequence[Nic], gateways: dict[str, str]) -> tuple[NetPlan, ...]:
    """One network per source network. ``gateways``: source network -> "address/prefix" as the source has it.

    A card whose address is not known, or is not of its network, gets a free one there.
    """
    plans = []
    for source in dict.fromkeys(n.source for n in nics):
        mine = [n for n in nics if n.source == source]
        gateway = gateways.get(source) or _guessed(mine)
        network = IPv4Interface(gateway).network
        used = {n.address for n in mine if n.address} | {str(IPv4Interface(gateway).ip)}
        free = (str(a) for i, a in enumerate(network.hosts(), 1) if i >= _FIRST_HOST and str(a) not in used)
        known = {n.mac: n.address for n in mine if n.address and IPv4Interface(n.address).ip in network}
        hosts = {n.mac: known[n.mac] if n.mac in known else next(free) for n in mine}
        plans.append(NetPlan(source=source, gateway=gateway, hosts=hosts))
    return tuple(plans)


def _guessed(nics: Sequence[Nic]) -> str:
    """A gateway for cards whose network nobody describes: the first address of the /24 of the first known one."""
    address = next((n.address for n in nics if n.address), "")
    if not address:
        return UNKNOWN_NET
    network = IPv4Interface(f"{address}/24").network
    first, second = network.network_address + 1, network.network_address + 254
    return f"{second if str(first) in {n.address for n in nics} else first}/24"
