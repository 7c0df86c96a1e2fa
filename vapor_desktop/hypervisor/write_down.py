"""Becoming flat: a running VM's overlay is written down into a lower file of its chain, and the VM goes on there.

An active blockCommit with pivot. Bitmaps survive it [facts/libvirt 1.4]; libvirt changes the live definition and the
stored one. Cut off anywhere, the VM runs on its overlay as before, and it can be begun again.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import libvirt
from lxml import etree

from vapor_desktop.hypervisor.link import Link
from vapor_desktop.model.domain_xml.parse import parse_root
from vapor_desktop.model.errors import Conflict, DomainBusy, HypervisorFailed, NotFound, TransferCancelled

POLL_S = 0.1
PIVOT_S = 30.0


def write_down(link: Link, vm_uuid: str, disk: str, foot: str, cancelled: Callable[[], bool]) -> None:
    """Raises DomainBusy (another block job), NotFound (``foot`` is not in the chain), TransferCancelled."""
    pause, what = threading.Event(), f"Disk {disk} could not be written down into {foot}"
    with link.domain(vm_uuid, what) as dom:
        if _uses(dom, disk, foot):
            _name_it(dom, disk, foot)
            return
        if not dom.isActive():
            raise Conflict("The VM is off", fix="Its disks become flat when it runs, or when it has gone home")
        if not _begun(dom, disk):
            dom.blockCommit(disk, _named(dom, disk, foot), None, 0, libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE)
    while True:  # the connection is let go of between two looks: it may take long
        with link.domain(vm_uuid, what) as dom:
            if cancelled():
                dom.blockJobAbort(disk, 0)
                raise TransferCancelled(f"Disk {disk} was not written down: it was cancelled")
            if _ready(dom, disk):
                dom.blockJobAbort(disk, libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
                break
            if not _begun(dom, disk):
                raise HypervisorFailed(f"The block job of disk {disk} ended before it was ready")
        pause.wait(POLL_S)
    deadline = time.monotonic() + PIVOT_S
    while True:
        with link.domain(vm_uuid, what) as dom:
            if _uses(dom, disk, foot) and not _begun(dom, disk):
                _name_it(dom, disk, foot)
                return
        if time.monotonic() > deadline:
            raise HypervisorFailed(f"Disk {disk} does not use {foot} after its pivot")
        pause.wait(POLL_S)


def _uses(dom: Any, disk: str, foot: str) -> bool:
    return _source(_disk(dom, disk)) == os.path.normpath(foot)


def _name_it(dom: Any, disk: str, foot: str) -> None:
    """The stored definition names the file plainly, as one that never had a chain.

    libvirt wrote down the way through the chain ("run/2/../.."), and an empty <backingStore/>.
    """
    root = parse_root(dom.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE))
    before = etree.tostring(root)
    for node in root.findall(f"./devices/disk/target[@dev='{disk}']/.."):
        source, below = node.find("./source"), node.find("./backingStore")
        if source is not None:
            source.set("file", foot)
        if below is not None and len(below) == 0:
            node.remove(below)
    if etree.tostring(root) != before:
        flags = libvirt.VIR_DOMAIN_DEFINE_VALIDATE
        dom.connect().defineXMLFlags(etree.tostring(root, encoding="unicode"), flags)


def _begun(dom: Any, disk: str) -> bool:
    """Is our kind of job there? Raises DomainBusy for another kind."""
    info = dom.blockJobInfo(disk, 0)
    if not info:
        return False
    if info["type"] != libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_ACTIVE_COMMIT:
        raise DomainBusy(f"Another block job holds disk {disk}", fix="It will be tried again by itself")
    return True


def _ready(dom: Any, disk: str) -> bool:
    mirror = _disk(dom, disk).find("./mirror")
    return mirror is not None and mirror.get("ready") == "yes"


def _disk(dom: Any, disk: str) -> etree._Element:
    for node in parse_root(dom.XMLDesc(0)).findall("./devices/disk"):
        target = node.find("./target")
        if target is not None and target.get("dev") == disk:
            return node
    raise NotFound(f"The VM has no disk {disk}")


def _source(node: etree._Element) -> str:
    source = node.find("./source")
    name = "" if source is None else source.get("file") or source.get("dev") or ""
    return os.path.normpath(name)


def _named(dom: Any, disk: str, foot: str) -> str:
    """``vda[4]``: the file by its place in the chain, however libvirt spells its path."""
    node = _disk(dom, disk).find("./backingStore")
    while node is not None:
        if _source(node) == os.path.normpath(foot) and node.get("index"):
            return f"{disk}[{node.get('index')}]"
        node = node.find("./backingStore")
    raise NotFound(f"{foot} is not in the chain of disk {disk}")
