"""What happens to a protected VM's disks and name between cycles: each next point is the source, disk by disk.

Every point of a running VM is compared with the frozen export while its job is open (``stage.comparisons``).
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import proofs
import pytest

from vapor_desktop.engine.cycle import Outcome
from vapor_desktop.lab import guests, hostfiles
from vapor_desktop.lab.guests import IMAGES, GuestSpec
from vapor_desktop.lab.keyring_session import KeyringSession
from vapor_desktop.lab.lab import Lab
from vapor_desktop.lab.processes import LabFailed, wait_until
from vapor_desktop.lab.stage import Stage
from vapor_desktop.model.manifest import DiskMode, Manifest, Point, PointEntry
from vapor_desktop.model.policy import Quiesce
from vapor_desktop.model.wire import ReplicaView

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]
NAME, RENAMED = "shape", "shaped-anew"
MIB = 1 << 20


class Subject:
    """One guest and its protection; a cycle runs when a test says so."""

    def __init__(self, stage: Stage, pid: str) -> None:
        self.stage, self.pid, self.name = stage, pid, NAME
        self.host = stage.lab.sites["a"]
        assert stage.program is not None
        self.engine = stage.program.engine
        protection = self.engine.repository.protection(pid)
        assert protection is not None
        self.uuid = protection.vm_uuid
        self.api = self.engine.gateway.api(stage.backend._site(protection.target_site))

    @property
    def view(self) -> ReplicaView:
        return self.api.replica(self.uuid)

    @property
    def manifest(self) -> Manifest:
        return self.view.manifest

    @property
    def newest(self) -> PointEntry:
        newest = self.manifest.newest
        assert newest is not None
        return newest

    def point(self) -> Point:
        """A cycle that must make a point, every disk of which is the source's frozen export."""
        before = len(self.stage.comparisons)
        outcome = self.cycle()
        assert outcome.seq is not None
        point = self.api.point(self.uuid, outcome.seq)
        compared = self.stage.comparisons[before:]
        assert {c.disk for c in compared} == {d.target for d in point.disks}
        assert [c for c in compared if not c.identical] == []
        return point

    def cycle(self) -> Outcome:
        outcome = self.engine.worker.run(self.pid)
        protection = self.engine.repository.protection(self.pid)
        assert outcome is not None, protection.last_error if protection else "the protection is gone"
        return outcome

    def modes(self, point: Point) -> dict[str, DiskMode]:
        return {d.target: d.mode for d in point.disks}

    def image(self, name: str, fmt: str, size: str = "64M") -> str:
        """A new image in the host's own place for images."""
        path = f"{IMAGES}/{name}.{fmt}"
        there = self.host.path(path)
        subprocess.run(["qemu-img", "create", "-q", "-f", fmt, there, size], check=True)
        os.chown(there, *hostfiles.user_ids(self.host.layout, "libvirt-qemu"))
        there.chmod(0o660)
        return path

    def guest_writes(self, device: str, at_mib: int, blocks: int = 4) -> None:
        """Random data in the guest, durable."""
        self.host.guest_shell(
            self.name,
            f"dd if=/dev/urandom of={device} bs=65536 count={blocks} seek={at_mib * 16} conv=notrunc,fsync 2>&1",
        )

    def stop(self) -> None:
        guests.shut_down(self.host, self.name)

    def start(self) -> None:
        said = len(self.host.serial(NAME))
        self.host.virsh("start", self.name)
        guests.wait_for(self.host, NAME, "VAPOR-DIARY ", timeout_s=120, after=said)
        self.agent_answers()

    def agent_answers(self) -> None:
        def answers() -> bool:
            try:
                guests.agent(self.host, self.name, "guest-ping")
            except LabFailed:
                return False
            return True

        wait_until(answers, "the guest agent", timeout_s=60, every_s=0.5)


