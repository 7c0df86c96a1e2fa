"""Sending one disk: its pieces are shared out to a few workers, each of which reads, hashes, packs and writes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from vapor_desktop.model.blockmap import BlockMap
from vapor_desktop.model.errors import TransferCancelled
from vapor_desktop.model.extents import BLOCK_BYTES, Extent, chunks
from vapor_desktop.site.mover.compressor import Compressor, Judge
from vapor_desktop.site.mover.digests import DIGEST_BYTES, block_digests, differing, zero_digests
from vapor_desktop.site.mover.nbd_source import Export
from vapor_desktop.site.mover.outlet import Outlet
from vapor_desktop.site.mover.peer import PeerSession
from vapor_desktop.site.mover.protocol import CHUNK_BYTES, TABLE_BYTES
from vapor_desktop.site.mover.throttle import Throttle
from vapor_desktop.site.replica.digests import DigestTable

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
    """One disk of one transfer. ``compare``: send only what differs from the receiver's digests.

    ``record``: this side's digest table. ``channels``: the session with the transfer first, then those that
    joined it.
    """

    def __init__(
        self,
        index: int,
        target: str,
        export: Export,
        todo: BlockMap,
        *,
        compare: bool,
        channels: Sequence[PeerSession],
        stop: threading.Event,
        throttle: Throttle | None,
        record: DigestTable | None = None,
    ) -> None:
        self.index = index
        self.target = target
        self.counts = Counts()
        self.todo_bytes = todo.total_bytes()
        self._export = export
        self._todo = todo
        self._compare = compare
        self._channels = channels
        self._stop = stop
        self._throttle = throttle
        self._record = record
        self._judge = Judge()
        self._lock = threading.Lock()
        self._work = self._pieces()

    def run(self) -> None:
        """Send everything, or until ``stop``. Raises the first failure of a worker."""
        try:
            workers = max(WORKERS, len(self._channels))
            with ThreadPoolExecutor(workers, thread_name_prefix=f"send-{self.target}") as crew:
                done = [crew.submit(self._worker, self._channels[i % len(self._channels)]) for i in range(workers)]
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
                    table = self._channels[0].table(self.index, window)
                for piece, zero in self._export.pieces(part, CHUNK_BYTES):
                    there = Extent(piece.offset - window.offset, piece.length)
                    yield piece, zero, _cut(table, there) if self._compare else None

    def _next(self) -> tuple[Extent, bool, bytes | None] | None:
        with self._lock:
            return None if self._stop.is_set() else next(self._work, None)

    def _worker(self, channel: PeerSession) -> None:
        out = Outlet(self.index, channel, Compressor(self._judge), self._throttle)
        try:
            ring = self._export.ring(READ_DEPTH, self._stop)
            try:
                for piece, data, theirs in ring.read(self._next):
                    if data is None:
                        self._zeroes(out, piece, theirs)
                    else:
                        self._data(out, piece, data, theirs)
            finally:
                ring.close()
        except BaseException:
            self._stop.set()  # the other workers need not go on
            raise

    def _zeroes(self, out: Outlet, piece: Extent, theirs: bytes | None) -> None:
        ours = b"" if theirs is None and self._record is None else zero_digests(piece.length)
        self._keep(piece, ours)
        for part, differs in _parts(ours, theirs, piece):
            there = Extent(piece.offset + part.offset, part.length)
            if differs:
                out.zero(there)
                self._count(zero=part.length)
            else:
                out.same(there, _cut(ours, part))
        self._count(done=piece.length)

    def _data(self, out: Outlet, piece: Extent, data: memoryview, theirs: bytes | None) -> None:
        ours = block_digests(data)
        self._keep(piece, ours)
        for part, differs in _parts(ours, theirs, piece):
            there = Extent(piece.offset + part.offset, part.length)
            own = _cut(ours, part)
            if not differs:
                out.same(there, own)
            elif own == zero_digests(part.length):
                out.zero(there)
                self._count(zero=part.length)
            else:
                out.data(there, data[part.offset : part.end], own)
                self._count(data=part.length)
        self._count(done=piece.length, read=piece.length)

    def _keep(self, piece: Extent, digests: bytes) -> None:
        """This side's record of what was read. A block that never arrives stays dirty, and is read again."""
        if self._record is not None:
            self._record.write(piece.offset // BLOCK_BYTES, digests)

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


def _cut(digests: bytes, part: Extent) -> bytes:
    """The digests of a part, which begins at a block's border."""
    first = _digest_bytes(part.offset)
    return digests[first : first + _digest_bytes(part.length)]


def _parts(ours: bytes, theirs: bytes | None, piece: Extent) -> list[tuple[Extent, bool]]:
    """A piece cut into (range within it, must it be sent)."""
    if theirs is None:
        return [(Extent(0, piece.length), True)]
    return differing(ours, theirs, piece.length)
