"""The replica's manifest: at the target, the truth about who owns a VM and which points exist.

``manifest.json`` is the index (small, rewritten whole); ``points/<seq>/point.json`` is immutable. Both
carry a checksum of their own canonical JSON, so damage is noticed, never guessed around.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from hashlib import sha256
from typing import Annotated, TypeVar

from pydantic import Field, ValidationError

from vapor_desktop.model.errors import ManifestInvalid
from vapor_desktop.model.policy import Mappings, Policy, Value

FORMAT = 1


class Consistency(StrEnum):
    """What state the disks of a point are in."""

    CRASH = "crash-consistent"
    FILESYSTEM = "file-system consistent"  # frozen by the guest agent
    OFF = "powered off"  # the VM was off: nothing in flight
    SAVED = "managed save"  # disks of a VM whose memory was saved: like a crash


class DiskMode(StrEnum):
    """How a disk's content got into a point."""

    DELTA = "delta"
    COMPARE = "compare"
    FULL = "full"


class Epoch(Value):
    """(number, owner). The higher number owns the VM; equal numbers, different owners: split brain."""

    number: Annotated[int, Field(ge=1)]
    owner: str  # site UUID


class PointDisk(Value):
    """One disk in a point."""

    target: str  # libvirt target name, "vda"
    size_bytes: Annotated[int, Field(ge=0)]
    mode: DiskMode
    sent_bytes: int = 0  # payload written (data, not zeroes)
    zero_bytes: int = 0
    digest: str = ""  # blake3 over the disk's block-digest table, hex; "" = not computed


class Point(Value):
    """``point.json``: a recovery point, complete and durable. Times are UTC, on the *target's* clock."""

    format: int = FORMAT
    vm_uuid: str
    vm_name: str
    protection_id: str
    seq: Annotated[int, Field(ge=1)]
    parent_seq: int | None
    epoch: Epoch
    source_site: str
    target_site: str
    checkpoint: str | None  # libvirt checkpoint of this moment on the source; None for raw disks and no bitmap
    taken_at: datetime
    published_at: datetime  # the target's clock
    consistency: Consistency
    frozen_s: float = 0.0  # how long the guest's file systems were held for it, at most
    disks: tuple[PointDisk, ...]
    without_disks: tuple[str, ...] = ()  # disks of the VM that this point does not hold (excluded by policy)
    duration_s: float = 0.0
    wire_bytes: int = 0
    nvram: bool = False  # points/<seq>/nvram.fd exists
    tpm: bool = False
    tpm_digest: str = ""  # SHA-256 of points/<seq>/tpm.tar
    checksum: str = ""


class PointEntry(Value):
    """One point as the manifest lists it."""

    seq: int
    taken_at: datetime
    current_as_of: datetime  # on the target's clock
    files: dict[str, str]  # disk target -> file name below disks/
    sizes: dict[str, int] = {}  # disk target -> virtual size in bytes
    checkpoint: str | None = None
    consistency: Consistency = Consistency.CRASH
    epoch_number: int = 1
    bytes_sent: int = 0
    dead: bool = False  # marked before its file is merged into: no longer a recovery point
    pins: tuple[str, ...] = ()  # "user:NOTE", "drill:ID", "run:EPOCH"
    proven_at: datetime | None = None
    verified: bool = True  # False once the scrub found a mismatch
    # Disk target -> stamp of a stopped VM's image when it was last proven to hold this point's content. One that
    # moved while the bitmap stayed empty was written behind QEMU's back [facts/libvirt 1.4].
    images: dict[str, str] = {}
    config: str = ""  # digest of the domain XML, NVRAM and TPM state of the point; "": not known


class KeptRun(Value):
    """What a VM wrote here in a run that is over: its overlays stay, and pin their point, until let go."""

    name: str
    at: datetime  # since when it is over, on the target's clock
    seq: int  # the point it ran on


class AdoptedBase(Value):
    """A disk's original image that the lowest overlays hang on (DESIGN §6): never removed, never merged into.

    ``stamp`` (inode:size:mtime in ns) was recorded when it was adopted; another one now means that somebody wrote it.
    ``digest``: blake3 over its block-digest table, "" where it was never read whole.
    """

    path: str
    size_bytes: Annotated[int, Field(ge=0)]
    stamp: str
    digest: str = ""


class Manifest(Value):
    """``manifest.json``."""

    format: int = FORMAT
    generation: int = 1  # rises with every write; compare-and-set
    vm_uuid: str
    vm_name: str
    protection_id: str
    source_site: str
    target_site: str
    epoch: Epoch
    policy: Policy = Policy()
    mappings: Mappings = Mappings()
    settings_version: Annotated[int, Field(ge=1)] = 1  # rises with every edit of policy or mappings
    next_seq: Annotated[int, Field(ge=1)] = 1
    points: tuple[PointEntry, ...] = ()  # oldest first
    runs: dict[str, dict[str, str]] = {}  # epoch number -> {disk target: overlay path below the replica}
    provisional: int = 0  # number of the epoch whose run here nobody has committed yet; 0: none
    kept: dict[str, KeptRun] = {}  # epoch number in ``runs`` -> a run that is over
    adopted: dict[str, AdoptedBase] = {}  # disk target -> the original image at the foot of its chain
    folded: bool = False  # the VM lives on its flat disks here and is protected to another site: no points any more
    checksum: str = ""

    @property
    def newest(self) -> PointEntry | None:
        """The newest living point."""
        return next((p for p in reversed(self.points) if not p.dead), None)

    def entry(self, seq: int) -> PointEntry | None:
        """The living point of that number."""
        return next((p for p in self.points if p.seq == seq and not p.dead), None)


def config_of_point(configuration: str, blobs: Mapping[str, bytes]) -> str:
    """``PointEntry.config``: a configuration's digest and what belongs to it (NVRAM, TPM state). "" stays ""."""
    if not configuration:
        return ""
    found = sha256(configuration.encode())
    for name, content in sorted(blobs.items()):
        found.update(name.encode() + b"\0" + sha256(content).digest())
    return found.hexdigest()


_Document = TypeVar("_Document", Point, Manifest)


def _checksum(document: Point | Manifest) -> str:
    blank = document.model_copy(update={"checksum": ""})
    # Fields at their default are left out: a field that a later version adds must not damage what exists.
    return sha256(blank.model_dump_json(exclude_defaults=True).encode()).hexdigest()


def seal(document: _Document) -> _Document:
    """The document with its checksum filled in."""
    return document.model_copy(update={"checksum": _checksum(document)})


def read(kind: type[_Document], raw: bytes) -> _Document:
    """The document in ``raw``.

    Raises ManifestInvalid if it does not parse, is of another format, or its checksum does not match.
    """
    try:
        document = kind.model_validate_json(raw)
    except ValidationError as error:
        raise ManifestInvalid(
            f"A {kind.__name__.lower()} file does not parse", why=str(error.errors()[0]["msg"])
        ) from error
    if document.format != FORMAT:
        raise ManifestInvalid(
            f"A {kind.__name__.lower()} file has format {document.format}, this program knows {FORMAT}"
        )
    if document.checksum != _checksum(document):
        raise ManifestInvalid(f"A {kind.__name__.lower()} file does not match its own checksum")
    return document
