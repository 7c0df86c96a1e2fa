"""The frames between ``send`` and ``receive``. Pure: bytes in, values out.

A frame is a fixed header, ``meta`` (block digests, JSON or packed extents, by kind) and, for DATA only, a
payload. The CRC covers header and meta; the payload is covered by the digests in meta, which are those of
the *uncompressed* blocks. So a flipped bit anywhere is found before anything is written.

A session: HELLO both ways; then per transfer OPEN -> OPENED, WANT… NEEDED -> NEED… NEEDED, data frames
(SYNC -> ACK, TABLE -> TABLE in between), at last COMMIT -> COMMITTED or END -> ENDED. ERROR may come at any
moment; as the answer to OPEN, NEEDED, COMMIT, END or SCRUB it leaves the session usable, else it ends it.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable
from enum import IntEnum
from typing import Any, NamedTuple

from vapor_desktop.model.errors import FrameCorrupt, ProtocolError
from vapor_desktop.model.extents import BLOCK_BYTES, Extent

CHUNK_BYTES = 1 << 20  # one DATA frame: fewer of them cost Python less, larger ones fall out of the cache
ZERO_LIMIT_BYTES = 1 << 30  # one ZERO frame: qemu-nbd's limit is near 2^31 [facts/libvirt 2]
META_LIMIT_BYTES = 32 << 20
PAYLOAD_LIMIT_BYTES = CHUNK_BYTES + 4096
DIGEST_BYTES = 16
TABLE_BYTES = 1 << 32  # of disk in one TABLE frame: 1 MiB of digests
EXTENTS_A_FRAME = 1 << 18

_HEAD = struct.Struct("<BBHIIIQ")  # kind, flags, disk, length, meta bytes, payload bytes, offset
_CRC = struct.Struct("<I")
_EXTENT = struct.Struct("<QQ")
HEADER_BYTES = _HEAD.size + _CRC.size


class Kind(IntEnum):
    """What a frame is. The comment names its sender (S send, R receive) and its meta."""

    HELLO = 1  # both: JSON {protocol, site}
    OPEN = 2  # S: JSON
    OPENED = 3  # R: JSON
    WANT = 4  # S: packed extents of a disk that changed (or the whole disk), in as many frames as it takes
    NEED = 5  # R: packed extents of a disk that are still to be sent
    NEEDED = 6  # S: JSON, that was all of WANT; R: JSON, that was all of NEED and it is durably recorded
    DATA = 10  # S: digests; payload
    ZERO = 11  # S: nothing; length bytes at offset read as zero
    SAME = 12  # S: digests; compared equal, counts as received
    BLOB = 13  # S: JSON {name, bytes} and the raw bytes after a zero byte
    SYNC = 14  # S: JSON; make everything so far durable, then ACK
    ACK = 15  # R: JSON {durable_bytes}
    TABLE = 16  # both: ask for (offset, length), answer with digests
    COMMIT = 20  # S: JSON
    COMMITTED = 21  # R: JSON {manifest}
    END = 22  # S: JSON; no commit: keep what is durable
    ENDED = 23  # R: JSON
    SCRUB = 24  # S: JSON
    SCRUBBED = 25  # R: JSON
    JOIN = 26  # S: JSON {token}: this channel will carry data frames of a transfer opened on another
    JOINED = 27  # R: JSON, by the process that has the transfer
    DONE = 28  # S: JSON; the last frame on a joined channel
    ERROR = 30  # R: JSON, VaporError.to_wire()


FLAG_ZSTD = 1  # payload is one zstd frame


class Header(NamedTuple):
    """A decoded header; ``length`` and ``offset`` are in bytes of the disk."""

    kind: Kind
    flags: int
    disk: int
    length: int
    meta_bytes: int
    payload_bytes: int
    offset: int
    crc: int


def encode(
    kind: Kind,
    meta: bytes = b"",
    *,
    flags: int = 0,
    disk: int = 0,
    length: int = 0,
    offset: int = 0,
    payload_bytes: int = 0,
) -> bytes:
    """Header and meta, ready to be written; the payload follows from its own buffer."""
    head = _HEAD.pack(kind, flags, disk, length, len(meta), payload_bytes, offset)
    return b"".join((head, _CRC.pack(zlib.crc32(meta, zlib.crc32(head))), meta))


def encode_json(kind: Kind, value: Any) -> bytes:
    """A frame whose meta is JSON."""
    return encode(kind, json.dumps(value, separators=(",", ":")).encode())


def decode_header(raw: bytes | bytearray | memoryview) -> Header:
    """The header in exactly HEADER_BYTES. Raises ProtocolError for sizes and kinds that cannot be."""
    kind, flags, disk, length, meta, payload, offset = _HEAD.unpack_from(raw)
    (crc,) = _CRC.unpack_from(raw, _HEAD.size)
    try:
        known = Kind(kind)
    except ValueError:
        raise ProtocolError(f"Unknown frame kind {kind}") from None
    if meta > META_LIMIT_BYTES or payload > PAYLOAD_LIMIT_BYTES:
        raise ProtocolError("A frame is larger than any frame may be", meta_bytes=meta, payload_bytes=payload)
    if payload and known is not Kind.DATA:
        raise ProtocolError(f"A {known.name} frame has a payload")
    if known in (Kind.DATA, Kind.SAME):
        limit = CHUNK_BYTES if known is Kind.DATA else ZERO_LIMIT_BYTES
        blocks = -(-length // BLOCK_BYTES)
        if not 0 < length <= limit or offset % BLOCK_BYTES or meta != blocks * DIGEST_BYTES:
            raise ProtocolError(f"A {known.name} frame does not add up", length=length, offset=offset)
    elif known is Kind.ZERO and not 0 < length <= ZERO_LIMIT_BYTES:
        raise ProtocolError("A ZERO frame's length is out of range", length=length)
    return Header(known, flags, disk, length, meta, payload, offset, crc)


def check(raw: bytes | bytearray | memoryview, header: Header, meta: bytes | bytearray | memoryview) -> None:
    """Raises FrameCorrupt unless the CRC in the raw header matches header and meta."""
    if zlib.crc32(meta, zlib.crc32(memoryview(raw)[: _HEAD.size])) != header.crc:
        raise FrameCorrupt("A frame's checksum does not match", kind=header.kind.name, offset=header.offset)


def decode_json(meta: bytes | bytearray | memoryview) -> dict[str, Any]:
    """The JSON object in a frame's meta. Raises ProtocolError."""
    try:
        value = json.loads(bytes(meta))
    except ValueError as error:
        raise ProtocolError("A frame's JSON does not parse", why=str(error)) from error
    if not isinstance(value, dict):
        raise ProtocolError("A frame's JSON is no object")
    return value


def pack_extents(extents: Iterable[Extent]) -> bytes:
    """Extents as pairs of little-endian u64."""
    return b"".join(_EXTENT.pack(e.offset, e.length) for e in extents)


def unpack_extents(meta: bytes | bytearray | memoryview) -> list[Extent]:
    """The inverse of ``pack_extents``. Raises ProtocolError."""
    if len(meta) % _EXTENT.size:
        raise ProtocolError("A list of extents is cut off", meta_bytes=len(meta))
    return [Extent(offset, length) for offset, length in _EXTENT.iter_unpack(meta)]


def pack_blob(name: str, content: bytes) -> bytes:
    """Name, a zero byte, content."""
    return name.encode() + b"\0" + content


def unpack_blob(meta: bytes | bytearray | memoryview) -> tuple[str, bytes]:
    """The inverse of ``pack_blob``. Raises ProtocolError."""
    name, zero, content = bytes(meta).partition(b"\0")
    if not zero:
        raise ProtocolError("A BLOB frame has no name")
    return name.decode(), content
