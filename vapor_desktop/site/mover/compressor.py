"""zstd that turns itself off on data that does not shrink, and takes a cheaper level where that costs no bytes.

Level 1 tries to code what it cannot match; on noise between runs and repeats that is half of its time for
nothing, on programs and text a third fewer bytes. So both are tried on a chunk now and then.
"""

from __future__ import annotations

import threading

import zstandard

LEVEL = 1
CHEAP_LEVEL = -10
AS_GOOD = 1.03  # the cheap level is taken while its output is no larger than this share of the other's
WORTH = 0.95  # below this share of the original it is sent compressed [facts/libvirt 3.3: skip under 1.05]
GIVE_UP_AFTER = 8  # chunks in a row
PROBE_EVERY = 32  # chunks


class Judge:
    """Shared by a disk's workers: is compressing worth trying on the next chunk?"""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._useless = 0  # chunks in a row that did not shrink
        self._skipped = 0
        self._cheap = False
        self._weighed_ago = PROBE_EVERY  # chunks since both levels were tried

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

    def levels(self) -> tuple[int, ...]:
        """What to compress the next chunk with; two levels are to be weighed against each other."""
        with self._lock:
            self._weighed_ago += 1
            if self._weighed_ago > PROBE_EVERY:
                self._weighed_ago = 0
                return LEVEL, CHEAP_LEVEL
            return (CHEAP_LEVEL,) if self._cheap else (LEVEL,)

    def weighed(self, bytes_out: int, cheap_bytes_out: int) -> None:
        """What the two levels made of the same chunk."""
        with self._lock:
            self._cheap = cheap_bytes_out <= AS_GOOD * bytes_out


class Compressor:
    """One thread's contexts."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._zstd = {
            level: zstandard.ZstdCompressor(level=level, write_checksum=False, write_content_size=True)
            for level in (LEVEL, CHEAP_LEVEL)
        }

    def squeeze(self, data: memoryview, *, insist: bool = False) -> bytes | None:
        """``data`` compressed, or None where it goes as it is. ``insist``: some of it is known to be zeroes."""
        if not insist and not self._judge.try_it():
            return None
        made = [self._zstd[level].compress(data) for level in self._judge.levels()]
        if len(made) > 1:
            self._judge.weighed(len(made[0]), len(made[1]))
        packed = made[0]
        shrank = len(packed) < WORTH * len(data)
        if not insist or shrank:
            self._judge.told(shrank=shrank)
        return packed if shrank else None
