"""Sending one disk: its pieces are shared out to a few workers, each of which reads, hashes, packs and writes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from vapor_desktop.model.errors import TransferCancelled
from vapor_desktop.model.extents import BLOCK_BYTES, Extent, chunks
from vapor_desktop.site.mover import protocol
from vapor_desktop.site.mover.blockmap import BlockMap
from vapor_desktop.site.mover.compressor import Compressor, Judge
from vapor_desktop.site.mover.digests import (
    DIGEST_BYTES,
    block_digests,
    differing,
    split_zero,
    zero_digest,
    zero_digests,
)
from vapor_desktop.site.mover.nbd_source import Export
from vapor_desktop.site.mover.peer import PeerSession
from vapor_desktop.site.mover.protocol import CHUNK_BYTES, FLAG_ZSTD, TABLE_BYTES, Kind
from vapor_desktop.site.mover.throttle import Throttle

WORKERS = 2
READ_DEPTH = 2  # chunks per worker: 4 MiB in flight on 2 connections [facts/libvirt 1.2, 3.2]


@dataclass
class Counts:
    """Bytes of one disk so far."""

    data_bytes: int = 0
    zero_bytes: int = 0
    read_bytes: int = 0
    done_bytes: int = 0


class DiskRun:
    """One disk of one transfer. ``compare``: send only what differs from the receiver's digests."""

    def __init__(
        self,
        index: int,
        target: str,
        export: Export,
        todo: BlockMap,
        *,
        compare: bool,
        session: PeerSession,
        stop: threading.Event,
        throttle: Throttle | None,
    ) -> None:
        self.index = index
        self.target = target
        self.counts = Counts()
        self.todo_bytes = todo.total_bytes()
        self._export = export
        self._todo = todo
        self._compare = compare
        self._session = session
        self._stop = stop
        self._throttle = throttle
        self._judge = Judge()
        self._lock = threading.Lock()
        self._work = self._pieces()

    def run(self) -> None:
        """Send everything, or until ``stop``. Raises the first failure of a worker."""
        try:
            with ThreadPoolExecutor(WORKERS, thread_name_prefix=f"send-{self.target}") as crew:
                done = [crew.submit(self._worker) for _ in range(WORKERS)]
            raise_cause(done)
        finally:
            self._work.close()
            self._export.close()

    def _pieces(self) -> Generator[tuple[Extent, bool, bytes | None], None, None]:
        """(range, zero for certain, the receiver's digests of it where they are compared)."""
        window, table = Extent(0, 0), b""
        for run in self._todo.runs():
            for part in _windows(run):
                if self._compare and part.offset >= window.end:
                    begin = part.offset // TABLE_BYTES * TABLE_BYTES
                    window = Extent(begin, min(TABLE_BYTES, self._export.size_bytes - begin))
                    table = self._session.table(self.index, window)
                for piece, zero in self._export.pieces(part, CHUNK_BYTES):
                    yield piece, zero, _slots(table, window, piece) if self._compare else None

    def _next(self) -> tuple[Extent, bool, bytes | None] | None:
        with self._lock:
            return None if self._stop.is_set() else next(self._work, None)

    def _worker(self) -> None:
        compressor = Compressor(self._judge)
        try:
            ring = self._export.ring(READ_DEPTH, self._stop)
            try:
                for piece, data, theirs in ring.read(self._next):
                    if data is None:
                        self._zeroes(piece, theirs)
                    else:
                        self._data(piece, data, theirs, compressor)
            finally:
                ring.close()
        except BaseException:
            self._stop.set()  # the other workers need not go on
            raise

    def _zeroes(self, piece: Extent, theirs: bytes | None) -> None:
        if theirs is None:
            self._send_zero(piece)
        else:
            ours = zero_digests(piece.length)
            for part, differs in differing(ours, theirs, piece.length):
                there = Extent(piece.offset + part.offset, part.length)
                if differs:
                    self._send_zero(there)
                else:
                    self._send_same(there, ours[: _digest_bytes(part.length)])
        self._count(done=piece.length)

    def _data(self, piece: Extent, data: memoryview, theirs: bytes | None, compressor: Compressor) -> None:
        digests = block_digests(data)
        parts = [(Extent(0, piece.length), True)] if theirs is None else differing(digests, theirs, piece.length)
        for part, differs in parts:
            there = Extent(piece.offset + part.offset, part.length)
            first = _digest_bytes(part.offset)
            own = digests[first : first + _digest_bytes(part.length)]
            if not differs:
                self._send_same(there, own)
            elif split_zero(own, part.length) == [(Extent(0, part.length), True)]:
                self._send_zero(there)
            else:
                self._send_data(there, data[part.offset : part.end], own, compressor)
        self._count(done=piece.length, read=piece.length)

    def _send_data(self, there: Extent, data: memoryview, digests: bytes, compressor: Compressor) -> None:
        packed = compressor.squeeze(data, insist=zero_digest() in digests)
        payload: bytes | memoryview = data if packed is None else packed
        head = protocol.encode(
            Kind.DATA,
            digests,
            flags=0 if packed is None else FLAG_ZSTD,
            disk=self.index,
            offset=there.offset,
            length=there.length,
            payload_bytes=len(payload),
        )
        self._session.send(head, payload, self._throttle)
        self._count(data=there.length)

    def _send_zero(self, there: Extent) -> None:
        self._session.send(protocol.encode(Kind.ZERO, disk=self.index, offset=there.offset, length=there.length))
        self._count(zero=there.length)

    def _send_same(self, there: Extent, digests: bytes) -> None:
        self._session.send(
            protocol.encode(Kind.SAME, digests, disk=self.index, offset=there.offset, length=there.length),
            None,
            self._throttle,
        )

    def _count(self, *, data: int = 0, zero: int = 0, read: int = 0, done: int = 0) -> None:
        with self._lock:
            self.counts.data_bytes += data
            self.counts.zero_bytes += zero
            self.counts.read_bytes += read
            self.counts.done_bytes += done


def run_all(runs: list[DiskRun], lanes: int, current: Callable[[str], None]) -> None:
    """Run every disk, ``lanes`` at a time. Raises the first failure."""

    def one(run: DiskRun) -> None:
        current(run.target)
        run.run()

    with ThreadPoolExecutor(lanes, thread_name_prefix="disk") as crew:
        done = [crew.submit(one, run) for run in runs]
    raise_cause(done)


def raise_cause(done: Iterable[Future[None]]) -> None:
    """Raise what went wrong first; a worker that was only told to stop is not the cause."""
    failures = [error for error in (f.exception() for f in done) if error is not None]
    for error in sorted(failures, key=lambda e: isinstance(e, TransferCancelled)):
        raise error


def _windows(run: Extent) -> Iterator[Extent]:
    """A run cut at the borders of table windows."""
    first = min(run.end, (run.offset // TABLE_BYTES + 1) * TABLE_BYTES)
    yield Extent(run.offset, first - run.offset)
    yield from chunks([Extent(first, run.end - first)], TABLE_BYTES)


def _digest_bytes(length: int) -> int:
    return -(-length // BLOCK_BYTES) * DIGEST_BYTES


def _slots(table: bytes, window: Extent, piece: Extent) -> bytes:
    first = _digest_bytes(piece.offset - window.offset)
    return table[first : first + _digest_bytes(piece.length)]
