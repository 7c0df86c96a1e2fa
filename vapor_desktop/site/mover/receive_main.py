"""``receive``: the verb a peer's key may run. Speaks frames on its standard streams until they end."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from vapor_desktop.model.errors import InvalidRequest, ProtocolError, TransferInterrupted, VaporError
from vapor_desktop.model.extents import Extent
from vapor_desktop.model.policy import Value
from vapor_desktop.model.wire import MOVER_PROTOCOL
from vapor_desktop.site.mover import protocol
from vapor_desktop.site.mover.channel import Frame, FrameReader, FrameWriter, widen
from vapor_desktop.site.mover.joins import hand_over
from vapor_desktop.site.mover.protocol import Kind
from vapor_desktop.site.mover.qsd import StorageDaemon
from vapor_desktop.site.mover.receiver import Reception
from vapor_desktop.site.mover.requests import Commit, Open
from vapor_desktop.site.mover.scrub_target import Examination, ScrubOpen, ScrubVerdict
from vapor_desktop.site.replica import ReplicaStore

IDLE_S = 60.0  # in a transfer the sender says something at least every 5 s
REST_S = 900.0  # between transfers
_Request = TypeVar("_Request", bound=Value)


USABLE_AFTER = frozenset({Kind.OPEN, Kind.NEEDED, Kind.COMMIT, Kind.END, Kind.SCRUB})


class _HandOver(Exception):
    """A JOIN frame: nothing of this channel is for us any more."""

    def __init__(self, token: str) -> None:
        super().__init__(token)
        self.token = token


class Session:
    """One channel from a sender, and the transfer that runs on it."""

    def __init__(
        self,
        reader: FrameReader,
        writer: FrameWriter,
        store: ReplicaStore,
        daemon: StorageDaemon,
        run_dir: Path,
        peer_site: str,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._store = store
        self._daemon = daemon
        self._peer_site = peer_site
        self._run_dir = run_dir
        self._reception: Reception | None = None
        self._examination: tuple[Examination, dict[str, list[int]]] | None = None
        reader.idle = self._quiet

    def run(self) -> int:
        """Serve until the channel ends; the exit code. A vanished sender is no error: what is durable is kept."""
        self._json(Kind.HELLO, {"protocol": MOVER_PROTOCOL})
        try:
            while (frame := self._reader.next()) is not None:
                try:
                    self._handle(frame)
                except VaporError as error:
                    if not self._refuse(frame, error):
                        return 1
        except TransferInterrupted:
            return 0
        except _HandOver as join:
            return self._join(join.token)
        except VaporError as error:  # the framing itself is broken
            self._tell(error)
            return 1
        finally:
            if self._reception is not None:
                self._reception.abandon()
        return 0

    def _join(self, token: str) -> int:
        """The channel goes to the process that has the transfer; we stay only because sshd waits for us."""
        try:
            hand_over(self._run_dir, token, self._peer_site, self._reader.fd, self._writer.fd)
        except VaporError as error:
            self._tell(error)
            return 1
        return 0

    def _refuse(self, frame: Frame, error: VaporError) -> bool:
        """Say it; True if the session may go on."""
        if self._reception is not None:
            self._reception.abandon()
            self._reception = None
        self._examination = None
        self._tell(error)
        return frame.header.kind in USABLE_AFTER

    def _tell(self, error: VaporError) -> None:
        try:
            self._json(Kind.ERROR, error.to_wire())
        except TransferInterrupted:
            return  # nobody is left to be told

    def _quiet(self, quiet_s: float) -> None:
        if self._reception is None:
            if quiet_s >= REST_S:
                raise TransferInterrupted("No transfer for a long time")
            return
        self._reception.check()
        if quiet_s >= IDLE_S:
            raise TransferInterrupted("The sender has fallen silent")

    def _handle(self, frame: Frame) -> None:
        kind = frame.header.kind
        if kind is Kind.HELLO:
            self._check_version(protocol.decode_json(frame.meta))
        elif kind is Kind.OPEN:
            self._open(frame)
        elif kind is Kind.SCRUB:
            self._scrub(frame)
        elif kind is Kind.JOIN:
            raise _HandOver(str(protocol.decode_json(frame.meta).get("token")))
        else:
            handler = _HANDLERS.get(kind)
            if handler is None:
                raise ProtocolError(f"A {kind.name} frame is out of place")
            handler(self, self._current(), frame)

    def _check_version(self, hello: dict[str, Any]) -> None:
        if hello.get("protocol") != MOVER_PROTOCOL:
            theirs = hello.get("protocol")
            raise ProtocolError("The movers of the two sites speak different versions", theirs=theirs)

    def _current(self) -> Reception:
        if self._reception is None:
            raise ProtocolError("No transfer is open")
        return self._reception

    def _open(self, frame: Frame) -> None:
        if self._reception is not None:
            raise ProtocolError("A transfer is open already")
        request = _parse(Open, frame)
        self._daemon.start()
        self._reception = Reception(
            self._store, self._daemon, self._peer_site, request, lambda n: self._json(Kind.ACK, {"durable_bytes": n})
        )
        self._json(Kind.OPENED, self._reception.opened)

    def _scrub(self, frame: Frame) -> None:
        """First the slices: tell what is on record, then re-read. Then the source's verdict."""
        if self._reception is not None:
            raise ProtocolError("A transfer is open")
        if self._examination is None:
            self._daemon.start()
            examination = Examination(self._store, self._daemon, self._peer_site, _parse(ScrubOpen, frame))
            for table in examination.tables:
                self._writer.send(protocol.encode(Kind.TABLE, table))
            self._examination = examination, examination.reread()
            return
        examination, own = self._examination
        self._examination = None
        self._json(Kind.SCRUBBED, examination.conclude(_parse(ScrubVerdict, frame), own))

    # --- frames of an open transfer ------------------------------------------------------------------
    def _want(self, reception: Reception, frame: Frame) -> None:
        reception.want(frame.header.disk, protocol.unpack_extents(frame.meta))

    def _needed(self, reception: Reception, _frame: Frame) -> None:
        for disk, extents in reception.needs():
            while part := protocol.pack_extents(islice(extents, protocol.EXTENTS_A_FRAME)):
                self._writer.send(protocol.encode(Kind.NEED, part, disk=disk))
        self._json(Kind.NEEDED, {})

    def _data(self, reception: Reception, frame: Frame) -> None:
        payload = reception.buffer()
        self._reader.fill(memoryview(payload)[: frame.header.payload_bytes])
        reception.take(frame.header, frame.meta, payload)

    def _marks(self, reception: Reception, frame: Frame) -> None:
        reception.take(frame.header, frame.meta, None)

    def _table(self, reception: Reception, frame: Frame) -> None:
        header = frame.header
        digests = reception.table(header.disk, Extent(header.offset, header.length))
        self._writer.send(
            protocol.encode(Kind.TABLE, digests, disk=header.disk, offset=header.offset, length=header.length)
        )

    def _blob(self, reception: Reception, frame: Frame) -> None:
        name, content = protocol.unpack_blob(frame.meta)
        reception.blobs[name] = content

    def _sync(self, reception: Reception, _frame: Frame) -> None:
        reception.check()

    def _commit(self, reception: Reception, frame: Frame) -> None:
        manifest = reception.commit(_parse(Commit, frame))
        self._reception = None
        self._json(Kind.COMMITTED, {"manifest": manifest.model_dump(mode="json")})

    def _end(self, reception: Reception, _frame: Frame) -> None:
        durable = reception.end()
        self._reception = None
        self._json(Kind.ENDED, {"durable_bytes": durable})

    def _json(self, kind: Kind, value: dict[str, Any]) -> None:
        self._writer.send(protocol.encode_json(kind, value))


