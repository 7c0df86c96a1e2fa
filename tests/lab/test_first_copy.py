"""A first copy that is made of several jobs, while the guest writes: one point in the end, nothing before."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import proofs
import pytest

from vapor_desktop.engine import runtime
from vapor_desktop.engine.cycle import Outcome
from vapor_desktop.lab import guests
from vapor_desktop.lab.guests import GuestSpec
from vapor_desktop.lab.keyring_session import KeyringSession
from vapor_desktop.lab.lab import Lab
from vapor_desktop.lab.processes import wait_until
from vapor_desktop.lab.stage import Stage
from vapor_desktop.model.errors import Conflict, VaporError
from vapor_desktop.model.wire import Progress, ReplicaView

pytestmark = [pytest.mark.lab, pytest.mark.timeout(400)]
PLAIN, CUT, CRASHED, OFF, SEEDED = "plain", "cut", "crashed", "stopped", "seeded"
JOBS_AT_LEAST = 3
JOB_S = 10
SINCE_BYTES = 8 << 20


@pytest.fixture(scope="module")
def stage(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Two paired sites; cycles run only when a test runs one, so each job can be looked at."""
    home = tmp_path_factory.mktemp("first-copy")
    with KeyringSession(home), pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "PER_PAIR", 0)  # the engine lives, for failovers, and starts no cycle by itself
        made = Stage(lab, home)
        made.open()
        try:
            made.pair()
            made.compare_every_point()
            yield made
        finally:
            made.close()


