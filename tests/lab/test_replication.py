"""The main job, end to end, on two real hosts: every disk of every point is the source's frozen export.

The guests keep diaries (``vapor_desktop/lab/diary.py``): numbered, checksummed records on every disk.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vapor_desktop.lab import guests
from vapor_desktop.lab.keyring_session import KeyringSession
from vapor_desktop.lab.lab import Lab, Site
from vapor_desktop.lab.processes import wait_until
from vapor_desktop.lab.stage import Stage, remove_guests

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]
NAMES = ["web", "db"]


@pytest.fixture(scope="module")
def stage(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Two paired sites and two protected guests under load, on an engine of this process."""
    remove_guests(lab)
    home = tmp_path_factory.mktemp("console")
    for spec in guests.DEFAULT_GUESTS:
        guests.add(lab.sites["a"], spec, lab.cache)
    for name in NAMES:
        guests.wait_for(lab.sites["a"], name, "VAPOR-DIARY ", timeout_s=90)
    with KeyringSession(home):
        made = Stage(lab, home)
        made.open()
        try:
            a, b = made.pair()
            made.compare_every_point()
            made.protect(a, b, NAMES, rpo_target_s=10)
            yield made
        finally:
            made.close()
            remove_guests(lab)


def replica_files(stage: Stage, name: str, pattern: str = "*") -> list[Path]:
    uuid = stage.row(name).protection.vm_uuid
    return sorted(stage.lab.sites["b"].path(f"/var/lib/libvirt/images/vapor/{uuid}").glob(pattern))


def agent_answers(stage: Stage) -> bool:
    words = ["virsh", "-q", "-c", "qemu:///system", "qemu-agent-command", "web", '{"execute":"guest-ping"}']
    return stage.lab.sites["a"].exec(words, check=False).returncode == 0


def next_points(stage: Stage, count: int = 1, timeout_s: float = 120) -> None:
    """Wait for that many more points of every guest."""
    wanted = {n: (stage.row(n).last_seq or 0) + count for n in NAMES}
    for name, seq in wanted.items():
        stage.wait_for_point(name, seq, timeout_s=timeout_s)


def assert_identical(stage: Stage) -> None:
    assert stage.comparisons, "nothing was compared"
    assert [c for c in stage.comparisons if not c.identical] == []


def test_cycles_under_load_are_identical_on_every_disk(stage: Stage) -> None:
    for name in NAMES:
        stage.wait_for_point(name, 5, timeout_s=240)
    assert_identical(stage)
    assert {c.disk for c in stage.comparisons if c.vm_name == "db"} == {"vda", "vdb"}
    modes = [c.mode for c in stage.backend.cycles(stage.row("web").key) if c.outcome == "point"]
    assert modes[-1] == "full"
    assert set(modes[:-1]) == {"delta"}


def test_the_rpo_is_known_and_within_its_target(stage: Stage) -> None:
    next_points(stage)
    for name in NAMES:
        row = stage.row(name)
        assert row.rpo_now_s is not None
        assert row.rpo_now_s < 10


def test_nothing_is_left_between_cycles(stage: Stage) -> None:
    a = stage.lab.sites["a"]
    stage.backend.pause(stage.row("web").key)
    try:
        wait_until(lambda: stage.row("web").cycle_started_at is None, "the end of the cycle", timeout_s=60)
        checkpoints = a.virsh("checkpoint-list", "web", "--name").split()
        assert len(checkpoints) == 1
        assert a.virsh("domjobinfo", "web").split()[-1] == "None"
        assert not list(a.path("/var/lib/libvirt/images/.vapor-scratch").glob("*web*"))
        assert a.virsh("domstate", "web") == "running"
        assert replica_files(stage, "web", "incoming/*") == []
    finally:
        stage.backend.resume(stage.row("web").key)


