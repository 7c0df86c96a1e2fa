"""Frames, block maps, digests and compression: their rules, over whatever hypothesis thinks of."""

from __future__ import annotations

import os
import socket
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from vapor_desktop.model.blockmap import BlockMap
from vapor_desktop.model.errors import FrameCorrupt, ProtocolError, TransferInterrupted, VaporError
from vapor_desktop.model.extents import BLOCK_BYTES, Extent, align, normalise, subtract, union
from vapor_desktop.site.mover import protocol
from vapor_desktop.site.mover.channel import FrameReader, FrameWriter
from vapor_desktop.site.mover.compressor import CHEAP_LEVEL, LEVEL, PROBE_EVERY, Compressor, Judge
from vapor_desktop.site.mover.digests import DIGEST_BYTES, block_digests, differing, split_zero, zero_digests
from vapor_desktop.site.mover.protocol import CHUNK_BYTES, FLAG_ZSTD, HEADER_BYTES, Kind
from vapor_desktop.site.mover.throttle import Throttle

extents = st.lists(st.builds(Extent, st.integers(0, 1 << 40), st.integers(1, 1 << 33)), max_size=50)
SIZE = 20 * BLOCK_BYTES + 1000
inside = st.lists(
    st.integers(0, SIZE - 1).flatmap(lambda a: st.builds(Extent, st.just(a), st.integers(1, SIZE - a))), max_size=8
)


def data_frame(blocks: int = 2) -> bytes:
    return protocol.encode(
        Kind.DATA,
        bytes(range(DIGEST_BYTES)) * blocks,
        flags=FLAG_ZSTD,
        disk=3,
        offset=7 * BLOCK_BYTES,
        length=blocks * BLOCK_BYTES,
        payload_bytes=100,
    )


def test_a_header_comes_back_as_it_went() -> None:
    raw = data_frame()
    header = protocol.decode_header(raw[:HEADER_BYTES])
    protocol.check(raw[:HEADER_BYTES], header, raw[HEADER_BYTES:])
    assert (header.kind, header.disk, header.offset, header.length) == (
        Kind.DATA,
        3,
        7 * BLOCK_BYTES,
        2 * BLOCK_BYTES,
    )


@given(st.integers(0, len(data_frame()) * 8 - 1))
def test_any_flipped_bit_of_header_or_meta_is_found(bit: int) -> None:
    raw = bytearray(data_frame())
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises((FrameCorrupt, ProtocolError)):
        protocol.check(raw[:HEADER_BYTES], protocol.decode_header(raw[:HEADER_BYTES]), raw[HEADER_BYTES:])


@given(st.binary(min_size=HEADER_BYTES, max_size=HEADER_BYTES))
def test_noise_never_becomes_a_frame_and_never_another_error(raw: bytes) -> None:
    with pytest.raises((FrameCorrupt, ProtocolError)):
        protocol.check(raw, protocol.decode_header(raw), b"")


@given(extents)
def test_extents_come_back(some: list[Extent]) -> None:
    assert protocol.unpack_extents(protocol.pack_extents(some)) == some


@given(st.text(st.characters(exclude_characters="\0", codec="utf-8")), st.binary())
def test_blobs_come_back(name: str, content: bytes) -> None:
    assert protocol.unpack_blob(protocol.pack_blob(name, content)) == (name, content)


@pytest.mark.parametrize("meta", [b"[]", b"{", b"\xff"])
def test_json_that_is_no_object_is_refused(meta: bytes) -> None:
    with pytest.raises(ProtocolError):
        protocol.decode_json(meta)


@given(inside, inside)
def test_a_block_map_is_the_set_it_stands_for(added: list[Extent], removed: list[Extent]) -> None:
    blocks = BlockMap(SIZE)
    blocks.add(added)
    whole = align(added, SIZE)
    assert list(blocks.runs()) == whole
    assert blocks.total_bytes() == sum(e.length for e in whole)
    gone = align(removed, SIZE)
    blocks.remove(gone)
    assert list(blocks.runs()) == normalise(subtract(whole, gone))
    assert bool(blocks) == bool(blocks.total_bytes())
    blocks.add(gone)
    assert list(blocks.runs()) == union(whole, gone)


