"""Becoming flat: a VM that runs here on an overlay goes back to one file per disk (DESIGN §6).

Once its first reverse point exists the overlay is no more needed as a delta. ``begin`` gives the old direction's
points up, durably, before the first byte of their files changes; QEMU then writes the overlay down (active
blockCommit, by the engine); ``finish`` looks that the VM uses the lower file, and deletes what is left.
"""

from __future__ import annotations

from pathlib import Path

from vapor_desktop.model.errors import Conflict, EpochMoved, ManifestInvalid, PointPinned
from vapor_desktop.model.manifest import Manifest
from vapor_desktop.model.policy import Value
from vapor_desktop.model.wire import FoldPlan, FoldRequest
from vapor_desktop.site.replica import images, index, steps
from vapor_desktop.site.replica import record as records
from vapor_desktop.site.replica.adoption import chain_down
from vapor_desktop.site.replica.files import remove, remove_flat, sync_dir, write_durable
from vapor_desktop.site.replica.incoming import discard
from vapor_desktop.site.replica.index import POINT
from vapor_desktop.site.replica.layout import IMAGE_NAME, Layout, numbered
from vapor_desktop.site.replica.references import References


class FoldJournal(Value):
    """``fold.json``: disk -> (the overlay that the VM runs on, the file that its content goes down into)."""

    pairs: dict[str, tuple[str, str]]


_OURS = ("run:", "base:")


def begin(layout: Layout, manifest: Manifest, request: FoldRequest, site_id: str, refs: References) -> FoldPlan:
    """Under both locks, the lease checked. Repeatable. Raises EpochMoved, PointPinned, Conflict; no change then."""
    _check_owner(manifest, request, site_id)
    pairs = in_flight(layout) or _pairs(layout, manifest, request, site_id)
    if layout.fold_journal.exists() or manifest.folded or all(top == foot for top, foot in pairs.values()):
        return _plan(pairs, manifest)
    for point in manifest.points:
        others = [pin for pin in point.pins if not pin.startswith(_OURS)]
        if others:
            raise PointPinned(
                f"Recovery point {point.seq} of before is kept ({', '.join(others)})",
                why="its file would be written into",
                fix="Let its pin go; the VM runs on its overlay until then",
            )
    mine = {path for top, foot in pairs.values() for path in chain_down(layout, top, foot)}
    mine |= {layout.disks / name for p in manifest.points for name in p.files.values()}
    for image in mine:
        for child in refs.children(image):
            if child not in mine:
                raise PointPinned(f"{child} hangs on {image}", file=str(child))
    for seq, _, record in records.unfinished(layout):
        discard(layout, seq, record)
    journal = FoldJournal(pairs={disk: (str(top), str(foot)) for disk, (top, foot) in pairs.items()})
    points = tuple(p.model_copy(update={"dead": True}) for p in manifest.points)
    manifest = index.save(layout, manifest, manifest.model_copy(update={"points": points}))
    steps.reached("fold-dead")
    for point in points:  # a rebuild of a lost manifest must not find them either
        remove(layout.point(point.seq) / POINT)
    sync_dir(layout.points)
    write_durable(layout.fold_journal, journal.model_dump_json().encode())
    steps.reached("fold-journalled")
    return _plan(pairs, manifest)


def finish(layout: Layout, manifest: Manifest, request: FoldRequest, site_id: str, refs: References) -> FoldPlan:
    """Under both locks, the lease checked: the VM uses the lower files. Repeatable. Raises Conflict, EpochMoved."""
    _check_owner(manifest, request, site_id)
    pairs = in_flight(layout) or _pairs(layout, manifest, request, site_id)
    number = str(request.epoch.number)
    for top, foot in pairs.values():
        if not refs.used_by_domain(foot):
            raise Conflict(f"No VM here uses {foot}: it is not flat yet")
        if top != foot and (refs.used_by_domain(top) or images.in_use_by_qemu(top)):
            raise Conflict(f"{top} is in use still: the VM is not flat yet")
    feet = {foot for _top, foot in pairs.values()}
    if manifest.points or not manifest.folded:
        for directory in numbered(layout.points).values():
            remove_flat(directory)
        runs = {number: {disk: _below(layout, foot) for disk, (_top, foot) in pairs.items()}}
        update = {"points": (), "runs": runs, "adopted": {}, "folded": True}
        manifest = index.save(layout, manifest, manifest.model_copy(update=update))
    steps.reached("fold-listed")
    for image in (*layout.disks.iterdir(), *layout.runs.glob("*/*.qcow2")):
        ours = IMAGE_NAME.fullmatch(image.name) or image.parent.parent == layout.runs
        if ours and image not in feet and not refs.used_by_domain(image):
            remove(image)
            steps.reached("fold-deleted")
    # The run's directory stays until the VM has gone on: its varstore lies there, and libvirt's live name of the
    # lower file leads through it ("run/2/../../disks/NAME").
    for table in layout.digests.iterdir():
        remove(table)
    sync_dir(layout.disks)
    remove(layout.fold_journal)
    sync_dir(layout.top)
    return _plan(pairs, manifest)


def in_flight(layout: Layout) -> dict[str, tuple[Path, Path]]:
    """What ``begin`` decided and ``finish`` has not finished; once QEMU is through, a head tells nothing any more."""
    try:
        journal = FoldJournal.model_validate_json(layout.fold_journal.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ManifestInvalid(f"The fold journal of VM {layout.vm} is damaged", why=str(error)) from error
    return {disk: (Path(top), Path(foot)) for disk, (top, foot) in journal.pairs.items()}


def _check_owner(manifest: Manifest, request: FoldRequest, site_id: str) -> None:
    if manifest.epoch != request.epoch or manifest.epoch.owner != site_id:
        raise EpochMoved(f"VM {manifest.vm_name} is in epoch {manifest.epoch.number} of {manifest.epoch.owner}")


def _pairs(layout: Layout, manifest: Manifest, request: FoldRequest, site_id: str) -> dict[str, tuple[Path, Path]]:
    """Disk -> (what it runs on, the foot of that chain)."""
    _check_owner(manifest, request, site_id)
    run = manifest.runs.get(str(request.epoch.number))
    if run is None:
        raise Conflict(f"VM {manifest.vm_name} does not run on this replica")
    found = {}
    for disk, name in run.items():
        top = layout.top / name
        if manifest.folded:
            found[disk] = (top, top)
            continue
        base = manifest.adopted.get(disk)
        stop = Path(base.path) if base else None
        if not top.exists():  # it was deleted by an earlier finish
            raise Conflict(f"{top} is gone")
        foot = chain_down(layout, top, stop)[-1]
        if foot != stop and foot.parent != layout.disks and foot != top:
            raise Conflict(f"The chain of disk {disk} ends in {foot}, which is not ours")
        found[disk] = (top, foot)
    return found


def _below(layout: Layout, foot: Path) -> str:
    return str(foot.relative_to(layout.top)) if foot.is_relative_to(layout.top) else str(foot)


def _plan(pairs: dict[str, tuple[Path, Path]], manifest: Manifest) -> FoldPlan:
    return FoldPlan(disks={disk: (str(top), str(foot)) for disk, (top, foot) in pairs.items()}, manifest=manifest)
