"""One libvirt connection that comes back: opened on first use, dropped when it dies, opened again."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import libvirt

from vapor_desktop.hypervisor.errors import translate
from vapor_desktop.hypervisor.events import ensure_event_loop

_log = logging.getLogger(__name__)

KEEPALIVE_INTERVAL_S, KEEPALIVE_COUNT = 5, 3


@dataclass(slots=True, eq=False)
class _Opened:
    """A virConnect, who is inside a call of it, and whether it is to be closed after them."""

    conn: Any
    callbacks: list[int]
    users: int = 0
    retired: bool = False


class Link:
    """One virConnect. Safe from several threads; libvirtd runs at most 5 of its calls at once.

    Calls that may wait (a freeze, a job's lock) belong on a Link of their own [facts/libvirt 3.4].
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._lock = threading.Lock()
        self._opened: _Opened | None = None
        self._version = 0
        # Called with each new virConnect before anybody uses it; answers the ids of the callbacks it registered.
        self.on_open: Callable[[Any], list[int]] | None = None

    @contextmanager
    def call(self, what: str) -> Iterator[Any]:
        """The live virConnect; libvirt's errors leave as ours, naming ``what`` failed.

        Raises HypervisorUnreachable when it cannot be opened or dies meanwhile.
        """
        opened = self._open(what)
        try:
            yield opened.conn
        except libvirt.libvirtError as error:
            alive = _alive(opened.conn)
            if not alive:
                self._drop(opened)
            raise translate(error, what, alive=alive) from error
        finally:
            with self._lock:
                opened.users -= 1
                last = opened.retired and opened.users == 0
            if last:
                _close(opened)

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
        """Close it as soon as nobody is inside a call any more; the next call opens another."""
        with self._lock:
            opened, self._opened = self._opened, None
        if opened is not None:
            self._retire(opened)

    def _open(self, what: str) -> _Opened:
        with self._lock:
            old = self._opened
            if old is not None and _alive(old.conn):
                old.users += 1
                return old
            self._opened = None
        if old is not None:
            self._retire(old)
        with self._lock:
            if self._opened is None:
                self._opened = self._connect(what)
            self._opened.users += 1
            return self._opened

    def _connect(self, what: str) -> _Opened:
        ensure_event_loop()
        try:
            conn = libvirt.open(self.uri)
            _keep_alive(conn)
            self._version = int(conn.getLibVersion())
            return _Opened(conn, self.on_open(conn) if self.on_open is not None else [])
        except libvirt.libvirtError as error:
            raise translate(error, what, alive=False) from error

    def _drop(self, opened: _Opened) -> None:
        with self._lock:
            if self._opened is not opened:  # another thread noticed it first
                return
            self._opened = None
        self._retire(opened)

    def _retire(self, opened: _Opened) -> None:
        """libvirt frees what it closes, under the feet of whoever is inside a call: the last one out closes it."""
        with self._lock:
            if opened.retired:
                return
            opened.retired = True
            idle = opened.users == 0
        if idle:
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


def _dotted(number: int) -> str:
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"
