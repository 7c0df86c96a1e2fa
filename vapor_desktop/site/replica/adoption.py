"""The way home: original disks become the foot of a replica's chain, where they lie, so that only a delta travels.

An adopted image is never removed and never merged into; its stamp is looked at again before anything new is hung on
it. What was here of the other direction goes with it.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from vapor_desktop.model.errors import Conflict, EpochMoved, InvalidRequest, PointPinned
from vapor_desktop.model.manifest import AdoptedBase, Consistency, DiskMode, Manifest, Point, PointDisk, PointEntry
from vapor_desktop.model.wire import AdoptRequest
from vapor_desktop.site.replica import images, index, qcow2, steps
from vapor_desktop.site.replica import record as records
from vapor_desktop.site.replica.digests import DigestTable
from vapor_desktop.site.replica.files import make_dir, remove, remove_flat, sync_dir, write_durable
from vapor_desktop.site.replica.incoming import discard
from vapor_desktop.site.replica.layout import IMAGE_NAME, Layout, is_plain, numbered
from vapor_desktop.site.replica.references import References

PIN = "base:home"  # the point that the adopted disks are: below it nothing can be merged
_PARTS = ("disks", "incoming", "points", "digests", "runs")


@dataclass(frozen=True, slots=True)
class Original:
    """A disk's image as it was found, off. ``table``: block digests of this very state, if they are known."""

    path: Path
    size_bytes: int
    stamp: str
    proven: bool
    table: Path | None = None


def stamp_of(path: Path) -> str:
    """As the root helper tells it: inode, size in bytes, time of the last write in ns. Raises FileNotFoundError."""
    found = path.stat()
    return f"{found.st_ino}:{found.st_size}:{found.st_mtime_ns}"


def check(manifest: Manifest) -> None:
    """Raises Conflict when an adopted image was written, replaced or removed since it was adopted."""
    for disk, base in manifest.adopted.items():
        try:
            now = stamp_of(Path(base.path))
        except FileNotFoundError:
            now = "it is gone"
        if now != base.stamp:
            raise Conflict(
                f"{base.path}, under the recovery points of disk {disk}, was changed behind this program",
                why=f"it was {base.stamp} when it was adopted, and is {now}",
                fix="Reprotect anew: the disk is compared, or copied whole",
            )


def before(layout: Layout, manifest: Manifest, request: AdoptRequest, site_id: str) -> Manifest | None:
    """What this very request made before; None when it is still to be done.

    Raises EpochMoved, InvalidRequest, PointPinned (a person's pin would be lost).
    """
    if request.epoch.owner != request.source_site or request.epoch.owner == site_id:
        raise InvalidRequest("Disks are adopted at the site that does not own the VM")
    same = (manifest.epoch, manifest.source_site) == (request.epoch, request.source_site)
    if same and manifest.target_site == site_id and manifest.points:
        clean(layout, manifest)
        return manifest
    if request.epoch.number <= manifest.epoch.number and request.epoch != manifest.epoch:
        raise EpochMoved(
            f"VM {manifest.vm_name} is already in epoch {manifest.epoch.number} of site {manifest.epoch.owner}"
        )
    if manifest.kept:
        names = ", ".join(run.name for run in manifest.kept.values())
        raise PointPinned(f"What the VM wrote here in runs that are over is kept: {names}", fix="Let it go first")
    for point in manifest.points:
        if any(pin.startswith(("user:", "drill:")) for pin in point.pins):
            raise PointPinned(
                f"Recovery point {point.seq} at this site is pinned", why=", ".join(point.pins), fix="Let it go first"
            )
    return None


def flatten(layout: Layout, manifest: Manifest, image: Path, refs: References) -> Path:
    """The one file that an image of ours consists of: what hangs above its foot is written down into it.

    Nobody may have it open. Repeatable: what was read through ``image`` reads the same at every instant.
    """
    originals = {Path(base.path) for base in manifest.adopted.values()}
    whole = chain_down(layout, image, None)
    chain = [file for file in whole if file in originals or file.is_relative_to(layout.top)]
    foot = chain[-1]  # what an original itself stands on is its owner's
    if foot != image:
        if images.in_use_by_qemu(image):
            raise Conflict(f"{image} is in use", fix="Switch the VM off at this site first")
        for child in refs.children(image):
            raise PointPinned(f"{child} hangs on {image}", file=str(child))
        images.commit_to(image, foot)
    return foot


def chain_down(layout: Layout, image: Path, stop: Path | None) -> list[Path]:
    """The image and what lies below it, down to ``stop``, or to what has nothing below it."""
    chain = [image]
    while chain[-1] != stop:
        header = qcow2.read_header(chain[-1])
        below = qcow2.backing_path(chain[-1], header.backing) if header and header.backing else None
        if below is None:
            break
        if below in chain:
            raise Conflict(f"{below} is its own backing file")
        chain.append(below)
    return chain


