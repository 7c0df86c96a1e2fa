"""Free space of a root, and stopping before it is used up."""

from __future__ import annotations

import os
from pathlib import Path

from vapor_desktop.model.errors import ReplicaFull


def free_bytes(root: Path) -> int:
    """What an unprivileged writer may still use."""
    found = os.statvfs(root)
    return found.f_bavail * found.f_frsize


def check_space(root: Path, need_bytes: int, reserve_bytes: int) -> None:
    """Raises ReplicaFull when ``need_bytes`` would eat into the reserve."""
    free = free_bytes(root)
    if free < need_bytes + reserve_bytes:
        raise ReplicaFull(
            f"{root} has {free >> 20} MiB free, {need_bytes >> 20} MiB are needed "
            f"and {reserve_bytes >> 20} MiB are kept in reserve",
            free_bytes=free,
            need_bytes=need_bytes,
            reserve_bytes=reserve_bytes,
            root=str(root),
        )


def file_bytes(path: Path) -> int:
    """Disk blocks of one file; 0 when it is gone (merged or published while we looked)."""
    try:
        return path.lstat().st_blocks * 512
    except FileNotFoundError:
        return 0


def used_bytes(top: Path) -> int:
    """Disk blocks of every file below, symlinks not followed."""
    used = 0
    for folder, _, names in os.walk(top, followlinks=False):
        used += sum(file_bytes(Path(folder, name)) for name in names)
    return used
