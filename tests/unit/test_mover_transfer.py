"""Whole transfers against a real receiver: what is published reads exactly like the frozen source."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.mover_rig import MIB, Rig, SourceDisk, disk, export
from vapor_desktop.model.manifest import DiskMode

SIZE = 64 * MIB + 4096  # the last block is a short one


@pytest.fixture
def rig() -> Iterator[Rig]:
    with tempfile.TemporaryDirectory(prefix="vm-") as root:
        rig = Rig(Path(root))
        yield rig
        rig.close()


@pytest.fixture
def vda(rig: Rig) -> SourceDisk:
    source = SourceDisk(rig.root / "vda.qcow2", SIZE)
    source.write((0, 3 * MIB, 1), (10 * MIB + 512, 700 * 1024, 2), (SIZE - 5000 // 512 * 512, 4608, 3))
    source.write((20 * MIB, MIB, 0), (30 * MIB, 2 * MIB, 4))
    return source


def first_copy(rig: Rig, source: SourceDisk, checkpoint: str = "cp1") -> None:
    source.bitmap(checkpoint)
    with export(source.path) as socket:
        done = rig.send(rig.transfer([disk("vda", SIZE, socket)], checkpoint=checkpoint))
        assert done.published
        assert rig.identical(done.seq, "vda", socket)


def test_full_copy_reads_like_the_source_and_fills_the_digest_table(rig: Rig, vda: SourceDisk) -> None:
    first_copy(rig, vda)
    point = rig.store.point(rig.vm, 1)
    assert point.disks[0].mode is DiskMode.FULL
    assert point.disks[0].digest != ""
    assert 5 * MIB < point.disks[0].sent_bytes < 9 * MIB  # holes did not travel
    assert rig.chain_ok(1, "vda")


def test_delta_carries_data_zeroes_and_discards_over_the_parent(rig: Rig, vda: SourceDisk) -> None:
    first_copy(rig, vda)
    vda.write((MIB, MIB, 0), (30 * MIB, MIB, -1), (40 * MIB, 100 * 1024, 7), (SIZE - 4096, 4096, 8))
    with export(vda.path, bitmap="cp1") as socket:
        transfer = rig.transfer(
            [disk("vda", SIZE, socket, DiskMode.DELTA, "cp1")], checkpoint="cp2", skip_if_empty=True
        )
        done = rig.send(transfer)
        assert done.published
        assert rig.identical(done.seq, "vda", socket)
        assert done.data_bytes == 2 * 64 * 1024 + 4096  # whole blocks, and the short last one
    assert done.manifest is not None
    assert [p.seq for p in done.manifest.points] == [1, 2]
