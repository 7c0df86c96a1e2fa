"""The head of a qcow2 file, read without starting a process. Source: QEMU docs/interop/qcow2.rst."""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path

MAGIC = b"QFI\xfb"
_HEAD = struct.Struct(">4sIQIIQ")  # magic, version, backing offset, backing length, cluster bits, size


@dataclass(frozen=True, slots=True)
class Header:
    """``backing`` is the name as written (relative to the file's directory), None without one."""

    version: int
    size_bytes: int
    cluster_bytes: int
    backing: str | None


def read_header(path: Path) -> Header | None:
    """None when the file is no qcow2 or its head is damaged. Never follows a symlink at ``path``.

    Raises FileNotFoundError, PermissionError.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        raw = os.pread(fd, _HEAD.size, 0)
        if len(raw) < _HEAD.size:
            return None
        magic, version, offset, length, bits, size = _HEAD.unpack(raw)
        if magic != MAGIC or version not in (2, 3) or not 9 <= bits <= 21 or length > 1023:
            return None
        if not offset:
            return Header(version, size, 1 << bits, None)
        name = os.pread(fd, length, offset)
    finally:
        os.close(fd)
    if len(name) != length or not name or b"\0" in name:
        return None
    return Header(version, size, 1 << bits, os.fsdecode(name))


def backing_path(image: Path, backing: str) -> Path | None:
    """Where a backing name points, lexically; None for what is no local file (``nbd://…``)."""
    if backing.startswith("json:"):
        name = _json_filename(backing[5:])
        if name is None:
            return None
        backing = name
    if backing.startswith("file:"):
        backing = backing[5:]
    elif "://" in backing:
        return None
    return Path(os.path.normpath(image.parent / backing))


def _json_filename(text: str) -> str | None:
    try:
        node = json.loads(text)
    except ValueError:
        return None
    while isinstance(node, dict):
        name = node.get("filename", node.get("file.filename"))
        if isinstance(name, str):
            return name
        node = node.get("file")
    return None
