"""First copies, written past the page cache; and a mover that stays: what it cuts off, survives, and needs."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.mover_rig import MIB, Mover, Rig, SourceDisk, disk, export
from vapor_desktop.model.errors import TransferInterrupted
from vapor_desktop.model.wire import Progress
from vapor_desktop.site.mover.qsd import GROW_BYTES

SIZE = 96 * MIB
DATA = 12 * MIB
MANY = 12
GROWN_MB = 12  # one buffer of 1 MiB lost per transfer would be seen


@pytest.fixture
def rig() -> Iterator[Rig]:
    with tempfile.TemporaryDirectory(prefix="vm-") as root:
        rig = Rig(Path(root))
        yield rig
        rig.close()


@pytest.fixture
def vda(rig: Rig) -> SourceDisk:
    source = SourceDisk(rig.root / "vda.qcow2", SIZE)
    source.write((0, DATA, 1))
    return source


def opened_with(pid: int, suffix: str) -> list[int]:
    """The flags of a process's open files whose name ends so."""
    return [
        int(next(line for line in info.read_text().splitlines() if line.startswith("flags:")).split()[1], 8)
        for fd in Path(f"/proc/{pid}/fd").iterdir()
        if str(fd.readlink()).endswith(suffix)
        for info in [Path(f"/proc/{pid}/fdinfo/{fd.name}")]
    ]


def takes_direct(directory: Path) -> bool:
    try:
        fd = os.open(directory / "probe", os.O_CREAT | os.O_RDWR | os.O_DIRECT)
    except OSError:
        return False
    os.close(fd)
    return True


def test_a_first_copy_goes_past_the_page_cache_and_keeps_nothing_it_took_ahead(rig: Rig, vda: SourceDisk) -> None:
    if not takes_direct(rig.root):
        pytest.skip("this file system has no direct I/O")
    flags: list[int] = []
    ahead: list[int] = []

    def look(_progress: Progress) -> None:
        flags.extend(opened_with(rig.daemon_pid(), ".qcow2"))
        ahead.extend(p.stat().st_size for p in (rig.root / "b").rglob("*.qcow2"))

    with export(vda.path) as socket:
        rig.send(rig.transfer([disk("vda", SIZE, socket)], checkpoint="cp1", bandwidth_bytes_s=4 * MIB), look)
        assert rig.identical(1, "vda", socket)
    assert flags
    assert all(f & os.O_DIRECT for f in flags)
    assert max(ahead) >= GROW_BYTES
    assert rig.store.disk_path(rig.vm, 1, "vda").stat().st_size < DATA + 2 * MIB
    assert rig.chain_ok(1, "vda")


@pytest.mark.parametrize("victim", ["receiver", "storage daemon"])
def test_a_first_copy_whose_end_was_killed_goes_on(rig: Rig, vda: SourceDisk, victim: str) -> None:
    with export(vda.path) as socket:
        killed: list[int] = []

        def kill(progress: Progress) -> None:
            if not killed and progress.done_bytes:
                killed.append(rig.receiver_pid() if victim == "receiver" else rig.daemon_pid())
                os.kill(killed[0], signal.SIGKILL)

        first = rig.transfer([disk("vda", SIZE, socket)], checkpoint="cp1", bandwidth_bytes_s=3 * MIB)
        with pytest.raises(TransferInterrupted):
            rig.send(first, kill)
        assert rig.manifest().newest is None
        done = rig.send(rig.transfer([disk("vda", SIZE, socket)], checkpoint="cp1", resume_incoming=True))
        assert done.published
        assert rig.identical(done.seq, "vda", socket)
    assert rig.chain_ok(done.seq, "vda")
    assert rig.same_tables(done.seq, "vda", SIZE)


def test_many_transfers_take_no_more_memory_than_a_few(rig: Rig, vda: SourceDisk) -> None:
    mover = Mover(rig)

    def copy() -> None:
        rig.renew_vm()
        mover.transfer(rig.transfer([disk("vda", SIZE, socket)], checkpoint=None))

    with export(vda.path) as socket:
        for _ in range(3):
            copy()
        receiver = rig.receiver_pid()
        before = rss_mb(mover.process.pid), rss_mb(receiver)
        for _ in range(MANY):
            copy()
        after = rss_mb(mover.process.pid), rss_mb(receiver)
        assert mover.close() == 0
    assert after[0] - before[0] < GROWN_MB, (before, after)
    assert after[1] - before[1] < GROWN_MB, (before, after)


def rss_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmRSS")
