"""From an unfinished point to a recovery point, in an order in which every power cut is harmless.

Files → ``points/<seq>/`` → overlays renamed → manifest: the instant the point exists → digest tables.
Before that instant a cut is rolled back to the unfinished point; after it, the rest is replayed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

from vapor_desktop.model.errors import (
    DigestMismatch,
    ImageToolFailed,
    InvalidRequest,
    ManifestInvalid,
    NotFound,
    ProtocolError,
)
from vapor_desktop.model.manifest import DiskMode, Manifest, Point, PointDisk, PointEntry
from vapor_desktop.model.wire import PointDraft
from vapor_desktop.site.replica import index, qcow2, steps
from vapor_desktop.site.replica import record as records
from vapor_desktop.site.replica.digests import DigestTable, block_count, data_runs, lay_over
from vapor_desktop.site.replica.files import (
    make_dir,
    remove,
    remove_flat,
    sync_dir,
    sync_file,
    write_durable,
)
from vapor_desktop.site.replica.incoming import Incoming
from vapor_desktop.site.replica.layout import BLOB_FILES, Layout, backing_of, check_disk, is_plain, numbered
from vapor_desktop.site.replica.seed import TABLE_OF_SEED


def publish(
    layout: Layout,
    manifest: Manifest,
    incoming: Incoming,
    draft: PointDraft,
    disks: Sequence[PointDisk],
    blobs: Mapping[str, bytes],
    duration_s: float,
    wire_bytes: int,
) -> Manifest:
    """Under the lock, the grant checked, ``settle`` done. Raises StaleLease, ProtocolError, ImageToolFailed."""
    incoming.check_held()
    _check_ready(incoming, disks)
    if draft.checkpoint != incoming.checkpoint:
        raise ProtocolError("The incoming data belongs to another checkpoint than the point that is published")
    for disk in disks:
        sync_file(incoming.path(disk.target))
    point = Point(
        vm_uuid=layout.vm,
        vm_name=draft.vm_name,
        protection_id=draft.protection_id,
        seq=incoming.seq,
        parent_seq=incoming.parent_seq,
        epoch=manifest.epoch,
        source_site=manifest.source_site,
        target_site=manifest.target_site,
        checkpoint=draft.checkpoint,
        taken_at=draft.taken_at,
        published_at=datetime.now(UTC),
        consistency=draft.consistency,
        frozen_s=draft.frozen_s,
        disks=tuple(_described(incoming, d) for d in disks),
        without_disks=draft.without_disks,
        duration_s=duration_s,
        wire_bytes=wire_bytes,
        nvram="nvram" in blobs,
        tpm="tpm" in blobs,
        tpm_digest=sha256(blobs["tpm"]).hexdigest() if "tpm" in blobs else "",
    )
    # Told by the engine's clock and a measured offset: one that stepped must not make a point of the future,
    # whose age would be unknown, and this site's alarm blind, until time caught up.
    taken_at = min(point.taken_at, point.published_at)
    entry = PointEntry(
        seq=point.seq,
        taken_at=taken_at,
        current_as_of=taken_at,
        files={d.target: incoming.disk(d.target).file for d in disks},
        sizes=incoming.sizes,
        checkpoint=point.checkpoint,
        consistency=point.consistency,
        epoch_number=point.epoch.number,
        bytes_sent=sum(d.sent_bytes for d in disks),
        images=draft.images,
        config=draft.config,
    )
    steps.reached("publish-begin")
    _write_point(layout, incoming, point, entry, draft.domain_xml, blobs)
    for name in entry.files.values():
        (layout.incoming / name).rename(layout.disks / name)
        steps.reached("publish-moved")
    sync_dir(layout.disks)
    sync_dir(layout.incoming)
    after = manifest.model_copy(update={"points": (*manifest.points, entry), "vm_name": point.vm_name})
    done = index.save(layout, manifest, after)  # the point exists from here on
    finish(layout, done)
    incoming.close()
    return done


def _check_ready(incoming: Incoming, disks: Sequence[PointDisk]) -> None:
    if {d.target: d.size_bytes for d in disks} != incoming.sizes or len(disks) != len(incoming.sizes):
        raise InvalidRequest("The point's disks are not those of the incoming data")
    if not incoming.complete():
        left = {d.target: incoming.needed(d.target).total_bytes() for d in disks}
        raise ProtocolError("Not everything that the point needs has been received", details=left)
    for disk in disks:
        info = incoming.disk(disk.target)
        header = qcow2.read_header(incoming.path(disk.target))
        backing = None if info.base is None else backing_of(info.base)
        if header is None or header.size_bytes != info.size_bytes or header.backing != backing:
            raise ImageToolFailed(f"The received image of disk {disk.target} is not what was made")
        if disk.mode is not DiskMode.COMPARE and not incoming.digests_cover(disk.target):
            # A stale digest would make a later compare leave a changed block out.
            raise ProtocolError(f"Blocks of disk {disk.target} were received without their digests")


def _described(incoming: Incoming, disk: PointDisk) -> PointDisk:
    root = incoming.table_root(disk.target)
    if disk.digest and root and disk.digest != root:
        raise DigestMismatch(f"The digest table of disk {disk.target} differs from the sender's")
    return disk.model_copy(update={"digest": root})


def _write_point(
    layout: Layout, incoming: Incoming, point: Point, entry: PointEntry, domain_xml: str, blobs: Mapping[str, bytes]
) -> None:
    directory = layout.point(point.seq)
    make_dir(directory)
    contents = {"domain.xml": domain_xml.encode()}
    for name, content in blobs.items():
        if name not in BLOB_FILES:
            raise InvalidRequest(f"A point holds no {name!r}")
        contents[BLOB_FILES[name]] = content
    for name, content in contents.items():
        write_durable(directory / name, content)
    for target in entry.files:
        if incoming.digest_file(target).exists():
            copy = directory / f"{target}.digests"
            remove(copy)
            os.link(incoming.digest_file(target), copy)
    index.save_entry(layout, entry)
    steps.reached("publish-described")
    index.save_point(layout, point)
    steps.reached("publish-written")


def settle(layout: Layout, manifest: Manifest) -> None:
    """Under the lock: after a crash, take back what was not published and complete what was."""
    for seq in index.unlisted_points(layout, manifest):
        _take_back(layout, manifest, seq)
    finish(layout, manifest)


def _take_back(layout: Layout, manifest: Manifest, seq: int) -> None:
    """Everything is as before the publish: the unfinished point holds its overlays again."""
    entry = index.load_entry(layout, seq)
    listed = {name for p in manifest.points for name in p.files.values()}
    listed |= {Path(name).name for run in manifest.runs.values() for name in run.values()}  # a VM lives on it
    for name in entry.files.values() if entry else ():
        moved = layout.disks / name
        if is_plain(name) and moved.exists() and name not in listed:
            moved.rename(layout.incoming / name)
            steps.reached("take-back")
    sync_dir(layout.disks)
    sync_dir(layout.incoming)
    remove_flat(layout.point(seq))


def finish(layout: Layout, manifest: Manifest) -> None:
    """Under the lock: what comes after the instant. Replayable."""
    newest = manifest.newest
    if newest is None:
        return
    for target in newest.files:
        _fold(layout, newest, target)
    for seq, directory in numbered(layout.incoming).items():
        if seq <= newest.seq:
            busy = directory / records.BUSY
            remove(busy)
            remove_flat(directory)
            steps.reached("publish-cleared")


def _fold(layout: Layout, newest: PointEntry, target: str) -> None:
    """Lay the point's digests over the table of its parent, then forget them."""
    updates = layout.point(newest.seq) / f"{check_disk(target)}.digests"
    at = layout.digests / f"{target}.at"
    if _text(at) == str(newest.seq):
        remove(updates)
        return
    size = newest.sizes.get(target, 0)
    path = layout.table(target)
    if not _is_parents(layout, newest, target, _text(at)):
        remove(path)
    table = DigestTable(path, size)
    if updates.exists():
        for first, slots in data_runs(updates):
            table.write(first, lay_over(table.read(first, len(slots) // 16), slots))
    if path.exists():
        os.truncate(path, block_count(size) * 16)
    table.sync()
    sync_dir(layout.digests)
    steps.reached("digests-folded")
    write_durable(at, str(newest.seq).encode())
    remove(updates)


def _is_parents(layout: Layout, newest: PointEntry, target: str, table_of: str) -> bool:
    """Whether the table is that of the point's parent: not on a first copy, nor when a rebuild left a point out."""
    header = qcow2.read_header(layout.disks / newest.files[target])
    if header is None or header.backing is None:
        return False
    if table_of.startswith(TABLE_OF_SEED):
        return header.backing == f"../disks/{table_of.removeprefix(TABLE_OF_SEED)}"
    try:
        return str(index.load_point(layout, newest.seq).parent_seq) == table_of
    except (NotFound, ManifestInvalid):
        return False


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""
