"""Extents: sorted, disjoint, half-open byte ranges, and the few operations replication needs on them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

BLOCK_BYTES = 64 * 1024  # bitmap granularity and qcow2 cluster size [facts/libvirt 1.4, 4.2]


class Extent(NamedTuple):
    """``[offset, offset + length)`` in bytes."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        """First byte after it."""
        return self.offset + self.length


def normalise(extents: Iterable[Extent]) -> list[Extent]:
    """Sorted, without empty ones, neighbours and overlaps merged."""
    out: list[Extent] = []
    for e in sorted(e for e in extents if e.length > 0):
        if out and e.offset <= out[-1].end:
            out[-1] = Extent(out[-1].offset, max(out[-1].end, e.end) - out[-1].offset)
        else:
            out.append(Extent(*e))
    return out


def union(*lists: Iterable[Extent]) -> list[Extent]:
    """Everything in any of them."""
    return normalise(e for one in lists for e in one)


def subtract(a: Iterable[Extent], b: Iterable[Extent]) -> list[Extent]:
    """What is in ``a`` and not in ``b``."""
    out: list[Extent] = []
    holes = normalise(b)
    i = 0
    for e in normalise(a):
        at = e.offset
        while i < len(holes) and holes[i].end <= at:
            i += 1
        j = i
        while j < len(holes) and holes[j].offset < e.end:
            if holes[j].offset > at:
                out.append(Extent(at, holes[j].offset - at))
            at = max(at, holes[j].end)
            j += 1
        if at < e.end:
            out.append(Extent(at, e.end - at))
    return out


def intersect(a: Iterable[Extent], b: Iterable[Extent]) -> list[Extent]:
    """What is in both."""
    whole = list(a)
    return subtract(whole, subtract(whole, b))


def align(extents: Iterable[Extent], size_bytes: int, block: int = BLOCK_BYTES) -> list[Extent]:
    """Grown to whole blocks, clipped to the disk, normalised."""
    grown = []
    for e in extents:
        start = e.offset // block * block
        end = min(-(-e.end // block) * block, size_bytes)
        grown.append(Extent(start, end - start))
    return normalise(grown)


def total(extents: Iterable[Extent]) -> int:
    """Sum of lengths in bytes."""
    return sum(e.length for e in extents)


def chunks(extents: Iterable[Extent], limit: int) -> Iterator[Extent]:
    """The same ranges cut so that none is longer than ``limit`` bytes."""
    for e in extents:
        at = e.offset
        while at < e.end:
            n = min(limit, e.end - at)
            yield Extent(at, n)
            at += n
