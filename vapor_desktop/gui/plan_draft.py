"""A recovery plan while it is edited: a tier may be empty for a moment. No Qt in here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from vapor_desktop.model.errors import InvalidRequest
from vapor_desktop.model.plans import Plan, PlanVm, Tier, read_plan

Place = tuple[int, int | None]  # tier, and VM in it or None for the tier itself; from 0


@dataclass(frozen=True, slots=True)
class DraftTier:
    """As ``model.plans.Tier``, but it may have no VM yet."""

    name: str = ""
    pause: str = ""
    delay_s: float = 0.0
    vms: tuple[PlanVm, ...] = ()


@dataclass(slots=True)
class Draft:
    """``trouble``: what was typed and cannot be, "" when all can."""

    given: Sequence[Tier]
    tiers: list[DraftTier] = field(default_factory=list)
    trouble: str = ""

    def __post_init__(self) -> None:
        self.tiers = [DraftTier(t.name, t.pause, t.delay_s, t.vms) for t in self.given]

    def add_tier(self) -> Place:
        """At the end."""
        self.tiers.append(DraftTier())
        return len(self.tiers) - 1, None

    def add_vm(self, tier: int, vm: PlanVm) -> Place:
        """At the end of that tier; the first tier is made when there is none."""
        if not self.tiers:
            self.add_tier()
        tier = max(0, tier)
        self._put(tier, (*self.tiers[tier].vms, vm))
        return tier, len(self.tiers[tier].vms) - 1

    def remove(self, place: Place) -> Place | None:
        """A tier goes with its VMs. What is to be chosen then."""
        tier, vm = place
        self.trouble = ""
        if vm is not None:
            self._put(tier, tuple(v for n, v in enumerate(self.tiers[tier].vms) if n != vm))
            return tier, None
        del self.tiers[tier]
        return (min(tier, len(self.tiers) - 1), None) if self.tiers else None

    def move(self, place: Place, by: int) -> Place:
        """One up (-1) or down (1); a VM at its tier's edge goes to the neighbouring tier. Its new place."""
        tier, vm = place
        if vm is None:
            there = tier + by
            if 0 <= there < len(self.tiers):
                self.tiers[tier], self.tiers[there] = self.tiers[there], self.tiers[tier]
                return there, None
            return place
        vms = list(self.tiers[tier].vms)
        if 0 <= vm + by < len(vms):
            vms[vm], vms[vm + by] = vms[vm + by], vms[vm]
            self._put(tier, tuple(vms))
            return tier, vm + by
        if not 0 <= tier + by < len(self.tiers):
            return place
        moved = vms.pop(vm)
        self._put(tier, tuple(vms))
        others = self.tiers[tier + by].vms
        self._put(tier + by, (moved, *others) if by > 0 else (*others, moved))
        return tier + by, 0 if by > 0 else len(others)

    def change_tier(self, tier: int, changes: dict[str, Any]) -> None:
        """Its name, pause, delay."""
        self.tiers[tier] = replace(self.tiers[tier], **changes)

    def change_vm(self, tier: int, vm: int, value: PlanVm) -> None:
        """What the plan says of one VM."""
        self._put(tier, tuple(value if n == vm else v for n, v in enumerate(self.tiers[tier].vms)))

    def plan(self, name: str, plan_id: str, version: int, parallel: int, shutdown_s: float, now: datetime) -> Plan:
        """Whole. Raises InvalidRequest naming the first thing that is missing or cannot be."""
        if not name:
            raise InvalidRequest("Give the plan a name")
        if self.trouble:
            raise InvalidRequest(self.trouble)
        if not self.tiers:
            raise InvalidRequest("Add a VM")
        for n, tier in enumerate(self.tiers, 1):
            if not tier.vms:
                raise InvalidRequest(f"Tier {n} has no VM")
        tiers = [
            {
                "name": t.name,
                "pause": t.pause,
                "delay_s": t.delay_s,
                "vms": [vm.model_dump(mode="json") for vm in t.vms],
            }
            for t in self.tiers
        ]
        own = {"plan_id": plan_id, "name": name, "version": version, "parallel": parallel, "shutdown_s": shutdown_s}
        return read_plan({**own, "tiers": tiers, "changed_at": now.isoformat()})

    def _put(self, tier: int, vms: tuple[PlanVm, ...]) -> None:
        self.tiers[tier] = replace(self.tiers[tier], vms=vms)
