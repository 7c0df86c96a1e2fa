"""Bandwidth limit: a token bucket that a cancel can interrupt."""

from __future__ import annotations

import threading
import time

BURST_S = 0.25


class Throttle:
    """Lets ``rate_bytes_s`` through on average, a quarter of a second's worth at once. Thread-safe."""

    def __init__(self, rate_bytes_s: int, stop: threading.Event) -> None:
        self._rate = float(rate_bytes_s)
        self._stop = stop
        self._tokens = self._rate * BURST_S
        self._at = time.monotonic()
        self._lock = threading.Lock()

    def take(self, size_bytes: int) -> None:
        """Wait until ``size_bytes`` may go. A frame larger than the bucket goes on credit, paid for by the next.

        Returns at once when ``stop`` is set: the caller looks at it after every frame anyway.
        """
        while True:
            with self._lock:
                now = time.monotonic()
                self._tokens = min(self._rate * BURST_S, self._tokens + (now - self._at) * self._rate)
                self._at = now
                if self._tokens > 0:
                    self._tokens -= size_bytes
                    return
                wait_s = -self._tokens / self._rate + 0.001
            if self._stop.wait(min(0.5, wait_s)):
                return
