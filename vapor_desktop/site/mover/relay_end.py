"""``relay-source`` and ``relay-receive``: the two commands that a relaying console joins.

Standard library only until the target's receiver is loaded: the source's end starts in a blink.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import sys
import threading
from contextlib import suppress

UNAVAILABLE = 69  # EX_UNAVAILABLE
REFUSED = 77  # EX_NOPERM
CHUNK_BYTES = 1 << 20


def address(meeting: str) -> bytes:
    """The abstract socket on which a mover waits."""
    return f"\0vapor-relay-{meeting}".encode()


def peer_of(connection: socket.socket) -> tuple[int, int]:
    """(pid, uid) of the other end [unix(7) SO_PEERCRED]."""
    pid, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid


def source(meeting: str) -> int:
    """Join the standard streams to the mover that waits at ``meeting`` until it lets go; the exit code."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as mover:
        try:
            mover.connect(address(meeting))
        except ConnectionRefusedError:
            return _refuse("no mover waits at that meeting any more", UNAVAILABLE)
        if peer_of(mover)[1] != os.geteuid():
            return _refuse("somebody else waits at that meeting", REFUSED)
        with suppress(OSError):  # stdout is no pipe, or the user's pipe quota is used up: it works, slower
            fcntl.fcntl(1, fcntl.F_SETPIPE_SZ, CHUNK_BYTES)
        threading.Thread(target=_answers, args=(mover,), daemon=True).start()
        _carry(mover.fileno(), 1)
    return 0


def _answers(mover: socket.socket) -> None:
    _carry(0, mover.fileno())
    with suppress(OSError):  # the mover was first
        mover.shutdown(socket.SHUT_WR)


def _carry(here: int, there: int) -> None:
    """Until one of the two ends. One buffer, read and written in place."""
    buffer = memoryview(bytearray(CHUNK_BYTES))
    for fd in (here, there):
        os.set_blocking(fd, True)
    with suppress(BrokenPipeError, ConnectionResetError):
        while got := os.readv(here, [buffer]):
            at = 0
            while at < got:
                at += os.write(there, buffer[at:got])


def receive(source_site: str) -> int:
    """``receive`` for a peer whose frames the console relays; the exit code.

    The console names the source; as with a peer's own key, lease, fence, epoch and source decide what is written.
    """
    from vapor_desktop.model.errors import VaporError
    from vapor_desktop.site.enrolments import Enrolments
    from vapor_desktop.site.settings import load_settings

    try:
        Enrolments(load_settings()).peer(source_site)
    except VaporError as error:
        return _refuse(str(error), REFUSED)
    from vapor_desktop.site.mover.receive_main import main

    return main(source_site)


def _refuse(words: str, code: int) -> int:
    sys.stderr.write(f"vapor-site: {words}\n")
    return code
