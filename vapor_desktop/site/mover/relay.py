"""The relay, at the source: the mover asks the console for a link, the console joins one and sends it here.

The console starts ``relay-source MEETING`` over SSH; it joins sshd's streams to the mover that waits there.
Meetings are abstract unix sockets: nothing is left behind by a killed mover; both ends check the other's user.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
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
    wake: int  # an eventfd; -1 once nobody waits in ``_arrival``
    lock: threading.Lock = field(default_factory=threading.Lock)
    said: threading.Event = field(default_factory=threading.Event)
    error: VaporError | None = None

    def over(self, error: VaporError | None) -> None:
        """It ended, or will never begin: whoever waits in ``accept`` or for the reason goes on."""
        self.error = self.error or error
        self.said.set()
        with self.lock:
            if self.wake >= 0:
                os.eventfd_write(self.wake, 1)

    def close_wake(self) -> None:
        """Somebody came, or nobody will."""
        with self.lock:
            os.close(self.wake)
            self.wake = -1


class RelayLink:
    """A link through the console."""

    def __init__(self, stream: socket.socket, meeting: Meeting, forget: Callable[[], None]) -> None:
        self.socket = stream
        self._meeting = meeting
        self._forget = forget
        self._pid = peer_of(stream)[0]
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
        with suppress(OSError):  # ENOTCONN: the other end was first
            self.socket.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        """Nothing of ours is left to wait for."""

    def close(self) -> None:
        """The socket; what the console says from now on is of no interest."""
        self._forget()
        self.socket.close()


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
        with ExitStack() as stack:
            listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            listener.bind(address(name))
            listener.listen(4)
            wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            meeting = self._open(Meeting(name, listener, wake))
            stack.callback(meeting.close_wake)
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
        poll = select.poll()
        for fd in (meeting.listener.fileno(), meeting.wake):
            poll.register(fd, select.POLLIN)
        deadline = time.monotonic() + JOIN_S
        while (left_s := deadline - time.monotonic()) > 0:
            ready = {fd for fd, _ in poll.poll(left_s * 1000)}
            if meeting.wake in ready:
                raise meeting.error or TransferInterrupted("The console that relays is gone")
            if ready:
                stream, _ = meeting.listener.accept()
                if peer_of(stream)[1] == os.geteuid():
                    return RelayLink(stream, meeting, lambda: self._forget(meeting.name))
                stream.close()  # another user of this host: not invited
        raise SiteUnreachable("The console joined no relay to the peer site", why=f"nothing came within {JOIN_S:g} s")
