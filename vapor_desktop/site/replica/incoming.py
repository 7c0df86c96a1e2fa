"""An unfinished point: new overlays, and durably which parts of them hold what the source sent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from vapor_desktop.model.extents import Extent
from vapor_desktop.model.manifest import DiskMode


class Incoming:
    """Handle on ``incoming/<seq>/``, held by one process at a time (flock) until ``close``.

    Meaning of the maps: every byte in ``received(disk)`` has the content it had at the source at the
    moment of ``checkpoint``. ``wanted`` is what must be received before the point may be published
    (everything else is as in the parent point). DELTA: the dirty extents; FULL: everything that is not
    zero in a new file, or the whole disk; COMPARE: the whole disk (blocks found equal count as received).

    A new job on a kept incoming (resumed is True and checkpoint differs from the new job's): read
    dirty(checkpoint) per disk, call ``rebase_checkpoint(new, dirty)``, then send ``needed(disk)``.
    The same job on a kept incoming: send ``needed(disk)``.
    All methods that change something raise StaleLease when another receiver or a failover took over.
    """

    seq: int
    resumed: bool
    parent_seq: int | None
    checkpoint: str | None
    modes: dict[str, DiskMode]
    sizes: dict[str, int]

    def path(self, disk: str) -> Path:
        """Absolute path of the disk's new overlay: write into it with qemu-nbd / qemu-storage-daemon."""
        raise NotImplementedError

    def want(self, disk: str, extents: Iterable[Extent]) -> None:
        """Add to what must be received; durable."""
        raise NotImplementedError

    def wanted(self, disk: str) -> list[Extent] | None:
        """What must be received; None: ``want`` was never called."""
        raise NotImplementedError

    def received(self, disk: str) -> list[Extent]:
        """What is durable."""
        raise NotImplementedError

    def needed(self, disk: str, full_wanted: Iterable[Extent] = ()) -> list[Extent]:
        """(wanted united with ``full_wanted``) minus received."""
        raise NotImplementedError

    def mark_received(self, disk: str, extents: Iterable[Extent]) -> None:
        """Record extents as durable: call it after the NBD flush. Syncs the digests put so far first."""
        raise NotImplementedError

    def rebase_checkpoint(self, checkpoint: str | None, dirty: Mapping[str, Iterable[Extent]]) -> None:
        """The incoming now belongs to the moment of ``checkpoint``: ``dirty`` is wanted again. One atomic step.

        A disk without a bitmap (compare): dirty is the whole disk.
        """
        raise NotImplementedError

    def complete(self) -> bool:
        """True when every disk's wanted is known and received."""
        raise NotImplementedError

    def put_digests(self, disk: str, first_block: int, digests: bytes) -> None:
        """16 bytes for each written 64 KiB block. Durable with the next ``mark_received``."""
        raise NotImplementedError

    def put_zero_digests(self, disk: str, first_block: int, count: int) -> None:
        """The known digest of zeroes for a run of blocks."""
        raise NotImplementedError

    def table_root(self, disk: str) -> str:
        """For PointDisk.digest: the parent's table with this incoming's digests over it; "" if not all known."""
        raise NotImplementedError

    def check_space(self, need_bytes: int) -> None:
        """Raises ReplicaFull if the root has less than ``need_bytes`` plus the reserve."""
        raise NotImplementedError

    def discard(self) -> None:
        """Delete it: overlays, maps, digests."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of it; what is durable stays for a resume."""
        raise NotImplementedError
