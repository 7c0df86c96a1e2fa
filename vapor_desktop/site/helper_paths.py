"""Which paths the root helper touches: below an allow-listed root, and no symlink on the way.

Every directory is opened by name relative to the one before it, with O_NOFOLLOW, so nothing between the
check and the use can be swapped; the caller works on the descriptor or on ``/proc/self/fd``.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vapor_desktop.model.errors import NotAllowed, NotFound

_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextmanager
def parent_of(path: str, roots: Iterable[Path]) -> Iterator[tuple[int, str]]:
    """(descriptor of the directory, last name) of a path below one of the roots.

    Raises NotAllowed (relative, "..", outside the roots, a symlink on the way), NotFound.
    """
    root, names = _split(path, roots)
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # roots are the admin's own word
    try:
        for name in names[:-1]:
            inner = _open_at(name, _DIR, descriptor, path)
            os.close(descriptor)
            descriptor = inner
        yield descriptor, names[-1]
    finally:
        os.close(descriptor)


@contextmanager
def open_file(path: str, roots: Iterable[Path], flags: int = os.O_RDONLY) -> Iterator[int]:
    """A descriptor of a regular file below one of the roots. Errors as ``parent_of``."""
    with parent_of(path, roots) as (directory, name):
        descriptor = _open_at(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, directory, path)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise NotAllowed("The root helper touches regular files only", path=path)
            yield descriptor
        finally:
            os.close(descriptor)


@contextmanager
def open_device(path: str) -> Iterator[int]:
    """A descriptor of a block device that the administrator named. /dev is root's own, its symlinks are udev's.

    Raises NotAllowed, NotFound.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise NotFound(f"{path} does not exist") from error
    try:
        if not stat.S_ISBLK(os.fstat(descriptor).st_mode):
            raise NotAllowed("helper_block_devices names something that is no block device", path=path)
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def open_dir(path: str, roots: Iterable[Path]) -> Iterator[int]:
    """A descriptor of a directory below one of the roots. Errors as ``parent_of``."""
    with parent_of(path, roots) as (directory, name):
        descriptor = _open_at(name, _DIR, directory, path)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


def _split(path: str, roots: Iterable[Path]) -> tuple[Path, tuple[str, ...]]:
    wanted = Path(path)
    if not wanted.is_absolute() or ".." in wanted.parts or "\0" in path:
        raise NotAllowed("The root helper takes plain absolute paths only", path=path)
    for root in roots:
        if wanted.is_relative_to(root) and wanted != root and root.is_dir():
            return root, wanted.relative_to(root).parts
    raise NotAllowed(
        "This path is not below the roots that the root helper may touch",
        fix="Add its directory to helper_image_roots (or helper_nvram_roots), or a device's own name to "
        "helper_block_devices, in /etc/vapor/site.toml, and restart vapor-site and its helper",
        path=path,
    )


def _open_at(name: str, flags: int, directory: int, path: str) -> int:
    try:
        return os.open(name, flags, dir_fd=directory)
    except FileNotFoundError as error:
        raise NotFound(f"{path} does not exist") from error
    except OSError as error:  # ELOOP: a symlink; ENOTDIR: a symlink or a file where a directory should be
        raise NotAllowed("The root helper follows no symlinks", why=error.strerror or "", path=path) from error
