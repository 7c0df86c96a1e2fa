"""Reading and writing a replica's documents: manifest, protection.json, point.json, entry.json.

``entry.json`` beside the immutable ``point.json`` says in which files the point's content is *now*; it is
what a rebuild of a lost manifest stands on, because file names do not tell.
"""

from __future__ import annotations

from hashlib import sha256

from pydantic import ValidationError

from vapor_desktop.model import manifest as documents
from vapor_desktop.model.errors import ManifestInvalid, NotFound
from vapor_desktop.model.manifest import Manifest, Point, PointEntry
from vapor_desktop.site.replica import steps
from vapor_desktop.site.replica.files import write_durable
from vapor_desktop.site.replica.layout import Layout, numbered

ENTRY = "entry.json"
POINT = "point.json"


def load(layout: Layout) -> Manifest:
    """The manifest on disk.

    Raises NotFound without a replica, ManifestInvalid if it is missing or damaged.
    """
    try:
        raw = layout.manifest.read_bytes()
    except FileNotFoundError as error:
        if not exists(layout):
            raise NotFound(f"No replica of VM {layout.vm} is at this site") from error
        raise ManifestInvalid(f"The manifest of the replica of VM {layout.vm} is missing") from error
    manifest = documents.read(Manifest, raw)
    if manifest.vm_uuid != layout.vm:
        raise ManifestInvalid(f"The manifest of VM {layout.vm} names another VM", why=manifest.vm_uuid)
    return manifest


def exists(layout: Layout) -> bool:
    """Whether anything of a replica is there (an interrupted creation leaves only empty directories)."""
    if layout.manifest.exists() or layout.protection.exists():
        return True
    parts = (layout.disks, layout.incoming, layout.points, layout.runs)
    return any(part.is_dir() and any(part.iterdir()) for part in parts)


def save(layout: Layout, before: Manifest | None, after: Manifest) -> Manifest:
    """Write the next generation. What a rebuild needs is written first, so it never lags behind."""
    known = {} if before is None else {p.seq: _slow(p) for p in before.points}
    for entry in after.points:
        if known.get(entry.seq) != _slow(entry):
            save_entry(layout, entry)
    blank = {"points": (), "generation": 1, "checksum": ""}
    outer = after.model_copy(update=blank)
    changed = before is None or outer != before.model_copy(update=blank)
    if before is not None and changed:
        write_durable(layout.protection, _json(documents.seal(outer)))
    generation = after.generation if before is None else before.generation + 1
    sealed = documents.seal(after.model_copy(update={"generation": generation}))
    steps.reached("manifest-before")
    write_durable(layout.manifest, _json(sealed))
    steps.reached("manifest-after")
    if before is None:
        write_durable(layout.protection, _json(documents.seal(outer)))
    return sealed


def _slow(entry: PointEntry) -> PointEntry:
    """The entry without what idle cycles advance: not worth a second write each."""
    return entry.model_copy(update={"current_as_of": entry.taken_at})


def _json(document: Manifest | Point) -> bytes:
    return document.model_dump_json(indent=1).encode() + b"\n"


def replaced(manifest: Manifest, entry: PointEntry) -> Manifest:
    """The manifest with that entry in the place of the one of its number."""
    points = tuple(entry if p.seq == entry.seq else p for p in manifest.points)
    return manifest.model_copy(update={"points": points})


def save_entry(layout: Layout, entry: PointEntry) -> None:
    """Write ``entry.json``: the JSON, and its SHA-256 on a line of its own."""
    text = entry.model_dump_json()
    write_durable(layout.point(entry.seq) / ENTRY, f"{text}\n{sha256(text.encode()).hexdigest()}\n".encode())


def load_entry(layout: Layout, seq: int) -> PointEntry | None:
    """The entry that was last written; None if it is missing or damaged."""
    try:
        text, _, digest = (layout.point(seq) / ENTRY).read_text().rstrip("\n").rpartition("\n")
        if sha256(text.encode()).hexdigest() != digest:
            return None
        return PointEntry.model_validate_json(text)
    except (FileNotFoundError, UnicodeDecodeError, ValidationError):
        return None


def save_point(layout: Layout, point: Point) -> None:
    """Write ``point.json``."""
    write_durable(layout.point(point.seq) / POINT, _json(documents.seal(point)))


def load_point(layout: Layout, seq: int) -> Point:
    """``point.json``. Raises NotFound, ManifestInvalid."""
    try:
        raw = (layout.point(seq) / POINT).read_bytes()
    except FileNotFoundError as error:
        raise NotFound(f"Recovery point {seq} of VM {layout.vm} has no point.json") from error
    return documents.read(Point, raw)


def load_protection(layout: Layout) -> Manifest | None:
    """The manifest's other fields as last written; None if missing or damaged."""
    try:
        return documents.read(Manifest, layout.protection.read_bytes())
    except (FileNotFoundError, ManifestInvalid):
        return None


def last_seq(manifest: Manifest) -> int:
    """Number of the newest entry, dead ones too; 0 without one."""
    return max((p.seq for p in manifest.points), default=0)


def unlisted_points(layout: Layout, manifest: Manifest) -> list[int]:
    """Point directories newer than the newest entry: a publish that did not get to its instant."""
    return sorted(seq for seq in numbered(layout.points) if seq > last_seq(manifest))
