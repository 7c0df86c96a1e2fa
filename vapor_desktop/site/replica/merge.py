"""Forgetting a point: the next point's file is merged down into its file [tried: facts/libvirt 4.5].

Dead (durable) → ``qemu-img commit`` next into dead → children of the next re-pointed → manifest → the
next's old file deleted. Every point but the dead one reads the same at every instant, and every step can
be done again. The data is copied outside the replica's lock, under ``.merge``, and stops for whoever
locks ``.stop-merge``: a failover never waits for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from vapor_desktop.model import retention
from vapor_desktop.model.errors import Conflict, ManifestInvalid, NotFound, PointPinned
from vapor_desktop.model.manifest import Manifest, PointEntry
from vapor_desktop.model.policy import Value
from vapor_desktop.site.replica import images, index, qcow2, steps
from vapor_desktop.site.replica import record as records
from vapor_desktop.site.replica.files import FileLock, remove, remove_flat, sync_dir, sync_file, write_durable
from vapor_desktop.site.replica.layout import Layout, backing_of, is_plain
from vapor_desktop.site.replica.references import References
from vapor_desktop.site.replica.space import check_space

_HEAD_BYTES = 64 * 1024
Scan = Callable[[], References]


class MergeJournal(Value):
    """``merge.json``: per disk the file that stays, and the file that goes once nothing refers to it."""

    seq: int
    pairs: dict[str, tuple[str, str | None]]  # disk -> (lower, upper or None: the disk is in no later point)


def start(layout: Layout, manifest: Manifest, seq: int, scan: Scan) -> Manifest:
    """Under both locks, the grant checked: check everything, then mark the point dead, durably.

    Raises NotFound, PointPinned, Conflict; nothing was changed then.
    """
    if any(p.dead for p in manifest.points):
        raise Conflict("Another merge of this replica is not finished", fix="Reconcile the replica first")
    entry, upper = _pair(manifest, seq)
    fixed = retention.pinned(manifest.points)
    for point in (entry, upper):
        if point.seq in fixed:
            raise PointPinned(
                f"Recovery point {point.seq} is pinned", why=", ".join(point.pins) or "the newest proven point"
            )
    pairs = {d: (lower, upper.files.get(d)) for d, lower in entry.files.items()}
    if not all(is_plain(lower) for lower in entry.files.values()):
        raise PointPinned(f"Recovery point {seq} is an adopted original disk: nothing is merged into that")
    journal = MergeJournal(seq=seq, pairs=pairs)
    refs = scan()
    check_free(layout, manifest, journal, refs)
    _check_shape(layout, journal, refs)
    _check_room(layout, journal)
    write_durable(layout.merge_journal, journal.model_dump_json().encode())
    steps.reached("merge-journalled")
    dead = entry.model_copy(update={"dead": True})
    after = index.save(layout, manifest, index.replaced(manifest, dead))
    steps.reached("merge-dead")
    return after


def _pair(manifest: Manifest, seq: int) -> tuple[PointEntry, PointEntry]:
    entry = manifest.entry(seq)
    if entry is None:
        raise NotFound(f"There is no recovery point {seq} of VM {manifest.vm_name}")
    above = [p for p in manifest.points if p.seq > seq and not p.dead]
    if not above:
        raise PointPinned(f"Recovery point {seq} is the newest: it is never dropped")
    return entry, above[0]


def check_free(layout: Layout, manifest: Manifest, journal: MergeJournal, refs: References) -> None:
    """Neither file of a merge is used by anything outside the chain, its VM running or not.

    Raises PointPinned; Conflict while a receiver has the chain open.
    """
    chain = {layout.disks / name for p in manifest.points for name in p.files.values()}
    for seq, directory, record in records.unfinished(layout):
        busy = FileLock(directory / records.BUSY)
        if not busy.acquire(0):
            raise Conflict(f"Point {seq} is being received; merges wait for the gap between cycles")
        busy.release()
        chain |= {layout.incoming / disk.file for disk in (record.disks if record else {}).values()}
    for pair in journal.pairs.values():
        chain |= {layout.disks / name for name in pair if name is not None}
        for image in (layout.disks / name for name in pair if name is not None):
            _check_unused(image, refs)
            for child in refs.children(image):
                if child not in chain:
                    raise PointPinned(f"{child} hangs on {image}, a file of this merge", file=str(child))
                _check_unused(child, refs)


def _check_unused(image: Path, refs: References) -> None:
    if refs.used_by_domain(image):
        raise PointPinned(f"A VM of this host uses {image}")
    if images.in_use_by_qemu(image):
        raise PointPinned(f"A process has {image} open", why="something runs on a point at or above it")


def _chain_dirs(layout: Layout) -> tuple[Path, Path]:
    return layout.disks, layout.incoming


def _check_shape(layout: Layout, journal: MergeJournal, refs: References) -> None:
    """Before the start the lower file has exactly one child: the upper one."""
    for lower, upper in journal.pairs.values():
        children = refs.children(layout.disks / lower)
        if children != ([] if upper is None else [layout.disks / upper]):
            raise PointPinned(f"{layout.disks / lower} has other files on it than the next point's")


def _check_room(layout: Layout, journal: MergeJournal) -> None:
    """Raises ReplicaFull: a copy that fills the file system would stop what runs on it (a failed-over VM)."""
    uppers = [layout.disks / upper for _, upper in journal.pairs.values() if upper is not None]
    check_space(layout.top, max((u.stat().st_blocks * 512 for u in uppers), default=0), 0)


def load_journal(layout: Layout) -> MergeJournal | None:
    """The merge in flight, if any. Raises ManifestInvalid if its journal is damaged."""
    try:
        return MergeJournal.model_validate_json(layout.merge_journal.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ManifestInvalid(f"The merge journal of VM {layout.vm} is damaged", why=str(error)) from error


def copy_down(layout: Layout, journal: MergeJournal) -> bool:
    """Under ``.merge`` only: the data of every upper file into its lower one. False: somebody stopped it."""
    for lower, upper in journal.pairs.values():
        if upper is None or not (layout.disks / upper).exists():
            continue
        header = qcow2.read_header(layout.disks / upper)
        if header is None or header.backing != backing_of(lower):
            raise ManifestInvalid(f"{layout.disks / upper} does not hang on {lower} as the merge journal says")
        if not images.commit(layout.disks / upper, lambda: _stop_asked(layout)):
            return False
        sync_file(layout.disks / lower)
        steps.reached("merge-copied")
    return True


def _stop_asked(layout: Layout) -> bool:
    """Whether somebody more urgent holds ``.stop-merge``; a lock, so that it dies with its holder."""
    probe = FileLock(layout.stop_merge)
    free = probe.acquire(0)
    probe.release()
    return not free


def finish(layout: Layout, manifest: Manifest, journal: MergeJournal, scan: Scan) -> Manifest:
    """Under both locks, after ``copy_down``: re-point, rewrite the manifest, delete. Can be done again."""
    dead = next((p for p in manifest.points if p.seq == journal.seq and p.dead), None)
    if dead is not None:
        refs = scan()
        check_free(layout, manifest, journal, refs)
        for lower, upper in journal.pairs.values():
            if upper is not None:
                for child in refs.children(layout.disks / upper):
                    _repoint(layout, child, lower)
        points = tuple(_moved(p, journal) for p in manifest.points if p.seq != journal.seq)
        manifest = index.save(layout, manifest, manifest.model_copy(update={"points": points}))
        steps.reached("merge-listed")
    living = manifest.entry(journal.seq)
    if living is not None:  # cut before the point was marked dead: nothing was touched
        index.save_entry(layout, living)
    else:
        remove_flat(layout.point(journal.seq))
        _delete_leftovers(layout, manifest, journal, scan())
    _forget_heads(layout)
    remove(layout.merge_journal)
    sync_dir(layout.top)
    return manifest


def _moved(entry: PointEntry, journal: MergeJournal) -> PointEntry:
    now = {upper: lower for lower, upper in journal.pairs.values() if upper is not None}
    files = {d: now.get(name, name) for d, name in entry.files.items()}
    return entry.model_copy(update={"files": files})


def _head_copy(layout: Layout, child: Path) -> Path:
    return layout.top / f"merge-{child.name}.head"


def _repoint(layout: Layout, child: Path, lower: str) -> None:
    """Another backing name into the head; its first cluster is kept aside until that is durable."""
    backing, aside = backing_of(lower), _head_copy(layout, child)
    header = qcow2.read_header(child)
    if header is not None and header.backing == backing:
        return
    if not aside.exists():
        with child.open("rb") as file:
            write_durable(aside, file.read(_HEAD_BYTES))
    steps.reached("merge-head-kept")
    images.rebase(child, backing)
    sync_file(child)
    steps.reached("merge-repointed")


def restore_heads(layout: Layout) -> None:
    """Under both locks, before a merge goes on: a head torn by a power cut gets its old content back."""
    for aside in layout.top.glob("merge-*.head"):
        name = aside.name.removeprefix("merge-").removesuffix(".head")
        child = next((d / name for d in _chain_dirs(layout) if (d / name).exists()), None)
        if child is None or images.in_use_by_qemu(child):
            continue
        header = qcow2.read_header(child)
        if header is None or header.backing is None or not header.backing.startswith("../disks/"):
            with child.open("r+b") as file:
                file.write(aside.read_bytes())
                file.flush()
                os.fsync(file.fileno())


def _forget_heads(layout: Layout) -> None:
    for aside in layout.top.glob("merge-*.head"):
        remove(aside)


def _delete_leftovers(layout: Layout, manifest: Manifest, journal: MergeJournal, refs: References) -> None:
    listed = {name for p in manifest.points for name in p.files.values()}
    for lower, upper in journal.pairs.values():
        name = lower if upper is None else upper
        image = layout.disks / name
        if not is_plain(name) or name in listed or refs.children(image) or refs.used_by_domain(image):
            continue
        remove(image)
        steps.reached("merge-deleted")
    sync_dir(layout.disks)
