"""Block-digest tables: one blake3-128 per 64 KiB block of a disk, in fixed slots of 16 bytes.

A slot of zero bytes means "not known": blake3 never yields it. The last block of a disk whose size is no
multiple of 64 KiB is hashed at its real, shorter length.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from blake3 import blake3

from vapor_desktop.model.extents import BLOCK_BYTES
from vapor_desktop.site.replica.files import open_made

DIGEST_BYTES = 16
UNKNOWN = bytes(DIGEST_BYTES)
_RUN_BYTES = 1 << 20
_PAGE_BYTES = 4096


def block_digest(block: bytes | bytearray | memoryview) -> bytes:
    """The 16-byte digest of one block."""
    return blake3(block).digest(DIGEST_BYTES)


@lru_cache(maxsize=8)
def zero_digest(length: int = BLOCK_BYTES) -> bytes:
    """The digest of ``length`` zero bytes."""
    return block_digest(bytes(length))


def block_count(size_bytes: int) -> int:
    """Blocks of a disk."""
    return -(-size_bytes // BLOCK_BYTES)


def data_runs(path: Path) -> Iterator[tuple[int, bytes]]:
    """``(first slot, slots)`` of the allocated parts of a sparse slot file, at most 1 MiB each.

    Whole slots only; unknown slots may be among them.
    """
    with path.open("rb", buffering=0) as file:
        fd, size, at = file.fileno(), path.stat().st_size, 0
        while at < size:
            try:
                at = os.lseek(fd, at, os.SEEK_DATA)
            except OSError:  # ENXIO: nothing but a hole up to the end
                return
            end = os.lseek(fd, at, os.SEEK_HOLE)
            at -= at % DIGEST_BYTES
            while at < end:
                raw = os.pread(fd, min(_RUN_BYTES, -(-(end - at) // DIGEST_BYTES) * DIGEST_BYTES), at)
                if not raw:
                    return
                yield at // DIGEST_BYTES, raw
                at += len(raw)


class DigestTable:
    """A slot file. Reading beyond its end gives unknown slots. Not locked: the store locks around writes."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self.path = path
        self.blocks = block_count(size_bytes)

    def read(self, first_block: int, count: int) -> bytes:
        """``count`` slots from ``first_block`` (clipped to the disk), 16 bytes each."""
        count = max(0, min(count, self.blocks - first_block))
        try:
            with self.path.open("rb", buffering=0) as file:
                raw = os.pread(file.fileno(), count * DIGEST_BYTES, first_block * DIGEST_BYTES)
        except FileNotFoundError:
            raw = b""
        return raw + bytes(count * DIGEST_BYTES - len(raw))

    def write(self, first_block: int, digests: bytes) -> None:
        """Put slots; durable after ``sync``."""
        fd = open_made(self.path, os.O_RDWR)
        try:
            os.pwrite(fd, digests, first_block * DIGEST_BYTES)
        finally:
            os.close(fd)

    def sync(self) -> None:
        """Make everything written durable. Nothing to do without a file."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def root(self, over: Path | None = None) -> str:
        """blake3, hex, over the whole table, with the known slots of the slot file ``over`` laid on top.

        "" when a slot is unknown: there is no statement about a disk that was not read whole.
        """
        top = DigestTable(over, self.blocks * BLOCK_BYTES) if over is not None else None
        hasher, per = blake3(), _RUN_BYTES // DIGEST_BYTES
        for first in range(0, self.blocks, per):
            slots = self.read(first, per)
            if top is not None:
                slots = lay_over(slots, top.read(first, per))
            # A digest of zeroes cannot straddle two digests either: 2^-128.
            if slots.find(UNKNOWN) >= 0:
                return ""
            hasher.update(slots)
        return hasher.hexdigest()


def lay_over(slots: bytes, top: bytes) -> bytes:
    """``slots`` with every known slot of ``top`` put over it (same length)."""
    if not top.strip(b"\0"):
        return slots
    if top.find(UNKNOWN) < 0:
        return top
    out = bytearray(slots)
    for page in range(0, len(top), _PAGE_BYTES):
        part = top[page : page + _PAGE_BYTES]
        if not part.strip(b"\0"):
            continue
        for at in range(0, len(part), DIGEST_BYTES):
            slot = part[at : at + DIGEST_BYTES]
            if slot != UNKNOWN:
                out[page + at : page + at + DIGEST_BYTES] = slot
    return bytes(out)
