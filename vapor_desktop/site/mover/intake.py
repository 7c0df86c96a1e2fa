"""The receiver's hands: threads that unpack, verify and write frames, and remember what they wrote.

The thread that reads the channel never waits for a write, only for a free buffer; each worker has a
connection of its own to every disk it writes. What a worker is done with is not durable yet: see
``Reception.settle``.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import nbd
import zstandard

from vapor_desktop.model.errors import FrameCorrupt, ReplicaFull, TransferInterrupted, Unexpected, VaporError
from vapor_desktop.model.extents import Extent
from vapor_desktop.site.mover import nbd_source
from vapor_desktop.site.mover.digests import block_digests, split_zero
from vapor_desktop.site.mover.protocol import CHUNK_BYTES, FLAG_ZSTD, PAYLOAD_LIMIT_BYTES, Header, Kind

WORKERS = 3
BUFFERS = 10


@dataclass(frozen=True, slots=True)
class Done:
    """A range of a disk that now reads as the source said. ``digests`` None: zeroes."""

    disk: int
    extent: Extent
    digests: bytes | None
    written: bool


@dataclass(frozen=True, slots=True)
class Target:
    """Where a disk is written. ``skip_zero``: it is a new image on nothing, which reads as zero already."""

    socket_path: str
    export: str
    skip_zero: bool


class Unpacker:
    """One thread's zstd, into a buffer that is used again and again: a fresh one per frame costs page faults."""

    def __init__(self) -> None:
        self._zstd = zstandard.ZstdDecompressor()
        self._buffer: memoryview | None = None

    def content(self, header: Header, payload: memoryview) -> memoryview:
        """What a DATA frame carries; valid until the next call. Raises FrameCorrupt."""
        if not header.flags & FLAG_ZSTD:
            if len(payload) != header.length:
                raise FrameCorrupt("A frame has another size than it says", offset=header.offset)
            return payload
        if self._buffer is None:
            self._buffer = memoryview(bytearray(CHUNK_BYTES))
        try:
            # The size is the sender's word: look before believing it.
            if zstandard.frame_content_size(payload) != header.length or header.length > CHUNK_BYTES:
                raise FrameCorrupt("A compressed frame has another size than it says", offset=header.offset)
            content = self._buffer[: header.length]
            with self._zstd.stream_reader(payload) as reader:
                at = 0
                while at < header.length and (n := reader.readinto(content[at:])):
                    at += n
        except zstandard.ZstdError as error:
            raise FrameCorrupt("A frame does not decompress", why=str(error), offset=header.offset) from error
        if at < header.length:
            raise FrameCorrupt("A frame does not decompress", why="it is cut off", offset=header.offset)
        return content


class Intake:
    """Workers of one transfer. ``target(disk)`` opens a disk's export the first time it is asked for."""

    def __init__(self, target: Callable[[int], Target]) -> None:
        self._target = target
        self._buffers: queue.SimpleQueue[bytearray] = queue.SimpleQueue()
        self._made = 0
        self._work: queue.SimpleQueue[tuple[Header, bytes, bytearray | None] | None] = queue.SimpleQueue()
        self._state = threading.Condition()
        self._pending = 0
        self._done: list[Done] = []
        self._threads: list[threading.Thread] = []
        self.failure: VaporError | None = None
        self.done_bytes = 0

    def buffer(self) -> bytearray:
        """A free payload buffer; waits for one. Safe from several threads, as ``submit`` is."""
        with self._state:
            if self._made < BUFFERS and self._buffers.empty():
                self._made += 1
                return bytearray(PAYLOAD_LIMIT_BYTES)
        return self._buffers.get()

    def submit(self, header: Header, meta: bytes, payload: bytearray | None) -> None:
        """Hand a DATA, ZERO or SAME frame over. Raises the workers' first failure."""
        if self.failure is not None:
            raise self.failure
        with self._state:
            self._pending += 1
            if not self._threads:
                self._threads = [threading.Thread(target=self._run, name=f"intake-{i}") for i in range(WORKERS)]
                for thread in self._threads:
                    thread.start()
        self._work.put((header, meta, payload))

    def drain(self) -> None:
        """Wait until everything handed over is written. Raises the first failure."""
        with self._state:
            self._state.wait_for(lambda: self._pending == 0)
        if self.failure is not None:
            raise self.failure

    def take_done(self) -> list[Done]:
        """What was finished since the last call; only this may be called from another thread."""
        with self._state:
            done, self._done = self._done, []
            self.done_bytes = 0
            return done

    def close(self) -> None:
        """Finish what is queued, close every connection, end the threads, let go of the buffers."""
        for _ in self._threads:
            self._work.put(None)
        for thread in self._threads:
            thread.join()
        self._threads = []
        self._buffers = queue.SimpleQueue()  # the transfer that holds us is freed by the collector alone, much later

    def _run(self) -> None:
        unpack = Unpacker()
        links: dict[int, tuple[Any, Target]] = {}
        while (item := self._work.get()) is not None:
            header, meta, payload = item
            done: list[Done] = []
            try:
                if self.failure is None:
                    done = self._one(links, unpack, header, meta, payload)
            except Exception as error:  # noqa: BLE001 - the edge of a thread: kept, and raised by submit and drain
                self.failure = self.failure or _translate(error)
            if payload is not None:
                self._buffers.put(payload)
            with self._state:
                self._done += done
                self.done_bytes += sum(d.extent.length for d in done if d.written)
                self._pending -= 1
                self._state.notify_all()
        for handle, _ in links.values():
            nbd_source.disconnect(handle)

    def _one(
        self,
        links: dict[int, tuple[Any, Target]],
        unpack: Unpacker,
        header: Header,
        meta: bytes,
        payload: bytearray | None,
    ) -> list[Done]:
        whole = Extent(header.offset, header.length)
        if header.kind is Kind.SAME:
            return [Done(header.disk, whole, meta, written=False)]
        if header.disk not in links:
            target = self._target(header.disk)
            links[header.disk] = (nbd_source.connect(target.socket_path, target.export), target)
        handle, target = links[header.disk]
        if header.kind is Kind.ZERO:
            _zero(handle, target, whole)
            return [Done(header.disk, whole, None, written=False)]
        if payload is None:
            raise FrameCorrupt("A DATA frame came without data", offset=header.offset)
        data = unpack.content(header, memoryview(payload)[: header.payload_bytes])
        if block_digests(data) != meta:
            raise FrameCorrupt("A block does not match its digest", disk=header.disk, offset=header.offset)
        for part, is_zero in split_zero(meta, header.length):
            if is_zero:
                _zero(handle, target, Extent(header.offset + part.offset, part.length))
            else:
                handle.pwrite(data[part.offset : part.end], header.offset + part.offset)
        return [Done(header.disk, whole, meta, written=True)]


def _zero(handle: Any, target: Target, extent: Extent) -> None:
    if not target.skip_zero:
        handle.zero(extent.length, extent.offset)


def _translate(error: Exception) -> VaporError:
    if isinstance(error, VaporError):
        return error
    if not isinstance(error, nbd.Error):
        return Unexpected("The receiver failed on a frame", why=repr(error))
    if error.errno == "ENOSPC":
        return ReplicaFull("The file system of the replica is full")
    return TransferInterrupted("The replica's disk cannot be written", why=error.string, errno=error.errno)
