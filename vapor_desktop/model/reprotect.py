"""What the way home costs, told before it is begun: per disk by bitmap, by compare, or in full, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from vapor_desktop.model.errors import InvalidRequest


class Method(StrEnum):
    """How a disk's first reverse copy is made. The text is what UI, CLI and docs show."""

    BITMAP = "bitmap"
    COMPARE = "compare"
    FULL = "full"


class Original(StrEnum):
    """What became of the disk at the side that the VM left."""

    PROVEN = "proven"  # it is, by its stamp, what it was when the VM went on from it
    DIVERGED = "diverged"  # it was written since, or nothing proves that it was not
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class DiskFacts:
    """One disk. ``bitmap``: one at the new source has told every write since then. Bytes None: not known."""

    target: str
    size_bytes: int
    original: Original
    bitmap: bool
    dirty_bytes: int | None = None  # by the bitmap
    written_bytes: int | None = None  # what the overlay that the VM runs on takes up


@dataclass(frozen=True, slots=True)
class DiskPrice:
    """``send_bytes`` None: it cannot be told beforehand."""

    target: str
    method: Method
    read_bytes: int
    send_bytes: int | None
    why: str


@dataclass(frozen=True, slots=True)
class Price:
    """Of all disks together."""

    disks: tuple[DiskPrice, ...]

    @property
    def method(self) -> Method:
        """The heaviest of any disk."""
        order = list(Method)
        return max((d.method for d in self.disks), key=order.index)

    @property
    def read_bytes(self) -> int:
        """Read at the new source."""
        return sum(d.read_bytes for d in self.disks)

    @property
    def send_bytes(self) -> int | None:
        """Sent at most, where that can be told."""
        known = [d.send_bytes for d in self.disks]
        return None if None in known else sum(n for n in known if n is not None)

    @property
    def text(self) -> str:
        """ "bitmap: 1.2 GiB", "compare: read 80 GiB, about 3 GiB to send", "full: 80 GiB"."""
        send = self.send_bytes
        if self.method is Method.BITMAP:
            return f"bitmap: {size_text(send or 0)}"
        if self.method is Method.FULL:
            return f"full: {size_text(self.read_bytes)}"
        about = "how much has to be sent is not known yet" if send is None else f"about {size_text(send)} to send"
        return f"compare: read {size_text(self.read_bytes)}, {about}"

    @property
    def why(self) -> str:
        """Each reason once, with its disks."""
        by_reason: dict[str, list[str]] = {}
        for disk in self.disks:
            by_reason.setdefault(disk.why, []).append(disk.target)
        return "; ".join(f"{', '.join(targets)}: {why}" for why, targets in by_reason.items())


def price(disks: Sequence[DiskFacts]) -> Price:
    """The price. One disk of another state makes all of them one: the old side's disks are one moment.

    Raises InvalidRequest without disks.
    """
    if not disks:
        raise InvalidRequest("There is no disk to protect")
    kept = [d for d in disks if d.original is not Original.MISSING]
    together = all(d.original is Original.PROVEN for d in kept)
    return Price(tuple(_of(d, together) for d in disks))


def _of(disk: DiskFacts, together: bool) -> DiskPrice:
    if disk.original is Original.MISSING:
        why = "the old side has no image of it any more"
        return DiskPrice(disk.target, Method.FULL, disk.size_bytes, disk.size_bytes, why)
    if together and disk.bitmap:
        why = "the old side's disk is as it was, and a bitmap has noted every write since"
        read = disk.dirty_bytes if disk.dirty_bytes is not None else disk.size_bytes
        return DiskPrice(disk.target, Method.BITMAP, read, read, why)
    why = "no bitmap has noted the writes since the VM went over"
    if disk.original is Original.DIVERGED:
        why = "the old side's disk was written after the point that the VM went on from, or nothing proves that not"
    elif not together:
        why = "another disk of the old side was written since"
    return DiskPrice(disk.target, Method.COMPARE, disk.size_bytes, disk.written_bytes, why)


def size_text(size_bytes: int) -> str:
    """As in "1.2 GiB": three digits at most, never rounded to nothing."""
    if size_bytes < 1 << 20:
        return f"{-(-size_bytes // 1024)} KiB"
    for unit, shift in (("MiB", 20), ("GiB", 30), ("TiB", 40)):
        value = size_bytes / (1 << shift)
        if value < 1000 or unit == "TiB":
            return f"{value:.1f} {unit}" if value < 100 else f"{value:.0f} {unit}"
    raise AssertionError
