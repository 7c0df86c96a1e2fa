"""The diary of a lab guest, seen from outside: format, verdict, and how to read it out of a disk image.

The guest's program is ``guest/diary.c``. The ring file is preallocated and written in place with
O_DIRECT | O_DSYNC, so a crash-consistent image is judged without replaying its journal.
"""

from __future__ import annotations

import struct
import tempfile
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from vapor_desktop.lab.processes import LabFailed, run

RECORD_BYTES = 512
SLOTS = 16384
FULL, EMPTY = b"VDIARY1\n", b"VEMPTY1\n"
_HEADER = struct.Struct("<8sQQQII")  # magic, number, time_ns, boot, disk, slots
_CRC = struct.Struct("<I")
DATA_PARTITION = 2
_SECTOR = 512


@dataclass(frozen=True)
class Record:
    """One intact entry."""

    number: int
    time_ns: int  # the guest's clock, since 1970
    boot: int  # random per start of the program
    disk: int
    slots: int


@dataclass(frozen=True)
class DiskDiary:
    """What one disk's ring says. ``gaps``: numbers missing below ``last``; ``torn``: slots that are neither."""

    last: int
    gaps: int
    torn: int
    newest: Record | None
    records: tuple[Record, ...] = field(default=(), repr=False)  # what the ring still holds, oldest first


@dataclass(frozen=True)
class DiaryReport:
    """What all disks of a guest say together."""

    last: int
    gaps: int
    torn: int
    per_disk: tuple[DiskDiary, ...]

    @property
    def skew(self) -> int:
        """Difference between the disks' last records; 0 or 1 within one moment."""
        return max(disk.last for disk in self.per_disk) - min(disk.last for disk in self.per_disk)

    @property
    def one_moment(self) -> bool:
        """Whether the disks can be of one moment: disk 0 is written first, each later disk after it."""
        lasts = [disk.last for disk in self.per_disk]
        return self.skew <= 1 and lasts == sorted(lasts, reverse=True)

    def longest_gap_s(self, since_ns: int = 0, until_ns: int | None = None) -> float:
        """The longest time in which the guest could not finish a record on any of its disks.

        Within a window of the guest's own clock and within one run of the program; 0.0 without two records there.
        """
        records = self.per_disk[0].records
        seen = [r for r in records if since_ns <= r.time_ns and (until_ns is None or r.time_ns <= until_ns)]
        steps = [b.time_ns - a.time_ns for a, b in pairwise(seen) if a.boot == b.boot]
        return max(steps, default=0) / 1e9

    @property
    def sound(self) -> bool:
        """No gap, nothing torn, one moment."""
        return not self.gaps and not self.torn and self.one_moment


def encode(record: Record) -> bytes:
    """The 512 bytes of a record. The filler is not the guest's own, which only its checksum covers."""
    head = _HEADER.pack(FULL, record.number, record.time_ns, record.boot, record.disk, record.slots)
    body = head + bytes(RECORD_BYTES - len(head) - _CRC.size)
    return body + _CRC.pack(zlib.crc32(body))


def empty_slot(slot: int) -> bytes:
    """A slot never written; not zeros, so that the file has blocks of its own from the start."""
    return (EMPTY + struct.pack("<Q", slot)).ljust(RECORD_BYTES, b"\xa5")


def empty_ring(slots: int = SLOTS) -> bytes:
    """A diary without entries."""
    return b"".join(empty_slot(slot) for slot in range(slots))


def _decode(raw: bytes, slot: int, slots: int, disk: int) -> Record | None:
    magic, number, time_ns, boot, its_disk, its_slots = _HEADER.unpack_from(raw)
    (crc,) = _CRC.unpack_from(raw, RECORD_BYTES - _CRC.size)
    fits = magic == FULL and its_disk == disk and its_slots == slots and number > 0 and (number - 1) % slots == slot
    if not fits or crc != zlib.crc32(raw[: -_CRC.size]):
        return None
    return Record(number, time_ns, boot, its_disk, its_slots)


