"""The way home in the store: original disks adopted where they lie, and a VM's overlay folded into one file."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from replica_bench import (
    MIB,
    SOURCE,
    START,
    TARGET,
    VM,
    XML,
    Bench,
    Source,
    cut_at,
    read_image,
    steps_of,
    write_image,
)

from vapor_desktop.model.errors import Conflict, EpochMoved, PointPinned, StaleLease
from vapor_desktop.model.extents import Extent
from vapor_desktop.model.manifest import Consistency, Epoch, Manifest
from vapor_desktop.model.policy import Mappings, Policy
from vapor_desktop.model.wire import AdoptDisk, AdoptRequest, FoldRequest, RunRequest
from vapor_desktop.site.replica import qcow2
from vapor_desktop.site.replica.adoption import PIN, Original, stamp_of

CHECKPOINT = "vapor-p1-2-000000-abcdef"


def make(tmp_path: Path, content: bytes | None = None) -> tuple[Bench, Path]:
    """A store without a replica, and the original disk of a VM that has left."""
    (tmp_path / "root").mkdir(parents=True)
    bench = Bench(tmp_path / "root", Source(vda=4 * MIB))
    bench.epoch = Epoch(number=2, owner=SOURCE)
    original = tmp_path / "web.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(original), str(4 * MIB)], check=True)
    if content is None:
        bench.source.work(8)
        content = bytes(bench.source.disks["vda"])
    write_image(original, content, [Extent(0, len(content))])
    bench.source.clean()
    return bench, original


def request(bench: Bench, original: Path, **changes: object) -> AdoptRequest:
    asked = AdoptRequest(
        fence=bench.leases.fence,
        protection_id="p1",
        vm_name="vm",
        source_site=SOURCE,
        epoch=bench.epoch,
        policy=Policy(),
        mappings=Mappings(networks={"dr": "lan"}),
        settings_version=5,
        seq=41,
        next_seq=43,
        taken_at=START,
        current_as_of=START,
        checkpoint=CHECKPOINT,
        consistency=Consistency.OFF,
        domain_xml=XML,
        disks={"vda": AdoptDisk(path=str(original), size_bytes=4 * MIB)},
        kept_as="what it wrote after",
        reason="home",
    )
    return asked.model_copy(update=changes)


def adopt(bench: Bench, original: Path, *, proven: bool = True, **changes: object) -> Manifest:
    found = {"vda": Original(original, 4 * MIB, stamp_of(original), proven)}
    made = bench.store.adopt(VM, request(bench, original, **changes), found)
    bench.expected = {made.points[0].seq: {"vda": read_image(original)}}
    return made


def test_a_proven_original_is_the_point_itself_and_deltas_hang_on_it(tmp_path: Path) -> None:
    bench, original = make(tmp_path)
    before = (stamp_of(original), read_image(original))
    after = adopt(bench, original)
    [base] = after.points
    assert (base.seq, base.checkpoint, base.pins) == (41, CHECKPOINT, (PIN,))
    assert (after.next_seq, after.settings_version, after.mappings.networks) == (43, 5, {"dr": "lan"})
    assert bench.store.point_domain(VM, 41).domain_xml == XML
    assert bench.cycle() == 43
    bench.check_points()
    top = bench.store.disk_path(VM, 43, "vda")
    header = qcow2.read_header(top)
    assert header is not None
    assert header.backing == str(original)
    assert top.stat().st_size < 4 * MIB, "a delta"
    with pytest.raises(PointPinned):
        bench.store.drop(VM, 41, bench.grant())
    for _ in range(3):
        bench.cycle()
    bench.store.drop(VM, 43, bench.grant())  # among the deltas it merges as ever
    bench.check_points()
    assert (stamp_of(original), read_image(original)) == before


def test_a_diverged_original_is_kept_as_a_point_of_its_own_and_nothing_trusts_its_bitmap(tmp_path: Path) -> None:
    bench, original = make(tmp_path)
    content = read_image(original)
    [base] = adopt(bench, original, proven=False).points
    assert (base.seq, base.checkpoint) == (43, None)
    assert base.pins == (PIN, "user:what it wrote after")
    bench.source.write("vda", 0, b"other" * 1000)
    assert bench.cycle() == 44
    assert read_image(bench.store.disk_path(VM, 43, "vda")) == content


def test_an_original_that_was_written_since_carries_nothing_new(tmp_path: Path) -> None:
    bench, original = make(tmp_path)
    adopt(bench, original)
    write_image(original, b"\1" * 65536, [Extent(0, 65536)])
    with pytest.raises(Conflict, match="behind this program"):
        bench.cycle()
    run = RunRequest(fence=1, new_epoch=Epoch(number=3, owner=TARGET), seq=41, reason="home")
    with pytest.raises(Conflict, match="behind this program"):
        bench.store.run(VM, run)


def test_who_may_adopt(tmp_path: Path) -> None:
    bench, original = make(tmp_path)
    with pytest.raises(StaleLease):
        adopt(bench, original, fence=9)
    adopt(bench, original)
    with pytest.raises(EpochMoved):
        adopt(bench, original, epoch=Epoch(number=1, owner=SOURCE))
    assert bench.store.adopted(VM, request(bench, original)) == bench.manifest


def test_a_cut_adoption_is_done_again(tmp_path: Path) -> None:
    bench, original = make(tmp_path)
    other, twin = make(tmp_path / "other")
    cuts = steps_of(lambda: adopt(other, twin))
    assert ("adopt-listed", 1) in cuts
    for number, cut in enumerate(cuts):
        bench, original = make(tmp_path / str(number))
        cut_at(cut, lambda b=bench, o=original: adopt(b, o))  # type: ignore[misc]
        adopt(bench, original)
        assert original.exists()
        bench.store.reconcile(VM)
        bench.cycle()
        bench.check_points()


# --- becoming flat ------------------------------------------------------------------------------------------
def running(tmp_path: Path) -> tuple[Bench, Path, Callable[[Path], None]]:
    """A VM taken over here, its overlay written to; and what tells the store which file it uses."""
    used: list[Path] = []
    (tmp_path / "root").mkdir(parents=True)
    bench = Bench(tmp_path / "root", Source(vda=4 * MIB), in_use=lambda: used)
    bench.create()
    for _ in range(3):
        bench.cycle()
    run = bench.store.run(VM, RunRequest(fence=1, new_epoch=Epoch(number=2, owner=TARGET), seq=3, reason="gone"))
    overlay = Path(run.disks["vda"])
    bench.source.work(3)
    write_image(overlay, bench.source.disks["vda"], bench.source.dirty["vda"])
    used.append(overlay)
    return bench, overlay, lambda path: used.__setitem__(slice(None), [path])


def asked(*, done: bool = False) -> FoldRequest:
    return FoldRequest(fence=1, epoch=Epoch(number=2, owner=TARGET), done=done)


def fold(bench: Bench, uses: Callable[[Path], None]) -> Path:
    """As the engine does it, with qemu-img in the place of QEMU."""
    [(top, foot)] = bench.store.fold(VM, asked()).disks.values()
    if Path(foot) not in bench.store._in_use():  # QEMU runs on it already when the fold was cut later
        subprocess.run(["qemu-img", "commit", "-q", "-f", "qcow2", "-b", foot, "-d", top], check=True)
    uses(Path(foot))
    bench.store.fold(VM, asked(done=True))
    return Path(foot)


def test_a_fold_leaves_one_file_and_no_points(tmp_path: Path) -> None:
    bench, overlay, uses = running(tmp_path)
    content = read_image(overlay)
    foot = fold(bench, uses)
    assert read_image(foot) == content
    header = qcow2.read_header(foot)
    assert header is not None
    assert header.backing is None
    assert bench.files() == {f"disks/{foot.name}"}
    assert (bench.manifest.points, bench.manifest.folded) == ((), True)
    assert not overlay.exists()
    assert fold(bench, uses) == foot, "again"
    with pytest.raises(PointPinned):
        bench.store.delete(VM, bench.grant(epoch=Epoch(number=2, owner=TARGET), parent_seq=None))
    bench.store.reconcile(VM)
    assert read_image(foot) == content


def test_a_fold_that_the_vm_has_not_followed_deletes_nothing(tmp_path: Path) -> None:
    bench, overlay, _uses = running(tmp_path)
    content = read_image(overlay)
    bench.store.fold(VM, asked())
    with pytest.raises(Conflict):
        bench.store.fold(VM, asked(done=True))
    assert read_image(overlay) == content
    assert bench.manifest.newest is None, "from here on no point of before is offered"


def test_what_a_person_keeps_is_not_written_into(tmp_path: Path) -> None:
    bench, overlay, uses = running(tmp_path)
    grant = bench.grant(epoch=Epoch(number=2, owner=TARGET))
    bench.store.pin(VM, 2, grant, "user:before the update")
    with pytest.raises(PointPinned, match="before the update"):
        bench.store.fold(VM, asked())
    bench.check_points()
    bench.store.unpin(VM, 2, grant, "user:before the update")
    drill = tmp_path / "root" / "drill.qcow2"
    base = bench.store.disk_path(VM, 1, "vda")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, drill], check=True)
    with pytest.raises(PointPinned, match="drill"):
        bench.store.fold(VM, asked())
    drill.unlink()
    assert read_image(fold(bench, uses)) == bytes(bench.source.disks["vda"])
    assert not overlay.exists()


def test_a_cut_fold_is_done_again(tmp_path: Path) -> None:
    other, _overlay, follows = running(tmp_path / "other")
    cuts = steps_of(lambda: fold(other, follows))
    assert {name for name, _ in cuts} >= {"fold-dead", "fold-listed", "fold-deleted"}
    for number, cut in enumerate(cuts):
        bench, overlay, uses = running(tmp_path / str(number))
        content = read_image(overlay)
        cut_at(cut, lambda b=bench, u=uses: fold(b, u))  # type: ignore[misc]
        if bench.manifest.folded:
            uses(bench.root / VM / bench.manifest.runs["2"]["vda"])
        assert read_image(fold(bench, uses)) == content
        assert len(bench.files()) == 1


def test_home_again_on_the_original_path(tmp_path: Path) -> None:
    """Adopted, deltas on it, run here again, folded: the original disk holds it all, and nothing else is left."""
    used: list[Path] = []
    bench, original = make(tmp_path)
    bench.store._in_use = lambda: used
    adopt(bench, original)
    bench.cycle()
    seq = bench.cycle()
    run = bench.store.run(VM, RunRequest(fence=1, new_epoch=Epoch(number=3, owner=TARGET), seq=seq, reason="home"))
    overlay = Path(run.disks["vda"])
    write_image(overlay, b"\5" * 65536, [Extent(MIB, 65536)])
    content = read_image(overlay)
    home = FoldRequest(fence=1, epoch=Epoch(number=3, owner=TARGET))
    [(top, foot)] = bench.store.fold(VM, home).disks.values()
    assert (top, foot) == (str(overlay), str(original))
    subprocess.run(["qemu-img", "commit", "-q", "-f", "qcow2", "-b", foot, "-d", top], check=True)
    used.append(original)
    bench.store.fold(VM, home.model_copy(update={"done": True}))
    assert read_image(original) == content
    assert bench.files() == set()
    assert bench.manifest.runs == {"3": {"vda": str(original)}}


def test_the_second_leg_adopts_what_the_fold_left(tmp_path: Path) -> None:
    """The replica's own flat disk becomes the base when the VM has gone on; nothing of before remains."""
    bench, _overlay, uses = running(tmp_path)
    foot = fold(bench, uses)
    content = read_image(foot)
    uses(tmp_path / "elsewhere")
    bench.epoch = Epoch(number=3, owner=SOURCE)
    adopted = adopt(bench, foot, seq=60, next_seq=61)
    assert adopted.points[0].files == {"vda": foot.name}
    assert not list((bench.root / VM / "run").iterdir())
    assert bench.files() == {f"disks/{foot.name}"}
    bench.source.clean()
    assert bench.cycle() == 61
    bench.check_points()
    assert read_image(foot) == content
    shutil.rmtree(bench.root)
