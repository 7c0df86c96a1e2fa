"""After a crash: what is left over, and a manifest that is lost."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from vapor_desktop.model.errors import ManifestInvalid, NotFound
from vapor_desktop.model.manifest import Epoch, Manifest, Point, PointEntry
from vapor_desktop.site.replica import images, index, qcow2
from vapor_desktop.site.replica import record as records
from vapor_desktop.site.replica.files import FileLock, remove, sync_dir
from vapor_desktop.site.replica.incoming import discard
from vapor_desktop.site.replica.layout import IMAGE_NAME, Layout, numbered
from vapor_desktop.site.replica.references import References


def clear_unfinished(layout: Layout, manifest: Manifest, refs: References) -> None:
    """Under the lock, manifest valid, ``settle`` done: delete unfinished points that nobody can continue.

    One that a live process holds is left alone; so is one that hangs on the newest point.
    """
    newest = manifest.newest.seq if manifest.newest else None
    named: set[str] = set()
    for seq, directory, record in records.unfinished(layout):
        usable = (
            record is not None
            and records.agreed(directory, record)
            and record.parent_seq == newest
            and record.epoch == manifest.epoch
            and record.source_site == manifest.source_site
            and all((layout.incoming / disk.file).exists() for disk in record.disks.values())
        )
        if usable or not _free(directory / records.BUSY):
            named |= {disk.file for disk in (record.disks if record else {}).values()}
        else:
            discard(layout, seq, record)
    for image in layout.incoming.iterdir():
        if IMAGE_NAME.fullmatch(image.name) and image.name not in named and not _in_use(image, refs):
            remove(image)
    sync_dir(layout.incoming)


def _free(busy_file: Path) -> bool:
    busy = FileLock(busy_file)
    taken = busy.acquire(0)
    busy.release()
    return taken


def _in_use(image: Path, refs: References) -> bool:
    return bool(refs.used_by_domain(image) or refs.children(image) or images.in_use_by_qemu(image))


def candidate(layout: Layout) -> Manifest:
    """The manifest that points/, disks/ and protection.json tell of; writes nothing.

    A point is in it when its point.json and entry.json are whole and every file of its chains is there.
    Raises ManifestInvalid when there is nothing to go by.
    """
    outer = index.load_protection(layout)
    found: list[tuple[Point, PointEntry]] = []
    for seq in sorted(numbered(layout.points)):
        entry = index.load_entry(layout, seq)
        try:
            point = index.load_point(layout, seq)
        except (ManifestInvalid, NotFound):
            continue
        if entry is not None and entry.dead and not layout.merge_journal.exists():
            entry = entry.model_copy(update={"dead": False})  # marked, but its merge never began
        if entry is not None and point.vm_uuid == layout.vm and _whole(layout, entry):
            found.append((point, entry))
    if outer is None and not found:
        raise ManifestInvalid(f"Nothing is left from which the manifest of VM {layout.vm} could be rebuilt")
    if outer is None:
        outer = _from_point(found[-1][0])
    epochs = [outer.epoch, *(p.epoch for p, _ in found)]
    numbers = [outer.next_seq, *(seq + 1 for part in (layout.points, layout.incoming) for seq in numbered(part))]
    return outer.model_copy(
        update={
            "points": tuple(entry for _, entry in found),
            "epoch": max(epochs, key=lambda e: e.number),
            "next_seq": max(numbers),
            "generation": int(datetime.now(UTC).timestamp()),
        }
    )


def _from_point(point: Point) -> Manifest:
    return Manifest(
        vm_uuid=point.vm_uuid,
        vm_name=point.vm_name,
        protection_id=point.protection_id,
        source_site=point.source_site,
        target_site=point.target_site,
        epoch=point.epoch,
    )


def _whole(layout: Layout, entry: PointEntry) -> bool:
    """Whether every file of every chain of the point is there and has a readable head."""
    for target, name in entry.files.items():
        image, top = layout.disks / name, True
        for _ in range(1000):
            try:
                header = qcow2.read_header(image)
            except OSError:
                return False
            if header is None or (top and not entry.dead and header.size_bytes < entry.sizes.get(target, 0)):
                return False
            if header.backing is None:
                break
            below = qcow2.backing_path(image, header.backing)
            if below is None:
                return False
            image, top = below, False
    return True


def nothing_known(layout: Layout) -> Manifest:
    """What a view shows of a replica of which nothing could be read: valid is False beside it."""
    return Manifest(
        vm_uuid=layout.vm,
        vm_name="",
        protection_id="",
        source_site="",
        target_site="",
        epoch=Epoch(number=1, owner=""),
    )
