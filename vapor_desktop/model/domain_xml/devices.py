"""The devices of a target's domain: disks on replica files, interfaces on mapped networks, no host hardware."""

from __future__ import annotations

from collections.abc import Mapping

from lxml import etree

from vapor_desktop.model.domain_xml.edit import drop, drop_all, drop_attributes
from vapor_desktop.model.domain_xml.parse import AGENT_CHANNEL

# Filters that every libvirt ships [src/nwfilter/xml].
_SHIPPED_FILTERS = ("clean-traffic", "no-", "allow-", "qemu-announce-self")
_HARDWARE_NICS = ("hostdev", "vdpa", "vhostuser", "ethernet", "mcast", "server", "client", "udp")
# Addresses that mean the same on every host.
_ANY_HOST = ("127.0.0.1", "::1", "0.0.0.0", "::")  # noqa: S104
_PORTABLE_SERIALS = ("pty", "null", "stdio", "vc", "spicevmc", "spiceport", "qemu-vdagent", "dbus")


def rewire_disks(root: etree._Element, disks: Mapping[str, str], notes: list[str]) -> None:
    """Each disk onto its replica file; media ejected; the rest left out."""
    for disk in root.findall("./devices/disk"):
        target = disk.find("./target")
        name = "" if target is None else target.get("dev") or ""
        if name in disks:
            _onto_file(disk, disks[name])
        elif disk.get("device") in ("cdrom", "floppy"):
            _eject(disk, name, notes)
        else:
            drop(disk)
            notes.append(f"Disk {name} is not part of the recovery point and was left out")


def _onto_file(disk: etree._Element, path: str) -> None:
    disk.set("type", "file")
    disk.set("device", "disk")
    drop_attributes(disk, "sgio", "rawio")
    for tag in ("source", "backingStore", "mirror", "auth", "encryption", "shareable", "transient"):
        drop_all(disk, f"./{tag}")
    driver = disk.find("./driver")
    if driver is None:
        driver = etree.Element("driver")
        disk.insert(0, driver)
    driver.set("name", "qemu")
    driver.set("type", "qcow2")
    if driver.get("io") == "native" and driver.get("cache") not in ("none", "directsync"):
        del driver.attrib["io"]  # QEMU refuses native AIO through the page cache
    drop_all(driver, "./metadata_cache")
    source = etree.Element("source", file=path)
    disk.insert(disk.index(driver) + 1, source)


def _eject(disk: etree._Element, name: str, notes: list[str]) -> None:
    if disk.find("./source") is not None:
        notes.append(f"The medium in {name} was ejected")
    disk.set("type", "file")
    for tag in ("source", "backingStore", "mirror"):
        drop_all(disk, f"./{tag}")
    driver = disk.find("./driver")
    if driver is not None:
        driver.set("type", "raw")
    target = disk.find("./target")
    if target is not None:
        drop_attributes(target, "tray")


def map_interfaces(root: etree._Element, networks: Mapping[str, str], notes: list[str]) -> None:
    """Each interface onto the network it is mapped to; MACs, models and addresses stay."""
    for nic in root.findall("./devices/interface"):
        for tag in ("target", "actual", "backenddomain"):
            drop_all(nic, f"./{tag}")
        _own_filter(nic, notes)
        source = nic.find("./source")
        name = "" if source is None else source.get("network") or source.get("bridge") or source.get("dev") or ""
        kind = nic.get("type") or ""
        mac = nic.find("./mac")
        label = f"The network card {'' if mac is None else mac.get('address')}".strip()
        if kind == "network" and source is not None:
            drop_attributes(source, "portid", "bridge")
        if name in networks:
            _onto_network(nic, networks[name], changed=kind != "network" or networks[name] != name)
            if networks[name] != name:
                notes.append(f"{label} is connected to {networks[name]} instead of {name}")
        elif kind in _HARDWARE_NICS:
            drop(nic)
            notes.append(f"{label} is hardware of the source host ({kind}) and was left out; map it to a network")


def _onto_network(nic: etree._Element, network: str, *, changed: bool) -> None:
    nic.set("type", "network")
    drop_attributes(nic, "managed")
    source = nic.find("./source")
    group = None if source is None or changed else source.get("portgroup")
    drop_all(nic, "./source")
    if changed:  # they belong to the switch of the old place
        for tag in ("virtualport", "vlan", "driver", "port"):
            drop_all(nic, f"./{tag}")
    fresh = etree.Element("source", network=network)
    if group:
        fresh.set("portgroup", group)
    mac = nic.find("./mac")
    nic.insert(0 if mac is None else nic.index(mac) + 1, fresh)


def _own_filter(nic: etree._Element, notes: list[str]) -> None:
    for reference in nic.findall("./filterref"):
        name = reference.get("filter") or ""
        if not name.startswith(_SHIPPED_FILTERS):
            nic.remove(reference)
            notes.append(f"The traffic filter {name} was removed: it is defined on the source host only")


