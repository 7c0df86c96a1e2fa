"""Small files that several processes share: whole or not at all, durable, one writer at a time.

Used for tokens, enrolments, leases, watches and logs below the state directory. The admin's
``vapor-site token new`` often runs as root: what root writes is given to the owner of the directory,
or ``serve`` could not read it.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vapor_desktop.model.errors import Unexpected

_log = logging.getLogger("vapor.site")


def make_dir(path: Path, mode: int = 0o750) -> Path:
    """The directory, made with its parents where missing; owned like the parent when root makes it."""
    if not path.is_dir():
        if not path.parent.is_dir():
            make_dir(path.parent, mode)
        path.mkdir(mode=mode, exist_ok=True)
        _give(path)
    return path


def write_atomic(path: Path, data: bytes, mode: int = 0o640) -> None:
    """Write aside, fsync, rename, fsync the directory. Raises OSError; the old content then stands."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            os.fchmod(stream.fileno(), mode)
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        _give(aside)
        aside.rename(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync_dir(path.parent)


def write_json(path: Path, value: Any, mode: int = 0o640) -> None:
    """``write_atomic`` of the value as JSON."""
    write_atomic(path, json.dumps(value, indent=1, sort_keys=True).encode() + b"\n", mode)


def read_json(path: Path) -> Any | None:
    """The value, or None when there is no such file. Raises Unexpected when it is damaged: never guessed around."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise Unexpected(
            f"{path} is damaged",
            why=str(error),
            fix="Restore the file from a backup, or move it away and set up again",
        ) from error


def sync_dir(path: Path) -> None:
    """Make renames and new names in the directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the exclusive lock that belongs to ``path`` (``.NAME.lock`` beside it), across processes and threads."""
    lock = path.with_name(f".{path.name}.lock")
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)
    try:
        _give(lock)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)  # closing lets go of the lock


def append_json(path: Path, value: dict[str, Any]) -> None:
    """One more JSON line, durable on return. Lines of several writers do not mix (one write, O_APPEND).

    After a torn line (power cut) a new one is begun, so that one loss stays one.
    """
    line = json.dumps(value, sort_keys=True).encode() + b"\n"
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        _give(path)
        size = os.fstat(descriptor).st_size
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        os.write(descriptor, b"\n" + line if torn else line)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """All whole lines; a torn one is logged and left out. [] when there is no such file."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return []
    found = []
    for number, line in enumerate(raw.splitlines(), 1):
        try:
            found.append(json.loads(line))
        except ValueError:
            _log.warning("%s: line %d is torn and left out", path, number)
    return found


def _give(path: Path) -> None:
    """When root writes into somebody's directory, the file becomes theirs."""
    if os.geteuid() != 0:
        return
    owner = path.parent.stat()
    mine = path.stat()
    if (mine.st_uid, mine.st_gid) != (owner.st_uid, owner.st_gid):
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
