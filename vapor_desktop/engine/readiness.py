"""Looking whether recovery plans are ready: each target is asked, then ``model.readiness`` judges."""

from __future__ import annotations

from dataclasses import dataclass, field

from vapor_desktop.engine.operations.failover import has_kvm
from vapor_desktop.engine.ports import Hypervisor, Repository, SiteApi, SiteGateway
from vapor_desktop.model.domain_xml.parse import parse_domain
from vapor_desktop.model.domain_xml.preflight import Finding, preflight
from vapor_desktop.model.domain_xml.target import build_target
from vapor_desktop.model.domains import DomainView
from vapor_desktop.model.errors import HypervisorFailed, NotFound, VaporError
from vapor_desktop.model.plans import Plan, PlanVm, Problem
from vapor_desktop.model.readiness import SiteSeen, VmSeen, problems
from vapor_desktop.model.sites import Protection, Site


@dataclass(frozen=True, slots=True)
class Looked:
    """What was seen of one plan, and why it has no tick."""

    problems: tuple[Problem, ...]
    vms: dict[str, VmSeen | None]
    targets: tuple[str, ...]  # names of the sites it uses


@dataclass(slots=True)
class _Host:
    """One target during one look: what all its VMs share is asked once."""

    api: SiteApi
    hypervisor: Hypervisor
    networks: tuple[str, ...]
    capabilities: str
    domains: tuple[DomainView, ...]
    offers: dict[tuple[str, str | None], str | None] = field(default_factory=dict)

    @property
    def kvm(self) -> bool:
        return has_kvm(self.capabilities)

    def domain_capabilities(self, arch: str, machine: str | None) -> str | None:
        """None when the host's libvirt refuses that machine."""
        key = (arch, machine)
        if key not in self.offers:
            try:
                kind = "kvm" if self.kvm else "qemu"
                self.offers[key] = self.hypervisor.domain_capabilities_xml(arch, machine, kind)
            except HypervisorFailed:
                self.offers[key] = None
        return self.offers[key]


class PlanLook:
    """Blocks: asks every target of the plan. Changes nothing. Not for two threads at once."""

    def __init__(self, repository: Repository, gateway: SiteGateway) -> None:
        self._repository = repository
        self._gateway = gateway
        self._hosts: dict[str, _Host | None] = {}
        self._sites: dict[str, SiteSeen] = {}

    def look(self, plan: Plan) -> Looked:
        """Now, or as of this object's first look at that target."""
        known = {p.vm_uuid: p for p in self._repository.protections()}
        vms = {vm.vm_uuid: self._vm(vm, known.get(vm.vm_uuid)) for vm in plan.vms()}
        used = {v.protection.target_site for v in vms.values() if v is not None} & set(self._sites)
        sites = {s: self._sites[s] for s in sorted(used)}
        return Looked(problems(plan, vms, sites), vms, tuple(sorted(s.name for s in sites.values())))

    def _vm(self, vm: PlanVm, p: Protection | None) -> VmSeen | None:
        if p is None:
            return None
        site = self._repository.site(p.target_site)
        if site is None:
            return VmSeen(p, p.epoch_owner)
        host = self._host(site)
        if host is None:
            return VmSeen(p, p.epoch_owner)
        try:
            return _seen(host, site, vm, p)
        except VaporError as error:
            return VmSeen(p, p.epoch_owner, trouble=str(error))

    def _host(self, site: Site) -> _Host | None:
        if site.site_id not in self._hosts:
            self._hosts[site.site_id] = self._look_at(site)
        return self._hosts[site.site_id]

    def _look_at(self, site: Site) -> _Host | None:
        try:
            api, hv = self._gateway.api(site), self._gateway.hypervisor(site)
            networks = tuple(hv.networks())
            host = _Host(api, hv, networks, hv.capabilities_xml(), tuple(hv.domains()))
            root = next((r for r in api.storage() if r.path == site.replica_root), None)
        except VaporError as error:
            self._sites[site.site_id] = SiteSeen(site.name, trouble=str(error))
            return None
        free, reserve = (root.free_bytes, root.reserve_bytes) if root else (None, 0)
        self._sites[site.site_id] = SiteSeen(site.name, networks=networks, free_bytes=free, reserve_bytes=reserve)
        return host


def _seen(host: _Host, site: Site, vm: PlanVm, p: Protection) -> VmSeen:
    try:
        manifest = host.api.replica(p.vm_uuid).manifest
    except NotFound:
        return VmSeen(p, p.epoch_owner)
    newest = manifest.newest
    if newest is None or manifest.epoch.owner == p.target_site:
        return VmSeen(p, manifest.epoch.owner, newest.seq if newest else None)
    carried = host.api.point_domain(p.vm_uuid, newest.seq)
    folder = f"{site.replica_root}/{p.vm_uuid}"
    built = build_target(
        carried.domain_xml,
        disks={d: f"{folder}/{d}.qcow2" for d in carried.disks},
        networks={**manifest.mappings.networks, **vm.networks},
        nvram=f"{folder}/nvram.fd" if carried.nvram else None,
        fresh_genid=True,
        kvm=host.kvm,
    )
    facts = parse_domain(built.xml)
    lacks = preflight(
        built.xml,
        networks=host.networks,
        capabilities_xml=host.capabilities,
        domain_capabilities_xml=host.domain_capabilities(facts.arch, facts.machine),
    )
    strangers = [
        Finding(f"{site.name} has another VM named “{d.name}”", "Rename that one (virsh domrename)")
        for d in host.domains
        if d.name == p.vm_name and d.vm_uuid != p.vm_uuid
    ]
    return VmSeen(p, manifest.epoch.owner, newest.seq, newest.verified, (*lacks, *strangers))
