"""zstd level 1 that turns itself off on data that does not shrink, and looks again now and then."""

from __future__ import annotations

import threading

import zstandard

LEVEL = 1
WORTH = 0.95  # below this share of the original it is sent compressed [facts/libvirt 3.3: skip under 1.05]
GIVE_UP_AFTER = 8  # chunks in a row
PROBE_EVERY = 32  # chunks


class Judge:
    """Shared by a disk's workers: is compressing worth trying on the next chunk?"""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._useless = 0  # chunks in a row that did not shrink
        self._skipped = 0

    def try_it(self) -> bool:
        """True while data shrinks; afterwards once every PROBE_EVERY chunks."""
        with self._lock:
            if self._useless < GIVE_UP_AFTER:
                return True
            self._skipped += 1
            if self._skipped >= PROBE_EVERY:
                self._skipped = 0
                return True
            return False

    def told(self, *, shrank: bool) -> None:
        """What came of a try."""
        with self._lock:
            self._useless = 0 if shrank else self._useless + 1


class Compressor:
    """One thread's context."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._zstd = zstandard.ZstdCompressor(level=LEVEL, write_checksum=False, write_content_size=True)

    def squeeze(self, data: memoryview, *, insist: bool = False) -> bytes | None:
        """``data`` compressed, or None where it goes as it is. ``insist``: some of it is known to be zeroes."""
        if not insist and not self._judge.try_it():
            return None
        packed = self._zstd.compress(data)
        shrank = len(packed) < WORTH * len(data)
        if not insist or shrank:
            self._judge.told(shrank=shrank)
        return packed if shrank else None