class Job:
    """A guest of its own and the cycles of its protection, one at a time."""

    def __init__(self, stage: Stage, name: str, disk_count: int = 1, *, job_s: int = JOB_S, share: int = 64) -> None:
        """``share``: a second's bandwidth is that part of the data."""
        self.stage, self.name = stage, name
        guests.add(stage.lab.sites["a"], GuestSpec(name, disk_count=disk_count), stage.lab.cache)
        guests.wait_for(stage.lab.sites["a"], name, "VAPOR-DIARY ", timeout_s=120)
        a, b = sorted((s.site for s in stage.backend.snapshot().sites), key=lambda site: site.name)
        [self.pid] = stage.protect(a, b, [name])
        assert stage.program is not None
        self.engine = stage.program.engine
        self.uuid = stage.row(name).protection.vm_uuid
        self.allocated_bytes = sum(
            stage.lab.sites["a"].path(file).stat().st_blocks * 512 for file in stage.lab.sites["a"].disks_of(name)
        )
        # Compression halves what travels at the most: three jobs at least, seven at the most.
        proofs.set_policy(
            stage, name, job_longest_s=job_s, bandwidth_bytes_s=max(self.allocated_bytes // share, 65536)
        )
        self.most_checkpoints = 0

    @property
    def checkpoints(self) -> set[str]:
        return set(self.stage.lab.sites["a"].virsh("checkpoint-list", self.name, "--name").split())

    @property
    def view(self) -> ReplicaView:
        p = self.stage.row(self.name).protection
        return self.engine.gateway.api(self.stage.backend._site(p.target_site)).replica(self.uuid)

    def attempt(self, meanwhile: Callable[[], None]) -> Outcome | None:
        """One job; None when it failed. ``meanwhile`` is called all the time."""
        found: list[Outcome | None] = []
        worker = threading.Thread(target=lambda: found.append(self.engine.worker.run(self.pid)))
        worker.start()
        while worker.is_alive():
            meanwhile()
            worker.join(timeout=0.5)
        [outcome] = found
        return outcome

    def run(self) -> Outcome:
        """One job, its checkpoints counted meanwhile."""

        def count() -> None:
            self.most_checkpoints = max(self.most_checkpoints, len(self.checkpoints))

        outcome = self.attempt(count)
        assert outcome is not None, self.stage.row(self.name).protection.last_error
        return outcome

    def to_the_end(self, after_each: Callable[[int], None] = lambda _n: None) -> list[Outcome]:
        """Until the point is published."""
        done = []
        for number in range(1, 20):
            done.append(self.run())
            if done[-1].seq is not None:
                return done
            assert done[-1].result is not None
            assert done[-1].result.duration_s < JOB_S + 4
            self.assert_nothing_is_offered()
            after_each(number)
        raise AssertionError("the first copy did not end")

    def assert_nothing_is_offered(self) -> None:
        view = self.view
        assert view.manifest.points == ()
        assert view.incoming is not None
        replica = self.stage.lab.sites["b"].path(f"/var/lib/libvirt/images/vapor/{self.uuid}")
        assert list((replica / "disks").iterdir()) == []
        assert self.stage.backend.failover_preview(self.pid).points == ()
        with pytest.raises(VaporError):
            self.stage.backend.failover(self.pid, None, "too early")
        assert self.stage.lab.sites["b"].virsh("list", "--all", "--name").split().count(self.name) == 0

    def assert_boots(self) -> None:
        """At the target, with a diary that has no torn and no missing record on any disk."""
        assert self.stage.backend.failover(self.pid, None, "proof of the first copy") < 3.0
        line = self.stage.wait_booted(self.name, "b", timeout_s=90)
        assert re.search(r" gaps=0 torn=0 ", f"{line} "), line
        self.stage.lab.sites["b"].virsh("destroy", self.name)
        self.stage.lab.sites["a"].virsh("destroy", self.name, check=False)

    def assert_compared(self, disks: set[str]) -> None:
        mine = [c for c in self.stage.comparisons if c.vm_name == self.name]
        assert {c.disk for c in mine} == disks
        assert [c for c in mine if not c.identical] == []


def test_several_jobs_under_writes_end_in_one_identical_bootable_point(stage: Stage) -> None:
    job = Job(stage, PLAIN, disk_count=2)
    received: list[int] = []

    def look(_number: int) -> None:
        incoming = job.view.incoming
        assert incoming is not None
        assert job.checkpoints == {incoming.checkpoint}  # no others between jobs
        received.append(sum(incoming.received_bytes.values()))

    done = job.to_the_end(look)
    assert len(done) >= JOBS_AT_LEAST
    assert {o.mode for o in done} == {"full"}
    assert job.most_checkpoints == 2  # while a job runs: the incoming's and the job's
    assert received == sorted(received)
    newest = job.view.manifest.newest
    assert newest is not None
    assert job.checkpoints == {newest.checkpoint}
    job.assert_compared({"vda", "vdb"})
    first, second = (o.result.data_bytes if o.result else 0 for o in done[:2])
    assert 0 < second < 2 * first  # what had arrived did not travel again
    later = job.run()
    assert later.mode == "delta"
    job.assert_compared({"vda", "vdb"})
    job.assert_boots()


def test_a_link_cut_in_the_middle_of_a_full_copy_costs_only_what_was_under_way(stage: Stage) -> None:
    job = Job(stage, CUT, job_s=600, share=24)
    seen: list[Progress] = []

    def cut_in_the_middle() -> None:
        progress = job.engine.worker.progress(job.pid)
        if not seen and progress is not None and progress.wire_bytes > 0.3 * job.allocated_bytes:
            stage.lab.cut_link()
            seen.append(progress)

    try:
        assert job.attempt(cut_in_the_middle) is None
        assert len(seen) == 1
        failed = job.engine.repository.protection(job.pid)  # not the row: it is half a second old
        assert failed is not None
        assert failed.last_error_code == "TRANSFER-INTERRUPTED"
        job.assert_nothing_is_offered()
    finally:
        stage.lab.mend_link()
    incoming = job.view.incoming
    assert incoming is not None
    proofs.set_policy(stage, CUT, bandwidth_bytes_s=None)
    done = job.run()
    assert done.seq is not None
    assert done.mode == "full"
    assert done.result is not None
    # What had arrived did not travel again, but for what the guest has written since.
    missing = incoming.sizes["vda"] - incoming.received_bytes["vda"]
    assert 0 < done.result.data_bytes + done.result.zero_bytes < missing + SINCE_BYTES
    assert done.result.wire_bytes < 0.75 * (seen[0].wire_bytes + done.result.wire_bytes)
    job.assert_compared({"vda"})
    proofs.assert_nothing_is_left(stage, [CUT])
    job.assert_boots()


@pytest.mark.soak
def test_a_crash_of_qemu_between_jobs_costs_a_comparison_not_the_copy(stage: Stage) -> None:
    job = Job(stage, CRASHED)
    a = stage.lab.sites["a"]
    before: list[int] = []

    def crash(number: int) -> None:
        if number != 2:
            return
        incoming = job.view.incoming
        assert incoming is not None
        before.append(sum(incoming.received_bytes.values()))
        os.kill(a.pid_of(f"qemu:{CRASHED}"), signal.SIGKILL)
        wait_until(lambda: a.virsh("domstate", CRASHED) == "shut off", "the end of QEMU", timeout_s=20, every_s=0.1)
        said = len(a.serial(CRASHED))
        a.virsh("start", CRASHED)
        guests.wait_for(a, CRASHED, "VAPOR-DIARY ", timeout_s=120, after=said)

    done = job.to_the_end(crash)
    assert done[2].mode == "compare"
    job.assert_compared({"vda"})
    sent = sum(o.result.data_bytes for o in done if o.result)
    size = a.path(a.disks_of(CRASHED)[0]).stat().st_blocks * 512
    assert sent < 1.5 * size  # two jobs' worth was not sent twice
    job.assert_boots()


@pytest.mark.soak
def test_a_vm_that_stops_between_jobs_and_writes_before_is_copied_right(stage: Stage) -> None:
    job = Job(stage, OFF)
    a = stage.lab.sites["a"]

    def stop(number: int) -> None:
        if number == 1:
            guests.shut_down(a, OFF)
        elif number == 2:  # it runs and writes between two jobs that both find it off
            said = len(a.serial(OFF))
            a.virsh("start", OFF)
            guests.wait_for(a, OFF, "VAPOR-DIARY ", timeout_s=120, after=said)
            guests.shut_down(a, OFF)

    done = job.to_the_end(stop)
    assert len(done) >= JOBS_AT_LEAST
    [image] = a.disks_of(OFF)
    newest = job.view.manifest.newest
    assert newest is not None
    replica = Path(f"/var/lib/libvirt/images/vapor/{job.uuid}/disks") / newest.files["vda"]
    source, copy = str(a.path(image)), str(stage.lab.sites["b"].path(str(replica)))
    assert bitmaps(source) == {newest.checkpoint}
    assert_same(source, copy)
    job.assert_boots()


def test_a_seeded_first_copy_sends_only_what_differs(stage: Stage) -> None:
    """The image at the target is an old one, taken under writes, readable by root alone."""
    job = Job(stage, SEEDED)
    a, b = stage.lab.sites["a"], stage.lab.sites["b"]
    there = "/var/lib/libvirt/images/from-a-tape.qcow2"
    [image] = a.disks_of(SEEDED)
    subprocess.run(["qemu-img", "convert", "-U", "-O", "qcow2", a.path(image), b.path(there)], check=True)
    b.path(there).chmod(0o600)
    before = b.path(there).read_bytes()
    a.guest_shell(SEEDED, "sync")
    said = subprocess.run(
        [sys.executable, "-m", "vapor_desktop.cli.main", "seed", "--json", SEEDED, f"vda={there}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stdout + said.stderr
    view = job.view
    assert view.seeded == ("vda",)
    assert view.manifest.points == ()
    assert stage.backend.failover_preview(job.pid).points == ()
    done = job.to_the_end()
    assert {o.mode for o in done} == {"compare"}
    sent = sum(o.result.data_bytes for o in done if o.result)
    assert sent < a.path(image).stat().st_blocks * 512 / 4
    job.assert_compared({"vda"})
    assert job.view.seeded == ()
    later = job.run()
    assert later.mode == "delta"
    assert later.extra_files == 1  # the seed, below the points: retention leaves room for it
    assert b.path(there).read_bytes() == before
    with pytest.raises(Conflict):
        stage.backend.seed(job.pid, {"vda": there})
    job.assert_boots()


def bitmaps(image: str) -> set[str]:
    """Names of the bitmaps in an image."""
    asked = ["qemu-img", "info", "-U", "--output=json", image]
    info = json.loads(subprocess.run(asked, capture_output=True, text=True, check=True).stdout)
    return {b["name"] for b in info["format-specific"]["data"].get("bitmaps", [])}


def assert_same(source: str, copy: str) -> None:
    asked = ["qemu-img", "compare", "-U", "-f", "qcow2", "-F", "qcow2", source, copy]
    done = subprocess.run(asked, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