@pytest.fixture(scope="module")
def subject(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    """A guest with one disk, protected, with one recovery point; the tests go on from each other."""
    home = tmp_path_factory.mktemp("disk-changes")
    guests.add(lab.sites["a"], GuestSpec(NAME), lab.cache)
    guests.wait_for(lab.sites["a"], NAME, "VAPOR-DIARY ", timeout_s=120)
    with KeyringSession(home):
        stage = Stage(lab, home)
        stage.open(run_engine=False)
        try:
            a, b = stage.pair()
            stage.compare_every_point()
            [pid] = stage.protect(a, b, [NAME])
            subject = Subject(stage, pid)
            subject.agent_answers()
            subject.point()
            yield subject
        finally:
            stage.close()


def test_a_hot_added_disk_is_in_the_next_point_and_only_it_is_copied_whole(subject: Subject) -> None:
    extra = subject.image("shape-extra", "qcow2")
    subject.host.virsh(
        *("attach-disk", NAME, extra, "vdb", "--driver", "qemu", "--subdriver", "qcow2", "--live", "--config")
    )
    wait_until(lambda: "vdb" in subject.host.guest_shell(NAME, "ls /dev"), "vdb in the guest", timeout_s=30)
    subject.guest_writes("/dev/vdb", 3)
    point = subject.point()
    assert subject.modes(point) == {"vda": DiskMode.DELTA, "vdb": DiskMode.FULL}
    [vdb] = [d for d in point.disks if d.target == "vdb"]
    assert 4 * 65536 <= vdb.sent_bytes <= MIB
    subject.guest_writes("/dev/vdb", 9)
    assert subject.modes(subject.point()) == {"vda": DiskMode.DELTA, "vdb": DiskMode.DELTA}
    assert len(subject.host.virsh("checkpoint-list", NAME, "--name").split()) == 1


def test_an_external_snapshot_and_its_commit_change_nothing_in_the_points(subject: Subject) -> None:
    host = subject.host
    host.virsh("snapshot-create-as", NAME, "ext", "--disk-only", "--atomic", "--no-metadata", "--quiesce")
    assert all(".ext" in image for image in host.disks_of(NAME))
    subject.guest_writes("/dev/vdb", 20)
    point = subject.point()
    assert subject.modes(point) == {"vda": DiskMode.DELTA, "vdb": DiskMode.DELTA}
    subject.guest_writes("/dev/vdb", 21)
    subject.point()
    for disk in ("vda", "vdb"):
        host.virsh("blockcommit", NAME, disk, "--active", "--pivot", "--wait")
    assert not any(".ext" in image for image in host.disks_of(NAME))
    subject.guest_writes("/dev/vdb", 22)
    subject.point()
    subject.guest_writes("/dev/vdb", 23)
    assert set(subject.modes(subject.point()).values()) == {DiskMode.DELTA}


def test_a_block_job_of_another_is_waited_for_and_left_alone(subject: Subject) -> None:
    host = subject.host
    aside = f"{IMAGES}/shape-copy.qcow2"
    host.virsh("blockcopy", NAME, "vdb", aside, "--transient-job", "--bandwidth", "1")
    try:
        assert subject.engine.worker.run(subject.pid) is None
        protection = subject.engine.repository.protection(subject.pid)
        assert protection is not None
        assert protection.last_error_code == "VM-BUSY"
        assert protection.failures == 0
        assert "block copy" in (protection.last_error or "")
        assert host.virsh("blockjob", NAME, "vdb") != ""
    finally:
        host.virsh("blockjob", NAME, "vdb", "--abort")
    subject.guest_writes("/dev/vdb", 30)
    subject.point()


def test_an_internal_snapshot_is_warned_of_and_the_points_go_on(subject: Subject) -> None:
    host = subject.host
    host.virsh("snapshot-create-as", NAME, "inner")
    try:
        subject.guest_writes("/dev/vdb", 40)
        subject.point()
        [vm] = [
            v for v in subject.stage.backend.vms(subject.stage.row(NAME).protection.source_site) if v.name == NAME
        ]
        assert vm.protectable
        assert any("internal snapshot" in d.reason for d in vm.disks)
    finally:
        host.virsh("snapshot-delete", NAME, "inner")
    subject.guest_writes("/dev/vdb", 41)
    subject.point()


def test_a_vm_that_was_renamed_while_off_is_followed_by_its_uuid(subject: Subject) -> None:
    subject.stop()
    subject.cycle()
    points = [p.seq for p in subject.manifest.points]
    subject.host.virsh("domrename", NAME, RENAMED)
    subject.name = RENAMED
    outcome = subject.cycle()
    assert outcome.unchanged  # a name alone makes no point
    assert subject.manifest.vm_name == RENAMED
    assert [p.seq for p in subject.manifest.points] == points
    assert subject.stage.row(RENAMED).protection.protection_id == subject.pid
    subject.start()
    point = subject.point()
    assert point.vm_name == RENAMED
    assert subject.modes(point) == {"vda": DiskMode.DELTA, "vdb": DiskMode.DELTA}
    assert len(subject.host.virsh("checkpoint-list", RENAMED, "--name").split()) == 1


def stays_current(subject: Subject) -> bool:
    """Two cycles: False as soon as the guest had written something; else all that must be true of them is."""
    known, files = subject.newest, subject.view.files_in_chain
    for _ in range(2):
        outcome = subject.cycle()
        if not outcome.unchanged:
            return False
        assert outcome.result is not None
        assert outcome.result.data_bytes == 0
        assert subject.newest.seq == known.seq
        assert subject.newest.taken_at == known.taken_at
        assert subject.newest.current_as_of > known.current_as_of
        assert subject.newest.checkpoint == known.checkpoint
        assert subject.view.files_in_chain == files
        known = subject.newest
    return True


def test_an_idle_vm_stays_current_without_new_points(subject: Subject) -> None:
    """Running, and nothing writes: the empty bitmap proves it, and nothing is sent or made."""
    before = proofs.set_policy(subject.stage, subject.name, quiesce=Quiesce.NEVER)  # a freeze is a write
    subject.host.set_rates(subject.name, rate=0, scratch=0, zero=0, discard=0)
    try:
        # The guest's kernel writes back what lies in its journal for up to half a minute, now and then.
        wait_until(lambda: stays_current(subject), "two cycles in a row with nothing to send", timeout_s=120)
        assert subject.host.virsh("domstate", subject.name) == "running"
    finally:
        proofs.set_policy(subject.stage, subject.name, quiesce=before.quiesce)
        subject.host.set_rates(subject.name, rate=10, scratch=4)
    subject.guest_writes("/dev/vdb", 50)
    assert set(subject.modes(subject.point()).values()) == {DiskMode.DELTA}


def test_a_removed_disk_leaves_the_points_and_a_raw_one_is_compared_each_cycle(subject: Subject) -> None:
    host = subject.host
    subject.stop()
    raw = subject.image("shape-raw", "raw", "48M")
    host.virsh("detach-disk", RENAMED, "vdb", "--config")
    host.virsh("attach-disk", RENAMED, raw, "vdc", "--driver", "qemu", "--subdriver", "raw", "--config")
    with_vdb = subject.newest
    subject.start()
    [device] = [
        line.split()[0]
        for line in host.guest_shell(
            RENAMED, "cat /proc/partitions | while read a b s n; do echo $n $s; done"
        ).splitlines()
        if line.split()[1:] == [str(48 * 1024)]
    ]
    subject.guest_writes(f"/dev/{device}", 5)
    point = subject.point()
    assert subject.modes(point) == {"vda": DiskMode.DELTA, "vdc": DiskMode.FULL}
    assert set(with_vdb.files) == {"vda", "vdb"}
    kept = subject.manifest.entry(with_vdb.seq)
    assert kept is not None
    assert kept.files == with_vdb.files
    for at in (11, 12):
        subject.guest_writes(f"/dev/{device}", at)
        point = subject.point()
        assert subject.modes(point) == {"vda": DiskMode.DELTA, "vdc": DiskMode.COMPARE}
        [vdc] = [d for d in point.disks if d.target == "vdc"]
        assert vdc.sent_bytes == 4 * 65536  # only what differs


def test_a_block_device_is_replicated_while_the_vm_is_off_and_while_it_runs(subject: Subject, tmp_path: Path) -> None:
    """As an LVM volume is: no bitmap, a name below /dev that is a symlink, read by the root helper when off."""
    host = subject.host
    backing, name = tmp_path / "volume", Path(f"/dev/vapor-{host.layout.hostname}")
    backing.write_bytes(os.urandom(8 << 20) + bytes(24 << 20))
    loop = subprocess.run(
        ["losetup", "--find", "--show", str(backing)], check=True, capture_output=True, text=True
    ).stdout.strip()
    name.symlink_to(loop)
    try:
        subject.stop()
        kind = ("--sourcetype", "block", "--driver", "qemu", "--subdriver", "raw", "--config")
        host.virsh("attach-disk", RENAMED, str(name), "vdd", *kind)
        assert device_mode(subject) is DiskMode.FULL
        assert same_as_device(subject, loop)
        with open(loop, "r+b") as device:  # noqa: PTH123 - a device
            device.seek(20 << 20)
            device.write(os.urandom(1 << 20))
            os.fsync(device.fileno())
        assert device_mode(subject) is DiskMode.COMPARE
        assert same_as_device(subject, loop)
        subject.start()
        assert subject.modes(subject.point())["vdd"] is DiskMode.COMPARE
        subject.stop()
        host.virsh("detach-disk", RENAMED, "vdd", "--config")
    finally:
        name.unlink()
        subprocess.run(["losetup", "--detach", loop], check=False)


def device_mode(subject: Subject) -> DiskMode:
    outcome = subject.cycle()
    assert outcome.seq is not None
    return subject.modes(subject.api.point(subject.uuid, outcome.seq))["vdd"]


def same_as_device(subject: Subject, device: str) -> bool:
    replica = f"/var/lib/libvirt/images/vapor/{subject.uuid}/disks/{subject.newest.files['vdd']}"
    there = subject.stage.lab.sites["b"].path(replica)
    words = ["qemu-img", "compare", "-U", "-f", "raw", "-F", "qcow2", device, str(there)]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0
