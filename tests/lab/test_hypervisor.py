"""The libvirt adapter against a real libvirtd and real QEMUs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from private_libvirt import Host, domain_xml, private_host, wait_for

from vapor_desktop.hypervisor.connection import LibvirtHypervisor
from vapor_desktop.lab import disks, guestkit
from vapor_desktop.model.domain_xml.target import build_target
from vapor_desktop.model.domains import BackupDisk, BackupJob
from vapor_desktop.model.eligibility import judge
from vapor_desktop.model.errors import (
    BackupJobLost,
    CheckpointInconsistent,
    DomainBusy,
    DomainNotFound,
    HypervisorFailed,
    HypervisorUnreachable,
    InvalidRequest,
    NotAllowed,
    StartFailed,
)

pytestmark = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces")]

DATA = Path(__file__).parents[1] / "unit" / "domain_xml"
KIB64 = 65536


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with private_host(tmp_path_factory.mktemp("host")) as made:
        made.run("mkdir", "-p", "/var/lib/libvirt/images/scratch")
        yield made


@pytest.fixture
def hypervisor(host: Host) -> Iterator[LibvirtHypervisor]:
    opened = LibvirtHypervisor(host.uri)
    yield opened
    opened.close()


class Guest:
    """A running VM with two qcow2 disks, and the making of jobs on it."""

    def __init__(self, host: Host, hypervisor: LibvirtHypervisor, name: str) -> None:
        self.host, self.hypervisor, self.name, self.vm = host, hypervisor, name, str(uuid.uuid4())
        self.paths = {t: host.disk(f"{self.vm}-{t}.qcow2") for t in ("vda", "vdb")}
        hypervisor.define(domain_xml(name, {t: (p, "qcow2") for t, p in self.paths.items()}, vm_uuid=self.vm))
        hypervisor.start(self.vm)

    def disks(self, base: str | None, targets: tuple[str, ...] = ("vda", "vdb")) -> list[BackupDisk]:
        scratch = f"/var/lib/libvirt/images/scratch/{uuid.uuid4()}"
        return [BackupDisk(t, f"{scratch}.{t}", base, True, t) for t in targets]

    def begin(self, base: str | None, checkpoint: str | None) -> BackupJob:
        return self.hypervisor.begin_backup(self.vm, self.disks(base), checkpoint, f"vapor-{checkpoint}.sock", False)

    def dirty(self, job: BackupJob, target: str) -> list[tuple[int, int]]:
        """(offset, length) of the dirty extents the export lists."""
        uri = f"nbd+unix:///{target}?socket={job.socket_path}"
        text = self.host.run("nbdinfo", "--json", f"--map=qemu:dirty-bitmap:{job.bitmaps[target]}", uri)
        return [(e["offset"], e["length"]) for e in json.loads(text) if e["type"] & 1]

    def remove(self) -> None:
        view = self.hypervisor.domain(self.vm)
        if view.live_id is not None:
            self.host.run("virsh", "destroy", view.name)
        self.hypervisor.undefine(self.vm)


@pytest.fixture
def guest(host: Host, hypervisor: LibvirtHypervisor) -> Iterator[Guest]:
    made = Guest(host, hypervisor, f"vm-{uuid.uuid4().hex[:12]}")
    yield made
    made.remove()


def test_full_then_delta_lists_exactly_what_was_written(host: Host, guest: Guest) -> None:
    hypervisor = guest.hypervisor
    first = guest.begin(None, "vapor-p-1-1")
    assert first.bitmaps == {}
    assert hypervisor.our_job(guest.vm) == first.socket_path
    assert hypervisor.foreign_job(guest.vm) is None
    assert host.outside(first.socket_path).is_socket()
    hypervisor.end_backup(guest.vm)
    assert hypervisor.our_job(guest.vm) is None
    assert not host.outside(first.socket_path).exists()
    assert list(host.outside("/var/lib/libvirt/images/scratch").iterdir()) == []

    assert hypervisor.bitmaps_dirty(guest.vm, "vapor-p-1-1") == 0
    host.write(guest.name, 0, 7, "1M", "128k")
    host.write(guest.name, 1, 9, "8M", "4k")
    assert hypervisor.bitmaps_dirty(guest.vm, "vapor-p-1-1") == 3 * KIB64
    assert hypervisor.checkpoint_valid(guest.vm, "vapor-p-1-1", ["vda", "vdb"])

    second = guest.begin("vapor-p-1-1", "vapor-p-1-2")
    host.write(guest.name, 0, 8, "20M", "64k")  # after the moment: not in this point
    assert guest.dirty(second, "vda") == [(1 << 20, 2 * KIB64)]
    assert guest.dirty(second, "vdb") == [(8 << 20, KIB64)]
    hypervisor.end_backup(guest.vm)
    hypervisor.end_backup(guest.vm)  # idempotent
    hypervisor.delete_checkpoint(guest.vm, "vapor-p-1-1")
    hypervisor.delete_checkpoint(guest.vm, "vapor-p-1-1")
    assert hypervisor.checkpoints(guest.vm) == ["vapor-p-1-2"]

    third = guest.begin("vapor-p-1-2", "vapor-p-1-3")
    assert guest.dirty(third, "vda") == [(20 << 20, KIB64)]
    assert guest.dirty(third, "vdb") == []
    hypervisor.end_backup(guest.vm)


def test_view_of_a_running_and_a_stopped_vm(host: Host, guest: Guest) -> None:
    running = guest.hypervisor.domain(guest.vm)
    assert (running.name, running.state, running.machine) == (guest.name, "running", "pc-q35-7.2")
    assert running.live_id is not None
    assert [(d.target, d.size_bytes, d.source) for d in running.disks] == [
        ("vda", 64 << 20, guest.paths["vda"]),
        ("vdb", 64 << 20, guest.paths["vdb"]),
        ("sda", None, None),
    ]
    assert [v.kind for v in judge(running)] == ["delta", "delta", "excluded"]
    assert not running.agent_connected
    assert not guest.hypervisor.agent_ping(guest.vm)
    host.run("virsh", "suspend", guest.name)
    paused = guest.hypervisor.domain(guest.vm)
    assert (paused.state, paused.pause_reason) == ("paused", "user")
    guest.hypervisor.resume(guest.vm)
    host.run("virsh", "destroy", guest.name)
    off = guest.hypervisor.domain(guest.vm)
    assert (off.state, off.live_id, off.pause_reason) == ("shutoff", None, None)
    assert [d.size_bytes for d in off.disks] == [64 << 20, 64 << 20, None]
    assert guest.vm in {view.vm_uuid for view in guest.hypervisor.domains()}


def test_killed_qemu_loses_its_bitmaps_and_the_next_full_job_works(host: Host, guest: Guest) -> None:
    hypervisor = guest.hypervisor
    guest.begin(None, "vapor-p-1-1")
    hypervisor.end_backup(guest.vm)
    host.kill_qemu(guest.name)
    wait_for(lambda: hypervisor.domain(guest.vm).live_id is None, "libvirt sees that QEMU died")
    with pytest.raises(HypervisorFailed):
        hypervisor.checkpoint_valid(guest.vm, "vapor-p-1-1", ["vda"])
    hypervisor.start(guest.vm)
    assert hypervisor.checkpoints(guest.vm) == ["vapor-p-1-1"]
    assert hypervisor.checkpoint_valid(guest.vm, "vapor-p-1-1", ["vda", "vdb"]) is False
    with pytest.raises(CheckpointInconsistent):
        guest.begin("vapor-p-1-1", "vapor-p-1-2")
    assert hypervisor.checkpoints(guest.vm) == ["vapor-p-1-1"]  # the failed call left none
    assert hypervisor.our_job(guest.vm) is None
    hypervisor.delete_checkpoint(guest.vm, "vapor-p-1-1")
    assert hypervisor.checkpoints(guest.vm) == []
    guest.begin(None, "vapor-p-1-3")
    hypervisor.end_backup(guest.vm)
    assert hypervisor.checkpoint_valid(guest.vm, "vapor-p-1-3", ["vda", "vdb"])


def test_bitmaps_survive_a_clean_stop(host: Host, guest: Guest) -> None:
    hypervisor = guest.hypervisor
    guest.begin(None, "vapor-p-1-1")
    hypervisor.end_backup(guest.vm)
    host.write(guest.name, 0, 3, "0", "64k")
    host.run("virsh", "destroy", guest.name)
    hypervisor.start(guest.vm)
    assert hypervisor.checkpoint_valid(guest.vm, "vapor-p-1-1", ["vda", "vdb"])
    job = guest.begin("vapor-p-1-1", "vapor-p-1-2")
    assert guest.dirty(job, "vda") == [(0, KIB64)]
    hypervisor.end_backup(guest.vm)


def test_lost_metadata_is_taken_up_again(host: Host, guest: Guest) -> None:
    """Another console, or libvirt itself, forgot the checkpoint; its bitmaps are still in the images."""
    hypervisor = guest.hypervisor
    guest.begin(None, "vapor-p-1-1")
    hypervisor.end_backup(guest.vm)
    host.write(guest.name, 0, 5, "2M", "64k")
    host.run("virsh", "checkpoint-delete", guest.name, "vapor-p-1-1", "--metadata")
    assert hypervisor.checkpoints(guest.vm) == []
    assert hypervisor.checkpoint_valid(guest.vm, "vapor-p-1-1", ["vda", "vdb"])
    job = guest.begin("vapor-p-1-1", "vapor-p-1-2")
    assert guest.dirty(job, "vda") == [(2 << 20, KIB64)]
    hypervisor.end_backup(guest.vm)
    assert hypervisor.checkpoint_valid(guest.vm, "vapor-p-1-never", ["vda"]) is False
    assert "vapor-p-1-never" not in hypervisor.checkpoints(guest.vm)


def test_orphaned_bitmaps_are_removed(host: Host, guest: Guest) -> None:
    guest.begin(None, "vapor-p-1-1")
    guest.hypervisor.end_backup(guest.vm)
    host.run("virsh", "checkpoint-delete", guest.name, "vapor-p-1-1", "--metadata")
    guest.hypervisor.delete_checkpoint(guest.vm, "vapor-p-1-1")
    host.run("virsh", "destroy", guest.name)
    for path in guest.paths.values():
        info = json.loads(host.run("qemu-img", "info", "--output=json", path))
        assert "bitmaps" not in info["format-specific"]["data"]


def test_one_damaged_disk_does_not_spoil_the_other(host: Host, guest: Guest) -> None:
    hypervisor = guest.hypervisor
    guest.begin(None, "vapor-p-1-1")
    hypervisor.end_backup(guest.vm)
    host.run("virsh", "destroy", guest.name)
    host.run("qemu-img", "bitmap", "--remove", guest.paths["vdb"], "vapor-p-1-1")
    hypervisor.start(guest.vm)
    assert hypervisor.checkpoint_valid(guest.vm, "vapor-p-1-1", ["vda", "vdb"]) is False
    assert hypervisor.checkpoint_valid(guest.vm, "vapor-p-1-1", ["vdb"]) is False
    assert hypervisor.checkpoint_valid(guest.vm, "vapor-p-1-1", ["vda"]) is True
    disks = [*guest.disks("vapor-p-1-1", ("vda",)), *guest.disks(None, ("vdb",))]
    job = hypervisor.begin_backup(guest.vm, disks, "vapor-p-1-2", "vapor-2.sock", False)
    assert job.bitmaps == {"vda": "vapor-vda"}
    assert guest.dirty(job, "vda") == []
    hypervisor.end_backup(guest.vm)
    hypervisor.delete_checkpoint(guest.vm, "vapor-p-1-1")
    assert hypervisor.checkpoints(guest.vm) == ["vapor-p-1-2"]
    host.run("virsh", "destroy", guest.name)
    info = json.loads(host.run("qemu-img", "info", "--output=json", guest.paths["vda"]))
    assert [b["name"] for b in info["format-specific"]["data"]["bitmaps"]] == ["vapor-p-1-2"]


def _foreign_backup(host: Host, guest: Guest, checkpoint: str) -> None:
    job = host.images / "foreign.xml"
    moment = host.images / "foreign-checkpoint.xml"
    host.outside(job).write_text(
        "<domainbackup mode='pull'><server transport='unix' socket='/var/lib/libvirt/qemu/other.sock'/>"
        f"<disks><disk name='vda' backup='yes' type='file'><scratch file='/var/lib/libvirt/images/other.{guest.vm}'/>"
        "</disk></disks></domainbackup>"
    )
    host.outside(moment).write_text(f"<domaincheckpoint><name>{checkpoint}</name></domaincheckpoint>")
    host.run("virsh", "backup-begin", guest.name, str(job), str(moment))


def test_another_tools_job_and_checkpoint_are_left_alone(host: Host, guest: Guest) -> None:
    hypervisor = guest.hypervisor
    _foreign_backup(host, guest, "virtnbdbackup.0")
    assert hypervisor.our_job(guest.vm) is None
    assert hypervisor.foreign_job(guest.vm) == (
        f"{guest.name} is being backed up by another tool (socket /var/lib/libvirt/qemu/other.sock)"
    )
    started = time.monotonic()
    with pytest.raises(DomainBusy):
        guest.begin(None, "vapor-p-1-1")
    assert time.monotonic() - started < 5  # not libvirt's 30 s wait for the lock
    with pytest.raises(DomainBusy):
        hypervisor.end_backup(guest.vm)
    assert "other.sock" in host.run("virsh", "backup-dumpxml", guest.name)
    host.run("virsh", "domjobabort", guest.name)
    wait_for(lambda: hypervisor.foreign_job(guest.vm) is None, "the other tool's job to end")

    with pytest.raises(NotAllowed):
        hypervisor.delete_checkpoint(guest.vm, "virtnbdbackup.0")
    guest.begin(None, "vapor-p-1-1")
    hypervisor.end_backup(guest.vm)
    hypervisor.delete_checkpoint(guest.vm, "vapor-p-1-1")
    assert hypervisor.checkpoints(guest.vm) == ["virtnbdbackup.0"]
    host.run("virsh", "checkpoint-create", guest.name, "--redefine", "--redefine-validate", _dump(host, guest))


def _dump(host: Host, guest: Guest) -> str:
    path = host.images / f"{guest.vm}.checkpoint.xml"
    host.outside(path).write_text(host.run("virsh", "checkpoint-dumpxml", guest.name, "virtnbdbackup.0"))
    return str(path)


def test_block_job_is_named(host: Host, guest: Guest) -> None:
    copy = str(host.images / f"{guest.vm}-copy.qcow2")
    host.run("virsh", "blockcopy", guest.name, "vda", copy, "--transient-job", "--format", "qcow2")
    assert guest.hypervisor.foreign_job(guest.vm) == f"A block copy runs on vda of {guest.name}"
    with pytest.raises(DomainBusy):
        guest.begin(None, "vapor-p-1-1")
    host.run("virsh", "blockjob", guest.name, "vda", "--abort")
    wait_for(lambda: guest.hypervisor.foreign_job(guest.vm) is None, "the block job to end")


def test_second_job_of_ours_is_busy_and_the_first_goes_on(guest: Guest) -> None:
    job = guest.begin(None, "vapor-p-1-1")
    with pytest.raises(DomainBusy):
        guest.begin(None, "vapor-p-1-2")
    assert guest.hypervisor.our_job(guest.vm) == job.socket_path
    assert guest.hypervisor.checkpoints(guest.vm) == ["vapor-p-1-1"]
    guest.hypervisor.end_backup(guest.vm)
    with pytest.raises(InvalidRequest):  # names are never used again
        guest.begin(None, "vapor-p-1-1")


def test_libvirtd_killed_in_a_job(host: Host, guest: Guest) -> None:
    hypervisor = guest.hypervisor
    job = guest.begin(None, "vapor-p-1-1")
    host.restart_libvirtd()
    wait_for(lambda: _answers(hypervisor), "the adapter to reconnect")
    assert hypervisor.our_job(guest.vm) == job.socket_path
    hypervisor.end_backup(guest.vm)
    assert hypervisor.our_job(guest.vm) is None
    assert hypervisor.checkpoint_valid(guest.vm, "vapor-p-1-1", ["vda", "vdb"])


def _answers(hypervisor: LibvirtHypervisor) -> bool:
    try:
        hypervisor.domains()
    except HypervisorUnreachable:
        return False
    return True


def test_internal_snapshot_and_external_snapshot_and_resize(host: Host, guest: Guest) -> None:
    hypervisor = guest.hypervisor
    guest.begin(None, "vapor-p-1-1")
    hypervisor.end_backup(guest.vm)
    host.run("virsh", "blockresize", guest.name, "vda", "96M")
    assert [d.size_bytes for d in hypervisor.domain(guest.vm).disks][:2] == [96 << 20, 64 << 20]
    host.run("virsh", "snapshot-create-as", guest.name, "ext", "--disk-only", "--no-metadata")
    host.write(guest.name, 0, 4, "70M", "64k")
    assert hypervisor.checkpoint_valid(guest.vm, "vapor-p-1-1", ["vda", "vdb"])
    job = guest.begin("vapor-p-1-1", "vapor-p-1-2")
    assert (70 << 20, KIB64) in guest.dirty(job, "vda")
    hypervisor.end_backup(guest.vm)
    host.run("virsh", "snapshot-create-as", guest.name, "before-upgrade")
    view = hypervisor.domain(guest.vm)
    assert view.internal_snapshots == ("before-upgrade",)
    assert [(v.kind, bool(v.fix)) for v in judge(view)][:2] == [("delta", True), ("delta", True)]
    host.run("virsh", "snapshot-delete", guest.name, "before-upgrade")


def test_raw_disk_joins_without_a_bitmap(host: Host, hypervisor: LibvirtHypervisor) -> None:
    vm, name = str(uuid.uuid4()), "raw-and-qcow2"
    disks = {"vda": (host.disk("rq.qcow2"), "qcow2"), "vdb": (host.disk("rq.raw", "64M", "raw"), "raw")}
    hypervisor.define(domain_xml(name, disks, vm_uuid=vm))
    hypervisor.start(vm)
    assert [v.kind for v in judge(hypervisor.domain(vm))] == ["delta", "compare", "excluded"]
    scratch = "/var/lib/libvirt/images/scratch/rq"
    wanted = [
        BackupDisk("vda", f"{scratch}.vda", None, True, "vda"),
        BackupDisk("vdb", f"{scratch}.vdb", None, False, "vdb"),
    ]
    job = hypervisor.begin_backup(vm, wanted, "vapor-p-1-1", "vapor-1.sock", False)
    size = json.loads(host.run("nbdinfo", "--json", f"nbd+unix:///vdb?socket={job.socket_path}"))
    assert size["exports"][0]["export-size"] == 64 << 20
    hypervisor.end_backup(vm)
    host.run("virsh", "destroy", name)
    hypervisor.undefine(vm)


def test_qcow2_v2_is_known_where_a_pool_tells_it(host: Host, hypervisor: LibvirtHypervisor) -> None:
    vm, name = str(uuid.uuid4()), "old-image"
    host.run("mkdir", "-p", "/var/lib/libvirt/images/pool")
    path = host.disk("pool/old.qcow2", "64M", "qcow2", "-o", "compat=0.10")
    host.run("virsh", "pool-create-as", "p", "dir", "--target", "/var/lib/libvirt/images/pool")
    hypervisor.define(domain_xml(name, {"vda": (path, "qcow2")}, vm_uuid=vm))
    view = hypervisor.domain(vm)
    assert view.disks[0].qcow2_compat == "0.10"
    assert judge(view)[0].kind == "refused"
    hypervisor.undefine(vm)
    host.run("virsh", "pool-destroy", "p")


def test_failed_begin_leaves_no_checkpoint_and_no_job(host: Host, guest: Guest) -> None:
    disks = [BackupDisk("vda", "/nonexistent/scratch", None, True, "vda")]
    with pytest.raises(HypervisorFailed) as caught:
        guest.hypervisor.begin_backup(guest.vm, disks, "vapor-p-1-1", "vapor-1.sock", False)
    assert caught.value.details["libvirt_code"]
    assert guest.hypervisor.checkpoints(guest.vm) == []
    assert guest.hypervisor.our_job(guest.vm) is None
    guest.begin(None, "vapor-p-1-2")
    guest.hypervisor.end_backup(guest.vm)


def test_start_paused_resume_and_failures_have_names(host: Host, hypervisor: LibvirtHypervisor) -> None:
    vm, name = str(uuid.uuid4()), "life"
    path = host.disk("life.qcow2")
    hypervisor.define(domain_xml(name, {"vda": (path, "qcow2")}, vm_uuid=vm))
    hypervisor.set_autostart(vm, True)
    assert hypervisor.domain(vm).autostart
    hypervisor.set_autostart(vm, False)
    assert not hypervisor.domain(vm).autostart
    hypervisor.start(vm, paused=True)
    assert hypervisor.domain(vm).state == "paused"
    hypervisor.start(vm, paused=True)
    hypervisor.resume(vm)
    hypervisor.resume(vm)
    assert hypervisor.domain(vm).state == "running"
    with pytest.raises(StartFailed):
        hypervisor.start(vm, paused=True)
    host.run("virsh", "destroy", name)
    host.run("rm", path)
    with pytest.raises(StartFailed) as caught:
        hypervisor.start(vm)
    assert path in caught.value.why
    hypervisor.undefine(vm)
    with pytest.raises(DomainNotFound):
        hypervisor.start(vm)


def test_a_thaw_that_waits_does_not_hold_up_the_rest(host: Host, guest: Guest) -> None:
    """No agent answers in this guest: thaw fails by itself, and other calls answer meanwhile."""
    outcome: list[type[Exception]] = []

    def thaw() -> None:
        try:
            guest.hypervisor.thaw(guest.vm)
        except HypervisorFailed as error:
            outcome.append(type(error))

    worker = threading.Thread(target=thaw)
    worker.start()
    started = time.monotonic()
    guest.hypervisor.networks()
    assert time.monotonic() - started < 2
    worker.join(timeout=30)
    assert outcome == [HypervisorFailed]


def test_freeze_asked_of_a_guest_without_an_agent_is_no_error(guest: Guest) -> None:
    job = guest.hypervisor.begin_backup(guest.vm, guest.disks(None), "vapor-p-1-1", "vapor-1.sock", True)
    assert job.frozen is False
    assert job.frozen_s == 0
    guest.hypervisor.end_backup(guest.vm)


def test_the_list_follows_what_happens(host: Host, guest: Guest) -> None:
    """``domains()`` remembers; events and ids tell it what to read again."""
    hypervisor, one = guest.hypervisor, LibvirtHypervisor(host.uri)

    def same() -> bool:
        listed = {view.vm_uuid: view for view in hypervisor.domains()}
        return listed[guest.vm] == one.domain(guest.vm)

    assert same()
    extra = host.disk(f"{guest.vm}-extra.qcow2", "8M")
    host.run("virsh", "attach-disk", guest.name, extra, "vdc", "--driver", "qemu", "--subdriver", "qcow2", "--live")
    wait_for(lambda: "vdc" in {d.target for v in hypervisor.domains() for d in v.disks}, "the new disk in the list")
    wait_for(same, "the list to agree")
    host.run("virsh", "snapshot-create-as", guest.name, "ext", "--disk-only", "--no-metadata")
    hypervisor.domain(guest.vm)  # no event tells of it; a reading does
    assert same()
    host.run("virsh", "suspend", guest.name)
    assert same()
    host.run("virsh", "destroy", guest.name)
    wait_for(same, "the list to agree about a stopped VM")
    hypervisor.set_autostart(guest.vm, True)
    assert same()
    hypervisor.set_autostart(guest.vm, False)
    host.run("virsh", "snapshot-create-as", guest.name, "inside")
    assert {v.vm_uuid: v for v in hypervisor.domains()}[guest.vm].internal_snapshots == ("inside",)
    host.run("virsh", "snapshot-delete", guest.name, "inside")
    host.restart_libvirtd()
    wait_for(lambda: _answers(hypervisor) and _answers(one), "the adapter to reconnect")
    assert same()
    one.close()


def test_a_job_whose_record_libvirt_lost_is_named_with_its_cure(host: Host, guest: Guest) -> None:
    """As a libvirtd leaves it that is killed while it begins a job; the cure in the error is what is done here."""
    state = host.outside(f"/run/libvirt/qemu/{guest.name}.xml")
    lost = "<job type='none' async='backup' flags='0x0' asyncStarted='1'/>"

    def loses() -> None:
        text = state.read_text()
        state.write_text(re.sub(r"(<domstatus[^>]*>)", rf"\1\n  {lost}", text, count=1))

    host.restart_libvirtd(loses)
    wait_for(lambda: _answers(guest.hypervisor), "the adapter to reconnect")
    with pytest.raises(BackupJobLost) as caught:
        guest.hypervisor.foreign_job(guest.vm)
    assert f"/run/libvirt/qemu/{guest.name}.xml" in (caught.value.fix or "")

    def cure() -> None:
        state.write_text(re.sub(r" *<job .*async='backup'.*/>\n", "", state.read_text()))

    host.restart_libvirtd(cure)
    wait_for(lambda: _answers(guest.hypervisor), "the adapter to reconnect")
    assert guest.hypervisor.foreign_job(guest.vm) is None
    guest.begin(None, None)
    guest.hypervisor.end_backup(guest.vm)


def test_no_connection_is_left_open(hypervisor: LibvirtHypervisor) -> None:
    def sockets() -> int:
        found = 0
        for link in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed by another thread while the list is read
                found += link.readlink().name.startswith("socket:")
        return found

    before = sockets()
    for _ in range(5):
        hypervisor.domains()
        hypervisor.close()
    # libvirt's client drops its last reference in the thread of its event loop, a moment after the close; and what
    # an earlier test's thread lets go of meanwhile is no leak.
    wait_for(lambda: sockets() <= before, "the closing of every connection")


def _agent(host: Host, name: str, command: str) -> object:
    return json.loads(host.run("virsh", "qemu-agent-command", name, command))["return"]


def test_freeze_with_a_real_agent(host: Host, hypervisor: LibvirtHypervisor) -> None:
    """A guest that boots, mounts ext4 and runs qemu-ga: frozen for the moment and thawed after."""
    image = host.outside(host.images / "agent.qcow2")
    config = "name=agent\nrate=5\nscratch=0\nzero=0\ndiscard=0\n"
    disks.build(guestkit.build(Path.home() / ".cache/vapor-lab"), image, firmware="bios", index=0, config=config)
    vm, name = str(uuid.uuid4()), "agent"
    hypervisor.define(
        domain_xml(name, {"vda": (str(host.images / "agent.qcow2"), "qcow2")}, vm_uuid=vm, memory_mib=256)
    )
    hypervisor.start(vm)
    wait_for(lambda: hypervisor.domain(vm).agent_connected and hypervisor.agent_ping(vm), "the guest's agent", 120)

    def begin(seq: int) -> BackupJob:
        wanted = [BackupDisk("vda", f"/var/lib/libvirt/images/scratch/agent.{seq}", None, True, "vda")]
        return hypervisor.begin_backup(vm, wanted, f"vapor-p-1-{seq}", f"vapor-{seq}.sock", True)

    job = begin(1)
    assert job.frozen
    assert 0 < job.frozen_s < 10
    assert _agent(host, name, '{"execute":"guest-fsfreeze-status"}') == "thawed"
    hypervisor.end_backup(vm)
    assert hypervisor.thaw(vm) is False
    assert _agent(host, name, '{"execute":"guest-fsfreeze-freeze"}') != 0
    assert hypervisor.thaw(vm) is True
    assert _agent(host, name, '{"execute":"guest-fsfreeze-status"}') == "thawed"

    stop = "kill -STOP $(pidof qemu-ga); sleep 40; kill -CONT $(pidof qemu-ga)"
    request = {"execute": "guest-exec", "arguments": {"path": "/bin/sh", "arg": ["-c", f"({stop}) & sleep 0.1"]}}
    _agent(host, name, json.dumps(request))
    wait_for(lambda: not hypervisor.agent_ping(vm), "the agent to hang")
    started = time.monotonic()
    assert begin(2).frozen is False
    assert time.monotonic() - started < 35
    hypervisor.end_backup(vm)
    wait_for(lambda: hypervisor.agent_ping(vm), "the agent to go on", 90)
    assert _agent(host, name, '{"execute":"guest-fsfreeze-status"}') == "thawed"
    host.run("virsh", "destroy", name)
    hypervisor.undefine(vm)


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("bios", {"disks": {"vda": "/d/vda.qcow2"}, "networks": {}, "nvram": None}),
        (
            "uefi-tpm",
            {"disks": {"sda": "/d/a", "sdb": "/d/b"}, "networks": {"br-lan": "default"}, "nvram": "/d/VARS.fd"},
        ),
        (
            "hardware",
            {
                "disks": {"vda": "/d/vda"},
                "networks": {"ovs0": "default", "eno1": "default"},
                "nvram": "/d/VARS.fd",
                "loader": "/usr/share/OVMF/OVMF_CODE_4M.fd",
            },
        ),
    ],
)
def test_libvirt_accepts_what_build_target_makes(
    hypervisor: LibvirtHypervisor, name: str, build: dict[str, object]
) -> None:
    source = (DATA / f"{name}.xml").read_text()
    built = build_target(source, **build, kvm=False, fresh_genid=True)  # type: ignore[arg-type]
    hypervisor.define(built.xml)
    (view,) = [v for v in hypervisor.domains() if f"<name>{v.name}</name>" in source]
    assert view.state == "shutoff"
    again = hypervisor.domain_xml(view.vm_uuid)
    assert build_target(again, **build, kvm=False, fresh_genid=False).xml  # type: ignore[arg-type]
    hypervisor.undefine(view.vm_uuid)


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    """The private host itself: killing its init ends every process of it."""
    with private_host(tmp_path) as made:
        made.run("true")
        pid = made.init_pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    mounts = subprocess.run(["cat", "/proc/self/mounts"], capture_output=True, text=True).stdout
    assert str(tmp_path) not in mounts
