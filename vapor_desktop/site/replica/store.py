"""The store: all verbs on replicas, each under the replica's lock."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from vapor_desktop.model.manifest import DiskMode, Manifest, Point, PointDisk
from vapor_desktop.model.wire import CurrentAsOf, PointDraft, ReplicaCreate, ReplicaView, Run, RunRequest, WriteGrant
from vapor_desktop.site.replica.digests import DigestTable
from vapor_desktop.site.replica.incoming import Incoming


class ReplicaStore:
    """Replicas below some roots. ``check_lease(vm_uuid, fence)`` raises StaleLease.

    ``in_use`` names files that domains of this host refer to: they are never merged or deleted.
    """

    def __init__(
        self,
        roots: Sequence[Path],
        site_id: str,
        check_lease: Callable[[str, int], None],
        reserve_bytes: int,
        in_use: Callable[[], Iterable[Path]] = tuple,
    ) -> None:
        raise NotImplementedError

    def list(self) -> list[ReplicaView]:
        """Every replica, broken ones too (valid False, trouble says why)."""
        raise NotImplementedError

    def view(self, vm: str) -> ReplicaView:
        """One replica. Raises NotFound."""
        raise NotImplementedError

    def manifest(self, vm: str) -> Manifest:
        """Raises NotFound, ManifestInvalid."""
        raise NotImplementedError

    def create(self, vm: str, request: ReplicaCreate) -> Manifest:
        """Make the replica, or write name, policy and mappings again."""
        raise NotImplementedError

    def delete(self, vm: str, grant: WriteGrant) -> None:
        """Raises PointPinned while something runs on it or hangs on it."""
        raise NotImplementedError

    def point(self, vm: str, seq: int) -> Point:
        """Raises NotFound."""
        raise NotImplementedError

    def point_file(self, vm: str, seq: int, name: str) -> Path:
        """``domain.xml`` or ``nvram.fd`` of a living point. Raises NotFound."""
        raise NotImplementedError

    def disk_path(self, vm: str, seq: int, disk: str) -> Path:
        """The qcow2 file that a living point's disk is read through (read only!). Raises NotFound."""
        raise NotImplementedError

    def check_grant(self, manifest: Manifest, grant: WriteGrant) -> None:
        """Raises StaleLease, EpochMoved, ParentMoved."""
        raise NotImplementedError

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

        seq: manifest.next_seq, or the kept incoming's. Without ``resume`` a kept incoming is discarded.
        Raises DiskShrunk, ReplicaFull, Conflict (another receiver still holds it), StaleLease, …
        """
        raise NotImplementedError

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
        """Make the point exist. Close NBD exports before. ``blobs``: {"nvram.fd": …}. Idempotent."""
        raise NotImplementedError

    def digests(self, vm: str, disk: str) -> DigestTable:
        """The table of the newest point."""
        raise NotImplementedError

    def drop(self, vm: str, seq: int, grant: WriteGrant) -> Manifest:
        """Forget a point by merging the next one down. Raises PointPinned, Conflict, ImageToolFailed."""
        raise NotImplementedError

    def pin(self, vm: str, seq: int, grant: WriteGrant, pin: str) -> Manifest:
        """Pins are ``user:NOTE``, ``drill:ID``. Idempotent."""
        raise NotImplementedError

    def unpin(self, vm: str, seq: int, grant: WriteGrant, pin: str) -> Manifest:
        """Idempotent."""
        raise NotImplementedError

    def current_as_of(self, vm: str, request: CurrentAsOf) -> Manifest:
        """Only forward, only for the newest point."""
        raise NotImplementedError

    def run(self, vm: str, request: RunRequest) -> Run:
        """Take the VM over: epoch, overlays, NVRAM. Revokes a running receive. Idempotent."""
        raise NotImplementedError

    def mark_verified(self, vm: str, seq: int, grant: WriteGrant) -> Manifest:
        """The scrub found a whole pass without a mismatch."""
        raise NotImplementedError

    def mark_corrupt(
        self, vm: str, seq: int, grant: WriteGrant, blocks: Mapping[str, Iterable[int]] | None = None
    ) -> Manifest:
        """The point loses its tick; the digests of ``blocks`` become unknown, so a compare sends them again."""
        raise NotImplementedError

    def mark_proven(self, vm: str, seq: int, grant: WriteGrant, at: datetime) -> Manifest:
        """A drill passed on it."""
        raise NotImplementedError

    def discard_incoming(self, vm: str, grant: WriteGrant) -> None:
        """Delete what is unfinished; a receiver that still writes is refused from then on."""
        raise NotImplementedError

    def reconcile(self, vm: str) -> Manifest:
        """After a crash and before a cycle: finish merges, roll back what was not published."""
        raise NotImplementedError

    def rebuild(self, vm: str) -> Manifest:
        """Write a manifest again from point.json files and qcow2 headers; deletes nothing."""
        raise NotImplementedError