def parse(ring: bytes, disk: int = 0) -> DiskDiary:
    """Judge one ring. Raises LabFailed if its length is no multiple of a record."""
    if not ring or len(ring) % RECORD_BYTES:
        raise LabFailed(f"A diary of {len(ring)} bytes is no ring of {RECORD_BYTES}-byte records")
    slots = len(ring) // RECORD_BYTES
    held: dict[int, Record] = {}
    torn = 0
    for slot in range(slots):
        raw = ring[slot * RECORD_BYTES : (slot + 1) * RECORD_BYTES]
        if raw == empty_slot(slot):
            continue
        record = _decode(raw, slot, slots, disk)
        if record is None:
            torn += 1
        else:
            held[slot] = record
    newest = max(held.values(), key=lambda record: record.number, default=None)
    last = newest.number if newest else 0
    window = range(max(1, last - slots + 1), last + 1)
    kept = {record.number for record in held.values()}
    records = tuple(sorted(held.values(), key=lambda record: record.number))
    return DiskDiary(last, sum(number not in kept for number in window), torn, newest, records)


def combine(disks: Sequence[DiskDiary]) -> DiaryReport:
    """The verdict on a guest. ``last`` is the newest record that *every* disk holds."""
    if not disks:
        raise LabFailed("A diary needs at least one disk")
    return DiaryReport(
        last=min(disk.last for disk in disks),
        gaps=sum(disk.gaps for disk in disks),
        torn=sum(disk.torn for disk in disks),
        per_disk=tuple(disks),
    )


# --- out of an image -----------------------------------------------------------------------------------
def partition(raw: Path, number: int) -> tuple[int, int]:
    """(offset, length) in bytes of a partition of a raw image; MBR or GPT. Raises LabFailed."""
    with raw.open("rb") as file:
        head = file.read(34 * _SECTOR)
    if head[510:512] != b"\x55\xaa":
        raise LabFailed(f"{raw} has no partition table")
    entry = 446 + (number - 1) * 16
    if head[446 + 4] != 0xEE:
        start, count = struct.unpack_from("<II", head, entry + 8)
    else:
        first, entry_bytes = 2 * _SECTOR, struct.unpack_from("<I", head, _SECTOR + 84)[0]
        start, end = struct.unpack_from("<QQ", head, first + (number - 1) * entry_bytes + 32)
        count = end - start + 1
    if not start or count <= 0:
        raise LabFailed(f"{raw} has no partition {number}")
    return start * _SECTOR, count * _SECTOR


def to_raw(image: str, raw: str, *, enter: Sequence[str] = (), image_format: str | None = None) -> None:
    """Copy an image (a qcow2 chain's top, a raw file, an NBD URI) into a sparse raw file.

    ``enter`` are the words that run a command where the image's paths are true (``Host.enter()``).
    An image in use is read as it is (``-U``), which is only sound when its guest is off or it is an export.
    """
    kind = [] if image_format is None else ["-f", image_format]
    share = [] if "://" in image else ["-U"]
    run([*enter, "qemu-img", "convert", *share, *kind, "-O", "raw", image, raw], timeout_s=600)


def read_ring(raw: Path, disk: int) -> DiskDiary:
    """The diary on the data partition of a raw image (debugfs reads it without replaying the journal)."""
    offset, _ = partition(raw, DATA_PARTITION)
    with tempfile.TemporaryDirectory(prefix="vapor-diary-") as directory:
        out = Path(directory) / "diary"
        run(["debugfs", "-c", "-R", f"dump /diary {out}", f"{raw}?offset={offset}"])
        if not out.exists():
            raise LabFailed(f"{raw} holds no diary on partition {DATA_PARTITION}")
        return parse(out.read_bytes(), disk)


def check(images: Sequence[str], *, image_format: str | None = None) -> DiaryReport:
    """Judge a guest's disks, in order, by images that this machine can read (paths or NBD URIs)."""
    disks = []
    with tempfile.TemporaryDirectory(prefix="vapor-diary-", dir="/var/tmp") as directory:
        for number, image in enumerate(images):
            raw = Path(directory) / f"{uuid.uuid4()}.raw"
            to_raw(image, str(raw), image_format=image_format)
            disks.append(read_ring(raw, number))
            raw.unlink()
    return combine(disks)


def filesystem_sound(raw: Path) -> bool:
    """Whether the data file system is free of errors once its journal is replayed (on this private copy)."""
    offset, length = partition(raw, DATA_PARTITION)
    with tempfile.TemporaryDirectory(prefix="vapor-fsck-", dir=raw.parent) as directory:
        part = Path(directory) / "data"
        with raw.open("rb") as source:
            source.seek(offset)
            part.write_bytes(source.read(length))
        run(["e2fsck", "-E", "journal_only", "-y", part], check=False)
        return run(["e2fsck", "-f", "-n", part], check=False).returncode == 0
