"""qemu-img, with explicit arguments, and the image locks of a running QEMU."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

from vapor_desktop.model.errors import ImageToolFailed
from vapor_desktop.site.replica.files import FILE_MODE

_QUICK_S = 60.0
_POLL_S = 0.05
# block/file-posix.c: RAW_LOCK_PERM_BASE, RAW_LOCK_SHARED_BASE; block.h: BLK_PERM_WRITE is bit 1.
_WRITES = 100 + 1
_FORBIDS_WRITES = 200 + 1
_F_OFD_GETLK = 36  # <fcntl.h>; Python 3.11 has no name for it
_FLOCK = struct.Struct("hhqqi4x")


def create(image: Path, size_bytes: int, backing: str | None) -> None:
    """A new qcow2. ``backing``: name relative to the image's directory, of a qcow2. Raises ImageToolFailed."""
    base = ("-b", backing, "-F", "qcow2") if backing else ()
    # -u with a backing file: the size is given, so nothing below is opened and no lock is needed.
    unsafe = ("-u",) if backing else ()
    _run("create", "-q", "-f", "qcow2", *base, *unsafe, str(image), str(size_bytes))
    image.chmod(FILE_MODE)


def resize(image: Path, size_bytes: int) -> None:
    """Grow an overlay."""
    _run("resize", "-q", "-f", "qcow2", str(image), str(size_bytes))


def check(image: Path) -> None:
    """Raises ImageToolFailed when the image's own structure is damaged. Leaks are no damage."""
    _run("check", "-q", "-f", "qcow2", str(image), accept=(0, 3))


def rebase(image: Path, backing: str) -> None:
    """Write another backing name into the head, data untouched."""
    _run("rebase", "-u", "-q", "-f", "qcow2", "-b", backing, "-F", "qcow2", str(image))


def commit(image: Path, stop: Callable[[], bool]) -> bool:
    """Write the image's data into its backing file and keep the image as it is.

    Idempotent. ``stop`` is asked all the time; True ends it early and the answer is False.
    """
    if stop():
        return False
    command = ("qemu-img", "commit", "-q", "-f", "qcow2", "-d", str(image))
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while True:
            try:
                _, stderr = process.communicate(timeout=_POLL_S)
                break
            except subprocess.TimeoutExpired:
                if stop():
                    process.kill()
                    process.communicate()
                    return False
    if process.returncode != 0:
        raise _failed(command, process.returncode, stderr)
    return True


def commit_to(image: Path, foot: Path) -> None:
    """Write what lies above ``foot`` in the image's chain into ``foot``; the image stays as it is. Repeatable."""
    _run("commit", "-q", "-f", "qcow2", "-b", str(foot), "-d", str(image), timeout_s=None)


def _run(*arguments: str, accept: tuple[int, ...] = (0,), timeout_s: float | None = _QUICK_S) -> None:
    command = ("qemu-img", *arguments)
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            umask=0o007,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ImageToolFailed(f"qemu-img {arguments[0]} did not run", why=str(error)) from error
    if done.returncode not in accept:
        raise _failed(command, done.returncode, done.stderr)


def _failed(command: tuple[str, ...], code: int, stderr: str) -> ImageToolFailed:
    return ImageToolFailed(
        f"qemu-img {command[1]} failed",
        why=stderr.strip().splitlines()[-1] if stderr.strip() else f"exit code {code}",
        stderr=stderr,
        command=list(command),
        exit_code=code,
    )


def in_use_by_qemu(image: Path) -> bool:
    """Whether a QEMU process writes to the image or forbids others to. A stopped VM holds no lock."""
    try:
        fd = os.open(image, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return any(_locked_byte(fd, at) for at in (_WRITES, _FORBIDS_WRITES))
    finally:
        os.close(fd)


def _locked_byte(fd: int, at: int) -> bool:
    ask = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, at, 1, 0)
    kind, *_ = _FLOCK.unpack(fcntl.fcntl(fd, _F_OFD_GETLK, ask))
    return bool(kind != fcntl.F_UNLCK)
