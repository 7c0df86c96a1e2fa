"""The delay line between two socket pairs: descriptors that keep frames' borders, as TAP devices do."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from vapor_desktop.lab import delay_line
from vapor_desktop.lab.delay_line import DelayLine
from vapor_desktop.lab.processes import LabFailed
from vapor_desktop.lab.wire import Line


@contextmanager
def running(delay_ns: int, loss: float) -> Iterator[tuple[socket.socket, socket.socket]]:
    """The host's end and the bridge's end of a running line."""
    with ExitStack() as stack:
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)]
        (host, near), (bridge, far) = pairs
        for end in (host, near, bridge, far):
            stack.enter_context(end)
            end.settimeout(10)
        for end in (near, far):
            end.setblocking(False)
        line = DelayLine(near.fileno(), far.fileno(), delay_ns=delay_ns, loss=loss, seed=1)
        thread = threading.Thread(target=line.run)
        thread.start()
        try:
            yield host, bridge
        finally:
            host.shutdown(socket.SHUT_RDWR)  # what a deleted device looks like: nothing will ever come again
            thread.join(10)
        assert not thread.is_alive()


def rest(end: socket.socket) -> list[bytes]:
    """Everything that still comes until the line is quiet."""
    found: list[bytes] = []
    end.settimeout(0.6)
    with suppress(TimeoutError):
        while True:
            found.append(end.recv(2000))
    return found


def test_frames_wait_their_time_and_keep_their_order() -> None:
    with running(50_000_000, 0.0) as (host, bridge):
        sent: dict[int, float] = {}
        for number in range(40):
            sent[number] = time.monotonic()
            host.send(bytes([number]) * (number + 1))
        for number in range(40):
            assert bridge.recv(100) == bytes([number]) * (number + 1)
            assert time.monotonic() - sent[number] >= 0.05


def test_the_other_direction_does_not_wait() -> None:
    with running(5_000_000_000, 0.0) as (host, bridge):
        started = time.monotonic()
        bridge.send(b"back")
        assert host.recv(100) == b"back"
        assert time.monotonic() - started < 4


def test_a_share_is_lost_and_the_rest_arrives() -> None:
    with running(1_000_000, 0.25) as (host, bridge):
        for number in range(400):
            host.send(number.to_bytes(2, "big"))
            if number % 50 == 49:  # a socket's buffer holds fewer than the test sends
                time.sleep(0.005)
        got = [int.from_bytes(frame, "big") for frame in rest(bridge)]
        assert got == sorted(set(got))
        assert 240 < len(got) < 360


def test_what_does_not_fit_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delay_line, "WAITING_BYTES", 3000)
    with running(200_000_000, 0.0) as (host, bridge):
        for number in range(10):
            host.send(bytes([number]) * 1000)
        assert [frame[0] for frame in rest(bridge)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("delay", "loss", "line", "words"),
    [
        ("20ms", None, Line(20_000_000, 0.0), "delay 20ms"),
        ("1.5s", "0.5%", Line(1_500_000_000, 0.005), "delay 1500ms loss 0.5%"),
        ("500us", "100%", Line(500_000, 1.0), "delay 0.5ms loss 100%"),
        (None, "2%", Line(0, 0.02), "loss 2%"),
    ],
)
def test_words_of_tc_are_understood(delay: str | None, loss: str | None, line: Line, words: str) -> None:
    assert Line.parse(delay, loss) == line
    assert str(line) == words


@pytest.mark.parametrize(
    ("delay", "loss"), [("20", None), ("soon", None), (None, "2"), (None, "101%"), ("-1ms", None)]
)
def test_other_words_are_refused(delay: str | None, loss: str | None) -> None:
    with pytest.raises(LabFailed, match="is no"):
        Line.parse(delay, loss)
