"""One byte channel to the other end: frames out under a lock, frames in into reused buffers."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import stat
import threading
from collections.abc import Callable
from typing import NamedTuple

from vapor_desktop.model.errors import TransferInterrupted
from vapor_desktop.site.mover import protocol
from vapor_desktop.site.mover.protocol import HEADER_BYTES, Header
from vapor_desktop.site.mover.throttle import Throttle

SOCKET_BUFFER_BYTES = 1 << 20
AHEAD_BYTES = 16 << 10
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
    """Reads frames; for one thread. One system call takes what a frame still lacks and what follows it.

    ``idle``, if given, is called after every TICK_S without a byte, with the seconds since the last one; what
    it raises comes out of the read. A link that was cut says nothing for hours otherwise.
    """

    def __init__(self, fd: int, idle: Callable[[float], None] | None = None) -> None:
        self.fd = fd
        self.idle = idle
        self._head = bytearray(HEADER_BYTES)
        self._ahead = memoryview(bytearray(AHEAD_BYTES))
        self._at = self._end = 0  # what of ``_ahead`` has been read and not been handed out
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._socket: socket.socket | None = None
        if stat.S_ISSOCK(os.fstat(fd).st_mode):
            # It is written by other threads, so it stays blocking; only our reads do not wait.
            self._socket = socket.socket(fileno=os.dup(fd))
        else:
            os.set_blocking(fd, False)

    def close(self) -> None:
        """Let go of our duplicate; the caller's descriptor stays his."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def fill(self, buffer: memoryview, *, end_ok: bool = False) -> bool:
        """Fill ``buffer`` whole. False at a clean end, only where ``end_ok``; else TransferInterrupted."""
        size = len(buffer)
        at = min(size, self._end - self._at)
        buffer[:at] = self._ahead[self._at : self._at + at]
        self._at += at
        while at < size:
            n = self._some(buffer[at:])
            if not n:
                if end_ok and not at:
                    return False
                raise TransferInterrupted("The other end closed the channel in mid-frame")
            self._at, self._end = 0, max(0, n - (size - at))
            at += n - self._end
        return True

    def _some(self, buffer: memoryview) -> int:
        """Read into ``buffer`` and on into ``_ahead`` (which is empty); 0 at the end."""
        quiet_s = 0
        while True:
            try:
                if self._socket is not None:
                    return self._socket.recvmsg_into([buffer, self._ahead], 0, socket.MSG_DONTWAIT)[0]
                return os.readv(self.fd, [buffer, self._ahead])
            except BlockingIOError:
                if not self._poll.poll(TICK_S * 1000):
                    quiet_s += TICK_S
                    if self.idle is not None:
                        self.idle(quiet_s)
            except OSError as error:
                raise TransferInterrupted("The channel to the other end broke", why=error.strerror or "") from error

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
