"""Parallel streams at the receiver: another ``receive`` process hands its channel to the one with the transfer.

An SSH channel moves 2 MiB per round trip [facts/libvirt 3.3], so a long fat link takes several. Each is its
own forced command and so its own process; its descriptors travel over a unix socket in the first one's
private directory, and from then on the first one reads it directly. The token is ``<pid>-<secret>``.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from vapor_desktop.model.errors import NotAllowed, ProtocolError, TransferInterrupted
from vapor_desktop.site.mover import protocol
from vapor_desktop.site.mover.channel import FrameReader, FrameWriter
from vapor_desktop.site.mover.protocol import Header, Kind
from vapor_desktop.site.mover.qsd import PREFIX

_TOKEN = re.compile(r"([0-9]{1,10})-([0-9a-f]{32})")
_ACCEPT_S = 0.5
HAND_OVER_S = 10.0
JOINED_IDLE_S = 60.0


class Taker(Protocol):
    """The transfer that a channel joins (``receiver.Reception``)."""

    def check(self) -> None: ...
    def buffer(self) -> bytearray: ...
    def take(self, header: Header, meta: bytes, payload: bytearray | None) -> None: ...


class Door:
    """Where channels are handed in, for the length of one transfer."""

    def __init__(self, private_dir: Path, peer_site: str, take: Callable[[int, int], None]) -> None:
        """``take(fd_in, fd_out)`` is called, in a thread, for each channel of the same peer."""
        self._peer_site = peer_site
        self._take = take
        self._path = private_dir / f"join-{secrets.token_hex(16)}"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self._path))
        self._listener.listen()
        self._listener.settimeout(_ACCEPT_S)
        self._stop = threading.Event()
        self._held: list[socket.socket] = []
        self._thread = threading.Thread(target=self._run, name="door")
        self._thread.start()

    @property
    def token(self) -> str:
        """For OPENED; only the sender learns it."""
        return f"{os.getpid()}-{self._path.name.removeprefix('join-')}"

    def shut(self) -> None:
        """Let no more in."""
        self._stop.set()
        self._thread.join()
        self._listener.close()
        self._path.unlink(missing_ok=True)

    def release(self) -> None:
        """The processes that stand behind the channels may end."""
        for link in self._held:
            link.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                link, _ = self._listener.accept()
            except TimeoutError:
                continue
            link.settimeout(HAND_OVER_S)
            try:
                name, fds, _, _ = socket.recv_fds(link, 100, 2)
            except OSError:  # it died before it handed over; the sender sees its channel end
                link.close()
                continue
            if len(fds) != 2 or name.decode(errors="replace") != self._peer_site or not _same_user(link):
                for fd in fds:
                    os.close(fd)
                link.close()
                continue
            self._held.append(link)
            self._take(fds[0], fds[1])


def hand_over(run_dir: Path, token: str, peer_site: str, fd_in: int, fd_out: int) -> None:
    """Give this process's channel away, and return when the transfer is over.

    Raises ProtocolError for a token that cannot be one, NotAllowed when its transfer is not there.
    """
    match = _TOKEN.fullmatch(token)
    if match is None:
        raise ProtocolError("That is no token of a transfer")
    path = run_dir / f"{PREFIX}{match[1]}" / f"join-{match[2]}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        try:
            link.connect(str(path))
            socket.send_fds(link, [peer_site.encode()], [fd_in, fd_out])
        except OSError as error:
            raise NotAllowed("There is no such transfer to join", why=error.strerror or "") from error
        link.recv(1)  # its end is the end of the transfer


def serve_joined(fd_in: int, fd_out: int, reception: Taker) -> None:
    """Read a joined channel up to its DONE. Raises TransferInterrupted when it ends before."""

    def idle(quiet_s: float) -> None:
        reception.check()
        if quiet_s >= JOINED_IDLE_S:
            raise TransferInterrupted("A joined channel has fallen silent")

    reader = FrameReader(fd_in, idle)
    try:
        FrameWriter(fd_out).send(protocol.encode_json(Kind.JOINED, {}))
        while True:
            frame = reader.next()
            if frame is None:
                raise TransferInterrupted("A joined channel ended before its time")
            kind = frame.header.kind
            if kind is Kind.DONE:
                return
            if kind is Kind.DATA:
                payload = reception.buffer()
                reader.fill(memoryview(payload)[: frame.header.payload_bytes])
                reception.take(frame.header, frame.meta, payload)
            elif kind in (Kind.ZERO, Kind.SAME):
                reception.take(frame.header, frame.meta, None)
            elif kind is not Kind.SYNC:
                raise ProtocolError(f"A {kind.name} frame is out of place on a joined channel")
    finally:
        reader.close()
        os.close(fd_in)
        os.close(fd_out)


def _same_user(link: socket.socket) -> bool:
    raw = link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return bool(struct.unpack("3i", raw)[1] == os.geteuid())
