"""Holding a site's lease while something is done under it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime, timedelta
from types import TracebackType
from typing import Self

from vapor_desktop.engine.ports import SiteApi
from vapor_desktop.model.errors import LeaseHeld, StaleLease, VaporError
from vapor_desktop.model.operations import OperationKind
from vapor_desktop.model.wire import Lease, LeaseRequest

TTL_S = 60.0
_OPERATIONS = frozenset(kind.value for kind in OperationKind)


def interrupting(
    held: ExitStack,
    make: Callable[[], HeldLease],
    stop_cycle: Callable[[], None],
    *,
    patience_s: float,
    longest_s: float,
) -> HeldLease:
    """Enter the lease into ``held``; a holder that has not ended after ``patience_s`` is asked to stop its cycle.

    What a stopped cycle has sent is kept, and the next one goes on from there. Raises LeaseHeld when nothing
    helped for ``longest_s``.
    """
    began, asked, pause = time.monotonic(), False, threading.Event()
    while True:
        try:
            return held.enter_context(make())
        except LeaseHeld as held_by:
            if time.monotonic() - began > longest_s or _for_long(held_by):
                raise
        if not asked and time.monotonic() - began >= patience_s:
            asked = True
            stop_cycle()
        pause.wait(0.2)


def _for_long(held: LeaseHeld) -> bool:
    """Is its holder an operation? That may last for hours: who waits is told at once instead."""
    return held.details.get("purpose") in _OPERATIONS


class HeldLease:
    """Acquires on enter, renews in the background, releases on exit.

    A lease that could not be renewed is *lost*: ``lost()`` turns True and the work must stop. The site refuses
    the stale number anyway; this only saves the effort. The holder's name says what for: an engine's own cycle
    must not step into its failover any more than another engine's. ``wait_s``: how long to wait for a holder to end.
    ``lapsed``: did that engine of ours end without giving back what it held? Then its lease is taken over at once; it
    is fenced off by that, should it live after all.
    """

    def __init__(
        self,
        api: SiteApi,
        vm_uuid: str,
        holder: str,
        holder_name: str,
        purpose: str,
        takeover: str | None = None,
        wait_s: float = 0.0,
        lapsed: Callable[[str], bool] = lambda _engine_id: False,
    ) -> None:
        self._api = api
        self._vm_uuid = vm_uuid
        self._request = LeaseRequest(
            holder=f"{holder}/{purpose}",
            holder_name=holder_name,
            purpose=purpose,
            ttl_s=TTL_S,
            takeover_reason=takeover,
        )
        self._wait_s = wait_s
        self._lapsed = lapsed
        self._done = threading.Event()
        self._lost: VaporError | None = None
        self._thread: threading.Thread | None = None
        self._lease: Lease | None = None

    @property
    def fence(self) -> int:
        """The fencing number. Raises StaleLease when there is none (any more)."""
        if self._lost is not None:
            raise StaleLease("The lease was lost while working", why=str(self._lost))
        if self._lease is None:
            raise StaleLease("The lease is not held")
        return self._lease.fence

    @property
    def granted_at(self) -> datetime:
        """When it was granted (or renewed), on the site's clock. Raises StaleLease when it is not held."""
        if self._lease is None:
            raise StaleLease("The lease is not held")
        return self._lease.expires_at - timedelta(seconds=TTL_S)

    def lost(self) -> bool:
        """True once renewal failed for good."""
        return self._lost is not None

    def __enter__(self) -> Self:
        self._lease = self._acquire()
        self._thread = threading.Thread(target=self._renew, name=f"lease-{self._vm_uuid[:8]}", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join(timeout=5)
        if self._lease is not None and self._lost is None:
            try:
                self._api.release_lease(self._vm_uuid, self._lease.fence)
            except VaporError:
                # It expires by itself; the work's own error, if any, matters more.
                return

    def _acquire(self) -> Lease:
        deadline = time.monotonic() + self._wait_s
        while True:
            try:
                return self._api.acquire_lease(self._vm_uuid, self._request)
            except LeaseHeld as held:
                if self._lapsed(str(held.details.get("holder", "")).partition("/")[0]):
                    taking = {
                        "takeover_reason": "the engine that held it has ended",
                        "takeover_from": held.details["holder"],
                    }
                    self._request = self._request.model_copy(update=taking)
                    continue
                if time.monotonic() >= deadline or _for_long(held):
                    raise
                self._done.wait(0.2)

    def _renew(self) -> None:
        missed = 0
        while not self._done.wait(TTL_S / 4):
            lease = self._lease
            if lease is None:
                return
            try:
                self._lease = self._api.renew_lease(self._vm_uuid, lease.fence, TTL_S)
                missed = 0
            except VaporError as error:
                missed += 1
                if isinstance(error, StaleLease) or missed >= 3:
                    self._lost = error
                    return
