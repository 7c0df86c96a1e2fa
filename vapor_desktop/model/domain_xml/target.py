"""The target's domain XML, made from the source's: one function for the engine and for break-glass.

Kept: name, UUID, MACs, addresses, machine type, firmware, CPU, memory. Replaced: disks, networks, NVRAM.
Removed, each with a note: what exists only on the source host [facts/libvirt 6].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lxml import etree

from vapor_desktop.model.domain_xml.devices import map_interfaces, rewire_disks, strip_devices
from vapor_desktop.model.domain_xml.edit import drop_all, drop_attributes
from vapor_desktop.model.domain_xml.mark import Mark, write_mark
from vapor_desktop.model.domain_xml.parse import parse_root
from vapor_desktop.model.domain_xml.written_out import forget_defaults
from vapor_desktop.model.errors import InvalidRequest, NotReplicable

QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"


@dataclass(frozen=True, slots=True)
class TargetDomain:
    """A domain ready to define at the target, and what a person should know about it."""

    xml: str
    notes: tuple[str, ...]


def build_target(
    source_xml: str,
    *,
    disks: Mapping[str, str],
    networks: Mapping[str, str],
    nvram: str | None,
    kvm: bool,
    fresh_genid: bool,
    keep_uuid: bool = True,
    new_uuid: str | None = None,
    new_name: str | None = None,
    loader: str | None = None,
    mark: Mark | None = None,
    tpm: bool = True,
) -> TargetDomain:
    """Build it.

    ``disks``: disk target → absolute path of a qcow2 file; a disk that is not named is left out, with a
    note. ``networks``: source network, bridge or device → libvirt network at the target; what is not
    named keeps its source. ``nvram``: absolute path of the copied varstore. ``kvm`` False: the target
    has no KVM, the VM is emulated. ``fresh_genid``: a new generation id (emergency, drill; not a planned
    migration). ``keep_uuid`` False takes ``new_uuid``, or lets libvirt choose. ``loader``: firmware path
    at the target when it differs. ``tpm`` False: the
    target cannot emulate one, it is left out. Raises NotReplicable for SEV/TDX guests, InvalidRequest for
    bad input.
    """
    root = parse_root(source_xml, compact=True)
    if root.tag != "domain":
        raise InvalidRequest(f"Expected a <domain> document, found <{root.tag}>")
    if root.find("./launchSecurity") is not None:
        raise NotReplicable(
            "A VM with encrypted memory (SEV, TDX) is bound to its host's processor",
            fix="Remove <launchSecurity> to protect it",
        )
    notes: list[str] = []
    drop_attributes(root, "id")
    forget_defaults(root)
    _identity(root, keep_uuid, new_uuid, new_name)
    _genid(root, fresh_genid)
    _host_bound(root, notes)
    _firmware(root, nvram, loader, notes)
    rewire_disks(root, disks, notes)
    map_interfaces(root, networks, notes)
    strip_devices(root, notes, tpm=tpm)
    if not kvm and root.get("type") == "kvm":
        _emulate(root, notes)
    if mark is not None:
        write_mark(root, mark)
    etree.cleanup_namespaces(root)
    etree.indent(root)
    return TargetDomain(etree.tostring(root, encoding="unicode") + "\n", tuple(notes))


def _identity(root: etree._Element, keep_uuid: bool, new_uuid: str | None, new_name: str | None) -> None:
    if new_name is not None:
        name = root.find("./name")
        if name is not None:
            name.text = new_name
    if keep_uuid:
        return
    uuid = root.find("./uuid")
    if uuid is not None and new_uuid is not None:
        uuid.text = new_uuid
    elif uuid is not None:
        root.remove(uuid)
    # libvirt insists that both are the same.
    for entry in root.findall("./sysinfo/system/entry[@name='uuid']"):
        if new_uuid is not None:
            entry.text = new_uuid
        else:
            drop_all(root, "./sysinfo/system/entry[@name='uuid']")


def _genid(root: etree._Element, fresh: bool) -> None:
    genid = root.find("./genid")
    if genid is not None and fresh:
        genid.text = None  # libvirt makes one up for an empty element


def _host_bound(root: etree._Element, notes: list[str]) -> None:
    """What describes the source host rather than the VM."""
    drop_all(root, "./devices/emulator")  # its path differs between distributions; libvirt fills in its own
    drop_all(root, "./resource")
    if any(label.get("type") != "dynamic" for label in root.findall("./seclabel")):
        notes.append("Its fixed security label was removed: the target's default applies")
    drop_all(root, "./seclabel")
    for vcpu in root.findall("./vcpu"):
        if drop_attributes(vcpu, "cpuset"):
            notes.append("CPU pinning was removed: the target's processors are numbered differently")
    pins = sum(
        drop_all(root, f"./cputune/{tag}")
        for tag in ("vcpupin", "emulatorpin", "iothreadpin", "cachetune", "memorytune", "vcpusched", "iothreadsched")
    )
    if pins:
        notes.append("CPU tuning that names the source's processors was removed")
    if drop_all(root, "./numatune"):
        notes.append("NUMA placement was removed: it names the source's nodes")
    if drop_all(root, "./memoryBacking/hugepages"):
        notes.append("Huge pages were removed: the target may have none reserved")
    drop_all(root, "./blkiotune/device")
    if any(drop_all(root, f"./{{{QEMU_NAMESPACE}}}{tag}") for tag in ("commandline", "override")):
        notes.append("Extra QEMU arguments were removed: they may name things of the source host")
    kernel = root.findtext("./os/kernel")
    if kernel:
        notes.append(f"It boots the kernel {kernel} from the host: the same file has to exist at the target")


def _firmware(root: etree._Element, nvram: str | None, loader: str | None, notes: list[str]) -> None:
    os_node = root.find("./os")
    if os_node is None:
        return
    old_loader, old_nvram = os_node.find("./loader"), os_node.find("./nvram")
    uefi = os_node.get("firmware") == "efi" or (old_loader is not None and old_loader.get("type") == "pflash")
    if loader is not None and uefi:
        drop_attributes(os_node, "firmware")
        drop_all(os_node, "./firmware")
        if old_loader is None:
            old_loader = etree.Element("loader")
            os_node.insert(1, old_loader)
        if old_loader.text != loader:
            notes.append(f"Its firmware is {loader} at the target")
        old_loader.text = loader
        old_loader.set("readonly", "yes")
        old_loader.set("type", "pflash")
    if nvram is not None and uefi:
        fresh = etree.Element("nvram")
        fresh.text = nvram
        if old_nvram is not None:
            os_node.replace(old_nvram, fresh)
        else:
            anchor = os_node.find("./loader")
            anchor = os_node.find("./type") if anchor is None else anchor
            os_node.insert(0 if anchor is None else os_node.index(anchor) + 1, fresh)
    elif uefi:
        if old_nvram is not None:
            os_node.remove(old_nvram)
        notes.append("It starts with empty UEFI variables: boot entries and Secure Boot keys are the defaults")


def _emulate(root: etree._Element, notes: list[str]) -> None:
    """KVM to TCG: only what TCG can do stays."""
    root.set("type", "qemu")
    notes.append("The target has no KVM: the VM is emulated, which is many times slower")
    for tag in ("hyperv", "kvm", "pmu", "ioapic"):
        drop_all(root, f"./features/{tag}")
    for timer in ("kvmclock", "hypervclock"):
        drop_all(root, f"./clock/timer[@name='{timer}']")
    cpu = root.find("./cpu")
    if cpu is None:
        return
    # An emulated CPU has no host's features: libvirt's word for "all that TCG has".
    for name in list(cpu.attrib):
        del cpu.attrib[name]
    cpu.set("mode", "maximum")
    for child in list(cpu):
        if child.tag not in ("topology", "numa"):
            cpu.remove(child)
