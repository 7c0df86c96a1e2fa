"""Durable file steps: what is done here survives a power cut once the call returned.

Modes: directories 2770, files 0660, so that QEMU's group opens what we make [facts/libvirt 4.6].
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DIR_MODE = 0o2770
FILE_MODE = 0o660
_POLL_S = 0.02
_REMOVALS = 10


def sync_dir(path: Path) -> None:
    """fsync a directory: its entries are durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_file(path: Path) -> None:
    """fsync a file's content, whoever wrote it."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def open_made(path: Path, flags: int) -> int:
    """``os.open`` that makes a missing file with our mode, whatever the umask is. Follows no symlink."""
    fd = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)
    found = os.fstat(fd)
    if found.st_mode & 0o7777 != FILE_MODE and found.st_uid == os.geteuid():
        os.fchmod(fd, FILE_MODE)
    return fd


def make_dir(path: Path) -> None:
    """A directory that exists durably; an existing one is left as it is."""
    try:
        path.mkdir()
    except FileExistsError:
        return
    path.chmod(DIR_MODE)
    sync_dir(path.parent)


def write_durable(path: Path, content: bytes) -> None:
    """Replace ``path`` whole: written aside, fsync, rename, fsync(dir)."""
    aside = path.with_name(f".{path.name}.new")
    fd = open_made(aside, os.O_WRONLY | os.O_TRUNC)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(fd)
    aside.rename(path)
    sync_dir(path.parent)


def remove(path: Path) -> None:
    """Unlink one name (a symlink itself, never what it names); a missing one is fine."""
    path.unlink(missing_ok=True)


def remove_flat(directory: Path) -> None:
    """Remove a directory of plain files, name by name, and make that durable.

    A subdirectory inside makes the unlink fail loudly: we never made one.
    """
    for attempt in range(1, _REMOVALS + 1):
        try:
            inner = list(directory.iterdir())
        except FileNotFoundError:
            return
        for path in inner:
            remove(path)
        try:
            directory.rmdir()
            break
        except OSError as error:
            # A receiver that was just revoked may have made one more file before it noticed.
            if error.errno != errno.ENOTEMPTY or attempt == _REMOVALS:
                raise
    sync_dir(directory.parent)


class FileLock:
    """An flock on a file, also between threads of one process. Not inherited by children."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds it."""
        return self._fd is not None

    def acquire(self, timeout_s: float | None) -> bool:
        """Take it: None waits for ever, 0 tries once. False when the time is over."""
        while True:
            fd = open_made(self._path, os.O_RDWR)
            try:
                if not _flock(fd, timeout_s):
                    os.close(fd)
                    return False
                if _still_named(fd, self._path):
                    self._fd = fd
                    return True
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)  # its directory was deleted while we waited

    def release(self) -> None:
        """Let go; idempotent."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _still_named(fd: int, path: Path) -> bool:
    try:
        now = path.stat()
    except FileNotFoundError:
        return False
    mine = os.fstat(fd)
    return (mine.st_dev, mine.st_ino) == (now.st_dev, now.st_ino)


def _flock(fd: int, timeout_s: float | None) -> bool:
    if timeout_s is None:
        fcntl.flock(fd, fcntl.LOCK_EX)
        return True
    end = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(_POLL_S)  # flock has no time-out of its own
        else:
            return True


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file for a block; waits as long as it takes."""
    lock = FileLock(path)
    lock.acquire(None)
    try:
        yield
    finally:
        lock.release()
