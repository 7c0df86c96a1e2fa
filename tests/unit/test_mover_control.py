"""The mover as a process: the JSON-lines channel, the end of its input, kill -9, stopped VMs."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.mover_rig import MIB, Mover, Rig, SourceDisk, disk, export
from vapor_desktop.model.errors import ProtocolError, TransferCancelled
from vapor_desktop.model.manifest import DiskMode
from vapor_desktop.model.wire import DiskTransfer, IncomingView, NbdSource, Transfer
from vapor_desktop.site.helper import Helper, listen_at

SIZE = 32 * MIB
BITMAP = "vapor-p1-1-000001"


@pytest.fixture
def rig() -> Iterator[Rig]:
    with tempfile.TemporaryDirectory(prefix="vm-") as root:
        rig = Rig(Path(root))
        yield rig
        rig.close()


@pytest.fixture
def mover(rig: Rig) -> Iterator[Mover]:
    mover = Mover(rig)
    yield mover
    if mover.process.poll() is None:
        assert mover.close() == 0


@pytest.fixture
def vda(rig: Rig) -> SourceDisk:
    source = SourceDisk(rig.root / "vda.qcow2", SIZE)
    source.write((0, 12 * MIB, 1))
    return source


@pytest.fixture
def helper(rig: Rig) -> Iterator[None]:
    """The real root helper of the source site."""
    listener = listen_at(rig.source.helper_socket, os.geteuid(), os.getegid())
    stop = threading.Event()
    helper = Helper(rig.source, frozenset({os.geteuid()}))
    thread = threading.Thread(target=helper.serve, args=(listener, stop))
    thread.start()
    yield
    stop.set()
    thread.join()
    listener.close()


def slow(rig: Rig, socket: Path) -> Transfer:
    return rig.transfer([disk("vda", SIZE, socket)], checkpoint="cp1", bandwidth_bytes_s=2 * MIB)


def kept(rig: Rig, *, at_least: int = 1) -> IncomingView:
    """What the receiver kept, once it has let go."""
    deadline = time.monotonic() + 10
    while True:
        view = rig.store.view(rig.vm).incoming
        if view is not None and view.received_bytes["vda"] >= at_least:
            return view
        assert time.monotonic() < deadline, view
        time.sleep(0.05)


def test_it_greets_answers_and_refuses(rig: Rig, mover: Mover) -> None:
    assert mover.hello == {"hello": {"mover_protocol": 1, "site_id": rig.source_id}}
    assert mover.answer(mover.ask("ping", {})) is None
    with pytest.raises(ProtocolError, match="Unknown verb"):
        mover.answer(mover.ask("reformat", {}))
    mover.write(["not", "a", "request"])
    assert mover.line()["error"]["code"] == "PROTOCOL"
    number = mover.ask("transfer", {"vm_uuid": rig.vm})
    assert mover.line()["error"]["code"] == "INVALID-REQUEST"
    assert number == 3


def test_a_transfer_with_progress_and_the_session_kept_for_the_next(rig: Rig, mover: Mover, vda: SourceDisk) -> None:
    vda.bitmap("cp1")
    with export(vda.path) as socket:
        assert mover.transfer(slow(rig, socket)).published
    assert mover.progress[0]["data"]["disk"] == "vda"
    receiver, daemon = rig.receiver_pid(), rig.daemon_pid()
    with export(vda.path, bitmap="cp1") as socket:
        delta = rig.transfer([disk("vda", SIZE, socket, DiskMode.DELTA, "cp1")], checkpoint="cp2")
        assert mover.transfer(delta).published
    assert (rig.receiver_pid(), rig.daemon_pid()) == (receiver, daemon)


def test_cancel_over_the_channel(rig: Rig, mover: Mover, vda: SourceDisk) -> None:
    with export(vda.path) as socket:
        number = mover.ask("transfer", slow(rig, socket).model_dump(mode="json"))
        assert mover.line()["event"] == "progress"
        started = time.monotonic()
        cancel = mover.ask("cancel", {"id": number})
        answers = {}
        while len(answers) < 2:
            message = mover.line()
            if "event" not in message:
                answers[message["id"]] = message
        assert time.monotonic() - started < 2
    assert answers[cancel]["result"] is None
    assert answers[number]["error"]["code"] == TransferCancelled.code


def test_the_end_of_its_input_ends_everything(rig: Rig, mover: Mover, vda: SourceDisk) -> None:
    with export(vda.path) as socket:
        mover.ask("transfer", slow(rig, socket).model_dump(mode="json"))
        assert mover.line()["event"] == "progress"
        receiver, daemon = rig.receiver_pid(), rig.daemon_pid()
        assert mover.close() == 0
        kept(rig)
    for pid in (receiver, daemon):
        assert not Path(f"/proc/{pid}").exists()
    assert list((rig.root / "b" / "run").iterdir()) == []


def test_kill_minus_nine_of_the_sender_costs_only_a_resume(rig: Rig, mover: Mover, vda: SourceDisk) -> None:
    with export(vda.path) as socket:
        mover.ask("transfer", slow(rig, socket).model_dump(mode="json"))
        assert mover.line()["event"] == "progress"
        assert mover.line()["event"] == "progress"
        mover.process.send_signal(signal.SIGKILL)
        mover.process.wait()
        for stream in (mover.process.stdin, mover.process.stdout):
            assert stream is not None
            stream.close()
        before = kept(rig).received_bytes["vda"]
        again = Mover(rig)
        done = again.transfer(rig.transfer([disk("vda", SIZE, socket)], checkpoint="cp1", resume_incoming=True))
        assert done.published
        assert done.read_bytes <= 12 * MIB - before + 2 * MIB
        assert rig.identical(done.seq, "vda", socket)
        assert again.close() == 0


@pytest.mark.usefixtures("helper")
def test_a_stopped_vm_with_its_varstore_and_its_bitmap(rig: Rig, mover: Mover, vda: SourceDisk) -> None:
    (rig.root / "vars.fd").write_bytes(b"NV" * 2048)
    path = str(vda.path)
    assert mover.answer(mover.ask("add-bitmap", {"path": path, "name": BITMAP})) is None
    full = NbdSource(kind="offline", path=path, export="vda", bitmap=None)
    first = rig.transfer(
        [DiskTransfer(target="vda", size_bytes=SIZE, mode=DiskMode.FULL, source=full)], checkpoint=BITMAP
    )
    draft = first.draft.model_copy(update={"nvram_path": str(rig.root / "vars.fd")})
    assert mover.transfer(first.model_copy(update={"draft": draft})).published
    assert rig.store.point_file(rig.vm, 1, "nvram.fd").read_bytes() == b"NV" * 2048

    vda.write((MIB, MIB, 5))
    info = mover.answer(mover.ask("image-info", {"path": path}))
    assert (info["virtual_size_bytes"], info["format"], info["bitmaps"]) == (SIZE, "qcow2", {BITMAP: True})
    changed = full.model_copy(update={"bitmap": BITMAP})
    delta = DiskTransfer(target="vda", size_bytes=SIZE, mode=DiskMode.DELTA, source=changed)
    done = mover.transfer(rig.transfer([delta], checkpoint=BITMAP))
    assert done.data_bytes == MIB
    with export(vda.path) as socket:
        assert rig.identical(done.seq, "vda", socket)

    stale = {"path": path, "name": BITMAP, "expect_stamp": info["stamp"] + "0"}
    assert mover.answer(mover.ask("clear-bitmap", stale))["cleared"] is False
    fresh = {**stale, "expect_stamp": info["stamp"]}
    cleared = mover.answer(mover.ask("clear-bitmap", fresh))
    assert cleared["cleared"] is True
    assert cleared["stamp"] == mover.answer(mover.ask("image-info", {"path": path}))["stamp"] != info["stamp"]
    assert mover.transfer(rig.transfer([delta], checkpoint=BITMAP, skip_if_empty=True)).empty
