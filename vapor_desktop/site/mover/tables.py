"""The receiver's block digests for compare: from the table where it is sure, else by reading what is there."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator

from vapor_desktop.model.errors import TransferCancelled, TransferInterrupted
from vapor_desktop.model.extents import BLOCK_BYTES, Extent
from vapor_desktop.site.mover.digests import DIGEST_BYTES, UNKNOWN, block_digests, zero_digests
from vapor_desktop.site.mover.nbd_source import Export, connect, disconnect, status
from vapor_desktop.site.mover.protocol import CHUNK_BYTES
from vapor_desktop.site.replica import DigestTable

DEPTH_CONTEXT = "qemu:allocation-depth"
READ_DEPTH = 4


def known_digests(table: DigestTable | None, within: Extent) -> bytearray:
    """The slots of ``within``; unknown ones (no table, beyond its end) are zero bytes."""
    first, blocks = within.offset // BLOCK_BYTES, -(-within.length // BLOCK_BYTES)
    slots = bytearray(table.read(first, blocks) if table is not None else b"")
    return slots + bytes(blocks * DIGEST_BYTES - len(slots))


def forget_own(slots: bytearray, within: Extent, socket_path: str, export: str) -> None:
    """Make the slots of blocks that the overlay itself holds unknown: the parent's table does not speak of them."""
    handle = connect(socket_path, export, [DEPTH_CONTEXT])
    try:
        if not handle.can_meta_context(DEPTH_CONTEXT):
            raise TransferInterrupted("The storage daemon does not tell allocation depth")
        for extent, depth in status(handle, DEPTH_CONTEXT, within):
            if depth == 1:
                first = (extent.offset - within.offset) // BLOCK_BYTES
                last = -(-(extent.end - within.offset) // BLOCK_BYTES)
                slots[first * DIGEST_BYTES : last * DIGEST_BYTES] = UNKNOWN * (last - first)
    finally:
        disconnect(handle)


def read_unknown(slots: bytearray, within: Extent, socket_path: str, export_name: str) -> int:
    """Fill unknown slots by reading the disk itself; the bytes looked at."""
    holes = list(_unknown(slots, within))
    if not holes:
        return 0
    export = Export(socket_path, export_name)
    try:
        for extent, digests in digests_of(export, holes, threading.Event()):
            at = (extent.offset - within.offset) // BLOCK_BYTES * DIGEST_BYTES
            slots[at : at + len(digests)] = digests
    finally:
        export.close()
    return sum(h.length for h in holes)


def digests_of(export: Export, ranges: Iterable[Extent], stop: threading.Event) -> Iterator[tuple[Extent, bytes]]:
    """Block-aligned ``ranges`` of an export with their digests, read with several requests in flight.

    Raises TransferInterrupted, and TransferCancelled when ``stop`` is set meanwhile.
    """
    work = ((piece, zero, None) for one in ranges for piece, zero in export.pieces(one, CHUNK_BYTES))
    ring = export.ring(READ_DEPTH, stop)
    try:
        for extent, data, _ in ring.read(lambda: next(work, None)):
            if stop.is_set():
                raise TransferCancelled("The reading was stopped")
            yield extent, zero_digests(extent.length) if data is None else block_digests(data)
    finally:
        ring.close()


def _unknown(slots: bytearray, within: Extent) -> Iterator[Extent]:
    start = None
    blocks = len(slots) // DIGEST_BYTES
    for i in range(blocks + 1):
        unknown = i < blocks and slots[i * DIGEST_BYTES : (i + 1) * DIGEST_BYTES] == UNKNOWN
        if unknown and start is None:
            start = i
        elif not unknown and start is not None:
            begin = within.offset + start * BLOCK_BYTES
            yield Extent(begin, min(within.offset + i * BLOCK_BYTES, within.end) - begin)
            start = None
