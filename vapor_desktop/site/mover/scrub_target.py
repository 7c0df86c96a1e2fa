"""The scrub, target side: tell what is on record, re-read the newest point, keep the verdict."""

from __future__ import annotations

import threading
from typing import Any

from vapor_desktop.model.errors import Conflict, NotAllowed, ProtocolError
from vapor_desktop.model.extents import BLOCK_BYTES, Extent
from vapor_desktop.model.policy import Value
from vapor_desktop.model.wire import WriteGrant
from vapor_desktop.site.mover.digests import DIGEST_BYTES, UNKNOWN
from vapor_desktop.site.mover.nbd_source import Export
from vapor_desktop.site.mover.protocol import TABLE_BYTES
from vapor_desktop.site.mover.qsd import StorageDaemon
from vapor_desktop.site.mover.tables import digests_of, known_digests
from vapor_desktop.site.replica import ReplicaStore


class SliceOf(Value):
    """A range of one disk."""

    target: str
    offset: int
    length: int


class ScrubOpen(Value):
    """The first SCRUB frame's JSON."""

    vm_uuid: str
    grant: WriteGrant
    slices: tuple[SliceOf, ...]


class ScrubVerdict(Value):
    """The second SCRUB frame's JSON: what the source found. ``pass_clean``: the whole pass before this was."""

    source_mismatch: dict[str, tuple[int, ...]]
    pass_clean: bool


class Examination:
    """One scrub. The point's own data is re-read while the source reads its side."""

    def __init__(self, store: ReplicaStore, daemon: StorageDaemon, peer_site: str, request: ScrubOpen) -> None:
        """Raises NotAllowed, StaleLease, ParentMoved, Conflict (no point yet)."""
        self._store = store
        self._daemon = daemon
        self._request = request
        manifest = store.manifest(request.vm_uuid)
        if manifest.source_site != peer_site:
            raise NotAllowed("This site is not the source of that VM", vm_uuid=request.vm_uuid)
        store.check_grant(manifest, request.grant)
        if manifest.newest is None:
            raise Conflict("There is no recovery point to examine")
        self._seq = manifest.newest.seq
        self._sizes = manifest.newest.sizes
        self.tables = [self._recorded(s) for s in request.slices]

    def _recorded(self, part: SliceOf) -> bytes:
        size = self._sizes.get(part.target, 0)
        if part.offset % BLOCK_BYTES or part.offset + part.length > size or not 0 < part.length <= TABLE_BYTES:
            raise ProtocolError("A slice lies outside of the point's disk", disk=part.target, size_bytes=size)
        table = self._store.digests(self._request.vm_uuid, part.target)
        return bytes(known_digests(table, Extent(part.offset, part.length)))

    def reread(self) -> dict[str, list[int]]:
        """Blocks whose data differs from their record, by disk. Raises ImageToolFailed, TransferInterrupted."""
        found: dict[str, list[int]] = {}
        for part, table in zip(self._request.slices, self.tables, strict=True):
            for block in self._differing(part, table):
                found.setdefault(part.target, []).append(block)
        return found

    def _differing(self, part: SliceOf, table: bytes) -> list[int]:
        image = self._store.disk_path(self._request.vm_uuid, self._seq, part.target)
        name = self._daemon.add(image, read_only=True)
        blocks = []
        try:
            export = Export(self._daemon.socket_path, name)
            try:
                for extent, digests in digests_of(export, [Extent(part.offset, part.length)], threading.Event()):
                    first = (extent.offset - part.offset) // BLOCK_BYTES
                    for i in range(len(digests) // DIGEST_BYTES):
                        recorded = table[(first + i) * DIGEST_BYTES : (first + i + 1) * DIGEST_BYTES]
                        if recorded not in (UNKNOWN, digests[i * DIGEST_BYTES : (i + 1) * DIGEST_BYTES]):
                            blocks.append(part.offset // BLOCK_BYTES + first + i)
            finally:
                export.close()
        finally:
            self._daemon.remove(name)
        return blocks

    def conclude(self, verdict: ScrubVerdict, own: dict[str, list[int]]) -> dict[str, Any]:
        """Keep it: a mismatch takes the point's tick and its digests' word, a clean pass gives the tick."""
        vm, grant = self._request.vm_uuid, self._request.grant
        bad = {name: set(blocks) for name, blocks in own.items()}
        for name, blocks in verdict.source_mismatch.items():
            bad.setdefault(name, set()).update(blocks)
        if bad:
            self._store.mark_corrupt(vm, self._seq, grant, {name: sorted(blocks) for name, blocks in bad.items()})
        elif verdict.pass_clean:
            self._store.mark_verified(vm, self._seq, grant)
        return {"target_mismatch": own}
