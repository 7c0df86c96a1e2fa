"""Before a VM is protected: everything that would stop its replica from being made, or from starting."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vapor_desktop.engine.checklist import Look, OnCheck, run_checks
from vapor_desktop.engine.operations.failover import has_kvm
from vapor_desktop.engine.ports import SiteGateway
from vapor_desktop.engine.sitewatch import vm_status
from vapor_desktop.model.domain_xml.preflight import Finding, preflight
from vapor_desktop.model.domain_xml.target import build_target
from vapor_desktop.model.domains import DomainView
from vapor_desktop.model.eligibility import judge
from vapor_desktop.model.errors import HypervisorFailed, NotAllowed, NotFound
from vapor_desktop.model.rpo import CLOCK_TELLS_S
from vapor_desktop.model.sites import Site
from vapor_desktop.model.tpm import tpm_fix, tpm_warning
from vapor_desktop.model.view import Check, ProtectRequest

_IMAGES = "Its images can be read at the source"
_SCRATCH = "Space for the scratch of backup jobs"
TPM_TITLE = "TPMs after a failover"


def run(
    gateway: SiteGateway, source: Site, target: Site, request: ProtectRequest, on_check: OnCheck
) -> Sequence[Check]:
    """All checks, each reported when it begins and when it ends. A failed one does not stop the others."""
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

    def read_images() -> Check:
        """What libvirt does not tell: the qcow2 version outside of pools, and whether a stopped VM could be read."""
        mover = gateway.mover(source, target)
        old, closed, fixes = [], [], []
        for vm in domains:
            wanted = {v.target for v in judge(vm) if v.kind in {"delta", "compare"}}
            for disk in vm.disks:
                if disk.target not in wanted or disk.source is None:
                    continue
                try:
                    info = mover.image_info(disk.source)
                except (NotAllowed, NotFound) as error:
                    closed.append(f"{vm.name} {disk.target} ({disk.source})")
                    fixes.append(error.fix)
                    continue
                if disk.driver_format == "qcow2" and info.qcow2_compat == "0.10":
                    old.append(f"{vm.name} {disk.target}")
                    fixes.append(f"Shut {vm.name} down and run: qemu-img amend -f qcow2 -o compat=1.1 {disk.source}")
        fix = " ".join(dict.fromkeys(f for f in fixes if f))
        if old:
            text = f"{', '.join(old)}: a qcow2 of version 2 cannot store bitmaps"
            return Check("images", _IMAGES, "failed", text, fix)
        if closed:
            text = f"{', '.join(closed)}: the root helper may not read it, so it is replicated only while the VM runs"
            return Check("images", _IMAGES, "warning", text, fix)
        return Check("images", _IMAGES, "ok")

    def read_fit() -> Check:
        findings = [f for d in domains for f in _lacks(gateway, source, target, d, request)]
        fixes = " ".join(dict.fromkeys(f.fix for f in findings if f.fix))
        text = "; ".join(dict.fromkeys(f.what for f in findings))
        title = f"What {target.name} needs to start them"
        if any(f.blocking for f in findings):
            there = ", ".join(gateway.hypervisor(target).networks()) or "none"
            return Check("fit", title, "failed", text, f"{fixes} Networks there: {there}")
        if findings:
            return Check("fit", title, "warning", text, fixes)
        return Check("fit", title, "ok", "networks, machine type, firmware, CPU, memory")

    def read_space() -> Check:
        roots = gateway.api(target).storage()
        free = max((r.free_bytes - r.reserve_bytes for r in roots), default=0)
        need = sum(d.allocated_bytes or d.size_bytes or 0 for vm in domains for d in vm.disks if d.device == "disk")
        text = f"about {need / 2**30:.1f} GiB for the first copy, {free / 2**30:.1f} GiB free"
        if need > free:
            return Check("space", "Space at the target", "failed", text, f"Free space below {target.replica_root}")
        return Check("space", "Space at the target", "ok", text)

    def read_scratch() -> Check:
        space = gateway.api(source).scratch()
        text = (
            f"{space.free_bytes / 2**30:.1f} GiB free in {space.path}, reserve {space.reserve_bytes / 2**30:.1f} GiB"
        )
        if space.low:
            fix = f"Free space below {space.path} on {source.name}, or move scratch_dir in its site.toml"
            return Check("scratch", _SCRATCH, "failed", text, fix)
        return Check("scratch", _SCRATCH, "ok", text)

    def read_clock() -> Check:
        _identity, offset_s, error_s = gateway.api(target).identity()
        text = f"{offset_s:+.2f} s ± {error_s:.2f} s against this console"
        if abs(offset_s) > CLOCK_TELLS_S:
            return Check("clock", "Clock at the target", "warning", text, "Set the clock there (NTP)")
        return Check("clock", "Clock at the target", "ok", text)

    def read_tpm() -> Check:
        return _tpm_check(gateway, source, target, [d for d in domains if d.has_tpm])

    def looks() -> Iterator[tuple[str, str, Look]]:
        yield "vms", f"VMs at {source.name}", read_vms
        yield "images", _IMAGES, read_images
        if any(d.has_tpm for d in domains):  # known once the VMs were read
            yield "tpm", TPM_TITLE, read_tpm
        yield "space", "Space at the target", read_space
        yield "scratch", _SCRATCH, read_scratch
        yield "fit", f"What {target.name} needs to start them", read_fit
        yield "clock", "Clock at the target", read_clock

    return run_checks(looks(), on_check)


def _tpm_check(gateway: SiteGateway, source: Site, target: Site, domains: Sequence[DomainView]) -> Check:
    """Whether their TPMs' state can be read at the source and put in place at the target."""
    there = gateway.api(target).tpm_support()
    mover = gateway.mover(source, target)
    seen = [(d, None if d.tpm_obstacle else mover.tpm_state(d.vm_uuid)) for d in domains]
    told = {d.name: tpm_warning(d.tpm_obstacle, state, there) for d, state in seen}
    bad = [f"{name}: {warning}" for name, warning in told.items() if warning]
    if not bad:
        return Check("tpm", TPM_TITLE, "ok", f"kept with each point and put in place: {', '.join(told)}")
    fixes = dict.fromkeys(fix for d, state in seen if (fix := tpm_fix(d.tpm_obstacle, state, there)))
    return Check("tpm", TPM_TITLE, "warning", "; ".join(bad), " ".join(fixes))


def _lacks(
    gateway: SiteGateway, source: Site, target: Site, domain: DomainView, request: ProtectRequest
) -> list[Finding]:
    """What the target lacks for this VM, judged on the very XML that a failover would define there."""
    there = gateway.hypervisor(target)
    capabilities = there.capabilities_xml()
    kvm = has_kvm(capabilities)
    wanted = {v.target for v in judge(domain) if v.kind in {"delta", "compare"}}
    built = build_target(
        gateway.hypervisor(source).domain_xml(domain.vm_uuid),
        disks={t: f"{target.replica_root}/{domain.vm_uuid}/{t}.qcow2" for t in wanted},
        networks=request.networks,
        nvram=f"{target.replica_root}/{domain.vm_uuid}/nvram.fd" if domain.nvram_path else None,
        fresh_genid=True,
        kvm=kvm,
    )
    try:
        offers: str | None = there.domain_capabilities_xml("x86_64", domain.machine, "kvm" if kvm else "qemu")
    except HypervisorFailed:
        offers = None
    return preflight(
        built.xml, networks=there.networks(), capabilities_xml=capabilities, domain_capabilities_xml=offers
    )
