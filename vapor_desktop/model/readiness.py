"""Is a recovery plan ready? A pure function of what was seen; what could not be seen is a reason against it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from vapor_desktop.model.domain_xml.preflight import Finding
from vapor_desktop.model.plans import Plan, PlanVm, Problem
from vapor_desktop.model.sites import Protection


@dataclass(frozen=True, slots=True)
class SiteSeen:
    """A target as looked at. ``trouble``: why it could not be; the rest is not known then. Sizes in bytes."""

    name: str
    trouble: str = ""
    networks: tuple[str, ...] = ()
    free_bytes: int | None = None
    reserve_bytes: int = 0


@dataclass(frozen=True, slots=True)
class VmSeen:
    """A VM of a plan as looked at, at its target.

    ``newest``: of its recovery points, None without one. ``lacks``: what the host lacks to start that very point.
    ``trouble``: why that could not be looked at. ``owner``: of its epoch.
    """

    protection: Protection
    owner: str
    newest: int | None = None
    verified: bool = True
    lacks: tuple[Finding, ...] = ()
    trouble: str = ""


def problems(plan: Plan, vms: Mapping[str, VmSeen | None], sites: Mapping[str, SiteSeen]) -> tuple[Problem, ...]:
    """Why it has no tick, in the plan's order; empty when it is ready.

    ``vms``: by UUID, None for one that is not protected; ``sites``: by site id.
    """
    found = [p for vm in plan.vms() for p in _of_vm(vm, vms.get(vm.vm_uuid), sites)]
    return tuple(dict.fromkeys([*found, *_of_sites(sites)]))


def _of_vm(vm: PlanVm, seen: VmSeen | None, sites: Mapping[str, SiteSeen]) -> Iterator[Problem]:
    def problem(what: str, fix: str = "") -> Problem:
        return Problem(vm.vm_uuid, vm.name, what, fix)

    if seen is None:
        yield problem("it is not protected", "Protect it, or take it out of the plan")
        return
    target = sites.get(seen.protection.target_site)
    if target is None:
        yield problem("its target is not paired with this console", "Pair it")
        return
    if target.trouble:
        return  # said once, of the site
    if seen.trouble:
        yield problem(seen.trouble)
        return
    if seen.owner == seen.protection.target_site:
        yield problem(f"it belongs to {target.name} already; nothing protects it there", "Protect it the other way")
        return
    if seen.newest is None:
        yield problem("it has no complete recovery point", "Wait for its first copy, or synchronise it now")
        return
    if not seen.verified:
        yield problem(
            f"the data of its recovery point {seen.newest} did not match its digests",
            "Synchronise it, or choose another point",
        )
    for finding in seen.lacks:
        if finding.blocking:
            yield problem(finding.what, finding.fix)
    gone = sorted(set(vm.networks.values()) - set(target.networks))
    if gone:
        yield problem(f"{target.name} has no network {', '.join(gone)}", "Map it to one of the networks there")


def _of_sites(sites: Mapping[str, SiteSeen]) -> Iterator[Problem]:
    for site in sites.values():
        if site.trouble:
            yield Problem("", "", f"{site.name} cannot be looked at: {site.trouble}")
        elif site.free_bytes is not None and site.free_bytes <= site.reserve_bytes:
            yield Problem(
                "",
                "",
                f"{site.name} has no space for what the VMs would write there "
                f"({site.free_bytes / 2**30:.1f} GiB free, {site.reserve_bytes / 2**30:.1f} GiB of it reserved)",
                "Free space there",
            )
