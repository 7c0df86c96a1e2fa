"""The diary's verdict: what is sound, what is not, and that no damage goes unseen."""

from __future__ import annotations

import random
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vapor_desktop.lab import diary
from vapor_desktop.lab.diary import RECORD_BYTES, Record, combine, empty_ring, empty_slot, encode, parse
from vapor_desktop.lab.processes import LabFailed

SLOTS = 32


def ring(last: int, *, slots: int = SLOTS, disk: int = 0) -> bytearray:
    """A ring as the guest leaves it after ``last`` records."""
    made = bytearray(empty_ring(slots))
    for number in range(max(1, last - slots + 1), last + 1):
        slot = (number - 1) % slots
        made[slot * RECORD_BYTES : (slot + 1) * RECORD_BYTES] = encode(Record(number, number * 10, 7, disk, slots))
    return made


@given(st.integers(0, 5 * SLOTS), st.integers(0, 3))
def test_sound_ring_is_sound_at_every_length(last: int, disk: int) -> None:
    found = parse(bytes(ring(last, disk=disk)), disk)
    assert (found.last, found.gaps, found.torn) == (last, 0, 0)
    assert (found.newest is None) == (last == 0)
    if found.newest:
        assert found.newest.time_ns == last * 10


@given(st.integers(1, 4 * SLOTS), st.data())
def test_any_flipped_bit_of_a_held_record_is_seen(last: int, data: st.DataObject) -> None:
    number = data.draw(st.integers(max(1, last - SLOTS + 1), last))
    made = ring(last)
    position = (number - 1) % SLOTS * RECORD_BYTES + data.draw(st.integers(0, RECORD_BYTES - 1))
    made[position] ^= 1 << data.draw(st.integers(0, 7))
    found = parse(bytes(made))
    assert found.torn == 1
    # Losing the newest shortens the diary; losing another leaves a hole.
    assert (found.last, found.gaps) == ((last, 1) if number < last else (max(0, last - 1), int(last > SLOTS)))


@given(st.integers(2, SLOTS), st.data())
def test_record_that_was_lost_is_a_gap(last: int, data: st.DataObject) -> None:
    lost = data.draw(st.integers(1, last - 1))
    made = ring(last)
    made[(lost - 1) * RECORD_BYTES : lost * RECORD_BYTES] = empty_slot(lost - 1)
    assert parse(bytes(made)).gaps == 1
    assert parse(bytes(made)).torn == 0


def test_the_longest_gap_is_within_a_window_and_within_one_boot() -> None:
    """Record 5 is 3 s late, record 9 comes after a reboot of a minute."""
    times = {
        n: n * 100_000_000 + (3_000_000_000 if n >= 5 else 0) + (60_000_000_000 if n >= 9 else 0)
        for n in range(1, 12)
    }
    made = bytearray(empty_ring(SLOTS))
    for n, at in times.items():
        record = Record(n, at, 1 if n < 9 else 2, 0, SLOTS)
        made[(n - 1) * RECORD_BYTES : n * RECORD_BYTES] = encode(record)
    report = combine([parse(bytes(made))])
    assert report.longest_gap_s() == 3.1
    assert report.longest_gap_s(times[5]) == 0.1
    assert report.longest_gap_s(0, times[4]) == 0.1
    assert report.longest_gap_s(times[4], times[5]) == 3.1
    assert report.longest_gap_s(times[11]) == 0.0


@given(st.integers(SLOTS + 2, 4 * SLOTS), st.data())
def test_record_of_the_lap_before_is_a_gap(last: int, data: st.DataObject) -> None:
    stale = data.draw(st.integers(last - SLOTS + 1, last - 1))
    made = ring(last)
    slot = (stale - 1) % SLOTS
    old = Record(stale - SLOTS, 1, 7, 0, SLOTS) if stale > SLOTS else None
    made[slot * RECORD_BYTES : (slot + 1) * RECORD_BYTES] = encode(old) if old else empty_slot(slot)
    assert parse(bytes(made)).gaps == 1


@settings(max_examples=50)
@given(st.binary(min_size=RECORD_BYTES, max_size=RECORD_BYTES), st.integers(0, SLOTS - 1))
def test_rubbish_in_a_slot_is_torn(rubbish: bytes, slot: int) -> None:
    made = bytearray(empty_ring(SLOTS))
    made[slot * RECORD_BYTES : (slot + 1) * RECORD_BYTES] = rubbish
    assert parse(bytes(made)).torn == 1


