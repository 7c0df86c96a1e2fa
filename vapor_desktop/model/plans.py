"""Recovery plans as values: VMs in tiers, what is waited for between them, and what a person is asked.

The truth lies at each target that the plan uses (DESIGN §4); the database only follows. A program refuses a
``plan_format`` that it does not know.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from vapor_desktop.model.errors import InvalidRequest
from vapor_desktop.model.operations import OperationKind
from vapor_desktop.model.policy import Value

CHECK_TIMEOUT_S = 120.0
Seconds = Annotated[float, Field(ge=0, le=86400)]


class PlanMode(StrEnum):
    """As what a plan is run."""

    FAILOVER = "failover"
    MIGRATION = "migration"
    DRILL = "drill"

    @property
    def kind(self) -> OperationKind:
        """What is done with each VM."""
        return _KINDS[self]


_KINDS = {
    PlanMode.FAILOVER: OperationKind.FAILOVER,
    PlanMode.MIGRATION: OperationKind.MIGRATION,
    PlanMode.DRILL: OperationKind.DRILL,
}


class CheckKind(StrEnum):
    """What is waited for before the next one has its turn."""

    RUNNING = "running"  # libvirt says that the guest runs
    AGENT = "agent"  # its guest agent answers
    TCP = "tcp"  # a port of it takes a connection from the target host


class WaitFor(Value):
    """One check of one VM. ``address`` "": the plan's own for that VM, else what its agent tells."""

    kind: CheckKind
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    address: str = ""
    timeout_s: Seconds = CHECK_TIMEOUT_S

    @field_validator("address")
    @classmethod
    def _an_address(cls, value: str) -> str:
        return str(ipaddress.ip_address(value)) if value else ""

    @model_validator(mode="after")
    def _whole(self) -> WaitFor:
        if (self.kind is CheckKind.TCP) != (self.port is not None):
            raise ValueError("a tcp check has a port, and no other has one")
        return self

    @property
    def words(self) -> str:
        """As a person reads it."""
        if self.kind is CheckKind.TCP:
            return f"port {self.port}" + (f" of {self.address}" if self.address else "")
        return {CheckKind.RUNNING: "guest runs", CheckKind.AGENT: "agent answers"}[self.kind]


class Address(Value):
    """An address that a network card has at the target, set inside the guest (Linux) by its agent.

    ``mac`` "": the first card. ``address`` as "198.51.100.7/24".
    """

    mac: str = ""
    address: str
    gateway: str = ""
    dns: tuple[str, ...] = ()

    @field_validator("mac")
    @classmethod
    def _a_mac(cls, value: str) -> str:
        if value and not re.fullmatch(r"([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}", value):
            raise ValueError("a MAC looks like 52:54:00:12:34:56")
        return value.lower()

    @field_validator("address")
    @classmethod
    def _with_prefix(cls, value: str) -> str:
        if "/" not in value:
            raise ValueError("write it with its prefix, as 198.51.100.7/24")
        return str(ipaddress.ip_interface(value))

    @field_validator("gateway")
    @classmethod
    def _a_gateway(cls, value: str) -> str:
        return str(ipaddress.ip_address(value)) if value else ""

    @field_validator("dns")
    @classmethod
    def _servers(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(str(ipaddress.ip_address(one)) for one in value)

    @property
    def ip(self) -> str:
        """Without the prefix."""
        return str(ipaddress.ip_interface(self.address).ip)


class PlanVm(Value):
    """A VM in a tier. ``delay_s``: after it is up, before its place is free for the next one.

    ``networks``: source network -> network at the target; what it does not name is as in the protection.
    """

    vm_uuid: str
    name: str
    checks: tuple[WaitFor, ...] = ()
    delay_s: Seconds = 0.0
    networks: dict[str, str] = {}
    addresses: tuple[Address, ...] = ()


class Tier(Value):
    """VMs that are brought up together, in their order, at most ``Plan.parallel`` at a time.

    ``pause``: what a person is asked to look at before the tier begins; "" for no pause.
    """

    name: str = ""
    vms: Annotated[tuple[PlanVm, ...], Field(min_length=1)]
    delay_s: Seconds = 0.0  # after the tier is up, before the next one begins
    pause: str = ""


class Plan(Value):
    """A recovery plan, whole; ``version`` rises with every write (compare-and-set at each site)."""

    plan_id: str
    name: Annotated[str, Field(min_length=1, max_length=100)]
    plan_format: Literal[1] = 1  # of this shape
    version: Annotated[int, Field(ge=0)] = 0
    tiers: tuple[Tier, ...] = ()
    parallel: Annotated[int, Field(ge=1, le=16)] = 4
    shutdown_s: Annotated[float, Field(ge=1, le=86400)] = 120.0  # of a migration: until a person is asked
    changed_at: datetime
    changed_by: str = ""
    deleted: bool = False  # its tombstone: so that a site that was away does not bring it back

    @model_validator(mode="after")
    def _each_vm_once(self) -> Plan:
        seen: set[str] = set()
        for vm in self.vms():
            if vm.vm_uuid in seen:
                raise ValueError(f"“{vm.name}” is in it twice")
            seen.add(vm.vm_uuid)
        if not self.deleted and not self.tiers:
            raise ValueError("it has no tier")
        return self

    def vms(self) -> Iterator[PlanVm]:
        """All of them, in their order."""
        for tier in self.tiers:
            yield from tier.vms

    @property
    def rank(self) -> tuple[int, datetime]:
        """Of two copies of one plan the higher is the newer."""
        return self.version, self.changed_at


def read_plan(raw: Mapping[str, Any]) -> Plan:
    """A plan as a file or a command holds it. Raises InvalidRequest naming the first thing that does not fit."""
    try:
        return Plan.model_validate(dict(raw), strict=False)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidRequest(
            "That is no recovery plan",
            why=f"{where}: {first['msg']}" if where else str(first["msg"]),
            fix="`vaporctl plan show PLAN --json` shows the form of one",
        ) from error


def newest(copies: Iterable[Plan]) -> dict[str, Plan]:
    """The newest copy of each, by plan id; tombstones too."""
    found: dict[str, Plan] = {}
    for copy in copies:
        known = found.get(copy.plan_id)
        if known is None or copy.rank > known.rank:
            found[copy.plan_id] = copy
    return found


def shared_vms(plan: Plan, other: Plan) -> tuple[str, ...]:
    """Names of the VMs that both would bring up."""
    theirs = {vm.vm_uuid for vm in other.vms()}
    return tuple(vm.name for vm in plan.vms() if vm.vm_uuid in theirs)


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a plan has no tick: which VM, which thing. ``vm_uuid`` "": the plan as a whole."""

    vm_uuid: str
    vm_name: str
    what: str
    fix: str = ""

    @property
    def words(self) -> str:
        """One sentence."""
        return f"{self.vm_name}: {self.what}" if self.vm_name else self.what


@dataclass(frozen=True, slots=True)
class PlanStatus:
    """A plan as a console shows it. ``ready`` None: nobody has looked yet. ``targets``: names of the sites."""

    plan: Plan
    ready: bool | None
    problems: tuple[Problem, ...]
    checked_at: datetime | None
    targets: tuple[str, ...] = ()