def test_a_cut_link_keeps_the_last_point_and_the_next_cycle_needs_no_hand(stage: Stage) -> None:
    before = {n: stage.row(n).last_seq for n in NAMES}
    stage.lab.cut_link()
    try:
        wait_until(lambda: stage.row("web").protection.failures > 0, "a failed cycle", timeout_s=120)
        assert stage.row("web").last_seq is not None
    finally:
        stage.lab.mend_link()
    for name in NAMES:
        stage.wait_for_point(name, (before[name] or 0) + 2, timeout_s=180)
    assert_identical(stage)


@pytest.mark.parametrize("victim", ["sshd", "libvirtd", "serve"])
@pytest.mark.parametrize("site", ["a", "b"])
def test_a_killed_daemon_costs_no_point(stage: Stage, victim: str, site: str) -> None:
    host = stage.lab.sites[site]
    os.kill(host.pid_of(victim), signal.SIGKILL)
    if victim == "libvirtd":
        host.start_libvirt()
    elif victim == "sshd":
        host.exec(["/usr/sbin/sshd", "-f", "/etc/ssh/sshd_config", "-E", "/var/log/libvirt/sshd.log"])
    else:
        host.start_site_service()
    next_points(stage, timeout_s=150)
    assert_identical(stage)


def processes_of(host: Site, word: str) -> list[int]:
    """Pids on that host whose command line has the word."""
    found = []
    for pid in host.processes():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if word.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                found.append(pid)
    return found


@pytest.mark.parametrize(("site", "word"), [("a", "console"), ("b", "peer")])
def test_a_killed_end_of_the_mover_costs_no_point(stage: Stage, site: str, word: str) -> None:
    host = stage.lab.sites[site]
    wait_until(lambda: bool(processes_of(host, word)), f"a running {word}", timeout_s=60)
    wait_until(
        lambda: any(stage.row(n).cycle_started_at is not None for n in NAMES), "a cycle", timeout_s=60, every_s=0.01
    )
    for pid in processes_of(host, word):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    next_points(stage, 2, timeout_s=150)
    assert_identical(stage)


def test_a_killed_engine_leaves_nothing_that_the_next_one_cannot_mend(stage: Stage) -> None:
    """The engine of another process is killed in the middle of a cycle; ours goes on without a hand."""
    stage.close()
    words = [sys.executable, "-m", "vapor_desktop.cli.main", "watch", "--json", "--interval", "0.5"]
    engine = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert engine.stdout is not None
    try:
        for line in engine.stdout:  # until a cycle runs there
            if any(row["state"] in {"syncing", "comparing"} for row in json.loads(line)):
                break
    finally:
        engine.kill()
        engine.wait()
        engine.stdout.close()
    stage.open()
    stage.compare_every_point()
    next_points(stage, 2, timeout_s=150)
    assert_identical(stage)
    for name in NAMES:
        assert stage.lab.sites["a"].virsh("domstate", name) == "running"


def test_a_killed_qemu_means_compare_and_sends_only_what_differs(stage: Stage) -> None:
    a = stage.lab.sites["a"]
    os.kill(a.pid_of("qemu:web"), signal.SIGKILL)
    wait_until(lambda: a.virsh("domstate", "web") == "shut off", "the end of QEMU", timeout_s=20, every_s=0.1)
    said = len(guests.serial(a, "web"))
    a.virsh("start", "web")
    guests.wait_for(a, "web", "VAPOR-DIARY ", timeout_s=90, after=said)
    seq = (stage.row("web").last_seq or 0) + 1
    stage.wait_for_point("web", seq, timeout_s=180)
    cycles = [c for c in stage.backend.cycles(stage.row("web").key, 20) if c.outcome == "point"]
    compared = [c for c in cycles if c.mode == "compare"]
    assert compared
    assert compared[0].data_bytes < 512 << 20
    assert_identical(stage)