def test_zeroed_range_is_torn_not_empty() -> None:
    made = ring(20)
    made[4 * RECORD_BYTES : 8 * RECORD_BYTES] = bytes(4 * RECORD_BYTES)
    found = parse(bytes(made))
    assert (found.last, found.gaps, found.torn) == (20, 4, 4)


def test_record_of_another_disk_or_slot_does_not_pass() -> None:
    made = ring(10)
    made[:RECORD_BYTES] = encode(Record(1, 0, 7, 1, SLOTS))
    made[RECORD_BYTES : 2 * RECORD_BYTES] = encode(Record(3, 0, 7, 0, SLOTS))
    assert parse(bytes(made)).torn == 2


@pytest.mark.parametrize(
    ("lasts", "one_moment"),
    [((5, 5), True), ((6, 5), True), ((5, 6), False), ((7, 5), False), ((6, 6, 5), True), ((6, 5, 6), False)],
)
def test_disks_of_different_moments_are_told_apart(lasts: tuple[int, ...], one_moment: bool) -> None:
    report = combine([parse(bytes(ring(last, disk=number)), number) for number, last in enumerate(lasts)])
    assert report.one_moment is one_moment
    assert report.sound is one_moment
    assert report.last == min(lasts)


def test_lengths_that_are_no_ring_are_refused() -> None:
    with pytest.raises(LabFailed):
        parse(b"")
    with pytest.raises(LabFailed):
        parse(bytes(RECORD_BYTES + 1))
    with pytest.raises(LabFailed):
        combine([])


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guest's own program, compiled as for the guest."""
    target = tmp_path_factory.mktemp("diary") / "diary"
    source = Path(diary.__file__).parent / "guest/diary.c"
    subprocess.run(["gcc", "-O2", "-Wall", "-Werror", "-static", "-o", target, source], check=True)
    return target


@pytest.mark.parametrize("seed", range(12))
def test_guest_and_host_agree_on_every_ring(program: Path, tmp_path: Path, seed: int) -> None:
    """Two implementations of one format: damage rings at random and compare the verdicts."""
    chance = random.Random(seed)
    files, reports = [], []
    for disk in range(2):
        made = ring(chance.randint(0, 3 * SLOTS), disk=disk)
        for _ in range(chance.randint(0, 4)):
            made[chance.randrange(len(made))] ^= 1 << chance.randrange(8)
        file = tmp_path / f"ring{disk}"
        file.write_bytes(made)
        files.append(str(file))
        reports.append(parse(bytes(made), disk))
    said = subprocess.run([program, "check", *files], check=True, capture_output=True, text=True).stdout
    lasts = [report.last for report in reports]
    gaps, torn = sum(report.gaps for report in reports), sum(report.torn for report in reports)
    # A damaged "empty" slot counts for the host only where its magic is intact: the guest looks at the magic alone.
    words = dict(word.split("=") for word in said.split()[1:])
    assert words["last"] == str(max(lasts))
    assert words["gaps"] == str(gaps)
    assert words["skew"] == str(max(lasts) - min(lasts))
    assert int(words["torn"]) <= torn


def test_partitions_are_found_in_mbr_and_gpt(tmp_path: Path) -> None:
    for label in ("dos", "gpt"):
        raw = tmp_path / label
        with raw.open("wb") as file:
            file.truncate(64 << 20)
        script = f"label: {label}\nstart=2048, size=4096\nstart=8192, size=10240\n"
        command = ["sfdisk", "-q", "--no-reread", "--no-tell-kernel", str(raw)]
        subprocess.run(command, input=script, text=True, check=True)
        assert diary.partition(raw, 2) == (8192 * 512, 10240 * 512)
        with pytest.raises(LabFailed):
            diary.partition(raw, 3)
    (tmp_path / "none").write_bytes(bytes(1 << 20))
    with pytest.raises(LabFailed):
        diary.partition(tmp_path / "none", 1)


def test_record_has_the_layout_of_the_c_program() -> None:
    raw = encode(Record(3, 5, 9, 1, SLOTS))
    assert len(raw) == RECORD_BYTES
    assert struct.unpack_from("<8sQQQII", raw) == (b"VDIARY1\n", 3, 5, 9, 1, SLOTS)
