"""A drill's overlays on a point: the point never changes, and nothing merges or deletes what the drill reads."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from replica_bench import MIB, VM, Bench, Source, cut_at, read_image, steps_of, write_image

from vapor_desktop.model.errors import Conflict, InvalidRequest, NotAllowed, NotFound, PointPinned
from vapor_desktop.model.extents import Extent
from vapor_desktop.site.replica import qcow2
from vapor_desktop.site.replica.layout import DRILL_PICTURE, DRILL_REPORT

DRILL = "0a1b2c3d-1111-4222-8333-444455556666"
OTHER = "9a1b2c3d-1111-4222-8333-444455556666"


def make(root: Path, points: int = 4, **options: object) -> Bench:
    bench = Bench(root, Source(vda=4 * MIB, vdb=MIB), **options)  # type: ignore[arg-type]
    bench.create()
    for _ in range(points):
        bench.cycle()
    return bench


def folder(bench: Bench) -> Path:
    return bench.root / VM / "drill"


def test_a_drill_writes_to_its_own_files_and_the_point_stays(tmp_path: Path) -> None:
    bench = make(tmp_path)
    files = bench.store.open_drill(VM, DRILL, 2)
    assert set(files.disks) == {"vda", "vdb"}
    before = read_image(Path(files.disks["vda"]))
    assert before == read_image(bench.store.disk_path(VM, 2, "vda"))
    write_image(Path(files.disks["vda"]), b"\7" * 65536, [Extent(0, 65536)])
    bench.cycle()
    bench.check()
    assert bench.store.open_drill(VM, DRILL, 2) == files  # again: nothing is made anew
    assert read_image(Path(files.disks["vda"]))[:4] == b"\7\7\7\7"
    assert bench.store.drill_bytes(VM, DRILL) > 65536


@pytest.mark.parametrize("seq", [1, 2, 3])
def test_no_merge_at_below_or_just_above_the_drills_point(tmp_path: Path, seq: int) -> None:
    bench = make(tmp_path, 6)
    files = bench.store.open_drill(VM, DRILL, 2)
    before = read_image(Path(files.disks["vda"]))
    if seq == 3:
        bench.store.drop(VM, 4, bench.grant())  # above it the chain goes on being merged
    else:
        with pytest.raises(PointPinned):
            bench.store.drop(VM, seq, bench.grant())
    assert read_image(Path(files.disks["vda"])) == before
    bench.check()
    bench.store.close_drill(VM, DRILL)
    bench.store.drop(VM, seq, bench.grant())
    bench.check()


def test_a_stop_leaves_nothing_and_can_be_done_again(tmp_path: Path) -> None:
    bench = make(tmp_path)
    before = sorted(p.relative_to(bench.root) for p in bench.root.rglob("*"))
    manifest = bench.manifest
    bench.store.open_drill(VM, DRILL, 2)
    bench.store.open_drill(VM, OTHER, 3)
    assert [p.pins for p in bench.manifest.points] == [(), (f"drill:{DRILL}",), (f"drill:{OTHER}",), ()]
    bench.store.close_drill(VM, DRILL)
    bench.store.close_drill(VM, DRILL)
    assert folder(bench).is_dir()
    bench.store.close_drill(VM, OTHER)
    assert sorted(p.relative_to(bench.root) for p in bench.root.rglob("*")) == before
    assert bench.manifest.points == manifest.points


def test_cut_anywhere_a_drill_can_be_taken_up_or_removed(tmp_path: Path) -> None:
    (tmp_path / "from").mkdir()
    source = make(tmp_path / "from")
    steps = steps_of(lambda: source.copy_to(tmp_path / "look").store.open_drill(VM, DRILL, 2))
    assert {name for name, _ in steps} >= {"drill-pinned", "drill-overlay"}
    for number, cut in enumerate(steps):
        bench = source.copy_to(tmp_path / str(number))
        cut_at(cut, lambda bench=bench: bench.store.open_drill(VM, DRILL, 2))  # type: ignore[misc]
        bench.store.reconcile(VM)
        files = bench.store.open_drill(VM, DRILL, 2)
        assert read_image(Path(files.disks["vdb"])) == read_image(bench.store.disk_path(VM, 2, "vdb"))
        bench.store.close_drill(VM, DRILL)
        assert not folder(bench).exists()
        bench.check()


def test_what_a_domain_uses_is_not_removed_and_a_replica_with_a_drill_is_not_deleted(tmp_path: Path) -> None:
    used: list[Path] = []
    bench = make(tmp_path, in_use=lambda: used)
    files = bench.store.open_drill(VM, DRILL, 4)
    used.append(Path(files.disks["vda"]))
    with pytest.raises(Conflict):
        bench.store.close_drill(VM, DRILL)
    assert Path(files.disks["vda"]).exists()
    with pytest.raises(PointPinned, match="drill"):
        bench.store.delete(VM, bench.grant())
    used.clear()
    bench.store.close_drill(VM, DRILL)
    bench.store.delete(VM, bench.grant())
    bench.store.close_drill(VM, DRILL)  # also without a replica


def test_a_drills_files_that_a_crash_left_to_root_hold_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root reads everything, so the kernel's refusal is put in its place."""
    used: list[Path] = []
    bench = make(tmp_path, 6, in_use=lambda: used)
    overlays = {Path(file) for file in bench.store.open_drill(VM, DRILL, 2).disks.values()}
    used += [*overlays, *(bench.store.disk_path(VM, seq, disk) for seq in (1, 2) for disk in ("vda", "vdb"))]
    read = qcow2.read_header

    def refused(path: Path) -> qcow2.Header | None:
        if path in overlays:
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(qcow2, "read_header", refused)
    bench.store.drop(VM, 4, bench.grant())  # a domain names its chain: it need not be read
    with pytest.raises(PointPinned):
        bench.store.drop(VM, 1, bench.grant())
    used.clear()
    with pytest.raises(NotAllowed):  # nobody names it, and nobody can read what it hangs on
        bench.store.drop(VM, 5, bench.grant())
    bench.store.close_drill(VM, DRILL)
    assert not folder(bench).exists()
    bench.store.drop(VM, 5, bench.grant())
    monkeypatch.undo()
    bench.check()