def adopt(
    layout: Layout, manifest: Manifest | None, request: AdoptRequest, site_id: str, found: Mapping[str, Original]
) -> Manifest:
    """Under both locks, ``before`` asked: the replica of the reverse direction, with what was found as its point."""
    for part in _PARTS:
        make_dir(getattr(layout, part))
    empty = Manifest(
        vm_uuid=layout.vm,
        vm_name=request.vm_name,
        protection_id=request.protection_id,
        source_site=request.source_site,
        target_site=site_id,
        epoch=request.epoch,
        policy=request.policy,
        mappings=request.mappings,
        settings_version=request.settings_version,
        next_seq=request.next_seq,
    )
    if manifest is None:  # first: parts of a replica without a manifest would be taken for a damaged one
        manifest = index.save(layout, None, empty)
    for seq, _, record in records.unfinished(layout):
        discard(layout, seq, record)
    proven = all(original.proven for original in found.values())
    now = datetime.now(UTC)
    if proven:
        seq, taken, consistency = request.seq, request.taken_at, request.consistency
    else:
        written = max(original.path.stat().st_mtime for original in found.values())
        seq, taken, consistency = request.next_seq, datetime.fromtimestamp(written, UTC), Consistency.CRASH
    entry = PointEntry(
        seq=seq,
        taken_at=min(taken, now),
        current_as_of=min(request.current_as_of if proven else taken, now),
        files={disk: _name(layout, o.path) for disk, o in found.items()},
        sizes={disk: o.size_bytes for disk, o in found.items()},
        checkpoint=request.checkpoint if proven else None,
        consistency=consistency,
        epoch_number=request.epoch.number,
        pins=(PIN,) if proven else (PIN, f"user:{request.kept_as}"),
    )
    digests = {disk: _take_table(layout, disk, o, seq) for disk, o in found.items()}
    _write_point(layout, request, site_id, entry, digests)
    steps.reached("adopt-written")
    bases = {
        disk: AdoptedBase(path=str(o.path), size_bytes=o.size_bytes, stamp=o.stamp, digest=digests[disk])
        for disk, o in found.items()
    }
    update = {"points": (entry,), "adopted": bases, "next_seq": max(request.next_seq, seq + 1)}
    after = empty.model_copy(update={**update, "generation": manifest.generation})
    saved = index.save(layout, manifest, after)
    steps.reached("adopt-listed")
    clean(layout, saved)
    return saved


def _name(layout: Layout, path: Path) -> str:
    return path.name if path.parent == layout.disks and is_plain(path.name) else str(path)


def _take_table(layout: Layout, disk: str, original: Original, seq: int) -> str:
    """What this site recorded of the disk while it was the source; its digest, "" when not all of it is known."""
    table, at = layout.table(disk), layout.digests / f"{disk}.at"
    remove(at)
    remove(table)
    if original.table is None or not original.proven or not original.table.is_file():
        return ""
    shutil.copyfile(original.table, table)
    taken = DigestTable(table, original.size_bytes)
    taken.sync()
    write_durable(at, str(seq).encode())
    return taken.root()


def _write_point(
    layout: Layout, request: AdoptRequest, site_id: str, entry: PointEntry, digests: Mapping[str, str]
) -> None:
    make_dir(layout.point(entry.seq))
    write_durable(layout.point(entry.seq) / "domain.xml", request.domain_xml.encode())
    point = Point(
        vm_uuid=layout.vm,
        vm_name=request.vm_name,
        protection_id=request.protection_id,
        seq=entry.seq,
        parent_seq=None,
        epoch=request.epoch,
        source_site=request.source_site,
        target_site=site_id,
        checkpoint=entry.checkpoint,
        taken_at=entry.taken_at,
        published_at=datetime.now(UTC),
        consistency=entry.consistency,
        disks=tuple(
            PointDisk(target=disk, size_bytes=size, mode=DiskMode.FULL, digest=digests[disk])
            for disk, size in entry.sizes.items()
        ),
    )
    index.save_point(layout, point)


def clean(layout: Layout, manifest: Manifest) -> None:
    """Delete what is left of the other direction: files that we made and that nothing of this one names."""
    kept = {name for p in manifest.points for name in p.files.values()}
    needed: set[Path] = set()
    for name in kept:
        needed |= set(chain_down(layout, layout.disks / name, None))
    numbers = {p.seq for p in manifest.points}
    for seq, directory in numbered(layout.points).items():
        if seq not in numbers:
            remove_flat(directory)
    for number, directory in numbered(layout.runs).items():
        if str(number) not in manifest.runs and not needed & set(directory.iterdir()):
            remove_flat(directory)
    for image in layout.disks.iterdir():
        if IMAGE_NAME.fullmatch(image.name) and image not in needed and not images.in_use_by_qemu(image):
            remove(image)
            steps.reached("adopt-cleaned")
    if layout.seeds.exists():
        remove(layout.seeds)
    sync_dir(layout.disks)
    sync_dir(layout.top)
