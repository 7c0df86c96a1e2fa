"""Manifest and point files: what was written is read, and damage is noticed."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from vapor_desktop.model.errors import ManifestInvalid
from vapor_desktop.model.manifest import (
    Consistency,
    DiskMode,
    Epoch,
    Manifest,
    Point,
    PointDisk,
    PointEntry,
    read,
    seal,
)
from vapor_desktop.model.policy import Mappings, Policy

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
VM = "5d1c1f6e-6f0e-4bb1-8a51-5d1f3f1c2b3a"


def entry(seq: int, **more: object) -> PointEntry:
    values = {
        "seq": seq,
        "taken_at": NOON + timedelta(seconds=seq),
        "current_as_of": NOON + timedelta(seconds=seq + 3),
        "files": {"vda": f"{seq:08x}.qcow2"},
    }
    return PointEntry.model_validate(values | more)


def manifest(points: tuple[PointEntry, ...] = (), **more: object) -> Manifest:
    values = {
        "vm_uuid": VM,
        "vm_name": "web01",
        "protection_id": "p1",
        "source_site": "a",
        "target_site": "b",
        "epoch": Epoch(number=3, owner="a"),
        "next_seq": 1 + max((p.seq for p in points), default=0),
        "points": points,
    }
    return Manifest.model_validate(values | more)


POINT = Point(
    vm_uuid=VM,
    vm_name="web01",
    protection_id="p1",
    seq=41,
    parent_seq=40,
    epoch=Epoch(number=1, owner="a"),
    source_site="a",
    target_site="b",
    checkpoint="vapor-p1-1-41",
    taken_at=NOON,
    published_at=NOON + timedelta(seconds=2),
    consistency=Consistency.FILESYSTEM,
    disks=(PointDisk(target="vda", size_bytes=5 << 40, mode=DiskMode.DELTA, sent_bytes=1 << 33, digest="ab"),),
)

entries = st.builds(
    entry,
    st.integers(1, 10**6),
    files=st.dictionaries(
        st.sampled_from(["vda", "vdb", "sda"]), st.text("0123456789abcdef", min_size=8), min_size=1
    ),
    dead=st.booleans(),
    verified=st.booleans(),
    pins=st.lists(st.text(max_size=12), max_size=2),
    consistency=st.sampled_from(Consistency),
    proven_at=st.none() | st.datetimes(timezones=st.just(UTC)),
)
manifests = st.builds(
    manifest,
    st.lists(entries, max_size=4).map(tuple),
    vm_name=st.text(max_size=20),
    generation=st.integers(1, 1 << 40),
    policy=st.builds(Policy, rpo_target_s=st.integers(5, 86400)),
    mappings=st.builds(Mappings, networks=st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=2)),
    runs=st.just({}) | st.just({"4": {"vda": "run/4/vda.qcow2"}}),
)


@given(manifests)
def test_a_sealed_manifest_is_read_back_equal(m: Manifest) -> None:
    sealed = seal(m)
    assert read(Manifest, sealed.model_dump_json().encode()) == sealed
    assert read(Manifest, sealed.model_dump_json(indent=2).encode()) == sealed


@given(manifests, st.data())
def test_one_flipped_bit_is_never_read_as_something_else(m: Manifest, data: st.DataObject) -> None:
    sealed = seal(m)
    raw = bytearray(sealed.model_dump_json().encode())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        got = read(Manifest, bytes(raw))
    except ManifestInvalid:
        return
    assert got == sealed  # "Z" became "z": the same moment


@given(manifests, st.data())
def test_a_torn_file_is_invalid(m: Manifest, data: st.DataObject) -> None:
    raw = seal(m).model_dump_json().encode()
    with pytest.raises(ManifestInvalid):
        read(Manifest, raw[: data.draw(st.integers(0, len(raw) - 1))])


def test_every_value_of_a_point_is_under_its_checksum() -> None:
    sealed = seal(POINT)
    assert read(Point, sealed.model_dump_json().encode()) == sealed
    changed = {
        "seq": 42, "parent_seq": None, "checkpoint": None, "vm_name": "web02", "nvram": True, "tpm": True,
        "consistency": Consistency.CRASH, "without_disks": ("vdb",), "duration_s": 1.0, "wire_bytes": 1,
        "taken_at": NOON + timedelta(microseconds=1), "epoch": Epoch(number=2, owner="a"), "disks": (),
    }  # fmt: skip
    for name, value in changed.items():
        forged = sealed.model_copy(update={name: value})
        assert forged != sealed
        with pytest.raises(ManifestInvalid, match="checksum"):
            read(Point, forged.model_dump_json().encode())


def test_a_file_without_a_field_that_came_later_stays_valid() -> None:
    sealed = seal(manifest((entry(1),)))
    old = json.loads(sealed.model_dump_json())
    del old["runs"]
    for point in old["points"]:
        del point["verified"]
    assert read(Manifest, json.dumps(old).encode()) == sealed


def test_a_format_of_the_future_is_named() -> None:
    raw = json.loads(seal(manifest()).model_dump_json()) | {"format": 2}
    with pytest.raises(ManifestInvalid, match="format 2"):
        read(Manifest, json.dumps(raw).encode())


@pytest.mark.parametrize("raw", [b"", b"null", b"[]", b"{}", b"\xff\xfe", b"\0" * 4096])
def test_what_a_crash_leaves_is_invalid_and_no_traceback(raw: bytes) -> None:
    with pytest.raises(ManifestInvalid) as caught:
        read(Manifest, raw)
    assert "deletes nothing" in caught.value.fix


def test_a_dead_point_is_no_recovery_point() -> None:
    m = manifest((entry(1), entry(2), entry(3, dead=True)))
    assert m.newest is not None
    assert m.newest.seq == 2
    assert m.entry(3) is None
    assert m.entry(1) == m.points[0]
    assert manifest().newest is None
    assert manifest((entry(1, dead=True),)).newest is None


@pytest.mark.parametrize("number", [0, -1])
def test_an_epoch_starts_at_one(number: int) -> None:
    with pytest.raises(ValidationError):
        Epoch(number=number, owner="a")


def test_values_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValidationError):
        manifest().next_seq = 7
