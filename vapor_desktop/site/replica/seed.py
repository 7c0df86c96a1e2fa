"""Seeds: private copies of images that were at the target already, on which a disk's first overlay hangs.

``seeds.json`` names each file before it is written and says *ready* once it and its digest table are durable.
A seed is no recovery point and belongs to none: nothing boots from it. Once a point stands on it, it is the
lowest file of the chain.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from vapor_desktop.model.errors import Conflict, ManifestInvalid
from vapor_desktop.model.manifest import Manifest
from vapor_desktop.model.policy import Value
from vapor_desktop.site.replica import record as records
from vapor_desktop.site.replica import steps
from vapor_desktop.site.replica.files import FILE_MODE, remove, sync_dir, sync_file, write_durable
from vapor_desktop.site.replica.incoming import discard
from vapor_desktop.site.replica.layout import Layout, check_disk, new_image_name
from vapor_desktop.site.replica.references import References

TABLE_OF_SEED = "seed:"  # in digests/<disk>.at, before the file's name


class Seed(Value):
    """One disk's seed. ``source``: the image it was copied from, for people."""

    file: str  # below disks/
    size_bytes: int
    source: str
    made_at: datetime
    ready: bool = False


class Seeds(Value):
    """``seeds.json``."""

    disks: dict[str, Seed] = {}


def load(layout: Layout) -> Seeds:
    """Empty without the file. Raises ManifestInvalid when it is damaged."""
    try:
        return Seeds.model_validate_json(layout.seeds.read_bytes())
    except FileNotFoundError:
        return Seeds()
    except ValidationError as error:
        raise ManifestInvalid(
            f"The list of seeds of VM {layout.vm} is damaged", why=str(error.errors()[0])
        ) from error


def ready(layout: Layout, manifest: Manifest) -> dict[str, Seed]:
    """The seeds that the next incoming stands on: of disks that no point holds yet."""
    held = manifest.newest.files if manifest.newest else {}
    return {disk: seed for disk, seed in load(layout).disks.items() if seed.ready and disk not in held}


def begin(layout: Layout, manifest: Manifest, disk: str, size_bytes: int, source: str, refs: References) -> Path:
    """Under the lock, the grant checked: note the file that will be written; its path.

    What an earlier attempt left is deleted first. Raises Conflict when a point holds the disk already, or
    stands on the seed that it would replace.
    """
    if manifest.newest is not None and check_disk(disk) in manifest.newest.files:
        raise Conflict(
            f"Disk {disk} of VM {manifest.vm_name} has recovery points already",
            fix="A seed is for a disk's first copy; later cycles send only what changed",
        )
    seeds = load(layout)
    old = seeds.disks.get(check_disk(disk))
    if old is not None:
        _forget_unfinished(layout)
        if [c for c in refs.children(layout.disks / old.file) if c.exists()]:
            raise Conflict(f"A recovery point stands on the seed of disk {disk}")
        remove(layout.disks / old.file)
        sync_dir(layout.disks)
    seed = Seed(file=new_image_name(), size_bytes=size_bytes, source=source, made_at=datetime.now(UTC))
    _save(layout, Seeds(disks={**seeds.disks, disk: seed}))
    steps.reached("seed-noted")
    return layout.disks / seed.file


def finish(layout: Layout, disk: str, path: Path) -> None:
    """Under the lock, the grant checked: image and table are written; from here on the next copy stands on them.

    An unfinished copy that began without it is discarded.
    """
    seeds = load(layout)
    seed = seeds.disks.get(disk)
    if seed is None or seed.file != path.name:
        raise Conflict(f"Another seed of disk {disk} was begun meanwhile")
    path.chmod(FILE_MODE)
    sync_file(path)
    sync_dir(layout.disks)
    table = layout.table(disk)
    table.unlink(missing_ok=True)
    layout.seed_table(disk).rename(table)
    sync_file(table)
    write_durable(layout.digests / f"{disk}.at", f"{TABLE_OF_SEED}{seed.file}".encode())
    steps.reached("seed-table")
    _forget_unfinished(layout)
    _save(layout, Seeds(disks={**seeds.disks, disk: seed.model_copy(update={"ready": True})}))
    steps.reached("seed-ready")


def abandon(layout: Layout, disk: str, path: Path) -> None:
    """Under the lock: delete what a copy that failed left."""
    remove(layout.seed_table(disk))
    seeds = load(layout)
    seed = seeds.disks.get(disk)
    if seed is None or seed.file != path.name or seed.ready:
        return
    remove(path)
    sync_dir(layout.disks)
    _save(layout, Seeds(disks={d: s for d, s in seeds.disks.items() if d != disk}))


def _forget_unfinished(layout: Layout) -> None:
    for seq, _, record in records.unfinished(layout):
        discard(layout, seq, record)


def _save(layout: Layout, seeds: Seeds) -> None:
    write_durable(layout.seeds, seeds.model_dump_json(indent=1).encode())
