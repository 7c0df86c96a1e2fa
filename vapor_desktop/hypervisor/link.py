"""Connections to one libvirt that come back: opened on first use, dropped when they die, opened again.

Never two threads inside one virConnect: libvirt's client before 10.4 (so Debian 12's) reads freed memory when a
connection that several threads wait on dies (CVE-2024-4418), and takes the whole process with it. So each call has a
connection of its own for as long as it lasts.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import libvirt

from vapor_desktop.hypervisor.errors import translate
from vapor_desktop.hypervisor.events import ensure_event_loop

_log = logging.getLogger(__name__)

KEEPALIVE_INTERVAL_S, KEEPALIVE_COUNT = 5, 3
# Threads in calls at once; one more waits. Each is a session of the site's ssh, which takes 10 of one client.
MOST = 3


@dataclass(slots=True, eq=False)
class _Opened:
    """A virConnect, and whose it is just now. ``retired``: to be closed by the one who has it."""

    conn: Any
    callbacks: list[int] = field(default_factory=list)
    busy: bool = True
    retired: bool = False


class _Here(threading.local):
    """A thread's own: what it has, and how deep it is inside calls."""

    opened: _Opened | None = None
    depth: int = 0


class Link:
    """A few virConnects. Safe from several threads.

    Calls that may wait (a freeze, a job's lock) belong on a Link of their own [facts/libvirt 3.4].
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._free = threading.Condition()
        self._all: list[_Opened] = []
        self._opening = 0
        self._here = _Here()
        self._version = 0
        # Called with a virConnect that is to listen for all; answers the ids of the callbacks it registered.
        self.on_open: Callable[[Any], list[int]] | None = None
        self._listener: _Opened | None = None

    @contextmanager
    def call(self, what: str) -> Iterator[Any]:
        """A live virConnect, this thread's alone; libvirt's errors leave as ours, naming ``what`` failed.

        Raises HypervisorUnreachable when it cannot be opened or dies meanwhile.
        """
        here = self._here
        if here.opened is None:
            here.opened = self._take(what)
        opened = here.opened
        here.depth += 1
        try:
            yield opened.conn
        except libvirt.libvirtError as error:
            alive = _alive(opened.conn)
            if not alive:
                opened.retired = True
            raise translate(error, what, alive=alive) from error
        finally:
            here.depth -= 1
            if here.depth == 0:
                here.opened = None
                self._give_back(opened)

    @contextmanager
    def domain(self, vm_uuid: str, what: str) -> Iterator[Any]:
        """The virDomain of that UUID, looked up afresh. Raises DomainNotFound besides ``call``'s errors."""
        with self.call(what) as conn:
            yield conn.lookupByUUIDString(vm_uuid)

    def version(self) -> int:
        """The remote daemon's libvirt version as a number (9.0.0 = 9_000_000)."""
        with self.call("Could not ask libvirt for its version"):
            return self._version

    def versions(self) -> tuple[str, str]:
        """(libvirt, QEMU) of the daemon as "9.0.0"."""
        with self.call("Could not ask libvirt for its versions") as conn:
            return _dotted(conn.getLibVersion()), _dotted(conn.getVersion())

    def close(self) -> None:
        """Close them, those in use as soon as they are left; the next call opens another."""
        with self._free:
            idle = [o for o in self._all if not o.busy]
            for opened in self._all:
                opened.retired = True
            self._all, self._listener = [], None
        for opened in idle:
            _close(opened)

    # --- whose is which ---------------------------------------------------------------------------------
    def _take(self, what: str) -> _Opened:
        while True:
            found = self._idle_or_room()
            if found is None:
                found = self._open(what)
            elif not _alive(found.conn):
                found.retired = True
                self._give_back(found)
                continue
            self._let_listen(found, what)
            return found

    def _idle_or_room(self) -> _Opened | None:
        """One that nobody has, or None when another may be opened."""
        with self._free:
            while True:
                for opened in self._all:
                    if not opened.busy:
                        opened.busy = True
                        return opened
                if len(self._all) + self._opening < MOST:
                    self._opening += 1
                    return None
                self._free.wait()

    def _open(self, what: str) -> _Opened:
        ensure_event_loop()
        made: _Opened | None = None
        try:
            conn = libvirt.open(self.uri)
            _keep_alive(conn)
            self._version = int(conn.getLibVersion())
            made = _Opened(conn)
            return made
        except libvirt.libvirtError as error:
            raise translate(error, what, alive=False) from error
        finally:
            with self._free:
                self._opening -= 1
                if made is not None:
                    self._all.append(made)
                self._free.notify()

    def _let_listen(self, opened: _Opened, what: str) -> None:
        """One of them hears of events for all."""
        if self.on_open is None:
            return
        with self._free:
            listener = self._listener
            if opened.retired or (listener is not None and (listener is opened or _alive(listener.conn))):
                return
            self._listener = opened
        try:
            opened.callbacks = self.on_open(opened.conn)
        except libvirt.libvirtError as error:
            opened.retired = True
            self._give_back(opened)
            raise translate(error, what, alive=False) from error

    def _give_back(self, opened: _Opened) -> None:
        with self._free:
            opened.busy = False
            retired = opened.retired
            if retired:
                self._all = [o for o in self._all if o is not opened]
                if self._listener is opened:
                    self._listener = None
            self._free.notify()
        if retired:
            _close(opened)


def _keep_alive(conn: Any) -> None:
    try:
        conn.setKeepAlive(KEEPALIVE_INTERVAL_S, KEEPALIVE_COUNT)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:  # a driver inside this process needs none
            raise


def _alive(conn: Any) -> bool:
    """Client-side state only: no round trip. The event loop notices end-of-file and missed keepalives."""
    try:
        return bool(conn.isAlive())
    except libvirt.libvirtError:
        return False


def _close(opened: _Opened) -> None:
    """A registered callback keeps a connection, and its sockets, open for ever: they go first."""
    conn = opened.conn
    for callback in opened.callbacks:
        try:
            conn.domainEventDeregisterAny(callback)
        except libvirt.libvirtError as error:  # the far end is gone; the near end is deregistered all the same
            _log.debug("deregistering on a dead libvirt connection: %s", error)
    try:
        conn.close()
    except libvirt.libvirtError as error:  # already dead: nothing is left to close
        _log.debug("closing a dead libvirt connection: %s", error)


def client_version() -> str:
    """Of the libvirt library that this process uses."""
    return _dotted(libvirt.getVersion())


def _dotted(number: int) -> str:
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"
