"""A drill's overlays on a point: outside the chain, so that no merge touches what they read.

They lie in ``drill/<drill>/`` of the replica; while they are there the point is pinned, and every file that they
read is refused to a merge by the references that it scans.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from vapor_desktop.model.errors import Conflict, InvalidRequest, NotFound
from vapor_desktop.model.manifest import Manifest
from vapor_desktop.site.replica import images, index, steps
from vapor_desktop.site.replica.files import make_dir, remove_flat, sync_dir, sync_file, write_durable
from vapor_desktop.site.replica.layout import BLOB_FILES, DRILL_PICTURE, DRILL_REPORT, Layout
from vapor_desktop.site.replica.references import References
from vapor_desktop.site.replica.space import used_bytes

_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NVRAM = BLOB_FILES["nvram"]


@dataclass(frozen=True)
class DrillFiles:
    """What a drill's VM stands on. ``disks``: target -> absolute path of its overlay."""

    disks: dict[str, str]
    domain_xml: str
    nvram: str | None


def pin_of(drill_id: str) -> str:
    """The pin by which a drill holds its point."""
    return f"drill:{drill_id}"


def directory_of(layout: Layout, drill_id: str) -> Path:
    """Raises InvalidRequest: it becomes a path."""
    if not _ID.fullmatch(drill_id):
        raise InvalidRequest(f"{drill_id!r} is not a drill's id")
    return layout.drills / drill_id


def make(layout: Layout, manifest: Manifest, drill_id: str, seq: int) -> DrillFiles:
    """Under both locks, no merge begun. Idempotent: what is there is kept. Raises NotFound, ImageToolFailed."""
    entry = manifest.entry(seq)
    if entry is None:
        raise NotFound(f"There is no recovery point {seq} of VM {manifest.vm_name}")
    directory, pin = directory_of(layout, drill_id), pin_of(drill_id)
    if pin not in entry.pins:
        after = index.replaced(manifest, entry.model_copy(update={"pins": (*entry.pins, pin)}))
        index.save(layout, manifest, after)
        steps.reached("drill-pinned")
    make_dir(layout.drills)
    make_dir(directory)
    disks = {}
    for target, name in entry.files.items():
        overlay = directory / f"{target}.qcow2"
        if not overlay.exists():
            aside = directory / f".{target}.new"
            aside.unlink(missing_ok=True)
            images.create(aside, entry.sizes[target], name if name.startswith("/") else f"../../disks/{name}")
            aside.rename(overlay)
            sync_file(overlay)
            steps.reached("drill-overlay")
        disks[target] = str(overlay)
    varstore = layout.point(seq) / _NVRAM
    copy = directory / _NVRAM
    if varstore.exists() and not copy.exists():
        write_durable(copy, varstore.read_bytes())
    sync_dir(directory)
    xml = (layout.point(seq) / "domain.xml").read_text()
    return DrillFiles(disks, xml, str(copy) if copy.exists() else None)


def remove(layout: Layout, manifest: Manifest, drill_id: str, refs: References) -> Manifest:
    """Under the lock, its VM undefined. Idempotent. Raises Conflict while something uses the overlays."""
    directory, pin = directory_of(layout, drill_id), pin_of(drill_id)
    if directory.is_dir():
        for image in directory.glob("*.qcow2"):
            if refs.used_by_domain(image) or refs.children(image):
                raise Conflict(f"{image} is in use", fix="Undefine the VM that uses it, then clean up again")
        remove_flat(directory)
        steps.reached("drill-removed")
    if layout.drills.is_dir() and not any(layout.drills.iterdir()):
        layout.drills.rmdir()
    points = tuple(
        p.model_copy(update={"pins": tuple(x for x in p.pins if x != pin)}) if pin in p.pins else p
        for p in manifest.points
    )
    return (
        manifest
        if points == manifest.points
        else index.save(layout, manifest, manifest.model_copy(update={"points": points}))
    )


def keep_proof(layout: Layout, seq: int, report: bytes, png: bytes | None) -> None:
    """Beside the point: what the last passed drill found, and the picture."""
    directory = layout.point(seq)
    if png is not None:
        write_durable(directory / DRILL_PICTURE, png)
    write_durable(directory / DRILL_REPORT, report)


def used(layout: Layout, drill_id: str) -> int:
    """Disk blocks that the drill has written."""
    return used_bytes(directory_of(layout, drill_id))


def force_remove(layout: Layout, drill_id: str) -> None:
    """The same without asking whether anything uses them: a person wants the files gone."""
    shutil.rmtree(directory_of(layout, drill_id), ignore_errors=True)
