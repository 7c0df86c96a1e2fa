"""The scrub: a silent change on either side is found, named by its block, and repaired by compare."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.mover_rig import MIB, Rig, SourceDisk, disk, export, run
from vapor_desktop.model.extents import BLOCK_BYTES, Extent, align, normalise
from vapor_desktop.model.manifest import DiskMode
from vapor_desktop.model.wire import DiskTransfer, NbdSource, Scrubbed, ScrubSlice
from vapor_desktop.site.mover.scrub import Scrub, next_slices

SIZE = 8 * MIB + 4096


@pytest.fixture
def rig() -> Iterator[Rig]:
    with tempfile.TemporaryDirectory(prefix="vm-") as root:
        rig = Rig(Path(root))
        yield rig
        rig.close()


@pytest.fixture
def vda(rig: Rig) -> SourceDisk:
    source = SourceDisk(rig.root / "vda.qcow2", SIZE)
    source.write((0, 3 * MIB, 1), (SIZE - 4096, 4096, 2))
    source.bitmap("cp1")
    with export(source.path) as socket:
        rig.send(rig.transfer([disk("vda", SIZE, socket)], checkpoint="cp1"))
    return source


def scrub(rig: Rig, disks: list[DiskTransfer], budget_bytes: int = 1 << 30) -> Scrubbed:
    newest = rig.manifest().newest
    request = ScrubSlice(
        vm_uuid=rig.vm,
        peer_site=rig.target_id,
        grant=rig.grant(newest.seq if newest else None),
        disks=tuple(disks),
        budget_bytes=budget_bytes,
    )
    return Scrub(request, rig.pool, rig.helper, rig.source.state_dir / "scrub").run()


def test_a_clean_pass_in_slices(rig: Rig, vda: SourceDisk) -> None:
    with export(vda.path) as socket:
        parts = [scrub(rig, [disk("vda", SIZE, socket)], 3 * MIB) for _ in range(3)]
    assert [p.checked_bytes for p in parts] == [3 * MIB, 3 * MIB, 2 * MIB + 4096]
    assert [p.wrapped for p in parts] == [False, False, True]
    assert [p.reached_bytes for p in parts] == [{"vda": n} for n in (3 * MIB, 6 * MIB, SIZE)]
    assert [bool(p.passed_at) for p in parts] == [False, False, True]
    with export(vda.path) as socket:
        again = scrub(rig, [disk("vda", SIZE, socket)], 3 * MIB)
    assert (again.reached_bytes, again.passed_at) == ({"vda": 3 * MIB}, parts[2].passed_at)
    assert not any(p.source_mismatch or p.target_mismatch for p in parts)


def test_a_changed_block_at_the_target_is_found_and_repaired_by_compare(rig: Rig, vda: SourceDisk) -> None:
    image = rig.store.disk_path(rig.vm, 1, "vda")
    run("qemu-io", "-f", "qcow2", "-c", f"write -P 0x55 {2 * MIB + 4096} 512", image)
    with export(vda.path) as socket:
        result = scrub(rig, [disk("vda", SIZE, socket)])
        assert result.target_mismatch == {"vda": (32,)}
        assert result.source_mismatch == {}
        newest = rig.manifest().newest
        assert newest is not None
        assert newest.verified is False
        done = rig.send(rig.transfer([disk("vda", SIZE, socket, DiskMode.COMPARE)], checkpoint="cp2"))
        assert done.data_bytes == BLOCK_BYTES
        assert rig.identical(done.seq, "vda", socket)
        assert scrub(rig, [disk("vda", SIZE, socket)]).target_mismatch == {}


def test_a_write_behind_our_back_at_the_source_is_found_and_dirty_blocks_are_not(rig: Rig, vda: SourceDisk) -> None:
    vda.write((MIB, 4096, 7))  # recorded by the bitmap
    raw = rig.root / "vda.raw"
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", vda.path, raw)
    with raw.open("r+b") as file:  # `dd` into the disk of a VM that is off
        file.seek(2 * MIB)
        file.write(b"dd was here")
    with export(vda.path, bitmap="cp1") as socket:
        assert scrub(rig, [disk("vda", SIZE, socket, bitmap="cp1")]).source_mismatch == {}
    with export(raw, fmt="raw") as socket:
        assert scrub(rig, [disk("vda", SIZE, socket)]).source_mismatch == {"vda": (16, 32)}


def _disks(sizes: list[int]) -> tuple[DiskTransfer, ...]:
    source = NbdSource(kind="live", path="", export="", bitmap=None)
    return tuple(
        DiskTransfer(target=f"vd{i}", size_bytes=size, mode=DiskMode.DELTA, source=source)
        for i, size in enumerate(sizes)
    )


@given(
    st.lists(st.integers(1, 40 * BLOCK_BYTES), min_size=1, max_size=4),
    st.integers(1, 20 * BLOCK_BYTES),
)
def test_a_pass_covers_every_byte_of_every_disk_once(sizes: list[int], budget: int) -> None:
    disks = _disks(sizes)
    cursor: dict[str, Any] = {}
    seen: dict[int, list[Extent]] = {i: [] for i in range(len(sizes))}
    wrapped = False
    while not wrapped:
        slices, cursor, wrapped = next_slices(disks, cursor, budget)
        assert sum(e.length for _, e in slices) <= max(budget, BLOCK_BYTES)
        assert all([e] == align([e], sizes[i]) for i, e in slices)
        assert slices
        for i, extent in slices:
            seen[i].append(extent)
    for i, size in enumerate(sizes):
        assert normalise(seen[i]) == [Extent(0, size)]
        assert sum(e.length for e in seen[i]) == size
