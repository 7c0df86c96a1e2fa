"""A screen's picture as PNG: QEMU gives PPM, and nothing on a KVM host needs an imaging library for that."""

from __future__ import annotations

import re
import struct
import zlib

from vapor_desktop.model.errors import InvalidRequest

_PPM = re.compile(rb"P6\s+(?:#[^\n]*\n\s*)*(\d+)\s+(\d+)\s+255\s")
PNG_HEAD = b"\x89PNG\r\n\x1a\n"
_LIMIT_BYTES = 64 << 20


def to_png(raw: bytes) -> bytes:
    """PPM (P6, 8 bit) or PNG in, PNG out. Raises InvalidRequest for anything else."""
    if raw.startswith(PNG_HEAD):
        return raw
    width, height, pixels = _ppm(raw)
    row = width * 3
    lines = b"".join(b"\0" + pixels[n * row : (n + 1) * row] for n in range(height))
    head = struct.pack("!IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return PNG_HEAD + _chunk(b"IHDR", head) + _chunk(b"IDAT", zlib.compress(lines, 6)) + _chunk(b"IEND", b"")


def blank(png: bytes) -> bool:
    """Is the whole picture of one colour? Of a picture made by ``to_png``; one of QEMU's own is taken as drawn on."""
    at, data = len(PNG_HEAD), b""
    while at + 8 <= len(png):
        length, kind = struct.unpack("!I4s", png[at : at + 8])
        if kind == b"IDAT":
            data += png[at + 8 : at + 8 + length]
        if kind == b"IHDR":
            width, _height, depth, colour, _c, _f, interlace = struct.unpack("!IIBBBBB", png[at + 8 : at + 21])
            if (depth, colour, interlace) != (8, 2, 0):
                return False
            row = 1 + width * 3
        at += 12 + length
    pixels = zlib.decompress(data)
    first = pixels[1:4] * ((row - 1) // 3)
    return all(pixels[n] == 0 and pixels[n + 1 : n + row] == first for n in range(0, len(pixels), row))


def _ppm(raw: bytes) -> tuple[int, int, bytes]:
    found = _PPM.match(raw)
    if found is None:
        raise InvalidRequest("The screen's picture is neither PNG nor PPM")
    width, height = int(found.group(1)), int(found.group(2))
    pixels = raw[found.end() :]
    if not 0 < width * height * 3 <= _LIMIT_BYTES or len(pixels) < width * height * 3:
        raise InvalidRequest("The screen's picture is damaged")
    return width, height, pixels[: width * height * 3]


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack("!I", len(data)) + kind + data + struct.pack("!I", zlib.crc32(kind + data))
