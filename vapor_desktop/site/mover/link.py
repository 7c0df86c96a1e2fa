"""What carries a session's bytes to the receiver and back.

Direct: a command of our own (``ssh … receive``). Relayed: what the console joined, see ``relay``.
"""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, Any, Protocol

from vapor_desktop.model.errors import SiteUnreachable, VaporError
from vapor_desktop.site.mover.channel import widen

SSH_FAILED = 255
EXIT_S = 2.0
PATIENCE_S = 1.5
STDERR_TAIL_BYTES = 2000


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a link ended. ``never_reached``: what to raise if the receiver had said nothing on it."""

    words: str = ""
    never_reached: VaporError | None = None
    details: dict[str, Any] = field(default_factory=dict)


class Link(Protocol):
    """A socket to the receiver, and whatever holds it open."""

    socket: socket.socket

    @property
    def pid(self) -> int:
        """Of the process on this host that holds it open."""

    @property
    def running(self) -> bool:
        """False once it is known to have ended."""

    def ending(self) -> Ending:
        """Why it ended; waits a little until that is known."""

    def abort(self) -> None:
        """End it now; whoever is blocked on the socket fails. Idempotent."""

    def end(self) -> None:
        """After ``abort``: wait, not for long, until it is gone."""

    def close(self) -> None:
        """Let go of what is left, the socket first."""


class CommandLink:
    """A command that speaks the frames on its standard streams."""

    def __init__(self, argv: Sequence[str]) -> None:
        """Start it. Raises SiteUnreachable when it cannot be started."""
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the link
        self.socket, theirs = socket.socketpair()
        with theirs:
            for end in (self.socket, theirs):
                widen(end.fileno())
            try:
                end_fd = theirs.fileno()
                self._process = subprocess.Popen(list(argv), stdin=end_fd, stdout=end_fd, stderr=self._errors)
            except OSError as error:
                self.close()
                raise SiteUnreachable("Cannot start ssh", why=error.strerror or "", program=argv[0]) from error

    @property
    def pid(self) -> int:
        """Of the command."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Has the command not ended?"""
        return self._process.poll() is None

    def ending(self) -> Ending:
        """Its exit code and last words."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=EXIT_S)
        words, code = self._last_words(), self._process.returncode
        never = SiteUnreachable("The peer site cannot be reached over SSH", why=words) if code == SSH_FAILED else None
        return Ending(words, never, {"exit_code": code, "command_pid": self.pid})

    def _last_words(self) -> str:
        size = os.fstat(self._errors.fileno()).st_size
        tail = os.pread(self._errors.fileno(), STDERR_TAIL_BYTES, max(0, size - STDERR_TAIL_BYTES))
        lines = tail.decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""

    def abort(self) -> None:
        """The command sees the end of its input."""
        with suppress(OSError):  # ENOTCONN: the other end was first
            self.socket.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        """An ssh whose link is dead is not waited for."""
        try:
            self._process.wait(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        """The command has ended."""
        self.socket.close()
        self._errors.close()
