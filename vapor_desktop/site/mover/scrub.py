"""The scrub, source side: a rolling slice of every disk, source against the target's record, target against itself.

The cursor lives at the source, one file per VM: ``{"target": disk, "offset": bytes, "clean": so far,
"passed": {disk: when it was last read to its end}}``.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vapor_desktop.model.blockmap import BlockMap
from vapor_desktop.model.errors import ProtocolError, TransferCancelled, VaporError
from vapor_desktop.model.extents import BLOCK_BYTES, Extent, align
from vapor_desktop.model.wire import DiskTransfer, Scrubbed, ScrubSlice
from vapor_desktop.site.helper_client import HelperClient
from vapor_desktop.site.leases import vm_file_name
from vapor_desktop.site.mover import protocol
from vapor_desktop.site.mover.digests import DIGEST_BYTES, UNKNOWN
from vapor_desktop.site.mover.peer import PeerPool, PeerSession
from vapor_desktop.site.mover.protocol import TABLE_BYTES, Kind
from vapor_desktop.site.mover.source import open_export
from vapor_desktop.site.mover.stopped import StoppedImage
from vapor_desktop.site.mover.tables import digests_of
from vapor_desktop.site.statefile import locked, make_dir, read_json, write_json

Slice = tuple[int, Extent]


class Scrub:
    """One verb ``scrub``. ``run`` in one thread, ``cancel`` from any."""

    def __init__(self, request: ScrubSlice, pool: PeerPool, helper: HelperClient, state_dir: Path) -> None:
        self.request = request
        self._pool = pool
        self._helper = helper
        self._path = make_dir(state_dir) / f"{vm_file_name(request.vm_uuid)}.json"
        self._stop = threading.Event()
        self._session: PeerSession | None = None

    def cancel(self) -> None:
        """Stop soon; the cursor stays where it was."""
        self._stop.set()
        if self._session is not None:
            self._session.kill()

    def run(self) -> Scrubbed:
        """Compare the next slice. Raises StaleLease, TransferInterrupted, … ; nothing counts as checked then."""
        with locked(self._path):
            cursor = {} if self.request.whole else read_json(self._path) or {}
            slices, after, wrapped = next_slices(self.request.disks, cursor, self.request.budget_bytes)
            session = self._pool.take(self.request.peer_site)
            self._session = session
            try:
                result = self._compare(session, slices, wrapped=wrapped, clean=bool(cursor.get("clean", True)))
            except VaporError as error:
                session.kill()
                if self._stop.is_set():
                    raise TransferCancelled("The scrub was cancelled") from error
                raise
            finally:
                self._session = None
                self._pool.give_back(self.request.peer_site, session)
            clean = not result.source_mismatch and not result.target_mismatch
            after["clean"] = True if wrapped else clean and bool(cursor.get("clean", True))
            after["passed"] = passed(self.request.disks, slices, cursor, datetime.now(UTC))
            write_json(self._path, after)
            done = {
                "reached_bytes": reached(self.request.disks, after, wrapped=wrapped),
                "passed_at": after["passed"],
            }
            return Scrubbed.model_validate({**result.model_dump(), **done})

    def _compare(self, session: PeerSession, slices: list[Slice], *, wrapped: bool, clean: bool) -> Scrubbed:
        request = self.request
        opening = {
            "vm_uuid": request.vm_uuid,
            "grant": request.grant.model_dump(mode="json"),
            "slices": [
                {"target": request.disks[i].target, "offset": e.offset, "length": e.length} for i, e in slices
            ],
        }
        session.send(protocol.encode_json(Kind.SCRUB, opening))
        tables = [session.reply(Kind.TABLE).meta for _ in slices]
        stopped = [
            StoppedImage(self._helper, d.target, d.source.path, d.known_stamp)
            for d in (request.disks[i] for i in sorted({i for i, _ in slices}))
            if d.source.kind == "offline"
        ]
        source_mismatch: dict[str, set[int]] = {}
        checked = {disk.target: 0 for disk in request.disks}
        for (i, extent), table in zip(slices, tables, strict=True):
            target = request.disks[i].target
            for block, size, same in self._own(request.disks[i], extent, table):
                checked[target] += size
                if not same:
                    source_mismatch.setdefault(target, set()).add(block)
        for image in stopped:  # a VM that was started meanwhile changed its disk; that is no mismatch
            image.check()
        found = {name: sorted(blocks) for name, blocks in source_mismatch.items()}
        answer = session.ask(
            protocol.encode_json(Kind.SCRUB, {"source_mismatch": found, "pass_clean": wrapped and clean}),
            Kind.SCRUBBED,
        )
        return Scrubbed(
            checked_bytes=sum(checked.values()),
            checked=checked,
            source_mismatch={name: tuple(blocks) for name, blocks in found.items()},
            target_mismatch={name: tuple(blocks) for name, blocks in answer["target_mismatch"].items()},
            wrapped=wrapped,
        )

    def _own(self, disk: DiskTransfer, within: Extent, table: bytes) -> list[tuple[int, int, bool]]:
        """(block number, its bytes, equal) of every block that is not dirty and whose digest is on record."""
        if len(table) != -(-within.length // BLOCK_BYTES) * DIGEST_BYTES:
            raise ProtocolError("The receiver sent a table of another length than was asked for")
        seen = []
        with ExitStack() as stack:
            export = open_export(disk, self._helper, stack)
            todo = BlockMap(disk.size_bytes)
            todo.add([within])
            if disk.source.bitmap is not None:
                todo.remove(align(export.dirty(disk.source.bitmap), disk.size_bytes))
            for extent, digests in digests_of(export, todo.runs(), self._stop):
                for at in range(0, len(digests), DIGEST_BYTES):
                    block = extent.offset // BLOCK_BYTES + at // DIGEST_BYTES
                    slot = (block - within.offset // BLOCK_BYTES) * DIGEST_BYTES
                    recorded = table[slot : slot + DIGEST_BYTES]
                    if recorded != UNKNOWN:
                        size = min(BLOCK_BYTES, disk.size_bytes - block * BLOCK_BYTES)
                        seen.append((block, size, recorded == digests[at : at + DIGEST_BYTES]))
        return seen


def passed(
    disks: tuple[DiskTransfer, ...], slices: list[Slice], cursor: dict[str, Any], now: datetime
) -> dict[str, str]:
    """When each disk was last read to its end (ISO 8601), now for those whose end is among the slices."""
    names = {disk.target for disk in disks}
    known = {name: str(at) for name, at in dict(cursor.get("passed", {})).items() if name in names}
    ended = {disks[i].target for i, extent in slices if extent.offset + extent.length >= disks[i].size_bytes}
    return {**known, **dict.fromkeys(sorted(ended), now.isoformat())}


def reached(disks: tuple[DiskTransfer, ...], after: dict[str, Any], *, wrapped: bool) -> dict[str, int]:
    """How far the pass has come on each disk, with the cursor behind the last slice."""
    at, offset = str(after["target"]), int(after["offset"])
    return {d.target: d.size_bytes if wrapped or d.target < at else offset if d.target == at else 0 for d in disks}


def next_slices(
    disks: tuple[DiskTransfer, ...], cursor: dict[str, Any], budget_bytes: int
) -> tuple[list[Slice], dict[str, Any], bool]:
    """(slices of at most ``budget_bytes``, the cursor behind them, does a whole pass end with them).

    Disks are taken in the order of their names. A cursor on a disk that is gone, or beyond its end, moves on.
    """
    order = sorted(range(len(disks)), key=lambda i: disks[i].target)
    at = str(cursor.get("target", ""))
    left = max(BLOCK_BYTES, budget_bytes // BLOCK_BYTES * BLOCK_BYTES)
    slices: list[Slice] = []
    for i in order:
        disk = disks[i]
        if disk.target < at:
            continue
        start = int(cursor.get("offset", 0)) // BLOCK_BYTES * BLOCK_BYTES if disk.target == at else 0
        while start < disk.size_bytes:
            if left <= 0:
                return slices, {"target": disk.target, "offset": start}, False
            length = min(left, TABLE_BYTES, disk.size_bytes - start)
            slices.append((i, Extent(start, length)))
            start, left = start + length, left + (-length // BLOCK_BYTES) * BLOCK_BYTES
    return slices, {"target": "", "offset": 0}, True
