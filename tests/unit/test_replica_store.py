from __future__ import annotations

import tracemalloc
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import time_machine
from replica_bench import MIB, SOURCE, START, TARGET, VM, XML, Bench, Source, read_image

from vapor_desktop.model.errors import (
    Conflict,
    DiskShrunk,
    EditOutdated,
    EpochMoved,
    InvalidRequest,
    NotFound,
    ParentMoved,
    ProtocolError,
    ReplicaFull,
    StaleLease,
)
from vapor_desktop.model.extents import Extent
from vapor_desktop.model.manifest import DiskMode, Epoch
from vapor_desktop.model.policy import Mappings, Policy
from vapor_desktop.model.wire import CurrentAsOf, RunRequest, SettingsWrite


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path, Source(vda=8 * MIB, vdb=MIB))
    bench.create()
    return bench


def test_points_read_as_the_source_was(bench: Bench) -> None:
    for _ in range(4):
        bench.cycle()
    bench.check()
    assert [p.seq for p in bench.manifest.points] == [1, 2, 3, 4]
    view = bench.store.view(VM)
    assert view.valid
    assert view.files_in_chain == 4
    assert view.incoming is None
    assert view.used_bytes > 0
    assert [v.manifest.vm_uuid for v in bench.store.list()] == [VM]
    point = bench.store.point(VM, 3)
    assert (point.parent_seq, point.checkpoint, point.nvram) == (2, "cp-3", True)
    assert bench.store.point_file(VM, 3, "domain.xml").read_text() == XML
    assert bench.store.point_file(VM, 3, "nvram.fd").read_bytes() == b"NVRAM"


def test_files_and_directories_belong_to_the_group(bench: Bench) -> None:
    bench.cycle()
    for path in (bench.root / VM).rglob("*"):
        assert path.stat().st_mode & 0o7777 == (0o2770 if path.is_dir() else 0o660), path


def test_nothing_but_the_chain_is_left_after_a_publish(bench: Bench) -> None:
    bench.cycle()
    bench.cycle()
    listed = {f"disks/{name}" for p in bench.manifest.points for name in p.files.values()}
    assert bench.files() == listed


def test_grants_are_checked(bench: Bench) -> None:
    bench.cycle()
    disks = {"vda": (8 * MIB, DiskMode.DELTA), "vdb": (MIB, DiskMode.DELTA)}
    for error, changes in (
        (StaleLease, {"fence": 0}),
        (EpochMoved, {"epoch": Epoch(number=2, owner=SOURCE)}),
        (EpochMoved, {"epoch": Epoch(number=1, owner=TARGET)}),
        (EpochMoved, {"source_site": "site-c"}),
        (ParentMoved, {"parent_seq": None}),
    ):
        before = bench.manifest
        with pytest.raises(error):
            bench.store.open_incoming(VM, bench.grant(**changes), 2, disks, "cp", False)
        with pytest.raises(error):
            bench.store.pin(VM, 1, bench.grant(**changes), "user:x")
        assert bench.manifest == before
        assert len(bench.files()) == 2


def test_a_stale_sender_cannot_publish(bench: Bench) -> None:
    bench.cycle()
    stale = bench.grant()
    incoming = bench.open()
    bench.fill(incoming)
    bench.leases.fence += 1
    with pytest.raises(StaleLease):
        bench.publish(incoming, stale)
    assert [p.seq for p in bench.manifest.points] == [1]


def test_an_incomplete_point_is_not_published(bench: Bench) -> None:
    with bench.open() as incoming:
        with pytest.raises(ProtocolError):
            bench.publish(incoming)
        bench.fill(incoming)
        incoming.want("vda", [Extent(0, 512)])
        assert not incoming.needed("vda")
        incoming.rebase_checkpoint("cp-2", {"vda": [Extent(70_000, 10)], "vdb": []})
        assert list(incoming.needed("vda").runs()) == [Extent(65536, 65536)]
        with pytest.raises(ProtocolError):
            bench.publish(incoming)
    assert bench.manifest.points == ()


def test_blocks_without_digests_are_not_published(bench: Bench) -> None:
    bench.cycle()
    bench.source.work()
    with bench.open() as incoming:
        for disk in bench.source.disks:
            incoming.want(disk, bench.source.dirty[disk])
            incoming.mark_received(disk, incoming.needed(disk).runs())
        with pytest.raises(ProtocolError, match="digests"):
            bench.publish(incoming)


