"""A drill's domain: the target's, under another name and UUID, with every way out of its bubble removed."""

from __future__ import annotations

from collections.abc import Mapping

from lxml import etree

from vapor_desktop.model.domain_xml.edit import drop, drop_all, drop_attributes
from vapor_desktop.model.domain_xml.parse import parse_root
from vapor_desktop.model.domain_xml.target import TargetDomain, build_target
from vapor_desktop.model.drills import Nic

# What may stay: nothing of these can carry data out of the guest.
_QUIET_PORTS = ("pty", "null", "vc")
_LEAKS = ("./hostdev", "./filesystem", "./shmem", "./redirdev", "./smartcard", "./vsock", "./crypto")


def build_drill(
    source_xml: str,
    *,
    disks: Mapping[str, str],
    networks: Mapping[str, str],
    nvram: str | None,
    kvm: bool,
    new_uuid: str,
    new_name: str,
    tpm: bool,
) -> TargetDomain:
    """Build it. ``networks``: source network, bridge or device -> network of the bubble; a card on any other is
    left out, with a note. MACs and addresses stay. Raises as ``build_target``.
    """
    built = build_target(
        source_xml,
        disks=disks,
        networks=networks,
        nvram=nvram,
        kvm=kvm,
        fresh_genid=True,
        keep_uuid=False,
        new_uuid=new_uuid,
        new_name=new_name,
        tpm=tpm,
    )
    root = parse_root(built.xml, compact=True)
    notes = [n for n in built.notes if " is connected to " not in n]
    _seal_cards(root, set(networks.values()), notes)
    devices = root.find("./devices")
    if devices is not None:
        for path in _LEAKS:
            if drop_all(devices, path):
                notes.append(f"{path[2:]} was left out: it could reach out of the bubble")
        _seal_ports(devices, notes)
    drop_all(root, "./metadata")
    etree.indent(root)
    return TargetDomain(etree.tostring(root, encoding="unicode") + "\n", tuple(notes))


def _seal_cards(root: etree._Element, bubble: set[str], notes: list[str]) -> None:
    for nic in root.findall("./devices/interface"):
        source = nic.find("./source")
        network = None if source is None else source.get("network")
        if nic.get("type") != "network" or network not in bubble:
            mac = nic.find("./mac")
            drop(nic)
            label = "" if mac is None else mac.get("address")
            notes.append(f"The network card {label} was left out: it has no network in the bubble")


def _seal_ports(devices: etree._Element, notes: list[str]) -> None:
    """Console ports keep no log (it would stay on the host); channels other than our own sockets go."""
    for tag in ("serial", "console", "parallel", "channel"):
        for port in devices.findall(f"./{tag}"):
            drop_all(port, "./log")
            kind = port.get("type")
            if kind not in _QUIET_PORTS and not (tag == "channel" and kind in ("unix", "spicevmc")):
                drop(port)
                notes.append(f"A {tag} of type {kind} was left out: it could reach out of the bubble")
    for screen in devices.findall("./graphics"):
        drop_all(screen, "./listen")
        if screen.get("type") in ("vnc", "spice"):
            etree.SubElement(screen, "listen", type="none" if screen.get("type") == "spice" else "socket")
            drop_attributes(screen, "autoport", "port")


def leaks(domain_xml: str, bubble: set[str]) -> list[str]:
    """Every way out of the bubble that a defined domain has; empty is the proof."""
    root = parse_root(domain_xml)
    found = []
    for nic in root.findall("./devices/interface"):
        source = nic.find("./source")
        if nic.get("type") != "network" or source is None or source.get("network") not in bubble:
            found.append(f"a network card of type {nic.get('type')}")
    for path in _LEAKS:
        found += [path[2:] for _ in root.findall(f"./devices/{path[2:]}")]
    for tag in ("serial", "console", "parallel", "channel"):
        for port in root.findall(f"./devices/{tag}"):
            kind = port.get("type")
            if kind not in _QUIET_PORTS and not (tag == "channel" and kind in ("unix", "spicevmc")):
                found.append(f"a {tag} of type {kind}")
    return found


def cards(domain_xml: str) -> tuple[Nic, ...]:
    """The network cards of a configuration that hang on a network, bridge or device by name."""
    found = []
    for nic in parse_root(domain_xml).findall("./devices/interface"):
        source, mac = nic.find("./source"), nic.find("./mac")
        name = "" if source is None else source.get("network") or source.get("bridge") or source.get("dev") or ""
        if name and mac is not None and nic.get("type") in ("network", "bridge", "direct"):
            found.append(Nic(mac=(mac.get("address") or "").lower(), source=name))
    return tuple(found)


def bubble_network(name: str, bridge: str) -> str:
    """The definition of a bubble's network: no forward, no address of the host, no name service."""
    root = etree.Element("network")
    etree.SubElement(root, "name").text = name
    etree.SubElement(root, "bridge", name=bridge, stp="off", delay="0")
    etree.SubElement(root, "dns", enable="no")
    return etree.tostring(root, encoding="unicode")


def network_leaks(network_xml: str, bridge: str) -> list[str]:
    """What in libvirt's own word on a network would connect it to anything; empty is the proof."""
    root = parse_root(network_xml)
    found = [f"<{tag}>" for tag in ("forward", "ip", "route", "domain") if root.find(f"./{tag}") is not None]
    node = root.find("./bridge")
    if node is None or node.get("name") != bridge:
        found.append("another bridge than its own")
    return found


def gateway_of(network_xml: str) -> str:
    """ "192.168.122.1/24" of a libvirt network, "" when it has no IPv4 address of its own."""
    from ipaddress import IPv4Network

    for node in parse_root(network_xml).findall("./ip"):
        address = node.get("address") or ""
        if node.get("family", "ipv4") != "ipv4" or not address:
            continue
        mask = node.get("prefix") or node.get("netmask") or "24"
        return f"{address}/{IPv4Network(f'0.0.0.0/{mask}').prefixlen}"
    return ""
