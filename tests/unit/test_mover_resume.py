"""Taking a first copy up again where no bitmap tells what changed since: by comparison with what is there."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.mover_rig import MIB, Rig, SourceDisk, disk, export
from vapor_desktop.model.manifest import DiskMode

SIZE = 64 * MIB + 4096


@pytest.fixture
def rig() -> Iterator[Rig]:
    with tempfile.TemporaryDirectory(prefix="vm-") as root:
        rig = Rig(Path(root))
        yield rig
        rig.close()


@pytest.fixture
def vda(rig: Rig) -> SourceDisk:
    source = SourceDisk(rig.root / "vda.qcow2", SIZE)
    source.write((0, 3 * MIB, 1), (10 * MIB, 12 * MIB, 2), (SIZE - 4096, 4096, 3))
    return source


@pytest.mark.parametrize("checkpoints", [(None, None), ("cp1", "cp2")], ids=["raw", "bitmap lost"])
def test_an_interrupted_first_copy_goes_on_by_compare(
    rig: Rig, vda: SourceDisk, checkpoints: tuple[str | None, str | None]
) -> None:
    with export(vda.path) as socket:
        first = rig.transfer(
            [disk("vda", SIZE, socket)], checkpoint=checkpoints[0], bandwidth_bytes_s=4 * MIB, deadline_s=1.5
        )
        part = rig.send(first)
    assert not part.published
    rig.store.reconcile(rig.vm)  # as after a restart of the site
    kept = rig.store.view(rig.vm).incoming
    assert kept is not None
    assert kept.received_bytes["vda"] > 2 * MIB
    vda.write((MIB, 65536, 30), (2 * MIB, 65536, 0), (21 * MIB, 65536, 31))  # over what has and has not arrived
    with export(vda.path) as socket:
        later = [disk("vda", SIZE, socket, DiskMode.COMPARE)]
        done = rig.send(rig.transfer(later, checkpoint=checkpoints[1], resume_incoming=True))
        assert done.published
        assert rig.identical(done.seq, "vda", socket)
    assert part.data_bytes + done.data_bytes < 16 * MIB  # of 15 MiB with data, 128 KiB travelled twice
    assert rig.store.point(rig.vm, done.seq).disks[0].digest != ""
