"""Digests of whole buffers, on top of the tables' definition of a block's digest (``site.replica.digests``)."""

from __future__ import annotations

from collections.abc import Iterator

from blake3 import blake3

from vapor_desktop.model.extents import BLOCK_BYTES, Extent
from vapor_desktop.site.replica.digests import DIGEST_BYTES, UNKNOWN, zero_digest

__all__ = ["DIGEST_BYTES", "UNKNOWN", "block_digests", "differing", "split_zero", "zero_digest", "zero_digests"]


def block_digests(data: memoryview) -> bytes:
    """Of every block of ``data``, concatenated. Releases the GIL for most of its time."""
    step = BLOCK_BYTES
    return b"".join([blake3(data[i : i + step]).digest(DIGEST_BYTES) for i in range(0, len(data), step)])


def zero_digests(length: int) -> bytes:
    """Of every block of ``length`` zero bytes that begin at a block's border."""
    whole, rest = divmod(length, BLOCK_BYTES)
    return zero_digest() * whole + (zero_digest(rest) if rest else b"")


def runs(flags: list[bool], length: int) -> Iterator[tuple[Extent, bool]]:
    """One flag per block of ``length`` bytes, as (range within them, flag)."""
    start = 0
    for i in range(1, len(flags) + 1):
        if i == len(flags) or flags[i] != flags[start]:
            begin = start * BLOCK_BYTES
            yield Extent(begin, min(i * BLOCK_BYTES, length) - begin), flags[start]
            start = i


def split_zero(digests: bytes, length: int) -> list[tuple[Extent, bool]]:
    """``length`` bytes as (range within them, is it all zeroes), by their digests alone."""
    zeroes = zero_digests(length)
    if digests == zeroes:
        return [(Extent(0, length), True)]
    if zero_digest() not in digests and digests[-DIGEST_BYTES:] != zeroes[-DIGEST_BYTES:]:
        return [(Extent(0, length), False)]
    return list(runs(_equal(digests, zeroes), length))


def differing(mine: bytes, theirs: bytes, length: int) -> list[tuple[Extent, bool]]:
    """``length`` bytes as (range within them, do the digests differ)."""
    if mine == theirs:
        return [(Extent(0, length), False)]
    return list(runs([not same for same in _equal(mine, theirs)], length))


def _equal(a: bytes, b: bytes) -> list[bool]:
    return [a[i : i + DIGEST_BYTES] == b[i : i + DIGEST_BYTES] for i in range(0, len(a), DIGEST_BYTES)]
