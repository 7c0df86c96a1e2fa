"""Before a VM is protected: everything that would stop its replica from being made, or from starting."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vapor_desktop.engine.ports import SiteGateway
from vapor_desktop.engine.sitewatch import vm_status
from vapor_desktop.model.domains import DomainView
from vapor_desktop.model.errors import VaporError
from vapor_desktop.model.sites import Site
from vapor_desktop.model.view import Check, ProtectRequest

OnCheck = Callable[[Check], None]


def run(
    gateway: SiteGateway, source: Site, target: Site, request: ProtectRequest, on_check: OnCheck
) -> Sequence[Check]:
    """All checks, each reported when it begins and when it ends. A failed one does not stop the others."""
    done: list[Check] = []

    def step(key: str, title: str, look: Callable[[], Check]) -> None:
        on_check(Check(key, title, "running"))
        try:
            result = look()
        except VaporError as error:
            result = Check(key, title, "failed", f"{error.what}: {error.why}" if error.why else error.what, error.fix)
        done.append(result)
        on_check(result)

    domains: list[DomainView] = []

    def read_vms() -> Check:
        hypervisor = gateway.hypervisor(source)
        domains.extend(hypervisor.domain(v) for v in request.vm_uuids)
        bad = [vm for vm in (vm_status(d, source) for d in domains) if not vm.protectable]
        if bad:
            fixes = " ".join(d.fix for vm in bad for d in vm.disks if d.kind == "refused" and d.fix)
            return Check("vms", "VMs", "failed", "; ".join(f"{v.name}: {v.reason}" for v in bad), fixes)
        slow = [d.target for vm in domains for d in vm_status(vm, source).disks if d.kind == "compare"]
        if slow:
            text = f"{', '.join(slow)}: no bitmap is possible, so every cycle reads the whole disk"
            return Check("vms", "VMs", "warning", text, "Convert the disk to qcow2 for short RPO targets")
        return Check("vms", "VMs", "ok", f"{len(domains)} can be replicated")

    def read_networks() -> Check:
        there = set(gateway.hypervisor(target).networks())
        wanted = {n: request.networks.get(n, n) for d in domains for n in d.networks}
        missing = sorted(f"{s} → {t}" if s != t else s for s, t in wanted.items() if t not in there)
        if missing:
            fix = f"Map it to one of: {', '.join(sorted(there)) or 'none exist'}"
            return Check(
                "networks", "Networks", "failed", f"{target.name} has no network for {', '.join(missing)}", fix
            )
        text = ", ".join(f"{s} → {t}" for s, t in sorted(wanted.items()))
        return Check("networks", "Networks", "ok", text or "no networks")

    def read_space() -> Check:
        roots = gateway.api(target).storage()
        free = max((r.free_bytes - r.reserve_bytes for r in roots), default=0)
        need = sum(d.allocated_bytes or d.size_bytes or 0 for vm in domains for d in vm.disks if d.device == "disk")
        text = f"about {need / 2**30:.1f} GiB for the first copy, {free / 2**30:.1f} GiB free"
        if need > free:
            return Check("space", "Space at the target", "failed", text, f"Free space below {target.replica_root}")
        return Check("space", "Space at the target", "ok", text)

    def read_machine() -> Check:
        hypervisor = gateway.hypervisor(target)
        for vm in domains:
            hypervisor.domain_capabilities_xml("x86_64", vm.machine, "qemu")
        machines = ", ".join(sorted({vm.machine for vm in domains}))
        return Check("machine", "Machine type", "ok", machines)

    def read_clock() -> Check:
        _identity, offset_s, error_s = gateway.api(target).identity()
        text = f"{offset_s:+.2f} s ± {error_s:.2f} s against this console"
        if abs(offset_s) > 60:
            return Check("clock", "Clock at the target", "warning", text, "Set the clock there (NTP)")
        return Check("clock", "Clock at the target", "ok", text)

    step("vms", f"VMs at {source.name}", read_vms)
    step("networks", f"Networks at {target.name}", read_networks)
    step("space", "Space at the target", read_space)
    step("machine", "Machine type at the target", read_machine)
    step("clock", "Clock at the target", read_clock)
    return done
