"""Extents against the plainest model there is: a set of byte numbers."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vapor_desktop.model.extents import Extent, align, chunks, intersect, normalise, subtract, total, union

extents = st.lists(st.builds(Extent, st.integers(0, 200), st.integers(0, 40)), max_size=12)


def cells(some: list[Extent]) -> set[int]:
    return {byte for e in some for byte in range(e.offset, e.end)}


def is_normal(some: list[Extent]) -> bool:
    return all(e.length > 0 for e in some) and all(a.end < b.offset for a, b in pairwise(some))


@given(extents)
def test_normalise_keeps_every_byte_once(a: list[Extent]) -> None:
    out = normalise(a)
    assert is_normal(out)
    assert cells(out) == cells(a)
    assert total(out) == len(cells(a))
    assert normalise(out) == out


@given(extents, extents, extents)
def test_union(a: list[Extent], b: list[Extent], c: list[Extent]) -> None:
    out = union(a, b, c)
    assert is_normal(out)
    assert cells(out) == cells(a) | cells(b) | cells(c)


@given(extents, extents)
def test_subtract(a: list[Extent], b: list[Extent]) -> None:
    out = subtract(a, b)
    assert is_normal(out)
    assert cells(out) == cells(a) - cells(b)


@given(extents, extents)
def test_intersect(a: list[Extent], b: list[Extent]) -> None:
    out = intersect(a, b)
    assert is_normal(out)
    assert cells(out) == cells(a) & cells(b)


@given(extents, extents)
def test_generators_are_read_once(a: list[Extent], b: list[Extent]) -> None:
    assert cells(intersect(iter(a), iter(b))) == cells(a) & cells(b)
    assert cells(subtract(iter(a), iter(b))) == cells(a) - cells(b)


@given(extents, st.integers(1, 260), st.integers(1, 32))
def test_align_covers_whole_blocks_and_never_leaves_the_disk(a: list[Extent], size: int, block: int) -> None:
    out = align(a, size, block)
    assert is_normal(out)
    touched = {byte // block for byte in cells(a)}
    wanted = {byte for n in touched for byte in range(n * block, min((n + 1) * block, size))}
    # An empty extent may grow to its block: harmless, it is only sent for nothing.
    empty = {e.offset // block for e in a if e.length == 0}
    allowed = wanted | {byte for n in empty for byte in range(n * block, min((n + 1) * block, size))}
    assert wanted <= cells(out) <= allowed
    assert all(e.offset % block == 0 and (e.end % block == 0 or e.end == size) for e in out)


@given(extents, st.integers(1, 50))
def test_chunks_cut_without_losing_or_moving_a_byte(a: list[Extent], limit: int) -> None:
    out = list(chunks(a, limit))
    assert all(0 < c.length <= limit for c in out)
    assert total(out) == total(a)
    assert normalise(out) == normalise(a)


def test_a_five_tebibyte_disk_is_arithmetic_and_not_a_loop_over_bytes() -> None:
    disk = 5 << 40
    dirty = [Extent((5 << 40) - 100, 50)]
    assert align(dirty, disk) == [Extent(disk - 65536, 65536)]
    assert total(subtract([Extent(0, disk)], dirty)) == disk - 50


@pytest.mark.parametrize("size", [1000, 65536, 70000])
def test_the_odd_end_of_a_disk_is_clipped(size: int) -> None:
    assert align([Extent(size - 1, 1)], size)[-1].end == size
