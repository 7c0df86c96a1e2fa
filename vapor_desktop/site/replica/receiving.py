"""A new point on its way in, and the seeds that first copies stand on."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from vapor_desktop.model.errors import Conflict
from vapor_desktop.model.manifest import DiskMode, Manifest, PointDisk
from vapor_desktop.model.wire import PointDraft, WriteGrant
from vapor_desktop.site.replica import opening, publish, seed
from vapor_desktop.site.replica import record as records
from vapor_desktop.site.replica.digests import DigestTable
from vapor_desktop.site.replica.files import FileLock
from vapor_desktop.site.replica.guarded import GuardedReplicas
from vapor_desktop.site.replica.incoming import Incoming, discard
from vapor_desktop.site.replica.space import check_space

_BUSY_WAIT_S = 5.0


class PointReceiving(GuardedReplicas):
    """What is not a point yet."""

    def open_incoming(
        self,
        vm: str,
        grant: WriteGrant,
        seq: int,
        disks: Mapping[str, tuple[int, DiskMode]],
        checkpoint: str | None,
        resume: bool,
        need_bytes: int = 0,
    ) -> Incoming:
        """New overlays on the newest point, or the kept incoming (resume; look at Incoming.resumed).

        seq: manifest.next_seq, or the kept incoming's (a kept one takes the new number). Without ``resume``
        a kept incoming is discarded. Waits for a merge in flight, and 5 s for another receiver to let go.
        Raises DiskShrunk, ReplicaFull, Conflict (another receiver still holds it), StaleLease, …
        """
        end = time.monotonic() + _BUSY_WAIT_S
        while True:
            try:
                with self._both(vm) as layout:
                    manifest = self._granted(layout, grant)
                    check_space(layout.root, need_bytes, self._reserve_bytes)
                    return opening.open_incoming(
                        layout, manifest, seq, disks, checkpoint, resume, self._reserve_bytes
                    )
            except opening.StillBusy as busy:
                other = FileLock(busy.directory / records.BUSY)
                if not other.acquire(max(0.0, end - time.monotonic())):
                    raise Conflict("Another receiver still holds the unfinished point") from busy
                other.release()

    def publish(
        self,
        vm: str,
        grant: WriteGrant,
        incoming: Incoming,
        draft: PointDraft,
        disks: Sequence[PointDisk],
        blobs: Mapping[str, bytes],
        duration_s: float = 0.0,
        wire_bytes: int = 0,
    ) -> Manifest:
        """Make the point exist. Close NBD exports before. ``blobs``: {"nvram": …, "tpm": …}. Idempotent.

        Raises ProtocolError when not everything wanted was received (or lacks digests), DigestMismatch
        when a PointDisk's digest is not the table's, StaleLease, EpochMoved, ParentMoved.
        """
        with self._locked(vm) as layout:
            manifest = self._load(layout)
            done = manifest.entry(incoming.seq)
            if done is not None:
                if done.checkpoint == draft.checkpoint and done.taken_at == draft.taken_at:
                    return manifest
                raise Conflict(f"Recovery point {incoming.seq} exists already and is another")
            manifest = self._granted(layout, grant)
            return publish.publish(layout, manifest, incoming, draft, disks, blobs, duration_s, wire_bytes)

    def discard_incoming(self, vm: str, grant: WriteGrant) -> None:
        """Delete what is unfinished; a receiver that still writes is refused from then on."""
        with self._locked(vm) as layout:
            self._granted(layout, grant)
            for seq, _, record in records.unfinished(layout):
                discard(layout, seq, record)

    def begin_seed(self, vm: str, grant: WriteGrant, disk: str, size_bytes: int, source: str) -> Path:
        """Where to write the private copy of an image that is to be ``disk``'s first base.

        Raises Conflict when the disk has points already, ReplicaFull, StaleLease, …
        """
        with self._locked(vm) as layout:
            manifest = self._granted(layout, grant)
            check_space(layout.root, 0, self._reserve_bytes)
            return seed.begin(layout, manifest, disk, size_bytes, source, self._scan())

    def check_seeding(self, vm: str, grant: WriteGrant) -> None:
        """While it is copied: still allowed, still room? Raises StaleLease, EpochMoved, ParentMoved, ReplicaFull."""
        layout = self._layout(vm)
        self.check_grant(self._load(layout), grant)
        check_space(layout.root, 0, self._reserve_bytes)

    def seed_table(self, vm: str, disk: str, size_bytes: int) -> DigestTable:
        """The empty table of a seed that is being made."""
        path = self._layout(vm).seed_table(disk)
        path.unlink(missing_ok=True)
        return DigestTable(path, size_bytes)

    def finish_seed(self, vm: str, grant: WriteGrant, disk: str, path: Path) -> None:
        """Copy and table are whole: the disk's first copy will stand on them, by compare."""
        with self._locked(vm) as layout:
            self._granted(layout, grant)
            seed.finish(layout, disk, path)

    def abandon_seed(self, vm: str, disk: str, path: Path) -> None:
        """Delete what a failed copy left; needs no grant: nobody else writes that file."""
        with self._locked(vm) as layout:
            seed.abandon(layout, disk, path)
