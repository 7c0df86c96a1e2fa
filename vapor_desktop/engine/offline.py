"""The images of a VM that is off: which bitmaps they hold, and how a delta is read from them.

facts/libvirt §1.5: bitmaps are in the file; ``qemu-nbd -r -B`` exports one. A stopped VM's images do not change,
so one moment covers all disks; the mover asks again before it publishes, and publishes nothing if they were written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vapor_desktop.engine.plan import CyclePlan, DiskPlan, family, ours
from vapor_desktop.engine.ports import ImageInfo, Mover
from vapor_desktop.model.domains import DomainView
from vapor_desktop.model.errors import NotReplicable
from vapor_desktop.model.wire import NbdSource


class OfflineImages:
    """A stopped VM's images, read through the source's root helper."""

    def __init__(self, mover: Mover, domain: DomainView) -> None:
        self._mover = mover
        self._domain = domain
        self._disks = {d.target: d for d in domain.disks if d.device == "disk"}

    def path(self, target: str) -> str:
        """The image behind a disk. Raises NotReplicable when it has no path."""
        source = self._disks[target].source
        if source is None:
            raise NotReplicable(f"Disk {target} of “{self._domain.name}” has no file or device behind it")
        return source

    def info(self, target: str) -> ImageInfo:
        """What the image says now."""
        return self._mover.image_info(self.path(target))

    def bitmap_valid(self, name: str, targets: Sequence[str]) -> bool:
        """Does every image hold that bitmap, not in use (in use = it was lost in a crash)?"""
        return all(self.info(t).bitmaps.get(name, False) for t in targets)

    def prepare(self, plan: CyclePlan) -> str | None:
        """The checkpoint name the new point will carry.

        With a valid bitmap that one goes on (it is emptied once the point exists); without, a fresh bitmap is
        added *before* the copy, so nothing written later can be missed.
        """
        bases = {d.from_checkpoint for d in plan.disks if d.with_checkpoint}
        if len(bases) == 1 and None not in bases:
            return next(iter(bases))
        if plan.checkpoint is None:
            return None
        tracked = [d.target for d in plan.disks if d.with_checkpoint]
        unused = self._unused(tracked, family(plan.checkpoint))
        if unused is not None:
            return unused
        for target in tracked:
            self._mover.add_bitmap(self.path(target), plan.checkpoint)
        return plan.checkpoint

    def _unused(self, targets: Sequence[str], prefix: str) -> str | None:
        """A bitmap of ours that an attempt before this one left in all images: it has noted every write since.

        Without this look, each attempt while the target is away would leave one more in the images.
        """
        found = [
            {n for n, usable in self.info(t).bitmaps.items() if usable and n.startswith(prefix)} for t in targets
        ]
        return min(set.intersection(*found), default=None)

    def source(self, disk: DiskPlan) -> NbdSource:
        """Where the mover reads this disk."""
        return NbdSource(
            kind="offline",
            path=self.path(disk.target),
            export=disk.target,
            bitmap=disk.from_checkpoint,
            image_format=self._disks[disk.target].driver_format,
        )

    def remove_bitmaps(self, protection_id: str) -> None:
        """Every bitmap of that protection, from every image."""
        for target, disk in self._disks.items():
            if disk.source is not None and disk.driver_format == "qcow2":
                for name in self.info(target).bitmaps:
                    if ours(protection_id, name):
                        self._mover.remove_bitmap(disk.source, name)

    def forget_sent(self, checkpoint: str, stamps: Mapping[str, str]) -> dict[str, str]:
        """Empty the bitmap whose content the new point now holds, unless the image was written since its stamp.

        Returns the images' stamps after it. A crash before this only means that the next delta sends some blocks
        again; a crash before the stamps are on record, that a disk is compared once.
        """
        after = dict(stamps)
        for target, stamp in stamps.items():
            if self.info(target).bitmaps.get(checkpoint):
                after[target] = self._mover.clear_bitmap(self.path(target), checkpoint, stamp).stamp
        return after