def test_resume_by_the_same_job(bench: Bench) -> None:
    with bench.open() as incoming:
        bench_want(bench, incoming)
        bench.send(incoming, "vda", [Extent(0, 3 * MIB)])
    with bench.open(resume=True, seq=1) as incoming:
        assert incoming.resumed
        assert incoming.checkpoint == "cp-1"
        assert list(incoming.needed("vda").runs()) == [Extent(3 * MIB, 5 * MIB)]
        for disk in bench.source.disks:
            bench.send(incoming, disk, incoming.needed(disk).runs())
        bench.publish(incoming)
    bench.check()


def bench_want(bench: Bench, incoming: object) -> None:
    for disk in bench.source.disks:
        incoming.want(disk, bench.source.dirty[disk])  # type: ignore[attr-defined]


def test_resume_by_a_later_job_twice_interrupted(bench: Bench) -> None:
    bench.source.work(20)
    with bench.open() as incoming:
        bench_want(bench, incoming)
        bench.send(incoming, "vda", [Extent(0, 3 * MIB)])
    for turn in (2, 3, 4):
        bench.source.clean()
        bench.source.work(10)  # also over what was received
        with bench.open(resume=True, checkpoint=f"cp-{turn}") as incoming:
            assert incoming.resumed
            assert incoming.seq == turn
            incoming.rebase_checkpoint(f"cp-{turn}", bench.source.dirty)
            needed = list(incoming.needed("vda").runs())
            bench.send(incoming, "vda", needed if turn == 4 else needed[: len(needed) // 2])
            if turn == 4:
                bench.send(incoming, "vdb", incoming.needed("vdb").runs())
                bench.publish(incoming)
    bench.check()
    assert [p.seq for p in bench.manifest.points] == [4]
    assert bench.manifest.next_seq == 5


@pytest.mark.parametrize("known", [(), ("vda",)], ids=["nothing agreed", "one disk agreed"])
def test_an_incoming_whose_sender_died_before_all_was_agreed_is_not_continued(
    bench: Bench, known: tuple[str, ...]
) -> None:
    """Its checkpoint is valid, but what changed before it is on record nowhere: the point would have holes."""
    bench.cycle()
    bench.source.work()  # what the dead sender's job would have told
    with bench.open() as incoming:
        for disk in known:
            incoming.want(disk, bench.source.dirty[disk])
    assert bench.store.view(VM).incoming is None
    with bench.open(resume=True) as incoming:
        assert not incoming.resumed
        bench.fill(incoming)
        bench.publish(incoming)
    bench.check()
    with bench.open() as incoming:
        incoming.want("vda", [])
    bench.store.reconcile(VM)
    assert not any((bench.root / VM / "incoming").iterdir())


def test_without_resume_the_kept_incoming_goes(bench: Bench) -> None:
    bench.cycle()
    with bench.open() as incoming:
        bench_want(bench, incoming)
    with bench.open() as incoming:
        assert (incoming.seq, incoming.resumed) == (3, False)
        assert not (bench.root / VM / "incoming" / "000002").exists()
        assert len(list((bench.root / VM / "incoming").glob("*.qcow2"))) == 2


def test_a_second_receiver_revokes_the_first(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vapor_desktop.site.replica.receiving._BUSY_WAIT_S", 0.1)
    first = bench.open()
    bench_want(bench, first)
    with pytest.raises(Conflict):
        bench.open(resume=True)
    assert first.revoked
    with pytest.raises(StaleLease):
        first.mark_received("vda", [Extent(0, 65536)])
    first.close()
    with bench.open(resume=True) as second:
        assert not second.received("vda")


def test_grown_disk_and_added_disk(bench: Bench) -> None:
    bench.cycle()
    old = len(bench.source.disks["vda"])
    bench.source.disks["vda"] += bytes(2 * MIB + 512)
    bench.source.write("vda", old + 100_000, b"grown")
    bench.source.disks["vdc"] = bytearray(MIB)
    bench.source.dirty["vdc"] = [Extent(0, MIB)]
    bench.cycle()
    bench.source.disks["vda"] += bytes(MIB)  # the last block was short, nobody wrote to it
    bench.cycle(writes=0)
    bench.check()
    assert bench.manifest.newest.sizes["vda"] == 11 * MIB + 512  # type: ignore[union-attr]


def test_shrunk_disk_is_refused(bench: Bench) -> None:
    bench.cycle()
    bench.source.disks["vda"] = bytearray(MIB)
    with pytest.raises(DiskShrunk):
        bench.open()
    assert len(bench.files()) == 2


def test_a_delta_needs_something_to_hang_on(bench: Bench) -> None:
    with pytest.raises(InvalidRequest):
        bench.store.open_incoming(VM, bench.grant(), 1, {"vda": (MIB, DiskMode.DELTA)}, "cp", False)


def test_full_target_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Source(vda=MIB))
    bench.create()
    with pytest.raises(ReplicaFull) as caught:
        bench.store.open_incoming(
            VM, bench.grant(), 1, {"vda": (MIB, DiskMode.FULL)}, "cp", False, need_bytes=1 << 60
        )
    assert caught.value.details["need_bytes"] == 1 << 60
    assert bench.files() == set()


def test_numbers_are_never_reused(bench: Bench) -> None:
    bench.open().close()
    bench.open().close()
    with pytest.raises(Conflict):
        bench.open(seq=1)
    assert bench.manifest.next_seq == 3


def test_current_as_of_moves_only_forward(bench: Bench) -> None:
    bench.cycle()
    for minutes, expected in ((30, 30), (10, 30), (40, 40)):
        bench.store.current_as_of(VM, CurrentAsOf(grant=bench.grant(), seq=1, at=START + timedelta(minutes=minutes)))
        assert bench.manifest.points[0].current_as_of == START + timedelta(minutes=expected)
    bench.cycle()
    with pytest.raises(ParentMoved):
        bench.store.current_as_of(VM, CurrentAsOf(grant=bench.grant(), seq=1, at=START + timedelta(hours=2)))
    with pytest.raises(InvalidRequest):
        bench.store.current_as_of(
            VM, CurrentAsOf(grant=bench.grant(), seq=2, at=datetime.now(UTC) + timedelta(hours=1))
        )


def test_a_time_from_the_future_yields_to_what_is_proven_now(bench: Bench) -> None:
    """The target's clock was set back: an idle VM must not stay unknown until the clock gets there again."""
    bench.cycle()
    ahead = datetime.now(UTC) + timedelta(hours=1)
    with time_machine.travel(ahead, tick=True):
        bench.store.current_as_of(VM, CurrentAsOf(grant=bench.grant(), seq=1, at=ahead))
    assert bench.manifest.points[0].current_as_of == ahead
    now = datetime.now(UTC)
    bench.store.current_as_of(VM, CurrentAsOf(grant=bench.grant(), seq=1, at=now))
    assert bench.manifest.points[0].current_as_of == now


def run_request(bench: Bench, seq: int, number: int = 2, owner: str = TARGET) -> RunRequest:
    epoch = Epoch(number=number, owner=owner)
    return RunRequest(fence=bench.leases.fence, new_epoch=epoch, seq=seq, reason="fire")


def test_a_run_boots_on_overlays_and_revokes_the_receive(bench: Bench) -> None:
    bench.cycle()
    bench.cycle()
    incoming = bench.open()
    bench_want(bench, incoming)
    run = bench.store.run(VM, run_request(bench, 1))
    assert run.domain_xml == XML
    assert Path(run.nvram or "").read_bytes() == b"NVRAM"
    assert read_image(Path(run.disks["vda"])) == bench.expected[1]["vda"]
    assert incoming.revoked
    with pytest.raises(EpochMoved):
        bench.publish(incoming, bench.grant())
    assert bench.store.run(VM, run_request(bench, 1)) == run
    with pytest.raises(Conflict):
        bench.store.run(VM, run_request(bench, 2))
    with pytest.raises(EpochMoved):
        bench.store.run(VM, run_request(bench, 1, owner="site-c"))
    assert bench.manifest.points[0].pins == ("run:2",)
    bench.epoch = Epoch(number=2, owner=TARGET)
    again = bench.store.run(VM, run_request(bench, 2, number=3))
    assert read_image(Path(again.disks["vda"])) == bench.expected[2]["vda"]
    bench.check()


def test_a_run_needs_the_lease(bench: Bench) -> None:
    bench.cycle()
    request = run_request(bench, 1).model_copy(update={"fence": 0})
    with pytest.raises(StaleLease):
        bench.store.run(VM, request)
    assert bench.manifest.epoch == bench.epoch


def test_deleting_takes_our_files_and_nothing_else(bench: Bench) -> None:
    bench.cycle()
    foreign = bench.root / VM / "disks" / "notes.txt"
    foreign.write_text("mine")
    with pytest.raises(Conflict):
        bench.store.delete(VM, bench.grant())
    bench.check()
    foreign.unlink()
    outside = bench.root / "outside"
    outside.write_text("keep")
    link = bench.root / VM / "disks" / f"{'0' * 32}.qcow2"
    link.symlink_to(outside)
    with pytest.raises(Conflict):
        bench.store.delete(VM, bench.grant())
    link.unlink()
    bench.store.delete(VM, bench.grant())
    assert sorted(p.name for p in bench.root.iterdir()) == ["outside"]
    with pytest.raises(NotFound):
        bench.store.view(VM)


def test_names_that_would_leave_the_replica_are_refused(bench: Bench) -> None:
    for vm in ("../etc", "..", "not-a-uuid"):
        with pytest.raises(InvalidRequest):
            bench.store.view(vm)
    with pytest.raises(InvalidRequest):
        bench.store.open_incoming(VM, bench.grant(), 1, {"../x": (MIB, DiskMode.FULL)}, "cp", False)


def test_a_corrupt_mark_makes_a_compare_send_the_block_again(bench: Bench) -> None:
    bench.cycle()
    bench.store.mark_corrupt(VM, 1, bench.grant(), {"vda": [3]})
    assert not bench.manifest.points[0].verified
    table = bench.store.digests(VM, "vda")
    assert table.read(3, 1) == bytes(16)
    assert bytes(16) not in (table.read(2, 1), table.read(4, 1))
    assert table.root() == ""
    bench.store.mark_verified(VM, 1, bench.grant())
    assert bench.manifest.points[0].verified


def test_settings_are_written_on_their_version_only(bench: Bench) -> None:
    bench.cycle()
    wanted = Policy(rpo_target_s=77)

    def write(version: int, policy: Policy = wanted, **grant: object) -> None:
        bench.store.write_settings(
            VM,
            SettingsWrite(
                grant=bench.grant(**grant),
                expect_version=version,
                policy=policy,
                mappings=Mappings(networks={"a": "b"}),
            ),
        )

    write(1)
    assert (bench.manifest.policy, bench.manifest.settings_version) == (wanted, 2)
    write(1)  # the very same again: an answer that got lost
    assert bench.manifest.settings_version == 2
    with pytest.raises(EditOutdated):
        write(1, Policy(rpo_target_s=78))
    with pytest.raises(StaleLease):
        write(2, Policy(rpo_target_s=78), fence=99)
    assert bench.manifest.policy == wanted
    bench.cycle()
    assert (bench.manifest.policy, bench.manifest.mappings.networks) == (wanted, {"a": "b"})
    bench.check()


def test_a_replica_that_exists_keeps_its_settings(bench: Bench) -> None:
    bench.store.write_settings(
        VM,
        SettingsWrite(grant=bench.grant(), expect_version=1, policy=Policy(rpo_target_s=77), mappings=Mappings()),
    )
    bench.create()  # an engine that has not heard of the edit makes sure that the replica is there
    assert bench.manifest.policy.rpo_target_s == 77


def test_a_view_tells_what_each_disk_takes_up(bench: Bench) -> None:
    bench.cycle()
    view = bench.store.view(VM)
    assert set(view.disk_bytes) == {"vda", "vdb"}
    layout = bench.root / VM / "disks"
    assert sum(view.disk_bytes.values()) == sum(f.stat().st_blocks * 512 for f in layout.iterdir())
    bench.open().close()
    assert sum(bench.store.view(VM).disk_bytes.values()) > sum(view.disk_bytes.values())


def test_a_badly_fragmented_disk_costs_little_memory(bench: Bench) -> None:
    """200,000 scattered changes on 32 GiB. As lists of extents each set of them took some 30 MB."""
    size, step = 32 << 30, 160 << 10
    scattered = [Extent(at, 4096) for at in range(0, size, step)]
    with bench.store.open_incoming(VM, bench.grant(), 1, {"vda": (size, DiskMode.FULL)}, "cp-1", False) as incoming:
        tracemalloc.start()
        try:
            incoming.want("vda", scattered)
            incoming.mark_received("vda", (Extent(e.offset // 65536 * 65536, 65536) for e in scattered[::2]))
            left = incoming.needed("vda").total_bytes()
            incoming.rebase_checkpoint("cp-2", {"vda": scattered})
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert left > 0
    assert peak < 24 << 20
