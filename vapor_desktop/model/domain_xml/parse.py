"""Facts read out of a libvirt domain XML. Pure: XML in, values out."""

from __future__ import annotations

from dataclasses import dataclass

from lxml import etree

from vapor_desktop.model.domains import DiskView
from vapor_desktop.model.errors import InvalidRequest
from vapor_desktop.model.tpm import obstacle_of

AGENT_CHANNEL = "org.qemu.guest_agent.0"
_CONNECTED = f"./devices/channel/target[@name='{AGENT_CHANNEL}'][@state='connected']"
_SOURCE_ATTRIBUTES = ("file", "dev", "name", "dir", "volume", "path", "socket")


@dataclass(frozen=True, slots=True)
class DomainFacts:
    """What one domain XML says. Disk sizes are not in it: they are None here."""

    vm_uuid: str
    name: str
    virt_type: str  # kvm | qemu | …
    arch: str
    machine: str
    disks: tuple[DiskView, ...]
    networks: tuple[str, ...]  # source networks, bridges and devices, in order, each once
    loader: str | None  # path of the firmware, None: BIOS or chosen by libvirt
    firmware: str | None  # "efi" when libvirt chooses it
    nvram_path: str | None
    tpm_dir: str | None
    has_tpm: bool
    tpm_obstacle: str  # why its state cannot be brought to another host; "" = nothing against it
    agent_connected: bool  # only a live XML tells; False otherwise
    agent_channel: bool = False  # is there a way for a guest agent to connect by?
    bridges: tuple[str, ...] = ()  # those of ``networks`` that are host bridges or devices


def parse_root(xml: str, *, compact: bool = False) -> etree._Element:
    """The root element, without white space between elements when ``compact``.

    Raises InvalidRequest when it is not XML. No entities, no network, no DTD.
    """
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, remove_blank_text=compact)
    try:
        return etree.fromstring(xml.encode(), parser)
    except etree.XMLSyntaxError as error:
        raise InvalidRequest("A libvirt document does not parse", why=str(error)) from error


def parse_domain(xml: str) -> DomainFacts:
    """Read a ``<domain>`` document, live or inactive. Raises InvalidRequest when it is something else."""
    root = parse_root(xml)
    if root.tag != "domain":
        raise InvalidRequest(f"Expected a <domain> document, found <{root.tag}>")
    name, uuid = root.findtext("./name") or "", root.findtext("./uuid") or ""
    os_type = root.find("./os/type")
    loader = root.find("./os/loader")
    firmware = root.find("./os")
    networks = _networks(root)
    has_tpm = root.find("./devices/tpm") is not None
    backend = root.find("./devices/tpm/backend")
    tpm_obstacle = _tpm_obstacle(backend) if has_tpm else ""
    return DomainFacts(
        vm_uuid=uuid,
        name=name,
        virt_type=root.get("type") or "",
        arch="" if os_type is None else os_type.get("arch") or "",
        machine="" if os_type is None else os_type.get("machine") or "",
        disks=tuple(read_disk(node) for node in root.findall("./devices/disk")),
        networks=tuple(dict.fromkeys(source for source, _ in networks)),
        bridges=tuple(dict.fromkeys(source for source, is_network in networks if not is_network)),
        loader=loader.text if loader is not None else None,
        firmware=firmware.get("firmware") if firmware is not None else None,
        nvram_path=_nvram(root, name),
        # libvirt's own place for a software TPM's state [facts/libvirt 6].
        tpm_dir=f"/var/lib/libvirt/swtpm/{uuid}" if has_tpm and not tpm_obstacle else None,
        has_tpm=has_tpm,
        tpm_obstacle=tpm_obstacle,
        agent_connected=root.find(f"./devices/channel/target[@name='{AGENT_CHANNEL}'][@state='connected']")
        is not None,
        agent_channel=root.find(f"./devices/channel/target[@name='{AGENT_CHANNEL}']") is not None,
    )


def read_disk(node: etree._Element) -> DiskView:
    """One ``<disk>`` element; sizes None."""
    source, driver, target = node.find("./source"), node.find("./driver"), node.find("./target")
    path = None
    if source is not None:
        path = next((value for key in _SOURCE_ATTRIBUTES if (value := source.get(key))), None)
        if path and source.get("pool"):
            path = f"{source.get('pool')}/{path}"
    return DiskView(
        target="" if target is None else target.get("dev") or "",
        device=node.get("device") or "disk",
        source_kind=(node.get("type") or "file") if path or node.get("type") in ("nvme", "vhostuser") else "none",
        source=path,
        driver_format=(driver.get("type") if driver is not None else None) or "raw",
        size_bytes=None,
        allocated_bytes=None,
        read_only=node.find("./readonly") is not None,
        shareable=node.find("./shareable") is not None,
        transient=node.find("./transient") is not None,
        encrypted=node.find("./encryption") is not None
        or node.find("./source/encryption") is not None
        or node.find("./driver/encryption") is not None,
        has_data_file=node.find("./source/dataStore") is not None,
        bus="" if target is None else target.get("bus") or "",
    )


def _networks(root: etree._Element) -> list[tuple[str, bool]]:
    """(source, is a libvirt network) of each interface that has one."""
    found: list[tuple[str, bool]] = []
    for source in root.findall("./devices/interface/source"):
        name = source.get("network") or source.get("bridge") or source.get("dev")
        if name:
            found.append((name, source.get("network") is not None))
    return found


def _tpm_obstacle(backend: etree._Element | None) -> str:
    if backend is None:
        return obstacle_of("emulator", False, None)  # libvirt's default
    source = backend.find("./source")
    attributes = None if source is None else {str(key): str(value) for key, value in source.attrib.items()}
    return obstacle_of(backend.get("type") or "", backend.find("./encryption") is not None, attributes)


def _nvram(root: etree._Element, name: str) -> str | None:
    nvram = root.find("./os/nvram")
    if nvram is not None:
        source = nvram.find("./source")
        path = (nvram.text or "").strip() or (source.get("file") if source is not None else None)
        if path:
            return str(path)
    os_node = root.find("./os")
    loader = root.find("./os/loader")
    uefi = (os_node is not None and os_node.get("firmware") == "efi") or (
        loader is not None and loader.get("type") == "pflash" and loader.get("stateless") != "yes"
    )
    # Not written down before the first start; libvirt's default [facts/libvirt 6].
    return f"/var/lib/libvirt/qemu/nvram/{name}_VARS.fd" if uefi else None