_HANDLERS: dict[Kind, Callable[[Session, Reception, Frame], None]] = {
    Kind.WANT: Session._want,
    Kind.NEEDED: Session._needed,
    Kind.DATA: Session._data,
    Kind.ZERO: Session._marks,
    Kind.SAME: Session._marks,
    Kind.TABLE: Session._table,
    Kind.BLOB: Session._blob,
    Kind.SYNC: Session._sync,
    Kind.COMMIT: Session._commit,
    Kind.END: Session._end,
}


def _parse(model: type[_Request], frame: Frame) -> _Request:
    try:
        return model.model_validate(protocol.decode_json(frame.meta))
    except ValidationError as error:
        raise InvalidRequest(f"A {frame.header.kind.name} frame does not fit", why=str(error.errors()[0])) from error


def serve(store: ReplicaStore, run_dir: Path, peer_site: str, fd_in: int, fd_out: int) -> int:
    """Serve one channel; the exit code. Call it in the main thread: the storage daemon ends with its starter."""
    for fd in (fd_in, fd_out):
        widen(fd)
    threading.current_thread().name = "receive"
    sys.setswitchinterval(0.0005)  # threads here hold the GIL for microseconds; waiting 5 ms for it costs throughput
    daemon = StorageDaemon(run_dir)
    reader = FrameReader(fd_in)
    try:
        return Session(reader, FrameWriter(fd_out), store, daemon, run_dir, peer_site).run()
    finally:
        daemon.stop()
        reader.close()


def main(peer_site: str) -> int:
    """Serve the peer on the standard streams; the exit code."""
    from vapor_desktop.site import leases
    from vapor_desktop.site.identity import site_id
    from vapor_desktop.site.settings import load_settings

    settings = load_settings()
    store = ReplicaStore(
        settings.replica_roots,
        site_id(settings),
        leases.checker(settings.leases_dir),
        settings.replica_reserve_bytes,
    )
    # Frames own the standard output: a stray print must not end up among them.
    fd_in, fd_out = os.dup(0), os.dup(1)
    os.dup2(2, 1)
    return serve(store, settings.run_dir, peer_site, fd_in, fd_out)
