"""A link with a delay and a loss, for kernels without netem: a process that holds Ethernet frames back.

``python -m vapor_desktop.lab.delay_line HOST NEAR_FD FAR_FD DELAY_NS LOSS`` moves frames between two TAP devices
whose descriptors it inherits (HOST is for people who look at processes). What comes from *near* goes to *far* after
the delay, a share of it never; what comes from *far* goes to *near* at once. It ends when one of the devices is
deleted, and the devices end with it.

A frame is whatever one read gives. With the TAP's segmentation offload that is up to 64 KiB of a TCP stream, so the
system calls stay few (``vapor_desktop.lab.wire`` decides it). Imports nothing else: it starts in some 20 ms.
"""

from __future__ import annotations

import errno
import os
import random
import select
import sys
from collections import deque
from time import monotonic_ns

FRAME_BYTES = 70_000  # more than any: 64 KiB of segments, their headers, the virtio header
BATCH = 64  # frames read before due ones are looked for again
# What may wait: 1 Gbit/s over 500 ms. A link drops what does not fit, and so do we.
WAITING_BYTES = 64 << 20
GONE = (errno.EBADFD, errno.EBADF)
LOST = (errno.EIO, errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN, errno.EINVAL)  # EIO: the device is down


class DelayLine:
    """One link's two directions. Both descriptors must be non-blocking and keep the frames' borders."""

    def __init__(self, near: int, far: int, *, delay_ns: int, loss: float, seed: int | None = None) -> None:
        self._near = near
        self._far = far
        self._delay_ns = delay_ns
        self._loss = loss
        self._chance = random.Random(seed).random  # noqa: S311 - which packets a test link loses is no secret
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._waiting_bytes = 0

    def run(self) -> None:
        """Until a device is gone."""
        waiting = self._waiting
        while True:
            left_ns = self._send_due()
            # select, not epoll: it waits in microseconds where epoll of Python 3.11 rounds up to a millisecond.
            ready = select.select((self._near, self._far), (), (), left_ns / 1e9 if waiting else None)[0]
            if self._near in ready and not self._take_in():
                return
            if self._far in ready and not self._pass_back():
                return

    def _send_due(self) -> int:
        """Send what has waited long enough; nanoseconds until the next is due (0: none waits)."""
        waiting = self._waiting
        now = monotonic_ns()
        while waiting:
            due, frame = waiting[0]
            if due > now:
                return due - now
            waiting.popleft()
            self._waiting_bytes -= len(frame)
            _write(self._far, frame)
            now = monotonic_ns()
        return 0

    def _take_in(self) -> bool:
        """Read what is there, lose some; False when the device is gone."""
        for _ in range(BATCH):
            frame = _read(self._near)
            if frame is None:
                return True
            if not frame:
                return False
            if self._loss and self._chance() < self._loss:
                continue
            if self._waiting_bytes + len(frame) <= WAITING_BYTES:
                self._waiting.append((monotonic_ns() + self._delay_ns, frame))
                self._waiting_bytes += len(frame)
        return True

    def _pass_back(self) -> bool:
        """The other direction, unshaped; False when the device is gone."""
        for _ in range(BATCH):
            frame = _read(self._far)
            if frame is None:
                return True
            if not frame:
                return False
            _write(self._near, frame)
        return True


def _read(descriptor: int) -> bytes | None:
    """A frame; None when there is none now, empty when there never will be again."""
    try:
        return os.read(descriptor, FRAME_BYTES)
    except BlockingIOError:
        return None
    except OSError as error:
        if error.errno in GONE:
            return b""
        raise


def _write(descriptor: int, frame: bytes) -> None:
    """Send it, or lose it as a wire would; a device that is gone is noticed by the next read."""
    try:
        os.write(descriptor, frame)
    except OSError as error:
        if error.errno not in (*GONE, *LOST):
            raise


def main() -> None:
    """The process."""
    _host, near, far, delay_ns, loss = sys.argv[1:]
    for descriptor in (near, far):
        os.set_blocking(int(descriptor), False)
    DelayLine(int(near), int(far), delay_ns=int(delay_ns), loss=float(loss)).run()


if __name__ == "__main__":
    main()
