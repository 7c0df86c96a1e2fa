"""What the target lacks for a VM: asked when it is protected, and again before it starts there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lxml import etree

from vapor_desktop.model.domain_xml.parse import parse_root
from vapor_desktop.model.errors import GuestMissing

_KIB = {"b": 1 / 1024, "bytes": 1 / 1024, "KB": 1000 / 1024, "k": 1, "KiB": 1, "M": 1024, "MiB": 1024, "MB": 976.5625}
_KIB |= {"G": 1024**2, "GiB": 1024**2, "GB": 1000**3 / 1024, "T": 1024**3, "TiB": 1024**3, "TB": 1000**4 / 1024}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing the target lacks. ``blocking``: the VM would not start; otherwise it is a doubt to be told."""

    what: str
    fix: str
    blocking: bool = True

    def error(self) -> GuestMissing:
        """The finding as an error."""
        return GuestMissing(self.what, fix=self.fix)


def preflight(
    target_xml: str, *, networks: Sequence[str], capabilities_xml: str, domain_capabilities_xml: str | None
) -> list[Finding]:
    """Findings for a domain made by ``build_target``, blocking ones first.

    ``networks``: the target's active libvirt networks. ``domain_capabilities_xml``: of that arch, machine
    and virt type; None when the target's libvirt refused that machine.
    """
    root = parse_root(target_xml)
    host = parse_root(capabilities_xml)
    found = [*_networks(root, networks), *_machine(root, host, domain_capabilities_xml), *_memory(root, host)]
    if domain_capabilities_xml is not None:
        offers = parse_root(domain_capabilities_xml)
        found += [*_firmware(root, offers), *_cpu(root, offers), *_devices(root, offers)]
    return sorted(found, key=lambda finding: not finding.blocking)


def _networks(root: etree._Element, networks: Sequence[str]) -> Iterator[Finding]:
    seen: set[str] = set()
    for nic in root.findall("./devices/interface"):
        source = nic.find("./source")
        if source is None or nic.get("type") == "user":
            continue
        name = source.get("network") or source.get("bridge") or source.get("dev") or ""
        if name in seen:
            continue
        seen.add(name)
        if nic.get("type") != "network":
            what = f"The bridge or device {name} has no mapping; whether the target has one of that name is not known"
            yield Finding(what, f"Map {name} to a network of the target", blocking=False)
        elif name not in networks:
            have = ", ".join(sorted(networks)) or "none"
            yield Finding(f"The target has no active network {name}", f"Start it there, or map it (active: {have})")


def _machine(root: etree._Element, host: etree._Element, offers: str | None) -> Iterator[Finding]:
    os_type = root.find("./os/type")
    arch = "" if os_type is None else os_type.get("arch") or ""
    machine = "" if os_type is None else os_type.get("machine") or ""
    guest = host.find(f"./guest/arch[@name='{arch}']")
    if guest is None:
        yield Finding(f"The target cannot run {arch} guests", f"Install QEMU for {arch} there")
        return
    virt_type = root.get("type") or ""
    if guest.find(f"./domain[@type='{virt_type}']") is None:
        yield Finding(f"The target offers no {virt_type}", "Enable virtualisation there, or let it be emulated")
    known = {str(node.text) for node in guest.iter("machine")}
    if offers is None or (machine and machine not in known):
        fix = "Install a QEMU at the target that is at least as new as the source's, or change the machine type"
        yield Finding(f"The target's QEMU does not know the machine type {machine}", fix)


def _memory(root: etree._Element, host: etree._Element) -> Iterator[Finding]:
    memory = root.find("./memory")
    total = sum(int(cell.text or 0) for cell in host.findall("./host/topology/cells/cell/memory"))
    if memory is None or not total:
        return
    wanted = int(int(memory.text or 0) * _KIB.get(memory.get("unit") or "KiB", 1))
    if wanted > total:
        what = f"The VM has {wanted // 1024} MiB of memory, the target {total // 1024} MiB in all"
        yield Finding(what, "Give it less memory at the target, or choose another one")


def _firmware(root: etree._Element, offers: etree._Element) -> Iterator[Finding]:
    os_node = root.find("./os")
    if os_node is None:
        return
    loader = os_node.find("./loader")
    if loader is not None and loader.text:
        known = [str(value.text) for value in offers.findall("./os/loader/value")]
        if loader.text not in known:
            fix = f"Install the same firmware (OVMF) there, or choose one of: {', '.join(known) or 'none'}"
            yield Finding(f"The target has no firmware {loader.text}", fix)
    elif os_node.get("firmware") and os_node.get("firmware") not in _values(offers, "./os", "firmware"):
        yield Finding(f"The target has no {os_node.get('firmware')} firmware", "Install OVMF there")


def _cpu(root: etree._Element, offers: etree._Element) -> Iterator[Finding]:
    cpu = root.find("./cpu")
    mode = "custom" if cpu is None else cpu.get("mode") or "custom"
    offer = offers.find(f"./cpu/mode[@name='{mode}']")
    if cpu is not None and (offer is None or offer.get("supported") != "yes"):
        yield Finding(f"The target offers no CPU mode {mode}", "Choose another CPU mode for the target")
        return
    model = None if cpu is None or mode != "custom" else cpu.findtext("./model")
    if model and offer is not None:
        usable = {str(node.text): node.get("usable") for node in offer.findall("./model")}
        if usable.get(model) == "no" or model not in usable:
            fix = "Choose host-model for the target, or a CPU model that both hosts have"
            yield Finding(f"The target's processor cannot be a {model}", fix)
    if mode in ("host-passthrough", "host-model"):
        what = "The guest will see the target's processor: some licences ask for activation again"
        yield Finding(what, "Choose a CPU model that both hosts have", blocking=False)


def _devices(root: etree._Element, offers: etree._Element) -> Iterator[Finding]:
    if root.find("./devices/tpm") is not None:
        tpm = offers.find("./devices/tpm")
        if (
            tpm is None
            or tpm.get("supported") != "yes"
            or "emulator" not in _values(offers, "./devices/tpm", "backendModel")
        ):
            what = "The target cannot emulate a TPM: the VM would start without one"
            yield Finding(what, "Install swtpm and swtpm-tools there", blocking=False)
    for tag, attribute, name, path in (
        ("graphics", "type", "type", "./devices/graphics"),
        ("video/model", "type", "modelType", "./devices/video"),
        ("disk/target", "bus", "bus", "./devices/disk"),
    ):
        offered = _values(offers, path, name)
        wanted = {node.get(attribute) for node in root.findall(f"./devices/{tag}")}
        for value in sorted(str(v) for v in wanted if v and offered and v not in offered):
            yield Finding(
                f"The target's QEMU offers no {tag.split('/')[0]} of type {value}",
                "Install QEMU's module for it there",
            )


def _values(offers: etree._Element, path: str, name: str) -> set[str]:
    return {str(value.text) for value in offers.findall(f"{path}/enum[@name='{name}']/value")}
