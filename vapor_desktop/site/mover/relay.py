"""The relay, at the source: the mover asks the console for a link, the console joins one and sends it here.

The console starts ``relay-source MEETING`` over SSH. That process hands its standard streams, sshd's own
socket, to the waiting mover and then only holds the SSH channel open: no byte is copied on this host.
Meetings are abstract unix sockets: nothing is left behind by a killed mover; both ends check the other's user.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from vapor_desktop.model.errors import SiteUnreachable, TransferInterrupted, VaporError
from vapor_desktop.site.mover.channel import widen
from vapor_desktop.site.mover.link import Ending
from vapor_desktop.site.mover.relay_end import address, peer_of

JOIN_S = 30.0  # two SSH connections are made meanwhile
WORD_S = 15.0  # the console looks at both sites before it says why a relay ended


@dataclass(slots=True)
class Meeting:
    """One link that was asked for. ``said`` is set when there is nothing more to wait for."""

    name: str
    listener: socket.socket
    said: threading.Event = field(default_factory=threading.Event)
    error: VaporError | None = None

    def over(self, error: VaporError | None) -> None:
        """It ended, or will never begin: whoever waits in ``accept`` or for the reason goes on."""
        self.error = self.error or error
        self.said.set()
        with suppress(OSError):  # closed after somebody came
            self.listener.shutdown(socket.SHUT_RDWR)


class RelayLink:
    """A link through the console."""

    def __init__(self, stream: socket.socket, holder: socket.socket, meeting: Meeting, forget: Callable[[], None]):
        self.socket = stream
        self._holder = holder
        self._meeting = meeting
        self._forget = forget
        self._pid = peer_of(holder)[0]
        widen(stream.fileno())

    @property
    def pid(self) -> int:
        """Of ``relay-source``."""
        return self._pid

    @property
    def running(self) -> bool:
        """Has the console not said that it ended?"""
        return not self._meeting.said.is_set()

    def ending(self) -> Ending:
        """As the console tells it."""
        self._meeting.said.wait(WORD_S)
        error = self._meeting.error
        return Ending("" if error is None else str(error), error, {"route": "relay"})

    def abort(self) -> None:
        """The receiver sees the end; so does ``relay-source``, which ends the SSH channel."""
        self._meeting.said.set()
        for end in (self.socket, self._holder):
            with suppress(OSError):  # ENOTCONN: the other end was first
                end.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        """Nothing of ours is left to wait for."""

    def close(self) -> None:
        """Both sockets."""
        self._forget()
        self.socket.close()
        self._holder.close()


class RelayDesk:
    """Asks for links and keeps what the console said of them. Thread-safe.

    ``ask(event)`` says a line on the control channel. ``known(peer_site)`` raises NotFound for a stranger.
    """

    def __init__(self, known: Callable[[str], object]) -> None:
        self.ask: Callable[[dict[str, Any]], None] = lambda _event: None
        self._known = known
        self._lock = threading.Lock()
        self._meetings: dict[str, Meeting] = {}
        self._closed = False

    def connect(self, peer_site: str) -> RelayLink:
        """A link to the peer's receiver. Raises what the console says, SiteUnreachable when nobody comes."""
        self._known(peer_site)
        name = str(uuid4())
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(address(name))
            listener.listen(4)
            meeting = self._open(Meeting(name, listener))
            try:
                self.ask({"event": "relay", "data": {"meeting": name, "peer_site": peer_site}})
                return self._arrival(meeting)
            except BaseException:
                self._forget(name)
                raise

    def ended(self, name: str, error: VaporError) -> None:
        """The console's word about a meeting; one that is forgotten needs none."""
        with self._lock:
            meeting = self._meetings.get(name)
        if meeting is not None:
            meeting.over(error)

    def close(self) -> None:
        """The console is gone: nobody will come any more, and nobody will say why."""
        with self._lock:
            self._closed = True
            meetings = list(self._meetings.values())
        for meeting in meetings:
            meeting.over(None)

    def _open(self, meeting: Meeting) -> Meeting:
        with self._lock:
            if self._closed:
                raise TransferInterrupted("The console that relays is gone")
            self._meetings[meeting.name] = meeting
        return meeting

    def _forget(self, name: str) -> None:
        with self._lock:
            self._meetings.pop(name, None)

    def _arrival(self, meeting: Meeting) -> RelayLink:
        meeting.listener.settimeout(JOIN_S)
        while True:
            try:
                holder, _ = meeting.listener.accept()
            except TimeoutError as error:
                raise SiteUnreachable(
                    "The console joined no relay to the peer site", why=f"nothing came within {JOIN_S:g} s"
                ) from error
            except OSError as error:  # EINVAL: ``over`` shut the listener down
                raise meeting.error or TransferInterrupted("The console that relays is gone") from error
            stream = _received(holder)
            if stream is not None:
                return RelayLink(stream, holder, meeting, lambda: self._forget(meeting.name))
            holder.close()


def _received(holder: socket.socket) -> socket.socket | None:
    """sshd's socket; None from another user, or what is no such thing."""
    if peer_of(holder)[1] != os.geteuid():
        return None
    holder.settimeout(JOIN_S)
    try:
        _, fds, _, _ = socket.recv_fds(holder, 1, 1)
    except (OSError, struct.error):
        return None
    holder.settimeout(None)
    return socket.socket(fileno=fds[0]) if fds else None