@given(st.lists(st.sampled_from("zab"), min_size=1, max_size=6), st.integers(1, BLOCK_BYTES))
def test_zero_runs_are_told_by_digests_alone(kinds: list[str], tail: int) -> None:
    parts = [bytes(BLOCK_BYTES) if k == "z" else k.encode() * BLOCK_BYTES for k in kinds]
    parts[-1] = parts[-1][:tail]
    data = b"".join(parts)
    told = split_zero(block_digests(memoryview(data)), len(data))
    assert sum(e.length for e, _ in told) == len(data)
    for extent, zero in told:
        assert zero == (not any(data[extent.offset : extent.end]))
    assert all(a[1] != b[1] for a, b in pairwise(told))


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.integers(1, BLOCK_BYTES))
def test_differing_blocks_are_the_different_ones(flags: list[bool], tail: int) -> None:
    length = (len(flags) - 1) * BLOCK_BYTES + tail
    mine = zero_digests(length)
    theirs = b"".join(b"x" * DIGEST_BYTES if f else mine[i * 16 : i * 16 + 16] for i, f in enumerate(flags))
    told = differing(mine, theirs, length)
    assert sum(e.length for e, _ in told) == length
    for extent, differs in told:
        assert {flags[b] for b in range(extent.offset // BLOCK_BYTES, -(-extent.end // BLOCK_BYTES))} == {differs}


def test_compression_turns_itself_off_and_looks_again() -> None:
    judge = Judge()
    squeeze = Compressor(judge).squeeze
    noise, text = memoryview(os.urandom(CHUNK_BYTES)), memoryview(b"text " * 50_000)
    assert squeeze(text) is not None
    for _ in range(8):
        assert squeeze(noise) is None
    tried = [squeeze(text) is not None for _ in range(40)]
    assert tried.index(True) == 31  # off, until it probes
    assert all(tried[32:])  # and on again


def test_the_cheap_level_is_taken_only_where_it_costs_no_bytes() -> None:
    def level_after(data: bytes) -> tuple[int, ...]:
        judge = Judge()
        packed = Compressor(judge).squeeze(memoryview(data))
        assert packed is not None
        assert zstandard.decompress(packed) == data
        return judge.levels()

    library = Path(os.__file__).parent
    program = b"".join(p.read_bytes() for p in sorted(library.glob("*.py")))[:CHUNK_BYTES]
    holes = b"".join(os.urandom(BLOCK_BYTES // 2) + bytes(BLOCK_BYTES // 2) for _ in range(16))
    assert level_after(program) == (LEVEL,)
    assert level_after(holes) == (CHEAP_LEVEL,)


def test_what_level_is_cheap_is_asked_again() -> None:
    judge = Judge()
    judge.levels()
    judge.weighed(100, 100)
    levels = [judge.levels() for _ in range(PROBE_EVERY + 1)]
    assert levels == [(CHEAP_LEVEL,)] * PROBE_EVERY + [(LEVEL, CHEAP_LEVEL)]
    judge.weighed(100, 110)
    assert judge.levels() == (LEVEL,)


def test_the_throttle_holds_its_rate_and_lets_go_on_stop() -> None:
    stop = threading.Event()
    throttle = Throttle(1 << 20, stop)
    started = time.monotonic()
    for _ in range(10):
        throttle.take(1 << 17)
    assert 0.7 < time.monotonic() - started < 2.5  # 1.25 MiB at 1 MiB/s, a quarter second's worth at once
    throttle.take(1 << 30)
    threading.Timer(0.1, stop.set).start()
    started = time.monotonic()
    throttle.take(1)
    assert time.monotonic() - started < 1


@pytest.mark.parametrize("kind", ["socket", "pipe"])
def test_a_channel_carries_frames_and_tells_its_end(kind: str) -> None:
    if kind == "socket":
        a, b = socket.socketpair()
        fd_in, fd_out = a.detach(), b.detach()
    else:
        fd_in, fd_out = os.pipe()
    writer, reader = FrameWriter(fd_out), FrameReader(fd_in)
    payload = os.urandom(100)
    writer.send(data_frame(), payload)
    writer.send(protocol.encode_json(Kind.SYNC, {"n": 1}))
    frame = reader.next()
    assert frame is not None
    assert frame.header.kind is Kind.DATA
    into = bytearray(100)
    reader.fill(memoryview(into))
    assert into == payload
    second = reader.next()
    assert second is not None
    assert protocol.decode_json(second.meta) == {"n": 1}
    assert writer.wire_bytes == len(data_frame()) + 100 + len(protocol.encode_json(Kind.SYNC, {"n": 1}))
    writer.send(data_frame()[:-5])
    os.close(fd_out)
    with pytest.raises(TransferInterrupted, match="mid-frame"):
        reader.next()
    assert reader.next() is None
    reader.close()
    os.close(fd_in)


def test_a_silent_channel_asks_whether_to_go_on() -> None:
    a, b = socket.socketpair()

    def idle(quiet_s: float) -> None:
        if quiet_s >= 2:
            raise VaporError("silent")

    reader = FrameReader(a.fileno(), idle)
    with pytest.raises(VaporError, match="silent"):
        reader.next()
    reader.close()
    a.close()
    b.close()