def test_a_passed_drill_proves_its_point_and_its_files_go_with_it(tmp_path: Path) -> None:
    bench = make(tmp_path)
    with pytest.raises(NotFound):
        bench.store.proof(VM, 2)
    at = datetime.now(UTC)
    bench.store.prove(VM, 2, at, b'{"boot_s": 3}', b"png")
    assert bench.store.proof(VM, 2) == (b'{"boot_s": 3}', b"png")
    assert [p.proven_at for p in bench.manifest.points] == [None, at, None, None]
    with pytest.raises(PointPinned):  # the newest proven one is kept by itself
        bench.store.drop(VM, 2, bench.grant())
    bench.store.prove(VM, 4, at, b"{}", None)
    bench.store.drop(VM, 2, bench.grant())
    assert not (bench.root / VM / "points" / "000002").exists()
    assert (bench.root / VM / "points" / "000004" / DRILL_REPORT).exists()
    assert not (bench.root / VM / "points" / "000004" / DRILL_PICTURE).exists()
    bench.store.delete(VM, bench.grant())
    assert not (bench.root / VM).exists()


@pytest.mark.parametrize("drill_id", ["", "..", "../../x", "0a1b2c3d", "0A1B2C3D-1111-4222-8333-444455556666"])
def test_an_id_that_would_be_another_path_is_refused(tmp_path: Path, drill_id: str) -> None:
    bench = make(tmp_path, 1)
    with pytest.raises(InvalidRequest):
        bench.store.open_drill(VM, drill_id, 1)
    with pytest.raises(NotFound):
        bench.store.open_drill(VM, DRILL, 9)
