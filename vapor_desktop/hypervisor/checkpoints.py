"""Checkpoints: the bitmaps that remember what changed since a point."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

import libvirt

from vapor_desktop.hypervisor.backup_xml import OURS, checkpoint_facts, checkpoint_xml
from vapor_desktop.hypervisor.errors import (
    CHECKPOINT_INCONSISTENT,
    NO_DOMAIN_CHECKPOINT,
    OPERATION_TIMEOUT,
    code_of,
)
from vapor_desktop.hypervisor.link import Link
from vapor_desktop.model.domain_xml.parse import parse_domain
from vapor_desktop.model.errors import HypervisorFailed, NotAllowed

_log = logging.getLogger(__name__)

_REDEFINE = libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE
_VALIDATE = libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE_VALIDATE


class Checkpoints:
    """Reads any checkpoint; changes only ours."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def names(self, vm_uuid: str) -> Sequence[str]:
        """Every checkpoint libvirt knows of the VM, others' too, ancestors first."""
        with self._link.domain(vm_uuid, "Could not list the VM's checkpoints") as dom:
            listed = dom.listAllCheckpoints(libvirt.VIR_DOMAIN_CHECKPOINT_LIST_TOPOLOGICAL)
            return [checkpoint.getName() for checkpoint in listed]

    def valid(self, vm_uuid: str, name: str, disks: Sequence[str]) -> bool:
        """Whether the checkpoint's bitmap is whole on each of ``disks`` [facts/libvirt 1.4].

        The metadata is redefined when libvirt lost it. Raises HypervisorFailed when the VM is off:
        only QEMU can tell.
        """
        _only_ours(name)
        if not disks:
            return False
        with self._link.domain(vm_uuid, f"Could not validate the checkpoint {name}") as dom:
            if not dom.isActive():
                raise HypervisorFailed(
                    f"The checkpoint {name} cannot be validated while the VM is off",
                    fix="Read the bitmaps of the images instead",
                )
            return _validate(dom, name, disks)

    def create(self, vm_uuid: str, name: str, disks: Sequence[str]) -> None:
        """Begin to note writes to ``disks``, all at one moment. One that is there already is left as it is."""
        _only_ours(name)
        with self._link.domain(vm_uuid, f"Could not make the checkpoint {name}") as dom:
            if _lookup(dom, name) is None:
                dom.checkpointCreateXML(checkpoint_xml(name, disks, created_s=None), 0)

    def delete(self, vm_uuid: str, name: str) -> None:
        """Delete bitmaps and metadata as one act.

        Where a bitmap is missing the whole ones are still removed, then the metadata. Of a VM that is
        off only the metadata goes: its bitmaps lie in the images [facts/libvirt 1.5].
        """
        _only_ours(name)
        with self._link.domain(vm_uuid, f"Could not delete the checkpoint {name}") as dom:
            checkpoint = _lookup(dom, name)
            if not dom.isActive():
                if checkpoint is not None:
                    checkpoint.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
                return
            if checkpoint is None:
                _remove_orphans(dom, name)
                return
            try:
                checkpoint.delete(0)
            except libvirt.libvirtError as error:
                if not dom.connect().isAlive() or code_of(error) == OPERATION_TIMEOUT:
                    raise
                _log.info("checkpoint %s of %s is damaged, removing what is left: %s", name, dom.name(), error)
                _lookup_delete_metadata(dom, name)
                _remove_orphans(dom, name)

    def dirty_bytes(self, vm_uuid: str, name: str) -> int | None:
        """Bytes written since the checkpoint, rounded up to its granularity; None when it cannot be told.

        Takes the VM's job lock and merges bitmaps: at most once a cycle [facts/libvirt 1.4].
        """
        with self._link.domain(vm_uuid, f"Could not read the size of the checkpoint {name}") as dom:
            checkpoint = _lookup(dom, name)
            if checkpoint is None or not dom.isActive():
                return None
            try:
                xml = checkpoint.getXMLDesc(
                    libvirt.VIR_DOMAIN_CHECKPOINT_XML_SIZE | libvirt.VIR_DOMAIN_CHECKPOINT_XML_NO_DOMAIN
                )
            except libvirt.libvirtError as error:
                if not dom.connect().isAlive() or code_of(error) == OPERATION_TIMEOUT:
                    raise
                _log.info("the size of checkpoint %s of %s cannot be told: %s", name, dom.name(), error)
                return None
        sizes = checkpoint_facts(xml)[0].values()
        return None if not sizes or None in sizes else sum(size for size in sizes if size is not None)


def _only_ours(name: str) -> None:
    if not name.startswith(OURS):
        raise NotAllowed(
            f"The checkpoint {name} belongs to another tool",
            fix=f"Only checkpoints whose names start with {OURS} are touched",
        )


def _lookup(dom: Any, name: str) -> Any | None:
    try:
        return dom.checkpointLookupByName(name, 0)
    except libvirt.libvirtError as error:
        if code_of(error) == NO_DOMAIN_CHECKPOINT:
            return None
        raise


def _lookup_delete_metadata(dom: Any, name: str) -> None:
    checkpoint = _lookup(dom, name)
    if checkpoint is not None:
        checkpoint.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)


def _validate(dom: Any, name: str, disks: Sequence[str]) -> bool:
    """Redefine with validation; afterwards libvirt's metadata is what it was, or new if it had none."""
    known = _lookup(dom, name)
    if known is None:
        return _redefine(dom, checkpoint_xml(name, disks, created_s=int(time.time())))
    xml = known.getXMLDesc(libvirt.VIR_DOMAIN_CHECKPOINT_XML_NO_DOMAIN)
    recorded, created_s, parent = checkpoint_facts(xml)
    if not set(disks) <= set(recorded):
        return False
    try:
        return _redefine(dom, checkpoint_xml(name, disks, created_s=created_s, parent=parent))
    finally:
        present = {disk.target for disk in parse_domain(dom.XMLDesc(0)).disks}
        whole = [target for target in recorded if target in present]
        if set(whole) != set(disks):
            dom.checkpointCreateXML(checkpoint_xml(name, whole, created_s=created_s, parent=parent), _REDEFINE)


def _redefine(dom: Any, xml: str) -> bool:
    try:
        dom.checkpointCreateXML(xml, _REDEFINE | _VALIDATE)
    except libvirt.libvirtError as error:
        if code_of(error) == CHECKPOINT_INCONSISTENT:
            return False
        raise
    return True


def _remove_orphans(dom: Any, name: str) -> None:
    """Bitmaps of that name whose metadata is gone: adopt the disks that have a whole one, then delete."""
    qcow2 = [disk.target for disk in parse_domain(dom.XMLDesc(0)).disks if disk.driver_format == "qcow2"]
    now_s = int(time.time())
    whole = [target for target in qcow2 if _redefine(dom, checkpoint_xml(name, [target], created_s=now_s))]
    if whole:
        dom.checkpointCreateXML(checkpoint_xml(name, whole, created_s=now_s), _REDEFINE)
        dom.checkpointLookupByName(name, 0).delete(0)