def strip_devices(root: etree._Element, notes: list[str], *, tpm: bool) -> None:
    """Remove or neutralise devices that name something of the source host; an emulated TPM too if not ``tpm``."""
    devices = root.find("./devices")
    if devices is None:
        return
    for alias in devices.findall(".//alias"):
        if not (alias.get("name") or "").startswith("ua-"):  # only a user's own survive a restart
            drop(alias)
    _strip(devices, "./hostdev", "A passed-through host device was left out", notes)
    _strip(devices, "./filesystem", "A directory shared from the host was left out", notes)
    _strip(devices, "./shmem", "A shared memory device was left out", notes)
    _strip(devices, "./lease", "A lock lease was removed: it is held on the source's storage", notes)
    _strip(devices, "./input[@type='passthrough']", "A passed-through input device was left out", notes)
    _strip(devices, "./input[@type='evdev']", "A passed-through input device was left out", notes)
    _strip(devices, "./smartcard", "A smart card of the host was left out", notes, unless={"mode": "passthrough"})
    _strip(
        devices, "./redirdev", "A USB redirection to a fixed address was left out", notes, unless={"type": "spicevmc"}
    )
    _strip(devices, "./rng/backend[@model='egd']/..", "A random source outside the host was left out", notes)
    for memory in devices.findall("./memory"):
        if memory.find("./source/path") is not None:
            devices.remove(memory)
            notes.append("A memory module backed by a host file was left out")
    _tpm(devices, notes, keep=tpm)
    _vsock(devices)
    _serials(devices, notes)
    _graphics(devices, notes)


def _tpm(devices: etree._Element, notes: list[str], *, keep: bool) -> None:
    for tpm in devices.findall("./tpm"):
        backend = tpm.find("./backend")
        if backend is not None and backend.get("type") != "emulator":
            devices.remove(tpm)
            notes.append("The host's TPM was left out: secrets sealed in it cannot move")
        elif not keep:
            devices.remove(tpm)
        elif backend is not None:  # a secret and a directory of the source host: the VM would not start with them
            drop_all(backend, "./encryption")
            drop_all(backend, "./source")


def _vsock(devices: etree._Element) -> None:
    for cid in devices.findall("./vsock/cid"):
        cid.set("auto", "yes")
        drop_attributes(cid, "address")


def _log_file(port: etree._Element) -> None:
    """A log in libvirt's own directory exists on every host; any other path may not."""
    for log in port.findall("./log"):
        if not (log.get("file") or "").startswith("/var/log/libvirt/"):
            port.remove(log)


def _serials(devices: etree._Element, notes: list[str]) -> None:
    for tag in ("serial", "console", "parallel"):
        for port in devices.findall(f"./{tag}"):
            _log_file(port)
            if port.get("type") not in _PORTABLE_SERIALS:
                notes.append(f"A {tag} port of type {port.get('type')} is a pseudo-terminal at the target")
                port.set("type", "pty")
                drop_all(port, "./protocol")
                drop_all(port, "./source")
            elif port.get("type") == "pty":
                drop_all(port, "./source")
                drop_attributes(port, "tty")
    for channel in devices.findall("./channel"):
        drop_all(channel, "./log")
        target = channel.find("./target")
        if target is not None:
            drop_attributes(target, "state")
        if channel.get("type") == "unix":
            drop_all(channel, "./source")  # libvirt makes its own path
        elif channel.get("type") not in _PORTABLE_SERIALS:
            name = AGENT_CHANNEL if target is None else target.get("name")
            drop(channel)
            notes.append(f"The channel {name} of type {channel.get('type')} was left out")


def _graphics(devices: etree._Element, notes: list[str]) -> None:
    for screen in devices.findall("./graphics"):
        kind = screen.get("type") or ""
        for gl in screen.findall("./gl"):
            drop_attributes(gl, "rendernode")
        if kind in ("sdl", "desktop"):
            drop(screen)
            notes.append("A window on the source's own desktop was left out")
            continue
        if kind not in ("vnc", "spice", "rdp"):
            continue
        if screen.get("autoport") != "yes" and screen.get("port") not in (None, "-1"):
            notes.append(f"Its {kind.upper()} screen takes a free port instead of {screen.get('port')}")
        drop_attributes(screen, "port", "tlsPort", "websocket", "socket", "listen")
        screen.set("autoport", "yes")
        for listener in screen.findall("./listen"):
            if listener.get("type") != "address" or listener.get("address") not in _ANY_HOST:
                screen.remove(listener)


def _strip(
    devices: etree._Element, path: str, note: str, notes: list[str], *, unless: Mapping[str, str] | None = None
) -> None:
    for node in devices.findall(path):
        if unless and all(node.get(key) == value for key, value in unless.items()):
            continue
        devices.remove(node)
        notes.append(note)
