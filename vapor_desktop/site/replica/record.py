"""The durable parts of an unfinished point: ``incoming.json`` and the extent maps beside it."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from pydantic import ValidationError

from vapor_desktop.model.blockmap import BlockMap
from vapor_desktop.model.extents import Extent
from vapor_desktop.model.manifest import DiskMode, Epoch
from vapor_desktop.model.policy import Value
from vapor_desktop.site.replica.files import open_made, write_durable
from vapor_desktop.site.replica.layout import Layout, numbered

RECORD = "incoming.json"
BUSY = ".busy"
_PAIR = struct.Struct(">QQ")
_PIECE_BYTES = 1 << 20  # a multiple of a record


class IncomingDisk(Value):
    """One disk of an unfinished point. ``base``: file below ``disks/`` that its overlay hangs on."""

    file: str  # below incoming/, later below disks/
    base: str | None
    base_size_bytes: int
    size_bytes: int
    mode: DiskMode


class IncomingRecord(Value):
    """``incoming.json``. ``holder`` changes with every opening: who has another one lost it."""

    made: str  # in the names of its maps: who was thrown out writes beside those of the next, never into them
    holder: str
    parent_seq: int | None
    epoch: Epoch
    source_site: str
    checkpoint: str | None
    maps: int = 0  # generation of the map files
    disks: dict[str, IncomingDisk]


def load(directory: Path) -> IncomingRecord | None:
    """None if it is missing or damaged: then nothing of that point can be used."""
    try:
        return IncomingRecord.model_validate_json((directory / RECORD).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def save(directory: Path, record: IncomingRecord) -> None:
    """Replace ``incoming.json`` whole."""
    write_durable(directory / RECORD, record.model_dump_json().encode())


def unfinished(layout: Layout) -> list[tuple[int, Path, IncomingRecord | None]]:
    """Every unfinished point, oldest first."""
    found = sorted(numbered(layout.incoming).items())
    return [(seq, directory, load(directory)) for seq, directory in found]


def map_file(directory: Path, record: IncomingRecord, disk: str, kind: str) -> Path:
    """A disk's ``want`` or ``map`` of the record's generation."""
    return directory / f"{disk}.{record.made}.{record.maps}.{kind}"


def agreed(directory: Path, record: IncomingRecord) -> bool:
    """Whether what must be received is on record for every disk.

    Before that nothing was received, and which changes the point lacks is known to the source's job alone: an
    incoming of a sender that died so early must never be continued from its own checkpoint.
    """
    return all(map_file(directory, record, disk, "want").exists() for disk in record.disks)


class ExtentMap:
    """A set of extents in an append-only file of 16-byte records; a torn record at the end is not there.

    Read into a map of blocks and written from an iterator: a fragmented disk has millions of them.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, size_bytes: int) -> BlockMap | None:
        """The blocks of a disk of ``size_bytes`` that its extents cover whole. None: never written."""
        found = BlockMap(size_bytes)
        try:
            with self._path.open("rb") as file:
                while raw := file.read(_PIECE_BYTES):
                    whole = len(raw) - len(raw) % _PAIR.size
                    found.add_whole(Extent(*pair) for pair in _PAIR.iter_unpack(raw[:whole]))
        except FileNotFoundError:
            return None
        return found

    def append(self, extents: Iterable[Extent]) -> None:
        """Add, durably."""
        fd = open_made(self._path, os.O_RDWR | os.O_APPEND)
        try:
            torn = os.fstat(fd).st_size % _PAIR.size
            if torn:
                os.ftruncate(fd, os.fstat(fd).st_size - torn)
            for piece in _packed(extents):
                raw = memoryview(piece)
                while raw:
                    raw = raw[os.write(fd, raw) :]
            os.fsync(fd)
        finally:
            os.close(fd)

    def replace(self, extents: Iterable[Extent]) -> None:
        """The whole set anew, durably."""
        write_durable(self._path, b"".join(_packed(extents)))


def _packed(extents: Iterable[Extent]) -> Iterator[bytes]:
    """Records, about 1 MiB at a time."""
    rest = iter(extents)
    while piece := b"".join(_PAIR.pack(*e) for e in islice(rest, _PIECE_BYTES // _PAIR.size)):
        yield piece
