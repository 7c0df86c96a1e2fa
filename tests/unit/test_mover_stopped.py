"""Images of a stopped VM: it may be started while they are read, and what was read then is never published."""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest

from tests.unit.mover_rig import MIB, Rig, SourceDisk, export, noise, run
from vapor_desktop.lab.processes import wait_until
from vapor_desktop.model.domain_xml.digest import configuration_digest
from vapor_desktop.model.errors import TransferInterrupted
from vapor_desktop.model.manifest import DiskMode
from vapor_desktop.model.wire import DiskTransfer, NbdSource, Progress, ScrubSlice, Transfer, Transferred
from vapor_desktop.site.helper import Helper, listen_at
from vapor_desktop.site.mover.peer import PeerPool
from vapor_desktop.site.mover.scrub import Scrub

SIZE = 32 * MIB
BITMAP = "vapor-p1-1-000001"


@pytest.fixture
def rig() -> Iterator[Rig]:
    """With the real root helper of the source site."""
    with tempfile.TemporaryDirectory(prefix="vm-") as root:
        rig = Rig(Path(root))
        listener = listen_at(rig.source.helper_socket, os.geteuid(), os.getegid())
        stop = threading.Event()
        helper = Helper(rig.source, frozenset({os.geteuid()}))
        thread = threading.Thread(target=helper.serve, args=(listener, stop))
        thread.start()
        yield rig
        rig.close()
        stop.set()
        thread.join()
        listener.close()


class Image:
    """A stopped VM's disk, in either format; a comma in its name must not end an option."""

    def __init__(self, rig: Rig, fmt: str) -> None:
        self.rig, self.fmt = rig, fmt
        self.path = rig.root / f"a,b.{fmt}"
        if fmt == "qcow2":
            self.source = SourceDisk(self.path, SIZE)
            self.source.write((0, 12 * MIB, 1))
            run("qemu-img", "bitmap", "--add", "-f", "qcow2", self.path, BITMAP)
        else:
            self.path.write_bytes(noise(1, 12 * MIB).ljust(SIZE, b"\0"))

    def disk(self, mode: DiskMode = DiskMode.FULL, *, bitmap: str | None = None, known: str = "") -> DiskTransfer:
        source = NbdSource(
            kind="offline", path=str(self.path), export="vda", bitmap=bitmap, image_format=self.fmt
        )  # fmt: skip
        return DiskTransfer(target="vda", size_bytes=SIZE, mode=mode, source=source, known_stamp=known)

    def transfer(self, disk: DiskTransfer, **more: object) -> Transfer:
        checkpoint = BITMAP if self.fmt == "qcow2" else None
        return self.rig.transfer([disk], checkpoint=checkpoint, **more)

    @property
    def stamp(self) -> str:
        return self.rig.helper.image_stamp(str(self.path))[0]

    def identical(self, seq: int) -> bool:
        with export(self.path, fmt=self.fmt) as socket:
            return self.rig.identical(seq, "vda", socket)


