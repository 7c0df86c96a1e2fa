"""``relay-source`` and ``relay-receive``: the two commands that a relaying console joins.

Standard library only until the target's receiver is loaded: the source's end starts in a blink.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
import sys

UNAVAILABLE = 69  # EX_UNAVAILABLE
REFUSED = 77  # EX_NOPERM


def address(meeting: str) -> bytes:
    """The abstract socket on which a mover waits."""
    return f"\0vapor-relay-{meeting}".encode()


def peer_of(connection: socket.socket) -> tuple[int, int]:
    """(pid, uid) of the other end [unix(7) SO_PEERCRED]."""
    pid, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid


def source(meeting: str) -> int:
    """Give the standard streams to the mover that waits at ``meeting``; stay until it lets go. The exit code."""
    if not _is_one_socket(0, 1):
        return _refuse("this host's sshd gives its commands pipes; a relay needs OpenSSH's socket", UNAVAILABLE)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as mover:
        try:
            mover.connect(address(meeting))
        except ConnectionRefusedError:
            return _refuse("no mover waits at that meeting any more", UNAVAILABLE)
        if peer_of(mover)[1] != os.geteuid():
            return _refuse("somebody else waits at that meeting", REFUSED)
        socket.send_fds(mover, [b"\1"], [0])
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1):
            os.dup2(null, fd)  # the mover alone holds it now: when it lets go, sshd sees the end
        mover.recv(1)
    return 0


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


def _is_one_socket(a: int, b: int) -> bool:
    first, second = os.fstat(a), os.fstat(b)
    return stat.S_ISSOCK(first.st_mode) and os.path.samestat(first, second)


def _refuse(words: str, code: int) -> int:
    sys.stderr.write(f"vapor-site: {words}\n")
    return code
