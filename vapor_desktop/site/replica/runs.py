"""Taking a VM over: epoch, overlays on a point, its NVRAM. Nothing of the point itself is written to."""

from __future__ import annotations

import os
from pathlib import Path

from vapor_desktop.model.errors import Conflict, EpochMoved, InvalidRequest, NotFound
from vapor_desktop.model.manifest import Manifest, PointEntry
from vapor_desktop.model.runbook import by_hand
from vapor_desktop.model.wire import GiveBackRequest, Run, RunRequest
from vapor_desktop.site.replica import adoption, images, index, kept, steps
from vapor_desktop.site.replica import record as records
from vapor_desktop.site.replica.files import make_dir, remove_flat, sync_dir, sync_file, write_durable
from vapor_desktop.site.replica.incoming import discard
from vapor_desktop.site.replica.layout import BLOB_FILES, Layout, numbered
from vapor_desktop.site.replica.references import References

_NVRAM = BLOB_FILES["nvram"]
pin_of = kept.pin_of


def earlier(layout: Layout, manifest: Manifest, request: RunRequest) -> Run | None:
    """The run that this very request made before. Raises EpochMoved, Conflict."""
    number = request.new_epoch.number
    if request.new_epoch == manifest.epoch and str(number) in manifest.runs:
        entry = next((p for p in manifest.points if pin_of(number) in p.pins), None)
        if entry is None or entry.seq != request.seq:
            raise Conflict(f"Epoch {number} of this VM runs on another recovery point", seq=entry and entry.seq)
        return _described(layout, manifest, request, entry)
    if number <= manifest.epoch.number:
        raise EpochMoved(
            f"VM {manifest.vm_name} is already in epoch {manifest.epoch.number} of site {manifest.epoch.owner}"
        )
    return None


def make(layout: Layout, manifest: Manifest, request: RunRequest, site_id: str, refs: References) -> Run:
    """Under both locks, the lease checked, nothing half-published."""
    if request.new_epoch.owner != site_id:
        raise InvalidRequest("A replica is run by the site that holds it")
    entry = manifest.entry(request.seq)
    if entry is None:
        raise NotFound(f"There is no recovery point {request.seq} of VM {manifest.vm_name}")
    adoption.check(manifest)
    number = request.new_epoch.number
    clear(layout, manifest, refs)
    directory = _made_by_hand(layout, number, entry, refs)
    if directory is None:
        directory = layout.run(number)
        _make_overlays(layout, directory, entry)
    paths = {target: f"run/{directory.name}/{target}.qcow2" for target in entry.files}
    pinned = entry.model_copy(update={"pins": (*entry.pins, pin_of(number))})
    update = {
        "epoch": request.new_epoch,
        "runs": {**manifest.runs, str(number): paths},
        "kept": kept.with_present_run(manifest, request.keep_as),
        "provisional": number if request.provisional else 0,
    }
    after = index.save(layout, manifest, index.replaced(manifest, pinned).model_copy(update=update))
    for seq, _, record in records.unfinished(layout):  # a receive that goes on is refused from here on
        discard(layout, seq, record)
    return _described(layout, after, request, pinned)


def _make_overlays(layout: Layout, directory: Path, entry: PointEntry) -> None:
    make_dir(layout.runs)
    make_dir(directory)
    for target, name in entry.files.items():
        overlay = directory / f"{target}.qcow2"
        images.create(overlay, entry.sizes[target], name if name.startswith("/") else f"../../disks/{name}")
        sync_file(overlay)
        steps.reached("run-overlay")
    varstore = layout.point(entry.seq) / _NVRAM
    if varstore.exists():
        write_durable(directory / _NVRAM, varstore.read_bytes())
    sync_dir(directory)


def _made_by_hand(layout: Layout, epoch: int, entry: PointEntry, refs: References) -> Path | None:
    """The overlays that a person made by the runbook and a VM of this host uses: they become this run's.

    Raises Conflict when the VM was brought up by hand from another point.
    """
    wanted = layout.runs / by_hand(epoch, entry.seq)
    for directory in layout.runs.glob("by-hand-*") if layout.runs.is_dir() else ():
        if not any(refs.used_by_domain(image) for image in directory.iterdir()):
            continue
        if directory != wanted:
            raise Conflict(
                f"The VM was brought up by hand here, on {directory.name}",
                fix="Fail over to that very point, which takes over what was done, or undo it as its runbook says",
            )
        for target, name in entry.files.items():
            if Path(os.path.normpath(layout.disks / name)) not in refs.backings_of(wanted / f"{target}.qcow2"):
                raise Conflict(f"{wanted / target}.qcow2 does not stand on recovery point {entry.seq}")
        return wanted
    return None


def give_back(layout: Layout, manifest: Manifest, request: GiveBackRequest, refs: References) -> Manifest:
    """Under both locks, the lease checked. Idempotent for the same new epoch. Raises Conflict, EpochMoved."""
    number, run = request.new_epoch.number, request.run_epoch
    if request.new_epoch.owner != manifest.source_site:
        raise InvalidRequest("A VM is given back to the site it came from")
    if request.new_epoch != manifest.epoch:
        if number <= manifest.epoch.number or (manifest.epoch.number, str(run) in manifest.runs) != (run, True):
            raise EpochMoved(f"VM {manifest.vm_name} is in epoch {manifest.epoch.number}, not in run {run}")
        kept.check_unused(layout, manifest, run, refs)
        given = manifest.model_copy(update={"epoch": request.new_epoch, "provisional": 0})
        if request.keep_as:
            after = given.model_copy(update={"kept": kept.with_present_run(manifest, request.keep_as)})
        else:
            after = kept.without_run(given, run)
        return kept.saved_and_tidied(layout, manifest, after, run)
    kept.tidy(layout, manifest, run)
    return manifest


def _described(layout: Layout, manifest: Manifest, request: RunRequest, entry: PointEntry) -> Run:
    number = request.new_epoch.number
    disks = {target: str(layout.top / path) for target, path in manifest.runs[str(number)].items()}
    varstore = next((Path(path).parent for path in disks.values()), layout.run(number)) / _NVRAM
    return Run(
        epoch=request.new_epoch,
        seq=entry.seq,
        disks=disks,
        domain_xml=(layout.point(entry.seq) / "domain.xml").read_text(),
        nvram=str(varstore) if varstore.exists() else None,
    )


def clear(layout: Layout, manifest: Manifest, refs: References) -> None:
    """Delete overlays of an epoch that never came to be. A file that a domain uses stays, with a refusal."""
    for number, directory in numbered(layout.runs).items():
        if number > manifest.epoch.number and str(number) not in manifest.runs:
            for image in directory.iterdir():
                if refs.used_by_domain(image) or refs.children(image) or images.in_use_by_qemu(image):
                    raise Conflict(f"{image} is in use, but no run of this replica made it")
            remove_flat(directory)