class Vm:
    """What QEMU does with the image while the VM runs: opens it for writing, with its locks, and writes."""

    def __init__(self, image: Image) -> None:
        self._process = subprocess.Popen(
            ["qemu-io", "-f", image.fmt, str(image.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def write(self, offset: int, length: int) -> None:
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"write -P 0x77 {offset} {length}\nflush\n")
        process.stdin.flush()
        assert "wrote" in process.stdout.readline()
        assert "ops" in process.stdout.readline()

    def stop(self) -> None:
        self._process.communicate(timeout=10)
        assert self._process.returncode == 0


@pytest.fixture(params=["qcow2", "raw"])
def image(rig: Rig, request: pytest.FixtureRequest) -> Image:
    return Image(rig, str(request.param))


def once(act: Callable[[], None]) -> Callable[[Progress], None]:
    """On the first progress that has seen some bytes."""
    done: list[bool] = []

    def on_progress(progress: Progress) -> None:
        if progress.done_bytes and not done:
            done.append(True)
            act()

    return on_progress


def test_a_vm_that_starts_during_the_copy_starts_and_nothing_torn_is_published(rig: Rig, image: Image) -> None:
    started: list[Vm] = []

    def start() -> None:
        vm = Vm(image)
        vm.write(0, MIB)  # its first disk block, of which the copy has the old content
        vm.write(11 * MIB, MIB)
        started.append(vm)

    slow = image.transfer(image.disk(), bandwidth_bytes_s=3 * MIB)
    with pytest.raises(TransferInterrupted, match=r"in use|written"):
        rig.send(slow, once(start))
    assert len(started) == 1
    assert rig.manifest().points == ()
    with pytest.raises(TransferInterrupted, match="was started"):
        rig.send(image.transfer(image.disk()))
    started[0].stop()
    # Off again: what was kept is taken up by what the bitmap says, or by a comparison where there is none.
    again = image.disk(DiskMode.FULL if image.fmt == "qcow2" else DiskMode.COMPARE)
    if image.fmt == "qcow2":
        again = image.disk(DiskMode.FULL, bitmap=BITMAP)
    done = rig.send(image.transfer(again, resume_incoming=True))
    assert done.published
    assert image.identical(done.seq)
    assert done.images == {"vda": image.stamp}
    newest = rig.manifest().newest
    assert newest is not None
    assert newest.images == done.images


def test_a_vm_that_started_and_stopped_during_the_copy_is_noticed_too(rig: Rig, image: Image) -> None:
    def run_shortly() -> None:
        vm = Vm(image)
        vm.write(0, MIB)
        vm.stop()

    with pytest.raises(TransferInterrupted, match="written"):
        rig.send(image.transfer(image.disk(), bandwidth_bytes_s=3 * MIB), once(run_shortly))
    assert rig.manifest().points == ()


def test_a_write_behind_an_empty_bitmap_is_compared_and_repaired(rig: Rig) -> None:
    image = Image(rig, "qcow2")
    first = rig.send(image.transfer(image.disk(bitmap=None)))
    cleared, stamp = rig.helper.bitmap_clear(str(image.path), BITMAP, image.stamp)
    assert cleared
    assert stamp == image.stamp != first.images["vda"]

    delta = image.disk(DiskMode.DELTA, bitmap=BITMAP, known=stamp)
    quiet = rig.send(image.transfer(delta, skip_if_empty=True))
    assert quiet.empty
    assert quiet.images == {"vda": stamp}

    found = run("qemu-img", "map", "--output=json", "-f", "qcow2", image.path)
    spot = int(found.split('"offset": ')[1].split("}")[0].split(",")[0])
    with image.path.open("r+b") as file:  # dd into the file: QEMU has no part in it, so no bitmap tells
        file.seek(spot + 5 * 65536)
        file.write(noise(9, 4096))
    done = rig.send(image.transfer(delta, skip_if_empty=True))
    assert done.published
    assert done.compared == ("vda",)
    assert quiet.compared == ()
    assert done.data_bytes == 65536  # compared, and only the block that differs sent
    assert [d.mode for d in rig.store.point(rig.vm, done.seq).disks] == [DiskMode.COMPARE]
    assert image.identical(done.seq)
    assert done.images == {"vda": image.stamp}


def test_a_write_that_the_bitmap_tells_of_is_a_delta(rig: Rig) -> None:
    image = Image(rig, "qcow2")
    rig.send(image.transfer(image.disk(bitmap=None)))
    _, stamp = rig.helper.bitmap_clear(str(image.path), BITMAP, image.stamp)
    image.source.write((MIB, MIB, 7))
    done = rig.send(image.transfer(image.disk(DiskMode.DELTA, bitmap=BITMAP, known=stamp), skip_if_empty=True))
    assert done.data_bytes == MIB
    assert [d.mode for d in rig.store.point(rig.vm, done.seq).disks] == [DiskMode.DELTA]
    assert image.identical(done.seq)


def test_the_scrub_of_a_vm_that_starts_meanwhile_finds_no_mismatch(rig: Rig) -> None:
    image = Image(rig, "raw")
    rig.send(image.transfer(image.disk()))
    newest = rig.manifest().newest
    assert newest is not None

    class Starting:
        """The first table's arrival is the moment at which the VM starts."""

        def take(self, peer: str) -> object:
            session = rig.pool.take(peer)
            reply = session.reply

            def reply_and_start(kind: object) -> object:
                answer = reply(kind)  # type: ignore[arg-type]
                vm = Vm(image)
                vm.write(0, MIB)
                vm.stop()
                return answer

            session.reply = reply_and_start  # type: ignore[method-assign,assignment]
            return session

        give_back = rig.pool.give_back

    asked = ScrubSlice(
        vm_uuid=rig.vm, peer_site=rig.target_id, grant=rig.grant(newest.seq), disks=(image.disk(known=image.stamp),),
        budget_bytes=SIZE,
    )  # fmt: skip
    scrub = Scrub(asked, cast("PeerPool", Starting()), rig.helper, rig.root / "scrub")
    with pytest.raises(TransferInterrupted, match=r"written|in use"):
        scrub.run()
    after = rig.manifest().newest
    assert after is not None
    assert after.verified


def test_who_has_it_open_for_writing_is_seen(rig: Rig, image: Image) -> None:
    path = str(image.path)
    before, writer = rig.helper.image_stamp(path)
    assert not writer
    with export(image.path, fmt=image.fmt):  # a reader is none
        assert rig.helper.image_stamp(path) == (before, False)
    vm = Vm(image)
    wait_until(lambda: rig.helper.image_stamp(path)[1], "the writer's lock", timeout_s=10)
    vm.stop()
    assert not rig.helper.image_stamp(path)[1]


def test_a_changed_configuration_or_varstore_of_an_unwritten_vm_makes_a_point(rig: Rig) -> None:
    image = Image(rig, "qcow2")
    varstore = rig.root / "vars.fd"
    varstore.write_bytes(b"one")

    def send(disk: DiskTransfer, xml: str) -> Transferred:
        asked = image.transfer(disk, skip_if_empty=True)
        more = {"domain_xml": xml, "config": configuration_digest(xml), "nvram_path": str(varstore)}
        newest = rig.manifest().newest
        known = newest.config if newest else ""
        draft = asked.draft.model_copy(update=more)
        return rig.send(asked.model_copy(update={"draft": draft, "known_config": known}))

    assert send(image.disk(bitmap=None), "<domain><vcpu>1</vcpu></domain>").published
    rig.helper.bitmap_clear(str(image.path), BITMAP, image.stamp)
    delta = image.disk(DiskMode.DELTA, bitmap=BITMAP)
    assert send(delta, "<domain> <vcpu>1</vcpu> </domain>").empty
    second = send(delta, "<domain><vcpu>2</vcpu></domain>")
    assert second.published
    assert (second.data_bytes, second.zero_bytes) == (0, 0)
    assert send(delta, "<domain><vcpu>2</vcpu></domain>").empty
    varstore.write_bytes(b"two")
    third = send(delta, "<domain><vcpu>2</vcpu></domain>")
    assert third.published
    assert rig.store.point_file(rig.vm, third.seq, "nvram.fd").read_bytes() == b"two"
    assert send(delta, "<domain><vcpu>2</vcpu></domain>").empty
    assert image.identical(third.seq)
