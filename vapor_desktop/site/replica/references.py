"""Who refers to an image file: every qcow2 head under all roots, and what the host's domains use.

Image locks are only the second barrier: a stopped VM holds none, and a merge below its overlay would
silently change its disk [facts/lab, tried].
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vapor_desktop.model.errors import NotAllowed
from vapor_desktop.site.replica import qcow2

FileId = tuple[int, int]


@dataclass(frozen=True)
class References:
    """``backings``: each qcow2 file with the file directly below it."""

    backings: tuple[tuple[Path, Path], ...]
    used: frozenset[FileId]

    def children(self, image: Path) -> list[Path]:
        """Files whose direct backing is ``image``, by whatever name."""
        wanted = file_id(image)
        return [c for c, b in self.backings if b == image or (wanted is not None and file_id(b) == wanted)]

    def backings_of(self, image: Path) -> list[Path]:
        """The file directly below ``image``, by the name that its head has."""
        return [backing for child, backing in self.backings if child == image]

    def used_by_domain(self, image: Path) -> bool:
        """Whether a domain of the host names the file itself."""
        return file_id(image) in self.used

    def depth(self, image: Path) -> int:
        """Files in the chain from ``image`` down."""
        below = dict(self.backings)
        count, seen = 1, {image}
        while (image := below.get(image, image)) not in seen:
            seen.add(image)
            count += 1
        return count


def file_id(path: Path) -> FileId | None:
    """(device, inode) of what the path leads to; None when it leads nowhere."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def scan(roots: Sequence[Path], in_use: Iterable[Path] = (), *, strict: bool = True) -> References:
    """Read every head below the roots.

    ``strict``: raises NotAllowed for one that cannot be read: it may hang on anything. Else it hangs on nothing.
    What a domain uses need not be read: ``in_use`` names its whole chain.
    """
    used = frozenset(i for i in map(file_id, in_use) if i is not None)
    return References(tuple(_backings(roots, strict, used)), used)


def _backings(roots: Sequence[Path], strict: bool, used: frozenset[FileId]) -> Iterator[tuple[Path, Path]]:
    for root in roots:
        for folder, _, names in os.walk(root, followlinks=False):
            for name in names:
                path = Path(folder, name)
                if path.is_symlink() or not path.is_file():
                    continue
                try:
                    header = qcow2.read_header(path)
                except FileNotFoundError:  # deleted while we walked
                    continue
                except PermissionError as error:  # libvirt gave it to root when it let go of it
                    if strict and file_id(path) not in used:
                        raise NotAllowed(
                            f"{path} cannot be looked at; nothing is merged or deleted meanwhile"
                        ) from error
                    continue
                if header is not None and header.backing is not None:
                    below = qcow2.backing_path(path, header.backing)
                    if below is not None:
                        yield path, below
