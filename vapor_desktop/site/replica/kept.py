"""Runs that are over and are kept, the commit of one, and an epoch that rises without changing hands."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from vapor_desktop.model.errors import Conflict, EpochMoved, NotFound
from vapor_desktop.model.manifest import KeptRun, Manifest, PointEntry
from vapor_desktop.model.wire import CommitRequest, EpochRequest
from vapor_desktop.site.replica import images, index, steps
from vapor_desktop.site.replica.files import remove_flat
from vapor_desktop.site.replica.layout import Layout
from vapor_desktop.site.replica.references import References
from vapor_desktop.site.replica.space import file_bytes


def pin_of(epoch: int) -> str:
    """The pin by which a run holds its point."""
    return f"run:{epoch}"


# --- looking --------------------------------------------------------------------------------------------
def run_bytes(layout: Layout, manifest: Manifest) -> dict[str, dict[str, int]]:
    """What each run has written, epoch by epoch and disk by disk."""
    return {n: {d: file_bytes(layout.top / p) for d, p in paths.items()} for n, paths in manifest.runs.items()}


def run_written_at(layout: Layout, manifest: Manifest) -> dict[str, datetime]:
    """When each run's overlays were last written."""
    found: dict[str, datetime] = {}
    for number, paths in manifest.runs.items():
        for path in paths.values():
            try:
                at = datetime.fromtimestamp((layout.top / path).stat().st_mtime, UTC)
            except FileNotFoundError:
                continue
            found[number] = max(at, found.get(number, at))
    return found


def point_of(manifest: Manifest, epoch: int) -> PointEntry | None:
    """The point that the run of that epoch stands on."""
    return next((p for p in manifest.points if pin_of(epoch) in p.pins), None)


# --- deciding: pure ---------------------------------------------------------------------------------------
def with_present_run(manifest: Manifest, name: str) -> dict[str, KeptRun]:
    """``Manifest.kept`` once the run that the VM is in, if any, is over."""
    number = manifest.epoch.number
    entry = point_of(manifest, number)
    if str(number) not in manifest.runs or entry is None or str(number) in manifest.kept:
        return manifest.kept
    over = KeptRun(name=name or f"the run of epoch {number}", at=datetime.now(UTC), seq=entry.seq)
    return {**manifest.kept, str(number): over}


def without_run(manifest: Manifest, epoch: int) -> Manifest:
    """No longer listed, its point no longer pinned by it."""
    pin, key = pin_of(epoch), str(epoch)
    points = tuple(
        p.model_copy(update={"pins": tuple(x for x in p.pins if x != pin)}) if pin in p.pins else p
        for p in manifest.points
    )
    runs = {n: paths for n, paths in manifest.runs.items() if n != key}
    kept = {n: k for n, k in manifest.kept.items() if n != key}
    return manifest.model_copy(update={"points": points, "runs": runs, "kept": kept})


def _renumbered(manifest: Manifest, old: int, new: int) -> Manifest:
    """The run of epoch ``old`` is that of ``new``; its files stay where they are."""
    if str(old) not in manifest.runs:
        return manifest
    points = tuple(
        p.model_copy(update={"pins": tuple(pin_of(new) if x == pin_of(old) else x for x in p.pins)})
        for p in manifest.points
    )
    runs = {str(new) if n == str(old) else n: paths for n, paths in manifest.runs.items()}
    provisional = new if manifest.provisional == old else manifest.provisional
    return manifest.model_copy(update={"points": points, "runs": runs, "provisional": provisional})


# --- acting, under the replica's lock ---------------------------------------------------------------------
def commit(layout: Layout, manifest: Manifest, request: CommitRequest) -> Manifest:
    """Raises EpochMoved."""
    if manifest.epoch.number != request.epoch:
        raise EpochMoved(
            f"VM {manifest.vm_name} is in epoch {manifest.epoch.number}, not {request.epoch}",
            fix="Look at it again before committing",
        )
    if manifest.provisional != request.epoch:
        return manifest
    return index.save(layout, manifest, manifest.model_copy(update={"provisional": 0}))


def raise_epoch(layout: Layout, manifest: Manifest, request: EpochRequest) -> Manifest:
    """Raises EpochMoved: another owner, or not higher."""
    new = request.new_epoch
    if new == manifest.epoch:
        return manifest
    if new.owner != manifest.epoch.owner or new.number <= manifest.epoch.number:
        raise EpochMoved(
            f"VM {manifest.vm_name} is in epoch {manifest.epoch.number} of site {manifest.epoch.owner}",
            why=f"the request is for epoch {new.number} of site {new.owner}",
            number=manifest.epoch.number,
            owner=manifest.epoch.owner,
        )
    after = _renumbered(manifest, manifest.epoch.number, new.number).model_copy(update={"epoch": new})
    return index.save(layout, manifest, after)


def let_go(layout: Layout, manifest: Manifest, epoch: int, refs: References) -> Manifest:
    """Raises NotFound, Conflict."""
    key = str(epoch)
    if key not in manifest.runs:
        tidy(layout, manifest, epoch)
        return manifest
    if key not in manifest.kept:
        raise Conflict(f"The run of epoch {epoch} is not over", fix="Only what is kept can be let go")
    check_unused(layout, manifest, epoch, refs)
    return saved_and_tidied(layout, manifest, without_run(manifest, epoch), epoch)


def check_unused(layout: Layout, manifest: Manifest, epoch: int, refs: References) -> None:
    """Raises Conflict when a domain, running or not, or another image stands on the run's overlays."""
    for path in manifest.runs[str(epoch)].values():
        image = layout.top / path
        if refs.used_by_domain(image) or refs.children(image) or images.in_use_by_qemu(image):
            raise Conflict(f"{image} is in use", fix="Stop and undefine the VM at this site first")


def saved_and_tidied(layout: Layout, before: Manifest, after: Manifest, epoch: int) -> Manifest:
    """The manifest first, then the files that it no longer lists."""
    directories = {(layout.top / p).parent for p in before.runs.get(str(epoch), {}).values()}
    saved = index.save(layout, before, after)
    steps.reached("run-unlisted")
    _remove_unlisted(layout, saved, directories)
    return saved


def tidy(layout: Layout, manifest: Manifest, epoch: int) -> None:
    """What a let-go that was cut has left."""
    _remove_unlisted(layout, manifest, {layout.run(epoch)})


def _remove_unlisted(layout: Layout, manifest: Manifest, directories: set[Path]) -> None:
    listed = {(layout.top / p).parent for paths in manifest.runs.values() for p in paths.values()}
    for directory in directories - listed:
        # Overlays made by hand stay: a person made them.
        if directory.is_dir() and directory.parent == layout.runs and directory.name.isdecimal():
            remove_flat(directory)


def find(manifest: Manifest, epoch: int) -> KeptRun:
    """Raises NotFound."""
    found = manifest.kept.get(str(epoch))
    if found is None:
        raise NotFound(f"No run of epoch {epoch} of VM {manifest.vm_name} is kept here")
    return found
