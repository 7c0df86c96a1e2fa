"""An unfinished point: new overlays, and durably which parts of them hold what the source sent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from vapor_desktop.model.blockmap import BlockMap
from vapor_desktop.model.errors import InvalidRequest, StaleLease
from vapor_desktop.model.extents import BLOCK_BYTES, Extent, chunks
from vapor_desktop.model.manifest import DiskMode
from vapor_desktop.site.replica import record as records
from vapor_desktop.site.replica import steps
from vapor_desktop.site.replica.digests import DIGEST_BYTES, UNKNOWN, DigestTable, block_count, zero_digest
from vapor_desktop.site.replica.files import FileLock, locked, remove, remove_flat, sync_dir
from vapor_desktop.site.replica.layout import Layout
from vapor_desktop.site.replica.record import ExtentMap, IncomingDisk, IncomingRecord
from vapor_desktop.site.replica.space import check_space

_ZERO_RUN = 65536  # slots written at once
_CHECK_BYTES = _ZERO_RUN * BLOCK_BYTES


class Incoming:
    """Handle on ``incoming/<seq>/``, held by one process at a time (flock) until ``close``.

    Meaning of the maps: every byte in ``received(disk)`` has the content it had at the source at the
    moment of ``checkpoint``. ``wanted`` is what must be received before the point may be published
    (everything else is as in the parent point, or zero without one). DELTA: the dirty extents; FULL:
    everything that may be other than zero on a first copy, else the whole disk; COMPARE: the whole disk
    (blocks found equal count as received).

    A new job on a kept incoming (``resumed`` and another ``checkpoint`` than the new job's): read
    dirty(checkpoint) per disk, call ``rebase_checkpoint(new, dirty)``, then send ``needed(disk)``.
    The same job again: send ``needed(disk)``.
    ``revoked`` turns True, and every change raises StaleLease, once another receiver or a failover took
    over: a receiver that waits for its peer asks ``revoked`` once a second and ends.
    """

    def __init__(
        self, layout: Layout, seq: int, record: IncomingRecord, busy: FileLock, reserve_bytes: int, resumed: bool
    ) -> None:
        self.layout = layout
        self.seq = seq
        self.resumed = resumed
        self._record = record
        self._busy = busy
        self._reserve_bytes = reserve_bytes
        self._touched: set[str] = set()

    @property
    def directory(self) -> Path:
        """``incoming/<seq>``."""
        return self.layout.unfinished(self.seq)

    @property
    def record(self) -> IncomingRecord:
        """What ``incoming.json`` said when we last wrote or read it."""
        return self._record

    @property
    def parent_seq(self) -> int | None:
        """The point it hangs on."""
        return self._record.parent_seq

    @property
    def checkpoint(self) -> str | None:
        """The checkpoint whose moment the received data belongs to."""
        return self._record.checkpoint

    @property
    def modes(self) -> dict[str, DiskMode]:
        """Modes with which it was first opened."""
        return {name: disk.mode for name, disk in self._record.disks.items()}

    @property
    def sizes(self) -> dict[str, int]:
        """Virtual sizes in bytes."""
        return {name: disk.size_bytes for name, disk in self._record.disks.items()}

    def disk(self, name: str) -> IncomingDisk:
        """Raises InvalidRequest for a disk that it does not hold."""
        try:
            return self._record.disks[name]
        except KeyError as error:
            raise InvalidRequest(f"Incoming point {self.seq} holds no disk {name}") from error

    def path(self, disk: str) -> Path:
        """Absolute path of the disk's new overlay: write into it with qemu-nbd / qemu-storage-daemon."""
        return self.layout.incoming / self.disk(disk).file

    def base_path(self, disk: str) -> Path | None:
        """The parent point's file of the disk; None for a first copy."""
        base = self.disk(disk).base
        return None if base is None else self.layout.disks / base

    def _map(self, disk: str, kind: str) -> ExtentMap:
        self.disk(disk)
        return ExtentMap(self._named(self._record, disk, kind))

    def _named(self, record: IncomingRecord, disk: str, kind: str) -> Path:
        return records.map_file(self.directory, record, disk, kind)

    def digest_file(self, disk: str) -> Path:
        """Sparse slot file of what this incoming changed."""
        return self.directory / f"{disk}.{self._record.made}.digests"

    def _updates(self, disk: str) -> DigestTable:
        return DigestTable(self.digest_file(disk), self.disk(disk).size_bytes)

    @property
    def revoked(self) -> bool:
        """Whether somebody else took over or it is gone."""
        now = records.load(self.directory)
        return not self._busy.held or now is None or now.holder != self._record.holder

    def check_held(self) -> None:
        """Raises StaleLease when ``revoked``."""
        if self.revoked:
            raise self._lost()

    def _lost(self) -> StaleLease:
        return StaleLease(f"Another transfer or a failover took over incoming point {self.seq}")

    @contextmanager
    def _unless_gone(self) -> Iterator[None]:
        """Its directory may be deleted between the check and the write."""
        try:
            yield
        except FileNotFoundError as error:
            raise self._lost() from error

    def want(self, disk: str, extents: Iterable[Extent]) -> None:
        """Add to what must be received (grown to whole blocks); durable."""
        self.check_held()
        with self._unless_gone():
            self._map(disk, "want").append(self._blocks(disk, extents).runs())

    def _blocks(self, disk: str, extents: Iterable[Extent] = ()) -> BlockMap:
        """The blocks that the extents touch."""
        blocks = BlockMap(self.disk(disk).size_bytes)
        blocks.add(extents)
        return blocks

    def wanted(self, disk: str) -> BlockMap | None:
        """What must be received; None: ``want`` was never called."""
        return self._map(disk, "want").read(self.disk(disk).size_bytes)

    def received(self, disk: str) -> BlockMap:
        """What is durable."""
        return self._map(disk, "map").read(self.disk(disk).size_bytes) or self._blocks(disk)

    def needed(self, disk: str) -> BlockMap:
        """Wanted minus received."""
        left = self.wanted(disk) or self._blocks(disk)
        left.remove(self.received(disk).runs())
        return left

    def mark_received(self, disk: str, extents: Iterable[Extent]) -> None:
        """Record extents as durable: call it after the NBD flush. Syncs the digests put so far first."""
        self.check_held()
        with self._unless_gone():
            if disk in self._touched:
                self._updates(disk).sync()
                self._touched.discard(disk)
            steps.reached("mark-received")
            self._map(disk, "map").append(extents)

    def rebase_checkpoint(self, checkpoint: str | None, dirty: Mapping[str, Iterable[Extent]]) -> None:
        """The incoming now belongs to the moment of ``checkpoint``: ``dirty`` is wanted again. One atomic step.

        dirty: changes since the old ``checkpoint`` for every disk; a disk without a bitmap: the whole disk.
        """
        if set(dirty) != set(self._record.disks):
            raise InvalidRequest("The changes of every disk of the incoming point are needed, and of no other")
        self.check_held()
        after = self._record.model_copy(update={"checkpoint": checkpoint, "maps": self._record.maps + 1})
        with self._unless_gone():
            for disk, extents in dirty.items():
                again = self._blocks(disk, extents)
                wanted, received = self.wanted(disk) or self._blocks(disk), self.received(disk)
                wanted.add(again.runs())
                received.remove(again.runs())
                ExtentMap(self._named(after, disk, "want")).replace(wanted.runs())
                ExtentMap(self._named(after, disk, "map")).replace(received.runs())
        steps.reached("rebase-maps")
        self._save(after)

    def _save(self, after: IncomingRecord) -> None:
        with locked(self.layout.lock):  # the takeover of another process must not be written over
            self.check_held()
            records.save(self.directory, after)
            before, self._record = self._record, after
        for disk in after.disks:
            remove(self._named(before, disk, "want"))
            remove(self._named(before, disk, "map"))

    def complete(self) -> bool:
        """True when every disk's wanted is known and received."""
        return all(self.wanted(disk) is not None and not self.needed(disk) for disk in self._record.disks)

    def received_bytes(self) -> dict[str, int]:
        """Durable bytes per disk."""
        return {disk: self.received(disk).total_bytes() for disk in self._record.disks}

    def put_digests(self, disk: str, first_block: int, digests: bytes) -> None:
        """16 bytes for each written 64 KiB block. Durable with the next ``mark_received``."""
        if len(digests) % DIGEST_BYTES or first_block * DIGEST_BYTES + len(digests) > self._slots(disk):
            raise InvalidRequest(f"Digests beyond the end of disk {disk}")
        with self._unless_gone():
            self._updates(disk).write(first_block, digests)
        self._touched.add(disk)

    def _slots(self, disk: str) -> int:
        return block_count(self.disk(disk).size_bytes) * DIGEST_BYTES

    def put_zero_digests(self, disk: str, first_block: int, count: int) -> None:
        """The known digest of zeroes for a run of blocks."""
        size = self.disk(disk).size_bytes
        tail = size % BLOCK_BYTES
        last = block_count(size) - 1
        has_short_tail = bool(tail) and first_block <= last < first_block + count
        whole = count - 1 if has_short_tail else count
        for at in range(0, whole, _ZERO_RUN):
            self.put_digests(disk, first_block + at, zero_digest() * min(_ZERO_RUN, whole - at))
        if has_short_tail:
            self.put_digests(disk, last, zero_digest(tail))

    def fill_untouched(self, disk: str) -> None:
        """Digests of what the parent does not have and nobody wanted: it reads as zeroes."""
        info = self.disk(disk)
        start = 0 if info.base is None else info.base_size_bytes
        fresh = BlockMap(info.size_bytes)
        fresh.add_whole([Extent(start, max(0, info.size_bytes - start))])
        wanted = self.wanted(disk)
        if wanted is not None:
            fresh.remove(wanted.runs())
        for hole in fresh.runs():
            first = hole.offset // BLOCK_BYTES
            self.put_zero_digests(disk, first, block_count(hole.end) - first)
        self._updates(disk).sync()

    def digests_cover(self, disk: str) -> bool:
        """Whether every wanted block has got its digest here."""
        updates = self._updates(disk)
        for part in chunks((self.wanted(disk) or self._blocks(disk)).runs(), _CHECK_BYTES):
            count = block_count(part.length)
            if updates.read(part.offset // BLOCK_BYTES, count).find(UNKNOWN) >= 0:
                return False
        return True

    def table_root(self, disk: str) -> str:
        """For PointDisk.digest: the parent's table with this incoming's digests over it; "" if not all known."""
        self.fill_untouched(disk)
        info = self.disk(disk)
        below = self.layout.table(disk) if info.base is not None else self.directory / "none"
        return DigestTable(below, info.size_bytes).root(self.digest_file(disk))

    def check_space(self, need_bytes: int) -> None:
        """Raises ReplicaFull if the root has less than ``need_bytes`` plus the reserve."""
        check_space(self.layout.root, need_bytes, self._reserve_bytes)

    def discard(self) -> None:
        """Delete it: overlays, maps, digests. Nothing happens when it was taken over."""
        with locked(self.layout.lock):
            if not self.revoked:
                discard(self.layout, self.seq, self._record)
        self.close()

    def close(self) -> None:
        """Let go of it; what is durable stays for a resume."""
        self._busy.release()

    def __enter__(self) -> Incoming:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def discard(layout: Layout, seq: int, record: IncomingRecord | None) -> None:
    """Delete an unfinished point. The caller holds the lock. The record goes last: it names the files."""
    for disk in (record.disks if record else {}).values():
        if Path(disk.file).name == disk.file:
            remove(layout.incoming / disk.file)
    steps.reached("discard")
    sync_dir(layout.incoming)
    remove_flat(layout.unfinished(seq))
