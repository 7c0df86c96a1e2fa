"""Limits that hold before anything is parsed: the size of a body, and the number of failed tokens."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vapor_desktop.model.errors import InvalidRequest, TooManyAttempts
from vapor_desktop.site.api.problems import problem

BODY_LIMIT_BYTES = 1 << 20
FAILURES = 10
WINDOW_S = 60.0
REMEMBERED = 4096  # addresses; more and the oldest are forgotten, so memory is bounded


class _TooLarge(Exception):
    """The body grew beyond the limit while it was read."""


class BodyLimit:
    """Refuses bodies above the limit, announced or not."""

    def __init__(self, app: ASGIApp, limit_bytes: int = BODY_LIMIT_BYTES) -> None:
        self._app = app
        self._limit = limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if not announced.isdigit() or int(announced) > self._limit:
            await self._refuse(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._limit:
                raise _TooLarge
            return message

        async def watched(message: Message) -> None:
            if seen <= self._limit:  # else what the application makes of the broken body is not sent
                await send(message)

        with suppress(_TooLarge):
            await self._app(scope, counted, watched)
        if seen > self._limit:
            await self._refuse(scope, receive, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = InvalidRequest("The request's body is too large", limit_bytes=self._limit)
        await problem(error, 413)(scope, receive, send)


class FailedTokens:
    """At most ``FAILURES`` failed tokens a minute from one address, then nothing from there is looked at.

    A token that was good from an address before the failures keeps working, so one console with a
    mistyped token cannot stop another's replication.
    """

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._lock = threading.Lock()
        self._failed: dict[str, deque[float]] = {}
        self._good: dict[tuple[str, int], None] = {}

    def check(self, address: str, token: str) -> None:
        """Raises TooManyAttempts."""
        with self._lock:
            if (address, hash(token)) in self._good:
                return
            times = self._recent(address)
            if len(times) >= FAILURES:
                raise TooManyAttempts(
                    "Too many wrong tokens came from this address", retry_after_s=round(WINDOW_S, 0)
                )

    def failed(self, address: str) -> None:
        """One more."""
        with self._lock:
            times = self._recent(address)
            times.append(self._now_s())
            self._failed[address] = times
            while len(self._failed) > REMEMBERED:
                del self._failed[next(iter(self._failed))]

    def good(self, address: str, token: str) -> None:
        """This token was right from there."""
        with self._lock:
            self._good[(address, hash(token))] = None
            while len(self._good) > REMEMBERED:
                del self._good[next(iter(self._good))]

    def _recent(self, address: str) -> deque[float]:
        times = self._failed.pop(address, deque(maxlen=FAILURES))
        oldest = self._now_s() - WINDOW_S
        while times and times[0] < oldest:
            times.popleft()
        if times:
            self._failed[address] = times
        return times
