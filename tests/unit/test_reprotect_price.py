"""The price of the way home, and why: pure."""

from __future__ import annotations

import pytest

from vapor_desktop.engine.wayhome import inverse
from vapor_desktop.model.errors import InvalidRequest
from vapor_desktop.model.policy import Mappings
from vapor_desktop.model.reprotect import DiskFacts, Method, Original, price, size_text

GIB = 1 << 30
PROVEN, DIVERGED, MISSING = Original.PROVEN, Original.DIVERGED, Original.MISSING


def disk(target: str = "vda", original: Original = PROVEN, **more: object) -> DiskFacts:
    known: dict[str, object] = {"size_bytes": 80 * GIB, "bitmap": True, "dirty_bytes": 1_288_490_189}
    return DiskFacts(target=target, original=original, **{**known, **more})  # type: ignore[arg-type]


def test_a_bitmap_costs_what_it_holds() -> None:
    cost = price([disk(), disk("vdb", dirty_bytes=0)])
    assert (cost.method, cost.text) == (Method.BITMAP, "bitmap: 1.2 GiB")
    assert cost.send_bytes == cost.read_bytes == 1_288_490_189
    assert cost.why.startswith("vda, vdb: the old side's disk is as it was")


def test_a_lost_bitmap_is_a_comparison() -> None:
    cost = price([disk(bitmap=False, dirty_bytes=None, written_bytes=3 * GIB)])
    assert (cost.method, cost.text) == (Method.COMPARE, "compare: read 80.0 GiB, about 3.0 GiB to send")
    assert "no bitmap has noted" in cost.why


def test_a_diverged_disk_is_compared_with_what_it_became_and_so_are_the_others() -> None:
    cost = price([disk("vda", DIVERGED, written_bytes=GIB), disk("vdb", PROVEN, written_bytes=None)])
    assert [d.method for d in cost.disks] == [Method.COMPARE, Method.COMPARE]
    assert cost.send_bytes is None, "not known is not zero"
    assert cost.text == "compare: read 160 GiB, how much has to be sent is not known yet"
    assert "vda: the old side's disk was written" in cost.why
    assert "vdb: another disk of the old side" in cost.why


def test_a_lost_disk_is_copied_whole_and_the_others_are_not() -> None:
    cost = price([disk("vda", MISSING, size_bytes=10 * GIB), disk("vdb")])
    assert [d.method for d in cost.disks] == [Method.FULL, Method.BITMAP]
    assert cost.method is Method.FULL
    assert price([disk(original=MISSING)]).text == "full: 80.0 GiB"


def test_nothing_has_no_price() -> None:
    with pytest.raises(InvalidRequest):
        price([])


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 KiB"), (1, "1 KiB"), (5 << 20, "5.0 MiB"), (999 << 20, "999 MiB"), (5 << 40, "5.0 TiB")]
)
def test_sizes_are_never_rounded_to_nothing(size: int, text: str) -> None:
    assert size_text(size) == text


def test_networks_come_home_the_way_they_went() -> None:
    there = Mappings(networks={"lan": "dr", "dmz": "dr-dmz", "spare": "dr"}, replica_root="/srv/replicas")
    assert inverse(there) == Mappings(networks={"dr": "lan", "dr-dmz": "dmz"})
