"""Deleting a replica: only names that we made, one by one, no symlink followed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from vapor_desktop.model.errors import Conflict, PointPinned
from vapor_desktop.model.manifest import Manifest
from vapor_desktop.site.replica import images, steps
from vapor_desktop.site.replica import record as records
from vapor_desktop.site.replica.files import FileLock, remove, sync_dir, write_durable
from vapor_desktop.site.replica.layout import DRILL_PICTURE, DRILL_REPORT, IMAGE_NAME, POINT_FILES, Layout
from vapor_desktop.site.replica.references import References

MARKER = "deleting"
_TOP = re.compile(
    r"manifest\.json|protection\.json|seeds\.json|fold\.json|merge\.json|merge-.*\.head|\.lock|\.merge|\.stop-merge|deleting|damaged-\w+\.json|\..*\.new"
)
_POINT = re.compile(
    "|".join(
        (
            r"point\.json|entry\.json|.*\.digests|\..*\.new",
            *map(re.escape, (*POINT_FILES, DRILL_REPORT, DRILL_PICTURE)),
        )
    )
)
_UNFINISHED = re.compile(r"incoming\.json|\.busy|.*\.(map|want)|.*\.digests|\..*\.new")
_NUMBER = re.compile(r"\d+")
_KNOWN: dict[str, tuple[re.Pattern[str], re.Pattern[str] | None]] = {
    # part -> (plain files in it, files in its numbered directories)
    "disks": (IMAGE_NAME, None),
    "incoming": (IMAGE_NAME, _UNFINISHED),
    "points": (re.compile(r"(?!)"), _POINT),
    "digests": (re.compile(r".*\.(table|at)|\..*\.new"), None),
    "run": (re.compile(r"(?!)"), None),
    "runbook": (re.compile(r"runbook\.txt|domain-[\w-]+\.xml|\..*\.new"), None),
    "drill": (re.compile(r"(?!)"), None),
}


def check_deletable(layout: Layout, manifest: Manifest, refs: References) -> None:
    """Under both locks. Raises PointPinned, Conflict."""
    if manifest.runs:
        raise PointPinned(f"VM {manifest.vm_name} runs, or ran, on this replica (epoch {', '.join(manifest.runs)})")
    if layout.drills.is_dir() and any(layout.drills.iterdir()):
        raise PointPinned(f"A drill of VM {manifest.vm_name} is at work", fix="Stop the drill first")
    for point in manifest.points:
        if any(pin.startswith(("drill:", "run:")) for pin in point.pins):
            raise PointPinned(f"Recovery point {point.seq} is in use", why=", ".join(point.pins))
    for seq, directory, _ in records.unfinished(layout):
        busy = FileLock(directory / records.BUSY)
        if not busy.acquire(0):
            raise Conflict(f"Point {seq} is being received")
        busy.release()
    for path in _paths(layout):
        if path.suffix != ".qcow2":
            continue
        strangers = [c for c in refs.children(path) if not c.is_relative_to(layout.top)]
        if strangers or refs.used_by_domain(path) or images.in_use_by_qemu(path):
            raise PointPinned(f"{path} is in use", file=str(strangers[0] if strangers else path))


def _paths(layout: Layout) -> Iterator[Path]:
    """Every file and directory to delete, children first. Raises Conflict at anything that we did not make."""
    for path in sorted(layout.top.iterdir()):
        if path.is_dir() and not path.is_symlink() and path.name in _KNOWN:
            plain, numbered = _KNOWN[path.name]
            for inner in sorted(path.iterdir()):
                if inner.is_symlink() or not inner.is_dir():
                    yield _ours(inner, plain)
                    continue
                if numbered is None or not _NUMBER.fullmatch(inner.name):
                    raise _foreign(inner)
                yield from (_ours(file, numbered) for file in sorted(inner.iterdir()))
                yield inner
            yield path
        else:
            yield _ours(path, _TOP)


def _ours(path: Path, known: re.Pattern[str]) -> Path:
    if path.is_symlink() or not path.is_file() or not known.fullmatch(path.name):
        raise _foreign(path)
    return path


def _foreign(path: Path) -> Conflict:
    return Conflict(
        f"{path} is not ours; the replica is not deleted", fix="Move it elsewhere, then delete the replica again"
    )


def begin(layout: Layout) -> None:
    """The replica is gone from here on; the rest can be finished after a crash."""
    write_durable(layout.top / MARKER, b"")
    steps.reached("delete-marked")


def is_begun(layout: Layout) -> bool:
    """Whether a deletion waits to be finished."""
    return (layout.top / MARKER).exists()


def complete(layout: Layout) -> None:
    """Under both locks: the files, then the marker and the lock, then the directory."""
    last = {layout.top / MARKER, layout.lock}
    for path in list(_paths(layout)):
        if path in last:
            continue
        if path.is_dir():
            path.rmdir()
        else:
            remove(path)
        steps.reached("delete-file")
    sync_dir(layout.top)
    for path in (layout.top / MARKER, layout.lock):
        remove(path)
    layout.top.rmdir()
    sync_dir(layout.root)
