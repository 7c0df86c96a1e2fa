"""The sender's side of a session: a link to a receiver, and its replies.

A session serves one transfer at a time and stays open between them; the pool keeps the idle ones.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from vapor_desktop.model.errors import ProtocolError, SiteUnreachable, TransferInterrupted, VaporError, from_wire
from vapor_desktop.model.extents import Extent
from vapor_desktop.model.wire import MOVER_PROTOCOL
from vapor_desktop.site.mover import protocol
from vapor_desktop.site.mover.channel import Frame, FrameReader, FrameWriter
from vapor_desktop.site.mover.link import Link
from vapor_desktop.site.mover.protocol import Kind
from vapor_desktop.site.mover.throttle import Throttle

HELLO_S = 30.0
ANSWER_S = 120.0  # COMMIT flushes and publishes; a lost link is noticed by ssh itself, sooner


class PeerSession:
    """One channel to a receiver. ``ask`` and ``table`` are for one thread at a time, ``send`` for any."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._socket = link.socket
        self._writer = FrameWriter(self._socket.fileno())
        self._replies: queue.SimpleQueue[Frame | VaporError] = queue.SimpleQueue()
        self._table_lock = threading.Lock()
        self.on_error: Callable[[], None] = lambda: None
        self.error: VaporError | None = None
        self.durable_bytes = 0
        self.usable = True
        self.used = False  # has served a transfer before
        self._reached = False  # the receiver has said something: an end from now on is an interruption
        self._reader = threading.Thread(target=self._listen, name="peer-replies", daemon=True)
        self._reader.start()

    @property
    def wire_bytes(self) -> int:
        """Bytes written so far."""
        return self._writer.wire_bytes

    @property
    def pid(self) -> int:
        """Of the process that holds the link open."""
        return self._link.pid

    def hello(self) -> None:
        """Agree on the version. Raises SiteUnreachable (ssh could not), ProtocolError."""
        self.send(protocol.encode_json(Kind.HELLO, {"protocol": MOVER_PROTOCOL}))
        reply = protocol.decode_json(self.reply(Kind.HELLO, HELLO_S).meta)
        if reply.get("protocol") != MOVER_PROTOCOL:
            raise ProtocolError("The movers of the two sites speak different versions", theirs=reply.get("protocol"))

    def send(self, frame: bytes, payload: bytes | memoryview | None = None, throttle: Throttle | None = None) -> None:
        """Write one frame. Raises what the receiver said, or TransferInterrupted."""
        if self.error is not None:
            raise self.error
        try:
            self._writer.send(frame, payload, throttle)
        except TransferInterrupted as error:
            raise self._explain(error) from error

    def ask(self, frame: bytes, kind: Kind) -> dict[str, Any]:
        """Send and wait for the JSON answer. Errors said in answer leave the session usable."""
        self.send(frame)
        return protocol.decode_json(self.reply(kind).meta)

    def needs(self) -> Iterable[tuple[int, list[Extent]]]:
        """Say that was all of WANT, and yield (disk, extents) until the receiver says that was all."""
        self.send(protocol.encode_json(Kind.NEEDED, {}))
        while True:
            frame = self.reply(Kind.NEED, also=Kind.NEEDED)
            if frame.header.kind is Kind.NEEDED:
                return
            yield frame.header.disk, protocol.unpack_extents(frame.meta)

    def table(self, disk: int, within: Extent) -> bytes:
        """The receiver's block digests of ``within``."""
        with self._table_lock:
            self.send(protocol.encode(Kind.TABLE, disk=disk, offset=within.offset, length=within.length))
            frame = self.reply(Kind.TABLE)
        if frame.header.disk != disk or frame.header.offset != within.offset:
            raise ProtocolError("The receiver answered with another table than was asked for")
        return frame.meta

    def reply(self, kind: Kind, timeout_s: float = ANSWER_S, also: Kind | None = None) -> Frame:
        """The next reply. Raises what the receiver said, TransferInterrupted, ProtocolError."""
        try:
            item = self._replies.get(timeout=timeout_s)
        except queue.Empty:
            self.kill()
            raise TransferInterrupted("The receiver does not answer", waited_s=timeout_s) from None
        if isinstance(item, VaporError):
            raise item
        if item.header.kind not in (kind, also):
            self.usable = False
            raise ProtocolError(f"The receiver answered {item.header.kind.name} where {kind.name} was due")
        return item

    def _listen(self) -> None:
        reader = FrameReader(self._socket.fileno())
        try:
            while (frame := reader.next()) is not None:
                self._reached = True
                if frame.header.kind is Kind.ACK:
                    self.durable_bytes = int(protocol.decode_json(frame.meta)["durable_bytes"])
                elif frame.header.kind is Kind.ERROR:
                    self._fail(from_wire(protocol.decode_json(frame.meta)))
                else:
                    self._replies.put(frame)
            self._end(TransferInterrupted("The receiver ended the session"))
        except VaporError as error:
            self._end(error)
        finally:
            reader.close()

    def _fail(self, error: VaporError) -> None:
        self.error = self.error or error
        self._replies.put(error)
        self.on_error()

    def _end(self, error: VaporError) -> None:
        self.usable = False
        self._fail(self._explain(error) if isinstance(error, TransferInterrupted) else error)

    def recover(self) -> None:
        """After an error that was the answer to a question: the session may serve the next transfer."""
        self.error = None

    def _explain(self, error: TransferInterrupted) -> VaporError:
        """Why the channel ended: what the receiver said, else what the link knows."""
        self.usable = False
        if threading.current_thread() is not self._reader:
            self._reader.join(timeout=5.0)  # an ERROR frame may still be on its way
        if self.error is not None:
            return self.error
        ending = self._link.ending()
        if ending.never_reached is not None and not self._reached:
            return ending.never_reached
        return TransferInterrupted(error.what, why=ending.words or error.why, **ending.details)

    @property
    def alive(self) -> bool:
        """May a transfer be tried on it?"""
        return self.usable and self.error is None and self._link.running

    def kill(self) -> None:
        """End it now; whoever is blocked on it fails. The receiver sees the end and makes durable what it has."""
        self.usable = False
        self._link.abort()

    def close(self) -> None:
        """End it and wait for the command; an ssh whose link is dead is not waited for."""
        self.kill()
        self._link.end()
        self._reader.join(timeout=5.0)
        self._link.close()


