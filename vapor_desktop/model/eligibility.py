"""Which disks of a VM can be replicated, how, and what to do about those that cannot [facts/libvirt 1.4]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vapor_desktop.model.domains import DiskView, DomainView

Kind = Literal["delta", "compare", "excluded", "refused"]


@dataclass(frozen=True, slots=True)
class DiskVerdict:
    """One disk. *delta* and *compare* are replicated; a reason on a delta is a warning, with its fix."""

    target: str
    kind: Kind
    reason: str = ""
    fix: str = ""


def judge(domain: DomainView) -> list[DiskVerdict]:
    """A verdict per disk, in the domain's order. A VM with any *refused* disk cannot be protected as it is."""
    return [_disk(disk, bool(domain.internal_snapshots)) for disk in domain.disks]


def _disk(disk: DiskView, internal_snapshots: bool) -> DiskVerdict:
    return _left_out(disk) or _refused(disk) or _replicated(disk, internal_snapshots)


def _left_out(disk: DiskView) -> DiskVerdict | None:
    if disk.device in ("cdrom", "floppy"):
        return DiskVerdict(
            disk.target, "excluded", f"A {disk.device} is a medium, not the VM's data; it starts ejected"
        )
    if disk.source_kind == "none":
        return DiskVerdict(disk.target, "excluded", "The drive is empty")
    if disk.transient:
        return DiskVerdict(disk.target, "excluded", "A transient disk forgets its writes when the VM stops")
    if disk.read_only:
        return DiskVerdict(
            disk.target, "excluded", "A read-only disk never changes", "Copy it to the other site once, by hand"
        )
    return None


def _refused(disk: DiskView) -> DiskVerdict | None:
    def no(reason: str, fix: str) -> DiskVerdict:
        return DiskVerdict(disk.target, "refused", reason, fix)

    if disk.device == "lun" or disk.source_kind in ("nvme", "hostdev"):
        return no(
            "A passed-through device is out of libvirt's sight", "Use device='disk', or replicate it with its storage"
        )
    if disk.source_kind == "vhostuser":
        return no("A vhost-user disk is served by another process", "Attach it as a virtio disk with an image")
    if disk.shareable:
        return no(
            "A shareable disk is written by other VMs too: no single moment of it exists",
            "Replicate it inside the guests' cluster, or detach it",
        )
    if disk.encrypted:
        return no(
            "The image is LUKS-encrypted by QEMU: its export would leave the host in plain text",
            "Encrypt inside the guest, or put the image on encrypted storage at both sites",
        )
    if disk.bus == "sd":
        return no("QEMU cannot back up a disk on the sd bus", "Move it to the virtio or scsi bus")
    if disk.driver_format not in ("qcow2", "raw"):
        return no(
            f"Images of the format {disk.driver_format} keep no record of changes",
            f"Shut the VM down and convert it: qemu-img convert -O qcow2 {disk.source} NEW.qcow2",
        )
    if disk.driver_format == "qcow2" and disk.qcow2_compat == "0.10":
        return no(
            "A qcow2 of version 2 cannot store bitmaps",
            f"Shut the VM down and run: qemu-img amend -f qcow2 -o compat=1.1 {disk.source}",
        )
    return None


def _replicated(disk: DiskView, internal_snapshots: bool) -> DiskVerdict:
    if disk.driver_format == "raw":
        return DiskVerdict(
            disk.target,
            "compare",
            "A raw disk keeps no record of changes: each cycle reads all of it and sends what differs",
            "Convert it to qcow2 for a short RPO",
        )
    if internal_snapshots:
        return DiskVerdict(
            disk.target,
            "delta",
            "The VM has internal snapshots: reverting to one while it is protected keeps it from starting",
            "Pause the protection before you revert, or use external snapshots",
        )
    return DiskVerdict(disk.target, "delta")
