"""One libvirt connection that comes back: opened on first use, dropped when it dies, opened again."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import libvirt

from vapor_desktop.hypervisor.errors import translate
from vapor_desktop.hypervisor.events import ensure_event_loop

_log = logging.getLogger(__name__)

KEEPALIVE_INTERVAL_S, KEEPALIVE_COUNT = 5, 3


class Link:
    """One virConnect. Safe from several threads; libvirtd runs at most 5 of its calls at once.

    Calls that may wait (a freeze, a job's lock) belong on a Link of their own [facts/libvirt 3.4].
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._lock = threading.Lock()
        self._conn: Any = None
        self._version = 0
        # Called with each new virConnect before anybody uses it; answers the ids of the callbacks it registered.
        self.on_open: Callable[[Any], list[int]] | None = None
        self._callbacks: list[int] = []

    @contextmanager
    def call(self, what: str) -> Iterator[Any]:
        """The live virConnect; libvirt's errors leave as ours, naming ``what`` failed.

        Raises HypervisorUnreachable when it cannot be opened or dies meanwhile.
        """
        conn = self._open(what)
        try:
            yield conn
        except libvirt.libvirtError as error:
            alive = _alive(conn)
            if not alive:
                self._drop(conn)
            raise translate(error, what, alive=alive) from error

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
        """Close it; the next call opens it again."""
        with self._lock:
            conn, self._conn = self._conn, None
            callbacks = self._callbacks
        if conn is not None:
            _close(conn, callbacks)

    def _open(self, what: str) -> Any:
        with self._lock:
            if self._conn is not None and _alive(self._conn):
                return self._conn
            if self._conn is not None:
                _close(self._conn, self._callbacks)
                self._conn = None
            ensure_event_loop()
            try:
                conn = libvirt.open(self.uri)
                _keep_alive(conn)
                self._version = int(conn.getLibVersion())
                self._callbacks = self.on_open(conn) if self.on_open is not None else []
            except libvirt.libvirtError as error:
                raise translate(error, what, alive=False) from error
            self._conn = conn
            return conn

    def _drop(self, conn: Any) -> None:
        with self._lock:
            if self._conn is not conn:  # another thread noticed it first
                return
            self._conn = None
            callbacks = self._callbacks
        _close(conn, callbacks)


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


def _close(conn: Any, callbacks: list[int]) -> None:
    """A registered callback keeps a connection, and its sockets, open for ever: they go first."""
    for callback in callbacks:
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