class PeerPool:
    """Idle sessions per peer. ``connect(peer_site)`` makes a link to a receiver there.

    ``explain(peer_site)`` looks why a peer could not be reached at all and raises that; returns if it can be now.
    """

    KEEP = 4
    REST_S = 600.0  # the receiver gives up an idle session after 900 s

    def __init__(self, connect: Callable[[str], Link], explain: Callable[[str], object] = lambda _peer: None) -> None:
        self._connect = connect
        self._explain = explain
        self._lock = threading.Lock()
        self._idle: dict[str, list[tuple[float, PeerSession]]] = {}

    def take(self, peer_site: str, *, fresh: bool = False) -> PeerSession:
        """An idle session, or a new one that has said hello."""
        while not fresh:
            with self._lock:
                idle = self._idle.get(peer_site)
                if not idle:
                    break
                since, session = idle.pop()
            if session.alive and time.monotonic() - since < self.REST_S:
                return session
            session.close()
        session = PeerSession(self._connect(peer_site))
        try:
            session.hello()
        except SiteUnreachable:
            session.close()
            self._explain(peer_site)
            raise
        except VaporError:
            session.close()
            raise
        return session

    def give_back(self, peer_site: str, session: PeerSession) -> None:
        """Keep it for the next transfer, if it may serve one."""
        session.used = True
        session.on_error = lambda: None
        with self._lock:
            idle = self._idle.setdefault(peer_site, [])
            if session.alive and len(idle) < self.KEEP:
                idle.append((time.monotonic(), session))
                return
        session.close()

    def close(self) -> None:
        """End every idle session."""
        with self._lock:
            sessions = [s for idle in self._idle.values() for _, s in idle]
            self._idle.clear()
        for session in sessions:
            session.close()
