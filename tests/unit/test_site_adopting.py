"""Adopting a VM's disks at the site it left: the record of what was read there is used once, and then begins anew."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from replica_bench import MIB, SOURCE, START, VM, XML, Bench, Source, read_image

from vapor_desktop.model.domains import DomainView
from vapor_desktop.model.errors import DomainNotFound
from vapor_desktop.model.extents import BLOCK_BYTES
from vapor_desktop.model.manifest import Consistency, Epoch
from vapor_desktop.model.policy import Mappings, Policy
from vapor_desktop.model.wire import AdoptDisk, AdoptRequest
from vapor_desktop.site.adopting import Adopting
from vapor_desktop.site.replica.adoption import stamp_of
from vapor_desktop.site.replica.digests import DigestTable, block_digest
from vapor_desktop.site.replica.layout import Layout

SIZE = 4 * MIB


class Helper:
    """The root helper's one answer, of files that need no root."""

    def image_adopt(self, image: str) -> dict[str, object]:
        return {"format": "qcow2", "size_bytes": SIZE, "stamp": stamp_of(Path(image)), "chain": 1}


class NoDomain:
    def domain(self, vm_uuid: str) -> DomainView:
        raise DomainNotFound(f"No VM {vm_uuid}")


def digests_of(content: bytes) -> bytes:
    return b"".join(block_digest(content[at : at + BLOCK_BYTES]) for at in range(0, len(content), BLOCK_BYTES))


@pytest.mark.parametrize("again", [False, True], ids=["once", "asked again after a cut"])
def test_a_record_is_taken_over_and_ends(tmp_path: Path, again: bool) -> None:
    (tmp_path / "root").mkdir()
    bench = Bench(tmp_path / "root", Source(vda=SIZE))
    bench.epoch = Epoch(number=2, owner=SOURCE)
    disk = tmp_path / "web.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(disk), str(SIZE)], check=True)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -q -P 7 1M 1M", str(disk)], check=True)
    record = DigestTable(tmp_path / "records" / VM / "vda.table", SIZE)
    record.path.parent.mkdir(parents=True)
    record.write(0, digests_of(read_image(disk)))
    kept = record.path.read_bytes()
    request = AdoptRequest(
        fence=bench.leases.fence,
        protection_id="p1",
        vm_name="vm",
        source_site=SOURCE,
        epoch=bench.epoch,
        policy=Policy(),
        mappings=Mappings(),
        seq=41,
        next_seq=43,
        taken_at=START,
        current_as_of=START,
        checkpoint="vapor-p1-2-000000-abcdef",
        consistency=Consistency.OFF,
        domain_xml=XML,
        disks={"vda": AdoptDisk(path=str(disk), size_bytes=SIZE, expect_stamp=stamp_of(disk))},
        kept_as="what it wrote after",
        reason="home",
    )
    adopting = Adopting(bench.store, Helper(), NoDomain(), tmp_path / "records")  # type: ignore[arg-type]
    done = adopting.adopt(VM, request)
    if again:  # the answer was lost, and with it what came after the adoption itself
        record.path.write_bytes(kept)
        done = adopting.adopt(VM, request)
    assert (done.missing, done.diverged) == ((), ())
    assert Layout(tmp_path / "root", VM).table("vda").read_bytes() == kept
    assert not record.path.exists(), "it would tell of blocks that others write from now on"
