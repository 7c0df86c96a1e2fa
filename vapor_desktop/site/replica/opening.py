"""Making a new unfinished point, or taking a kept one up again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

from vapor_desktop.model.errors import Conflict, DiskShrunk, InvalidRequest
from vapor_desktop.model.extents import BLOCK_BYTES, Extent
from vapor_desktop.model.manifest import DiskMode, Manifest
from vapor_desktop.site.replica import adoption, images, index, qcow2, seed, steps
from vapor_desktop.site.replica import record as records
from vapor_desktop.site.replica.files import FileLock, make_dir, sync_dir, sync_file
from vapor_desktop.site.replica.incoming import Incoming, discard
from vapor_desktop.site.replica.layout import Layout, backing_of, check_disk, new_image_name
from vapor_desktop.site.replica.record import IncomingDisk, IncomingRecord

Disks = Mapping[str, tuple[int, DiskMode]]


class StillBusy(Exception):
    """Another process holds the unfinished point; it has been revoked and should let go soon."""

    def __init__(self, directory: Path) -> None:
        super().__init__(str(directory))
        self.directory = directory


def open_incoming(
    layout: Layout,
    manifest: Manifest,
    seq: int,
    disks: Disks,
    checkpoint: str | None,
    resume: bool,
    reserve_bytes: int,
) -> Incoming:
    """Under the lock, the grant checked, nothing half-published. Raises StillBusy, DiskShrunk, Conflict."""
    for target in disks:
        check_disk(target)
    if not disks:
        raise InvalidRequest("A point holds at least one disk")
    kept = records.unfinished(layout)
    if seq != manifest.next_seq and seq not in [old for old, _, _ in kept]:
        raise Conflict(f"The next point of VM {layout.vm} has number {manifest.next_seq}, not {seq}")
    if resume and kept:
        old, directory, record = kept[-1]
        if record is not None and records.agreed(directory, record) and _resumable(layout, manifest, record, disks):
            return _take_up(layout, manifest, (old, directory, record), seq, disks, reserve_bytes)
    for old, _, record in kept:
        discard(layout, old, record)
    return _make(layout, manifest, seq, disks, checkpoint, reserve_bytes)


def _resumable(layout: Layout, manifest: Manifest, record: IncomingRecord, disks: Disks) -> bool:
    newest = manifest.newest
    if record.epoch != manifest.epoch or record.source_site != manifest.source_site:
        return False
    if record.parent_seq != (newest.seq if newest else None) or set(record.disks) != set(disks):
        return False
    for target, disk in record.disks.items():
        if disks[target][0] < disk.size_bytes or disk.base != _base(layout, manifest, target)[0]:
            return False
        try:
            header = qcow2.read_header(layout.incoming / disk.file)
        except FileNotFoundError:
            return False
        if header is None or header.size_bytes < disk.size_bytes:
            return False
    return True


def _base(layout: Layout, manifest: Manifest, target: str) -> tuple[str | None, int]:
    """(file below ``disks/`` that the overlay hangs on, its size in bytes): the newest point's, else a seed."""
    newest = manifest.newest
    if newest is not None and target in newest.files:
        return newest.files[target], newest.sizes.get(target, 0)
    found = seed.ready(layout, manifest).get(target)
    return (None, 0) if found is None else (found.file, found.size_bytes)


def _take_up(
    layout: Layout,
    manifest: Manifest,
    kept: tuple[int, Path, IncomingRecord],
    seq: int,
    disks: Disks,
    reserve_bytes: int,
) -> Incoming:
    old, directory, record = kept
    record = record.model_copy(update={"holder": uuid4().hex})
    records.save(directory, record)  # whoever held it until now is revoked
    busy = FileLock(directory / records.BUSY)
    if not busy.acquire(0):
        raise StillBusy(directory)
    try:
        if seq != old:
            _bump(layout, manifest, seq)
            directory = directory.rename(layout.unfinished(seq))
            sync_dir(layout.incoming)
        incoming = Incoming(layout, seq, record, busy, reserve_bytes, resumed=True)
        grown = {t: size for t, (size, _) in disks.items() if size > record.disks[t].size_bytes}
        for target, size in grown.items():
            images.resize(incoming.path(target), size)
            sync_file(incoming.path(target))
            tail = _short_tail(record.disks[target].size_bytes)
            record = record.model_copy(
                update={
                    "disks": {**record.disks, target: record.disks[target].model_copy(update={"size_bytes": size})}
                }
            )
            records.save(directory, record)
            incoming = Incoming(layout, seq, record, busy, reserve_bytes, resumed=True)
            _want_tail(incoming, target, tail)
    except BaseException:
        busy.release()
        raise
    return incoming


def _make(
    layout: Layout, manifest: Manifest, seq: int, disks: Disks, checkpoint: str | None, reserve_bytes: int
) -> Incoming:
    newest = manifest.newest
    adoption.check(manifest)
    planned: dict[str, IncomingDisk] = {}
    for target, (size, mode) in disks.items():
        base, base_size = _base(layout, manifest, target)
        if size < base_size:
            raise DiskShrunk(
                f"Disk {target} has {size} bytes, what is here of it has {base_size}",
                fix="Delete the replica of this VM and protect it again, or give the disk its old size",
            )
        if base is None and mode is DiskMode.DELTA:
            raise InvalidRequest(f"Disk {target} has no earlier copy here that a delta could hang on")
        planned[target] = IncomingDisk(
            file=new_image_name(), base=base, base_size_bytes=base_size, size_bytes=size, mode=mode
        )
    _bump(layout, manifest, seq)
    steps.reached("incoming-numbered")
    directory = layout.unfinished(seq)
    make_dir(directory)
    made = uuid4().hex
    record = IncomingRecord(
        made=made[:8],
        holder=made,
        parent_seq=newest.seq if newest else None,
        epoch=manifest.epoch,
        source_site=manifest.source_site,
        checkpoint=checkpoint,
        disks=planned,
    )
    records.save(directory, record)
    steps.reached("incoming-recorded")
    busy = FileLock(directory / records.BUSY)
    if not busy.acquire(0):
        raise StillBusy(directory)
    incoming = Incoming(layout, seq, record, busy, reserve_bytes, resumed=False)
    try:
        for target, disk in planned.items():
            images.create(incoming.path(target), disk.size_bytes, backing_of(disk.base) if disk.base else None)
            steps.reached("incoming-created")
            if disk.base is not None and disk.size_bytes > disk.base_size_bytes:
                _want_tail(incoming, target, _short_tail(disk.base_size_bytes))
        sync_dir(layout.incoming)
    except BaseException:
        busy.release()
        raise
    return incoming


def _bump(layout: Layout, manifest: Manifest, seq: int) -> None:
    """Numbers are never reused: the next one is durable before this one is used."""
    if manifest.next_seq <= seq:
        index.save(layout, manifest, manifest.model_copy(update={"next_seq": seq + 1}))


def _short_tail(size_bytes: int) -> Extent:
    at = size_bytes - size_bytes % BLOCK_BYTES
    return Extent(at, size_bytes - at)


def _want_tail(incoming: Incoming, target: str, tail: Extent) -> None:
    """A block that was short has grown: its digest is of another length now, so it is read again."""
    if tail.length:
        incoming.want(target, [tail])
