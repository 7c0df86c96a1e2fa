"""One transfer at the target: from OPEN to COMMITTED or ENDED."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import nbd

from vapor_desktop.model.blockmap import BlockMap
from vapor_desktop.model.errors import (
    Conflict,
    NotAllowed,
    NotFound,
    ProtocolError,
    TransferInterrupted,
    Unexpected,
    VaporError,
)
from vapor_desktop.model.extents import BLOCK_BYTES, Extent, normalise
from vapor_desktop.model.manifest import DiskMode, Manifest, PointDisk
from vapor_desktop.site.mover import nbd_source, tables
from vapor_desktop.site.mover.intake import Done, Intake, Target
from vapor_desktop.site.mover.joins import Door, serve_joined
from vapor_desktop.site.mover.protocol import Header, Kind
from vapor_desktop.site.mover.qsd import StorageDaemon
from vapor_desktop.site.mover.requests import Commit, Open, OpenDisk
from vapor_desktop.site.replica import DigestTable, Incoming, ReplicaStore

SETTLE_S = 2.0
SETTLE_BYTES = 128 << 20
SPACE_EVERY_BYTES = 64 << 20


class Reception:
    """Holds the incoming open. Frames are handed in by one thread; ``settle`` runs in one of its own."""

    def __init__(
        self,
        store: ReplicaStore,
        daemon: StorageDaemon,
        peer_site: str,
        request: Open,
        ack: Callable[[int], None],
    ) -> None:
        """Check who asks, then open the incoming. Raises NotAllowed, StaleLease, ParentMoved, ReplicaFull, …"""
        self._store = store
        self._daemon = daemon
        self.request = request
        self._ack = ack
        self._check_peer(peer_site)
        self._incoming = _open(store, request)
        self.blobs: dict[str, bytes] = {}
        self._wanted = {i: BlockMap(d.size_bytes) for i, d in enumerate(request.disks)}
        self._exports: dict[int, Target] = {}
        self._exports_lock = threading.Lock()
        self._flush: dict[int, Any] = {}
        self._settle_lock = threading.Lock()
        self._intake = Intake(self._target)
        self._sent: dict[int, list[int]] = {i: [0, 0] for i in range(len(request.disks))}
        self._unchecked_bytes = 0
        self._take_lock = threading.Lock()
        self._joined: list[threading.Thread] = []
        self._door: Door | None = None
        self._durable_bytes = 0
        self._stop = threading.Event()
        self.failure: VaporError | None = None
        self._ticker = threading.Thread(target=self._tick, name="settle", daemon=True)
        self._ticker.start()
        if request.streams > 1:
            self._door = Door(daemon.directory, peer_site, self._join)

    def _check_peer(self, peer_site: str) -> None:
        manifest = self._store.manifest(self.request.vm_uuid)
        if manifest.source_site != peer_site or self.request.grant.source_site != peer_site:
            raise NotAllowed(
                "This site is not the source of that VM", vm_uuid=self.request.vm_uuid, source=manifest.source_site
            )
        self._store.check_grant(manifest, self.request.grant)

    # --- agreeing on what is to be sent ------------------------------------------------------------
    @property
    def opened(self) -> dict[str, Any]:
        """OPENED's JSON."""
        return {
            "resumed": self._incoming.resumed,
            "seq": self._incoming.seq,
            "checkpoint": self._incoming.checkpoint,
            "rebase": self.rebase,
            "token": None if self._door is None else self._door.token,
        }

    @property
    def rebase(self) -> bool:
        """The kept incoming belongs to an earlier moment than this job: what changed since is wanted again.

        Without a checkpoint (raw disks) every job is another moment.
        """
        ours = self.request.checkpoint
        moved = self.request.moved or ours is None or self._incoming.checkpoint != ours
        return self._incoming.resumed and moved

    def want(self, disk: int, extents: list[Extent]) -> None:
        """One WANT frame."""
        self._disk(disk)
        self._wanted[disk].add(extents)

    def needs(self) -> Iterator[tuple[int, Iterator[Extent]]]:
        """After the last WANT: record it durably, then (disk, what is still to be sent)."""
        disks = self.request.disks
        if self.rebase:
            dirty = {d.target: self._wanted[i].runs() for i, d in enumerate(disks)}
            self._incoming.rebase_checkpoint(self.request.checkpoint, dirty)
        else:
            for i, disk in enumerate(disks):
                self._incoming.want(disk.target, self._wanted[i].runs())
        self._wanted = {i: BlockMap(d.size_bytes) for i, d in enumerate(disks)}
        for i, disk in enumerate(disks):
            yield i, self._incoming.needed(disk.target).runs()

    def table(self, disk: int, within: Extent) -> bytes:
        """Digests of what a reader of this point would see now in ``within``; unknown is zero bytes."""
        name = self._disk(disk).target
        if within.offset % BLOCK_BYTES or within.end > self._disk(disk).size_bytes:
            raise ProtocolError("A table is asked for outside of the disk", disk=name)
        slots = tables.known_digests(self._parent_table(name), within)
        target = self._target(disk)
        if self._incoming.resumed:
            tables.forget_own(slots, within, target.socket_path, target.export)
        tables.read_unknown(slots, within, target.socket_path, target.export)
        return bytes(slots)

    def _parent_table(self, name: str) -> DigestTable | None:
        try:
            return self._store.digests(self.request.vm_uuid, name)
        except NotFound:  # a first copy, or a disk that the parent point does not hold
            return None

    # --- data ---------------------------------------------------------------------------------------
    def buffer(self) -> bytearray:
        """For the payload of the next DATA frame."""
        return self._intake.buffer()

    def take(self, header: Header, meta: bytes, payload: bytearray | None) -> None:
        """One DATA, ZERO or SAME frame. Raises what went wrong with earlier ones."""
        size_bytes = self._disk(header.disk).size_bytes
        end = header.offset + header.length
        if end > size_bytes or (end % BLOCK_BYTES and end != size_bytes) or header.offset % BLOCK_BYTES:
            raise ProtocolError("A frame lies outside of its disk", offset=header.offset, length=header.length)
        self.check()
        with self._take_lock:
            self._unchecked_bytes += header.payload_bytes
            look = self._unchecked_bytes >= SPACE_EVERY_BYTES
            if look:
                self._unchecked_bytes -= SPACE_EVERY_BYTES
            sent = self._sent[header.disk]
            if header.kind is Kind.DATA:
                sent[0] += header.length
            elif header.kind is Kind.ZERO:
                sent[1] += header.length
        if look:
            self._incoming.check_space(0)
        self._intake.submit(header, meta, payload)

    def _join(self, fd_in: int, fd_out: int) -> None:
        """Another channel of the same sender: its data frames count like those of the first."""
        thread = threading.Thread(target=self._serve_joined, args=(fd_in, fd_out), name="joined")
        self._joined.append(thread)
        thread.start()

    def _serve_joined(self, fd_in: int, fd_out: int) -> None:
        try:
            serve_joined(fd_in, fd_out, self)
        except VaporError as error:
            self.failure = self.failure or error
        except Exception as error:  # noqa: BLE001 - the edge of a thread: kept, and raised by check
            self.failure = self.failure or Unexpected("A joined channel failed", why=repr(error))

    def check(self) -> None:
        """Raises what the settling thread found: lease gone, space gone."""
        if self.failure is not None:
            raise self.failure

    def settle(self) -> int:
        """Flush, then record as durable everything written before the flush; the durable bytes so far."""
        with self._settle_lock:
            done = self._intake.take_done()
            by_disk: dict[int, list[Done]] = {}
            for one in done:
                by_disk.setdefault(one.disk, []).append(one)
            for disk, ranges in by_disk.items():
                if disk in self._exports:
                    self._flush_disk(disk)
                name = self._disk(disk).target
                for one in ranges:
                    first = one.extent.offset // BLOCK_BYTES
                    if one.digests is None:
                        self._incoming.put_zero_digests(name, first, -(-one.extent.length // BLOCK_BYTES))
                    else:
                        self._incoming.put_digests(name, first, one.digests)
                self._incoming.mark_received(name, normalise(one.extent for one in ranges))
                self._durable_bytes += sum(one.extent.length for one in ranges)
            return self._durable_bytes

    # --- the end ------------------------------------------------------------------------------------
    def commit(self, request: Commit) -> Manifest:
        """Everything written, flushed and closed: publish. Raises StaleLease, EpochMoved, ParentMoved, …"""
        self._finish()
        if not self._incoming.complete():
            missing = {
                d: [tuple(e) for e in islice(self._incoming.needed(d).runs(), 5)] for d in self._incoming.sizes
            }
            raise TransferInterrupted("The point is not complete; what is durable is kept", missing=missing)
        self._let_go_of_files()
        disks = [
            PointDisk(
                target=d.target,
                size_bytes=d.size_bytes,
                mode=self._incoming.modes[d.target],
                sent_bytes=self._sent[i][0],
                zero_bytes=self._sent[i][1],
            )
            for i, d in enumerate(self.request.disks)
        ]
        manifest = self._store.publish(
            self.request.vm_uuid,
            self.request.grant,
            self._incoming,
            request.draft,
            disks,
            self.blobs,
            request.duration_s,
            request.wire_bytes,
        )
        self._incoming.close()
        return manifest

    def end(self) -> int:
        """Keep the incoming; the durable bytes of this session."""
        self._finish()
        self._let_go_of_files()
        self._incoming.close()
        return self._durable_bytes

    def abandon(self) -> None:
        """After an error or a vanished sender: keep what can be made durable. Raises nothing of our own tree."""
        self._stop.set()
        self._ticker.join()
        self._close_door(stop=True)
        self._intake.close()
        try:
            self.settle()
            self._let_go_of_files()
        except VaporError as error:
            # The first failure is the one that is told; this one only costs a resume some bytes.
            self.failure = self.failure or error
        finally:
            self._incoming.close()

    def _finish(self) -> None:
        self._close_door(stop=False)
        self._stop.set()
        self._ticker.join()
        self._intake.drain()
        self._intake.close()
        self.check()
        self.settle()

    def _close_door(self, *, stop: bool) -> None:
        """Wait for the joined channels' DONE; with ``stop`` they end at their next look."""
        if self._door is None:
            return
        if stop:
            self.failure = self.failure or TransferInterrupted("The transfer has ended")
        self._door.shut()
        for thread in self._joined:
            thread.join()
        self._door.release()
        self._door = None

    def _let_go_of_files(self) -> None:
        for handle in self._flush.values():
            nbd_source.disconnect(handle)
        self._flush.clear()
        for target in self._exports.values():
            self._daemon.remove(target.export)
        self._exports.clear()

    # --- inside -------------------------------------------------------------------------------------
    def _disk(self, index: int) -> OpenDisk:
        if index >= len(self.request.disks):
            raise ProtocolError("A frame names a disk that was not opened", disk=index)
        return self.request.disks[index]

    def _target(self, disk: int) -> Target:
        with self._exports_lock:
            if disk not in self._exports:
                asked = self._disk(disk)
                # Deltas are small and scattered: there the page cache is what makes a slow disk bearable.
                export = self._daemon.add(self._incoming.path(asked.target), bulk=asked.mode is DiskMode.FULL)
                self._exports[disk] = Target(str(self._daemon.socket_path), export, skip_zero=False)
                if not self._incoming.resumed and not self._daemon.has_backing(export):
                    self._exports[disk] = Target(str(self._daemon.socket_path), export, skip_zero=True)
            return self._exports[disk]

    def _flush_disk(self, disk: int) -> None:
        target = self._exports[disk]
        if disk not in self._flush:
            self._flush[disk] = nbd_source.connect(target.socket_path, target.export)
        try:
            self._flush[disk].flush()  # multi-conn: covers what the workers' connections completed
        except nbd.Error as error:
            raise nbd_source.translate(error, "The replica's disk cannot be flushed") from error

    def _tick(self) -> None:
        """Every SETTLE_S (or SETTLE_BYTES): still allowed, still room, make durable, tell."""
        last = time.monotonic()
        while not self._stop.wait(0.1):
            if time.monotonic() - last < SETTLE_S and self._intake.done_bytes < SETTLE_BYTES:
                continue
            try:
                self._store.check_grant(self._store.manifest(self.request.vm_uuid), self.request.grant)
                self._incoming.check_space(0)
                self._ack(self.settle())
            except VaporError as error:
                self.failure = error
                return
            except Exception as error:  # noqa: BLE001 - the edge of a thread: kept, and raised by check
                self.failure = Unexpected("The receiver failed while it made data durable", why=repr(error))
                return
            last = time.monotonic()


def _open(store: ReplicaStore, request: Open) -> Incoming:
    disks = {d.target: (d.size_bytes, d.mode) for d in request.disks}
    incoming = store.open_incoming(
        request.vm_uuid, request.grant, request.seq, disks, request.checkpoint, request.resume
    )
    if request.resume and not incoming.resumed:
        # The sender's bitmap is relative to what was kept: on nothing it would make a point with holes.
        incoming.discard()
        raise Conflict(
            "There is no incoming to resume", fix="Begin the point anew from the newest point's checkpoint"
        )
    return incoming
