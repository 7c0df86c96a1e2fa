"""Reading a frozen export: which ranges changed, which are zero, and the data, several requests in flight.

Facts: ``facts`` of libnbd 1.14 and QEMU 7.2: BLOCK_STATUS takes 32 bits, replies may be short, may overshoot
in their last extent and may repeat flags; HOLE without ZERO promises nothing and counts as data.
"""

from __future__ import annotations

import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import nbd

from vapor_desktop.model.errors import CheckpointInconsistent, TransferCancelled, TransferInterrupted
from vapor_desktop.model.extents import BLOCK_BYTES, Extent, chunks
from vapor_desktop.site.mover.protocol import CHUNK_BYTES, ZERO_LIMIT_BYTES

STATUS_LIMIT_BYTES = (1 << 32) - BLOCK_BYTES
REQUEST_BYTES = 256 << 10  # QEMU takes a fresh buffer per request; larger ones cost it page faults
ASK_BYTES = 4 * BLOCK_BYTES
POLL_MS = 200
STATE_DIRTY = 1


def connect(socket_path: Path | str, export: str, contexts: Iterable[str] = ()) -> Any:
    """A libnbd handle. Raises TransferInterrupted when the server is not there (VM gone, job ended)."""
    handle = nbd.NBD()
    try:
        handle.set_export_name(export)
        handle.set_pread_initialize(False)
        for context in contexts:
            handle.add_meta_context(context)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
            # Twice the default: a whole chunk fits, so a write is handed over without waiting for its reader.
            link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, CHUNK_BYTES)
            link.connect(str(socket_path))
            handle.connect_socket(link.detach())
    except nbd.Error as error:
        raise translate(error, f"Cannot open the export {export!r}") from error
    except OSError as error:
        why = f"{socket_path}: {error.strerror or error}"
        raise TransferInterrupted(f"Cannot open the export {export!r}", why=why) from error
    return handle


def translate(error: Any, what: str) -> TransferInterrupted:
    """libnbd's error as ours, by errno."""
    return TransferInterrupted(what, why=error.string, errno=error.errno)


def disconnect(handle: Any) -> None:
    """Say goodbye properly: QEMU before 7.2.14 crashed on abrupt ends (CVE-2024-7409)."""
    try:
        handle.shutdown()
    except nbd.Error:  # the server has gone first; nothing is left to close
        return


