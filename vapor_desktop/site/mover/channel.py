"""One byte channel to the other end: frames out under a lock, frames in into reused buffers."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import stat
import struct
import threading
from collections.abc import Callable
from typing import NamedTuple

from vapor_desktop.model.errors import TransferInterrupted
from vapor_desktop.site.mover import protocol
from vapor_desktop.site.mover.protocol import HEADER_BYTES, Header
from vapor_desktop.site.mover.throttle import Throttle

SOCKET_BUFFER_BYTES = 1 << 20
TICK_S = 1
_F_SETPIPE_SZ = 1031


class Frame(NamedTuple):
    """A frame without payload (the payload of DATA is read apart, into the caller's buffer)."""

    header: Header
    meta: bytes


def widen(fd: int) -> None:
    """Give a socket or pipe a large kernel buffer; fewer switches between us and ssh."""
    mode = os.fstat(fd).st_mode
    if stat.S_ISSOCK(mode):
        with socket.socket(fileno=os.dup(fd)) as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)
    elif stat.S_ISFIFO(mode):
        with contextlib.suppress(PermissionError):  # over the user's pipe quota: it works, slower
            fcntl.fcntl(fd, _F_SETPIPE_SZ, SOCKET_BUFFER_BYTES)


class FrameWriter:
    """Writes whole frames; safe from several threads. Counts what it wrote in ``wire_bytes``."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.wire_bytes = 0
        self._lock = threading.Lock()
        os.set_blocking(fd, True)

    def send(self, frame: bytes, payload: bytes | memoryview | None = None, throttle: Throttle | None = None) -> None:
        """Write one frame, waiting for the throttle first. Raises TransferInterrupted when the peer is gone."""
        if throttle is not None:
            throttle.take(len(frame) + (len(payload) if payload is not None else 0))
        with self._lock:
            self._write([memoryview(frame)] if payload is None else [memoryview(frame), memoryview(payload)])

    def _write(self, parts: list[memoryview]) -> None:
        try:
            while parts:
                n = os.writev(self.fd, parts)
                self.wire_bytes += n
                while parts and n >= len(parts[0]):
                    n -= len(parts.pop(0))
                if parts and n:
                    parts[0] = parts[0][n:]
        except OSError as error:
            raise TransferInterrupted("The other end of the transfer is gone", why=error.strerror or "") from error


class FrameReader:
    """Reads frames; for one thread. A socket is read with MSG_WAITALL: one switch a frame, not thirty.

    ``idle``, if given, is called after every TICK_S without a byte, with the seconds since the last one; what
    it raises comes out of the read. A link that was cut says nothing for hours otherwise.
    """

    def __init__(self, fd: int, idle: Callable[[float], None] | None = None) -> None:
        self.fd = fd
        self.idle = idle
        self._head = bytearray(HEADER_BYTES)
        self._socket: socket.socket | None = None
        os.set_blocking(fd, True)
        if stat.S_ISSOCK(os.fstat(fd).st_mode):
            self._socket = socket.socket(fileno=os.dup(fd))
            self._socket.setblocking(True)
            # The kernel's own time-out: Python's would make the socket non-blocking and undo MSG_WAITALL.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", TICK_S, 0))

    def close(self) -> None:
        """Let go of our duplicate; the caller's descriptor stays his."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def ready(self, timeout_s: float) -> bool:
        """Is there something to read (the end counts)?"""
        return bool(select.select([self.fd], [], [], timeout_s)[0])

    def fill(self, buffer: memoryview, *, end_ok: bool = False) -> bool:
        """Fill ``buffer`` whole. False at a clean end, only where ``end_ok``; else TransferInterrupted."""
        at, size, quiet_s = 0, len(buffer), 0.0
        while at < size:
            try:
                n = self._some(buffer[at:])
            except BlockingIOError:
                quiet_s += TICK_S
                if self.idle is not None:
                    self.idle(quiet_s)
                continue
            except OSError as error:
                raise TransferInterrupted("The channel to the other end broke", why=error.strerror or "") from error
            if not n:
                if end_ok and not at:
                    return False
                raise TransferInterrupted("The other end closed the channel in mid-frame")
            at, quiet_s = at + n, 0.0
        return True

    def _some(self, buffer: memoryview) -> int:
        if self._socket is not None:
            return self._socket.recv_into(buffer, len(buffer), socket.MSG_WAITALL)
        if not select.select([self.fd], [], [], TICK_S)[0]:
            raise BlockingIOError
        return os.readv(self.fd, [buffer])

    def next(self) -> Frame | None:
        """The next frame with its meta, checked; None at a clean end. A payload is then still unread.

        Raises FrameCorrupt, ProtocolError, TransferInterrupted.
        """
        head = memoryview(self._head)
        if not self.fill(head, end_ok=True):
            return None
        header = protocol.decode_header(head)
        meta = bytearray(header.meta_bytes)
        if meta:
            self.fill(memoryview(meta))
        protocol.check(head, header, meta)
        return Frame(header, bytes(meta))
