"""The XML of backup jobs and checkpoints: pure builders and readers [facts/libvirt 1.1, tried]."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from lxml import etree

from vapor_desktop.model.domain_xml.parse import parse_root
from vapor_desktop.model.domains import BackupDisk
from vapor_desktop.model.errors import InvalidRequest

OURS = "vapor-"
DOMAIN_DIR = PurePosixPath("/var/lib/libvirt/qemu")
SHORT_NAME_CHARS = 20  # VIR_DOMAIN_SHORT_NAME_MAX
SUN_PATH_BYTES = 107


def export_bitmap(target: str) -> str:
    """The bitmap under which a disk's dirty extents are exported."""
    return f"vapor-{target}"


def backup_xml(socket_path: str, disks: Sequence[BackupDisk], without: Sequence[str]) -> str:
    """First argument of backupBegin. ``without``: the VM's other disks, which take no part."""
    root = etree.Element("domainbackup", mode="pull")
    etree.SubElement(root, "server", transport="unix", socket=socket_path)
    listed = etree.SubElement(root, "disks")
    for disk in disks:
        node = etree.SubElement(listed, "disk", name=disk.target, backup="yes", type="file", exportname=disk.export)
        if disk.incremental_from is None:
            node.set("backupmode", "full")
        else:
            node.set("backupmode", "incremental")
            node.set("incremental", disk.incremental_from)
            node.set("exportbitmap", export_bitmap(disk.target))
        etree.SubElement(node, "scratch", file=disk.scratch_path)
    for target in without:
        etree.SubElement(listed, "disk", name=target, backup="no")
    return etree.tostring(root, encoding="unicode")


def checkpoint_xml(
    name: str, targets: Sequence[str], *, without: Sequence[str] = (), created_s: int | None = None, parent: str = ""
) -> str:
    """A checkpoint on ``targets``; with ``created_s`` (seconds since 1970) the form for REDEFINE.

    The bitmap's name is always the checkpoint's: libvirt knows no other.
    """
    root = etree.Element("domaincheckpoint")
    etree.SubElement(root, "name").text = name
    if parent:
        etree.SubElement(etree.SubElement(root, "parent"), "name").text = parent
    if created_s is not None:
        etree.SubElement(root, "creationTime").text = str(created_s)
    listed = etree.SubElement(root, "disks")
    for target in targets:
        node = etree.SubElement(listed, "disk", name=target, checkpoint="bitmap")
        if created_s is not None:
            node.set("bitmap", name)
    for target in without:
        etree.SubElement(listed, "disk", name=target, checkpoint="no")
    return etree.tostring(root, encoding="unicode")


def checkpoint_facts(xml: str) -> tuple[dict[str, int | None], int, str]:
    """({disk target: dirty bytes or None}, creation time in s since 1970, parent's name or "")."""
    root = parse_root(xml)
    disks = {
        str(node.get("name")): int(size) if (size := node.get("size")) is not None else None
        for node in root.findall("./disks/disk")
        if node.get("checkpoint") == "bitmap"
    }
    return disks, int(root.findtext("./creationTime") or 0), root.findtext("./parent/name") or ""


def backup_facts(xml: str) -> tuple[str, tuple[str, ...]]:
    """(NBD socket path or "" for another transport, disks that take part) of an open job."""
    root = parse_root(xml)
    server = root.find("./server")
    socket = "" if server is None else server.get("socket") or ""
    disks = tuple(str(d.get("name")) for d in root.findall("./disks/disk") if d.get("backup", "yes") == "yes")
    return socket, disks


def is_ours(socket_path: str) -> bool:
    """Whether a job with that socket was begun by us."""
    return PurePosixPath(socket_path).name.startswith(OURS)


def domain_dir(live_xml: str, live_id: int, name: str) -> PurePosixPath:
    """The VM's own directory, the only one where AppArmor lets QEMU make a socket [facts/libvirt 10].

    libvirt calls it ``domain-<id>-<first 20 characters of the name>``, the characters counted in the
    daemon's locale. Where the live XML shows the short name in a path (an agent's socket), that is taken.
    """
    shown = re.search(rf"/(?:domain-)?{live_id}-([^/'\"<>]+)/", live_xml)
    short = shown.group(1) if shown and name.startswith(shown.group(1)) else name[:SHORT_NAME_CHARS]
    return DOMAIN_DIR / f"domain-{live_id}-{short}"


def socket_path(directory: PurePosixPath, socket_name: str) -> str:
    """The job's socket path. Raises InvalidRequest for a name that is not ours or a path too long for a socket."""
    if not socket_name.startswith(OURS) or "/" in socket_name:
        raise InvalidRequest(f"The socket name {socket_name!r} does not start with {OURS!r}")
    path = str(directory / socket_name)
    if len(path.encode()) > SUN_PATH_BYTES:
        raise InvalidRequest(
            "The path of the backup socket is too long",
            why=f"{len(path.encode())} bytes, a socket's path has {SUN_PATH_BYTES}",
            fix="Rename the VM to something shorter",
        )
    return path


def bitmaps(disks: Sequence[BackupDisk]) -> Mapping[str, str]:
    """Disk target → export bitmap, of the disks that export one."""
    return {d.target: export_bitmap(d.target) for d in disks if d.incremental_from is not None}