class Export:
    """A read-only export of one disk. ``status`` calls are for one thread; ``ring`` makes connections of its own."""

    def __init__(self, socket_path: Path | str, name: str) -> None:
        self._path = socket_path
        self._name = name
        self._allocation: Any = None
        probe = connect(socket_path, name)
        self.size_bytes: int = probe.get_size()
        disconnect(probe)

    def dirty(self, bitmap: str) -> Iterator[Extent]:
        """The changed ranges, from the bitmap's context over the whole disk.

        Raises CheckpointInconsistent when the export does not offer that bitmap.
        """
        context = f"qemu:dirty-bitmap:{bitmap}"
        handle = connect(self._path, self._name, [context])
        try:
            if not handle.can_meta_context(context):
                raise CheckpointInconsistent("The export does not offer the bitmap", bitmap=bitmap)
            for extent, flags in status(handle, context, Extent(0, self.size_bytes)):
                if flags & STATE_DIRTY:
                    yield extent
        finally:
            disconnect(handle)

    def allocation(self, within: Extent) -> Iterator[tuple[Extent, bool]]:
        """``within`` cut into (range, reads as zero for certain)."""
        if self._allocation is None:
            self._allocation = connect(self._path, self._name, [nbd.CONTEXT_BASE_ALLOCATION])
        if not self._allocation.can_meta_context(nbd.CONTEXT_BASE_ALLOCATION):
            yield within, False
            return
        for extent, flags in status(self._allocation, nbd.CONTEXT_BASE_ALLOCATION, within):
            yield extent, bool(flags & nbd.STATE_ZERO)

    def pieces(self, within: Extent, chunk_bytes: int) -> Iterator[tuple[Extent, bool]]:
        """Block-aligned work: zero runs (up to ZERO_LIMIT_BYTES), and data of at most ``chunk_bytes``.

        A zero range is shrunk to whole blocks; its ragged ends are read with their neighbours. A short range is
        not worth the question: zeroes are found by their digest anyway.
        """
        if within.length < ASK_BYTES:
            yield from ((c, False) for c in chunks([within], chunk_bytes))
            return
        at = within.offset
        for extent, zero in self.allocation(within):
            if not zero:
                continue
            begin = -(-extent.offset // BLOCK_BYTES) * BLOCK_BYTES
            whole = extent.end in (self.size_bytes, within.end)
            end = extent.end if whole else extent.end // BLOCK_BYTES * BLOCK_BYTES
            if end - begin < BLOCK_BYTES or begin < at:
                continue
            yield from ((c, False) for c in chunks([Extent(at, begin - at)], chunk_bytes))
            yield from ((c, True) for c in chunks([Extent(begin, end - begin)], ZERO_LIMIT_BYTES))
            at = end
        yield from ((c, False) for c in chunks([Extent(at, within.end - at)], chunk_bytes))

    def ring(self, depth: int, stop: threading.Event) -> ReadRing:
        """A connection for one worker."""
        return ReadRing(connect(self._path, self._name), depth, stop)

    def close(self) -> None:
        """Close what ``allocation`` opened."""
        if self._allocation is not None:
            disconnect(self._allocation)
            self._allocation = None


def status(handle: Any, context: str, within: Extent) -> Iterator[tuple[Extent, int]]:
    """``within`` cut by the flags that a context gives it. Raises TransferInterrupted."""
    at = within.offset
    while at < within.end:
        entries: list[int] = []

        def keep(name: str, _offset: int, found: list[int], _error: Any, into: list[int] = entries) -> int:
            if name == context:
                into.extend(found)
            return 0

        try:
            handle.block_status(min(STATUS_LIMIT_BYTES, within.end - at), at, keep)
        except nbd.Error as error:
            raise translate(error, "The export does not tell its block status") from error
        if not entries:
            raise TransferInterrupted("The export told nothing about a range", context=context, offset=at)
        for told, flags in zip(entries[::2], entries[1::2], strict=True):
            length = min(told, within.end - at)  # the last extent may reach beyond what was asked
            if length <= 0:
                break
            yield Extent(at, length), flags
            at += length


class _Slot:
    """A chunk's buffer, and libnbd's views of its parts, made once.

    libnbd 1.14 never lets go of what ``aio_pread`` was given (tried: one reference more per read). So buffers
    and views outlive the connections, or a mover would lose 4 MiB with every transfer.
    """

    _spare: ClassVar[list[_Slot]] = []
    _lock = threading.Lock()

    def __init__(self) -> None:
        self.content = memoryview(bytearray(CHUNK_BYTES))
        self._views: dict[Extent, Any] = {}

    def view(self, part: Extent) -> Any:
        """libnbd's buffer for a part of the chunk."""
        if part not in self._views:
            self._views[part] = nbd.Buffer.from_buffer(self.content[part.offset : part.end])
        return self._views[part]

    @classmethod
    def take(cls) -> _Slot:
        """One that nobody uses."""
        with cls._lock:
            return cls._spare.pop() if cls._spare else cls()

    def give_back(self) -> None:
        """Nothing is read into it any more."""
        with self._lock:
            self._spare.append(self)


class ReadRing:
    """One connection with ``depth`` reads in flight into buffers that are used again and again."""

    def __init__(self, handle: Any, depth: int, stop: threading.Event) -> None:
        self._handle = handle
        self._stop = stop
        self._slots = [_Slot.take() for _ in range(depth)]
        self._free = list(self._slots)
        self._flying: deque[tuple[list[int], _Slot, Extent, Any]] = deque()

    def read(
        self, next_work: Callable[[], tuple[Extent, bool, Any] | None]
    ) -> Iterator[tuple[Extent, memoryview | None, Any]]:
        """Pull work ``(range, is it zero, tag)`` and yield it with its data; None as data for zeroes.

        A yielded view is valid until the next step. Raises TransferInterrupted, TransferCancelled.
        """
        more = True
        while more or self._flying:
            while more and self._free:
                work = next_work()
                if work is None:
                    more = False
                    break
                extent, zero, tag = work
                if zero:
                    yield extent, None, tag
                else:
                    self._start(extent, tag)
            if self._flying:
                cookies, slot, extent, tag = self._flying[0]
                for cookie in cookies:
                    self._finish(cookie)
                self._flying.popleft()
                yield extent, slot.content[: extent.length], tag
                self._free.append(slot)

    def _start(self, extent: Extent, tag: Any) -> None:
        slot = self._free.pop()
        cookies: list[int] = []
        self._flying.append((cookies, slot, extent, tag))
        try:
            for part in chunks([Extent(0, extent.length)], REQUEST_BYTES):
                cookies.append(self._handle.aio_pread(slot.view(part), extent.offset + part.offset))
        except nbd.Error as error:
            raise translate(error, "The export does not take a read") from error

    def _finish(self, cookie: int) -> None:
        try:
            # A failed read raises here: without this look it would leave its data out silently.
            while not self._handle.aio_command_completed(cookie):
                self._handle.poll(POLL_MS)
                if self._stop.is_set():
                    raise TransferCancelled("The transfer was stopped")
        except nbd.Error as error:
            raise translate(error, "The export broke off while it was read") from error

    def close(self) -> None:
        """Wait for what is in flight (the buffers must outlive it), then disconnect."""
        waiting = [cookie for cookies, *_ in self._flying for cookie in cookies]
        while waiting and self._handle.aio_in_flight():
            try:
                self._handle.poll(POLL_MS)
                waiting = [cookie for cookie in waiting if not self._handle.aio_command_completed(cookie)]
            except nbd.Error:  # one read failed, which is of no interest any more; or the connection is dead
                if self._handle.aio_is_dead() or self._handle.aio_is_closed():
                    break
        self._flying.clear()
        disconnect(self._handle)
        if not self._handle.aio_in_flight():  # else they are lost: a late reply must not write into another's chunk
            for slot in self._slots:
                slot.give_back()
            self._slots.clear()
