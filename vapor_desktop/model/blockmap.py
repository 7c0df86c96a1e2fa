"""A set of 64 KiB blocks of one disk: one byte per block (16 MiB per TiB), ranges found by memchr.

Lists of extents grow without bound on a fragmented disk; this does not, and that is why it exists.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from vapor_desktop.model.extents import BLOCK_BYTES, Extent


class BlockMap:
    """A mutable set of blocks of a disk of ``size_bytes``."""

    def __init__(self, size_bytes: int, *, full: bool = False) -> None:
        self.size_bytes = size_bytes
        self._blocks = -(-size_bytes // BLOCK_BYTES)
        self._map = bytearray(b"\1" if full else b"\0") * self._blocks

    def add(self, extents: Iterable[Extent]) -> None:
        """Every block that an extent touches."""
        for e in extents:
            first, last = e.offset // BLOCK_BYTES, min(-(-e.end // BLOCK_BYTES), self._blocks)
            if last > first:
                self._map[first:last] = b"\1" * (last - first)

    def add_whole(self, extents: Iterable[Extent]) -> None:
        """Every block that an extent covers whole (the disk's short last block counts as whole)."""
        self._set(extents, b"\1")

    def remove(self, extents: Iterable[Extent]) -> None:
        """Every block that an extent covers whole (the disk's short last block counts as whole)."""
        self._set(extents, b"\0")

    def _set(self, extents: Iterable[Extent], value: bytes) -> None:
        for e in extents:
            first = -(-e.offset // BLOCK_BYTES)
            last = self._blocks if e.end >= self.size_bytes else e.end // BLOCK_BYTES
            if last > first:
                self._map[first:last] = value * (last - first)

    def runs(self, start: int = 0) -> Iterator[Extent]:
        """The set as extents, ascending, clipped to the disk. Safe only while nobody changes it."""
        at = start // BLOCK_BYTES
        while (first := self._map.find(1, at)) >= 0:
            last = self._map.find(0, first)
            last = self._blocks if last < 0 else last
            begin = first * BLOCK_BYTES
            yield Extent(begin, min(last * BLOCK_BYTES, self.size_bytes) - begin)
            at = last

    def copy(self) -> BlockMap:
        """The same set, apart."""
        twin = BlockMap(0)
        twin.size_bytes, twin._blocks, twin._map = self.size_bytes, self._blocks, bytearray(self._map)
        return twin

    def total_bytes(self) -> int:
        """How many bytes of the disk are in it."""
        whole = self._map.count(1) * BLOCK_BYTES
        tail = self.size_bytes % BLOCK_BYTES
        return whole - BLOCK_BYTES + tail if tail and self._map[-1] else whole

    def __bool__(self) -> bool:
        return self._map.find(1) >= 0

    def __contains__(self, offset: int) -> bool:
        return bool(self._map[offset // BLOCK_BYTES])