def test_a_grown_disk_grows_at_the_target(stage: Stage) -> None:
    a = stage.lab.sites["a"]
    before = stage.row("db").protection.vm_uuid
    wait_until(lambda: stage.row("db").cycle_started_at is None, "the gap between cycles", timeout_s=60, every_s=0.05)
    for _ in range(20):  # a job may hold the VM just now; libvirt says so and it is tried again
        done = a.exec(["virsh", "-q", "-c", "qemu:///system", "blockresize", "db", "vdb", "3GiB"], check=False)
        if done.returncode == 0:
            break
        wait_until(lambda: stage.row("db").cycle_started_at is None, "the gap", timeout_s=60, every_s=0.05)
    assert done.returncode == 0, done.stderr
    stage.wait_for_point("db", (stage.row("db").last_seq or 0) + 2, timeout_s=120)
    assert stage.row("db").protection.vm_uuid == before
    assert_identical(stage)


def test_an_idle_and_a_stopped_vm_stay_current_without_new_points(stage: Stage) -> None:
    a = stage.lab.sites["a"]
    wait_until(lambda: agent_answers(stage), "the guest agent", timeout_s=60, every_s=0.5)
    a.virsh("shutdown", "web", "--mode", "agent")
    wait_until(lambda: a.virsh("domstate", "web") == "shut off", "the guest's shutdown", timeout_s=60, every_s=0.2)
    stage.wait_for_point("web", (stage.row("web").last_seq or 0) + 1, timeout_s=120)

    def settled() -> bool:
        last = stage.backend.cycles(stage.row("web").key, 2)
        return [c.outcome for c in last] == ["unchanged", "unchanged"]

    wait_until(settled, "two cycles with nothing to send", timeout_s=120, every_s=0.2)
    row = stage.row("web")
    assert row.rpo_now_s is not None
    assert row.rpo_now_s < 10
    said = len(guests.serial(a, "web"))
    a.virsh("start", "web")
    guests.wait_for(a, "web", "VAPOR-DIARY ", timeout_s=90, after=said)
    stage.wait_for_point("web", (row.last_seq or 0) + 1, timeout_s=120)
    assert_identical(stage)


def test_a_damaged_manifest_deletes_nothing_and_is_rebuilt(stage: Stage) -> None:
    b = stage.lab.sites["b"]
    stage.backend.pause(stage.row("web").key)
    wait_until(lambda: stage.row("web").cycle_started_at is None, "the end of the cycle", timeout_s=60)
    [manifest] = replica_files(stage, "web", "manifest.json")
    before = {p.name: p.stat().st_size for p in replica_files(stage, "web", "disks/*")}
    manifest.write_bytes(manifest.read_bytes()[:100])
    stage.backend.resume(stage.row("web").key)
    stage.backend.sync_now(stage.row("web").key)
    wait_until(
        lambda: stage.row("web").protection.last_error_code == "MANIFEST-INVALID",
        "the alarm",
        timeout_s=60,
        every_s=0.1,
    )
    assert {p.name: p.stat().st_size for p in replica_files(stage, "web", "disks/*")} == before
    b.exec(["vapor-site", "rebuild", stage.row("web").protection.vm_uuid], user="vapor")
    next_points(stage, timeout_s=120)
    assert_identical(stage)


def test_emergency_failover_of_a_dark_site_boots_with_nothing_torn(stage: Stage) -> None:
    """Last: it ends the stage. The power goes while cycles run; a fresh console that knows only B does it."""
    lab = stage.lab
    next_points(stage)
    lab.kill_site("a")
    stage.close()
    (stage.home / "vapor.db").unlink()
    backend = stage.open()
    [b] = stage.add_sites(["b"])
    adopted = {p.vm_name: p.protection_id for p in backend.adopt_replicas(b.site_id)}
    assert set(adopted) == set(NAMES)
    for name in NAMES:
        took_s = backend.failover(adopted[name], None, "proof: site a is dark")
        assert took_s < 3.0
    for name in NAMES:
        line = stage.wait_booted(name, "b")
        assert " gaps=0 " in f"{line} "
        assert " torn=0 " in f"{line} "
        row = stage.row(name)
        assert row.protection.phase.value == "failed over"
        assert row.protection.epoch_number == 2
        assert row.rpo_now_s is None
