"""The main job, end to end, on two real hosts: every disk of every point is the source's frozen export.

The guests keep diaries (``vapor_desktop/lab/diary.py``): numbered, checksummed records on every disk.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import proofs
import pytest

from vapor_desktop.lab import guests
from vapor_desktop.lab.guests import GuestSpec
from vapor_desktop.lab.keyring_session import KeyringSession
from vapor_desktop.lab.lab import Lab, Site
from vapor_desktop.lab.processes import LabFailed, kill, wait_until
from vapor_desktop.lab.stage import Stage, remove_guests

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]
NAMES = ["web", "db"]
THIRD = "app"  # protected for the first proof only
RPO_TARGET_S = 10
BASELINE_S = 20
LONGEST_STALL_S = 1.0


@dataclass
class Baseline:
    """How the guests did before there was any cycle, by their own clocks."""

    began_ns: dict[str, int] = field(default_factory=dict)
    ended_ns: dict[str, int] = field(default_factory=dict)


@pytest.fixture(scope="module")
def baseline() -> Baseline:
    """Filled when the stage is set."""
    return Baseline()


@pytest.fixture(scope="module")
def stage(lab: Lab, baseline: Baseline, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Two paired sites and three protected guests under load, on an engine of this process."""
    remove_guests(lab)
    home = tmp_path_factory.mktemp("console")
    host = lab.sites["a"]
    for spec in (*guests.DEFAULT_GUESTS, GuestSpec(THIRD)):
        guests.add(host, spec, lab.cache)
    for name in (*NAMES, THIRD):
        guests.wait_for(host, name, "VAPOR-DIARY ", timeout_s=90)
        wait_until(lambda n=name: agent_answers(lab, n), f"the agent of {name}", timeout_s=60)  # type: ignore[misc]
        baseline.began_ns[name] = guest_clock_ns(lab, name)
    with KeyringSession(home):
        made = Stage(lab, home)
        made.open()
        try:
            a, b = made.pair()
            made.compare_every_point()
            for name in (*NAMES, THIRD):
                until_ns = baseline.began_ns[name] + BASELINE_S * 10**9
                wait_until(lambda n=name, u=until_ns: guest_clock_ns(lab, n) >= u, "the baseline", timeout_s=90)  # type: ignore[misc]
                baseline.ended_ns[name] = guest_clock_ns(lab, name)
            made.protect(a, b, [*NAMES, THIRD], rpo_target_s=RPO_TARGET_S)
            yield made
        finally:
            made.close()
            remove_guests(lab)


def replica_files(stage: Stage, name: str, pattern: str = "*") -> list[Path]:
    uuid = stage.row(name).protection.vm_uuid
    return sorted(stage.lab.sites["b"].path(f"/var/lib/libvirt/images/vapor/{uuid}").glob(pattern))


def agent_answers(lab: Lab, name: str) -> bool:
    words = ["virsh", "-q", "-c", "qemu:///system", "qemu-agent-command", name, '{"execute":"guest-ping"}']
    return lab.sites["a"].exec(words, check=False).returncode == 0


def guest_clock_ns(lab: Lab, name: str) -> int:
    """The guest's own time, the one its diary's records carry. One that is frozen just now is asked again."""
    answers: list[object] = []

    def told() -> bool:
        with contextlib.suppress(LabFailed):
            answers.append(guests.agent(lab.sites["a"], name, "guest-get-time"))
        return bool(answers)

    wait_until(told, f"the clock of {name}", timeout_s=30, every_s=0.1)
    assert isinstance(answers[0], int)
    return answers[0]


def next_points(stage: Stage, count: int = 1, timeout_s: float = 120) -> None:
    """Wait for that many more points of every guest."""
    wanted = {n: (stage.row(n).last_seq or 0) + count for n in NAMES}
    for name, seq in wanted.items():
        stage.wait_for_point(name, seq, timeout_s=timeout_s)


def assert_identical(stage: Stage) -> None:
    assert stage.comparisons, "nothing was compared"
    assert [c for c in stage.comparisons if not c.identical] == []


@contextlib.contextmanager
def lifecycle_events(lab: Lab) -> Iterator[Path]:
    """What libvirt tells of all guests of host A meanwhile, line by line in a file."""
    said = lab.sites["a"].path("/tmp/lifecycle")  # noqa: S108 - the host's own
    words = ["virsh", "-c", "qemu:///system", "event", "--all", "--loop"]
    with said.open("w") as file:
        process = subprocess.Popen([*lab.sites["a"].enter(), *words], stdout=file)
        try:
            yield said
        finally:
            process.terminate()
            process.wait()


def test_ten_cycles_of_three_guests_under_load_are_identical_and_stall_nobody(
    stage: Stage, baseline: Baseline, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [*NAMES, THIRD]
    frozen_s: dict[str, list[float]] = {name: [] for name in names}
    with lifecycle_events(stage.lab) as events:
        for seq in range(1, 11):
            for name in names:
                stage.wait_for_point(name, seq, timeout_s=240)
                point = proofs.target_api(stage, name).point(stage.row(name).protection.vm_uuid, seq)
                frozen_s[name].append(point.frozen_s)
        assert "Suspended" not in events.read_text()
    assert_identical(stage)
    for name in names:
        compared = {(c.seq, c.disk) for c in stage.comparisons if c.vm_name == name}
        disks = {"vda", "vdb"} if name == "db" else {"vda"}
        assert compared >= {(seq, disk) for seq in range(1, 11) for disk in disks}
        modes = [c.mode for c in stage.backend.cycles(stage.row(name).key) if c.outcome == "point"]
        assert modes[-1] == "full"
        assert set(modes[:-1]) == {"delta"}
    with proofs.quiet(stage):
        for name in names:
            diary = stage.lab.sites["b"].diary(proofs.newest_files(stage, name))
            assert diary.sound
            without = diary.longest_gap_s(baseline.began_ns[name], baseline.ended_ns[name])
            during = diary.longest_gap_s(baseline.ended_ns[name])
            with capsys.disabled():
                print(
                    f"\n{name}: longest gap {during:.2f} s during cycles, {without:.2f} s without; "
                    f"frozen {max(frozen_s[name]):.2f} s at most"
                )
            assert without > 0
            assert during < without + LONGEST_STALL_S
            assert min(frozen_s[name]) > 0
            assert statistics.median(frozen_s[name]) < LONGEST_STALL_S
            assert max(frozen_s[name]) < without + LONGEST_STALL_S  # it counts the calls' way there and back, too


def test_unprotecting_with_the_replica_leaves_nothing_on_either_side(stage: Stage) -> None:
    a, b = stage.lab.sites["a"], stage.lab.sites["b"]
    row = stage.row(THIRD)
    stage.backend.unprotect(row.key, delete_replica=True)
    assert a.virsh("checkpoint-list", THIRD, "--name") == ""
    assert not b.path(f"{proofs.REPLICAS}/{row.protection.vm_uuid}").exists()
    a.virsh("destroy", THIRD)
    a.virsh("undefine", THIRD)
    proofs.assert_nothing_is_left(stage, NAMES)


def test_the_rpo_is_known_and_within_its_target(stage: Stage) -> None:
    next_points(stage)
    for name in NAMES:
        row = stage.row(name)
        assert row.rpo_now_s is not None
        assert row.rpo_now_s < 10


def test_a_cut_link_keeps_a_last_point_that_boots_and_the_next_cycle_needs_no_hand(stage: Stage) -> None:
    before = {n: stage.row(n).last_seq or 0 for n in NAMES}
    b = stage.lab.sites["b"]
    with proofs.sending(stage, "web"):
        stage.lab.cut_link()
        try:
            with proofs.booted_copy(b, "proof", proofs.newest_files(stage, "web")) as line:
                proofs.assert_sound(line)
            proofs.judged(b, proofs.newest_files(stage, "db"))
            wait_until(lambda: stage.row("web").protection.failures > 0, "a failed cycle", timeout_s=120)
            proofs.judged(b, proofs.newest_files(stage, "web"))
        finally:
            stage.lab.mend_link()
    for name in NAMES:
        stage.wait_for_point(name, before[name] + 2, timeout_s=180)
    assert_identical(stage)
    proofs.assert_nothing_is_left(stage, NAMES)


def kill_all(host: Site, victim: str) -> None:
    """kill -9 of a daemon; with sshd every session of it, with the site service its root helper too."""
    if victim == "sshd":
        pids = [p.pid for p in proofs.processes(host) if p.program.startswith("sshd")]
    elif victim == "serve":
        pids = [host.pid_of("serve"), host.pid_of("helper")]
    else:
        pids = [host.pid_of(victim)]
    for pid in pids:
        kill(pid)


def start_again(host: Site, victim: str) -> None:
    """What systemd would do."""
    if victim == "libvirtd":
        host.start_libvirt()
    elif victim == "sshd":
        host.exec(["/usr/sbin/sshd", "-f", "/etc/ssh/sshd_config", "-E", "/var/log/libvirt/sshd.log"])
    else:
        host.start_site_service()


@pytest.mark.parametrize("victim", ["sshd", "libvirtd", "serve"])
@pytest.mark.parametrize("site", ["a", "b"])
def test_a_killed_daemon_costs_no_point_and_leaves_nothing(stage: Stage, victim: str, site: str) -> None:
    host = stage.lab.sites[site]
    # Only one sends: libvirt 9.0 killed while it *begins* a backup job keeps a job that nothing ends any more.
    due_s = proofs.set_policy(stage, "db", rpo_target_s=proofs.NEVER_DUE_S).rpo_target_s
    with proofs.sending(stage, "web"):
        last = proofs.newest_files(stage, "web")
        kill_all(host, victim)
        proofs.judged(stage.lab.sites["b"], last)
        start_again(host, victim)
    proofs.set_policy(stage, "db", rpo_target_s=due_s)
    next_points(stage, timeout_s=150)
    assert_identical(stage)
    proofs.assert_nothing_is_left(stage, NAMES)


@pytest.mark.parametrize(("site", "word"), [("a", "console"), ("b", "peer")])
def test_a_killed_end_of_the_mover_costs_no_point_and_leaves_nothing(stage: Stage, site: str, word: str) -> None:
    host = stage.lab.sites[site]
    with proofs.sending(stage, "web"):
        last = proofs.newest_files(stage, "web")
        ends = [p.pid for p in proofs.processes(host) if word in p.words]
        assert ends
        for pid in ends:
            kill(pid)
        proofs.judged(stage.lab.sites["b"], last)
    next_points(stage, 2, timeout_s=150)
    assert_identical(stage)
    proofs.assert_nothing_is_left(stage, NAMES)


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
    proofs.assert_nothing_is_left(stage, NAMES)


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
    proofs.assert_nothing_is_left(stage, NAMES)


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
    wait_until(lambda: agent_answers(stage.lab, "web"), "the guest agent", timeout_s=60, every_s=0.5)
    guests.shut_down(a, "web")
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


def test_emergency_failover_in_the_middle_of_a_cycle_boots_with_nothing_torn(stage: Stage) -> None:
    """Last: it ends the stage. The power goes while a cycle sends; a fresh console that knows only B does it."""
    lab, b = stage.lab, stage.lab.sites["b"]
    next_points(stage)
    proofs.begin_sending(stage, "db")
    ahead_s = {name: guest_clock_ns(lab, name) / 1e9 - time.time() for name in NAMES}
    lab.kill_site("a")
    views = {name: proofs.view(stage, name) for name in NAMES}
    assert views["db"].incoming is not None  # half a point: nothing of it may be seen
    stage.close()
    stage.home = stage.home / "another-desk"
    stage.home.mkdir()
    backend = stage.open()
    [site_b] = stage.add_sites(["b"])
    adopted = {p.vm_name: p.protection_id for p in backend.adopt_replicas(site_b.site_id)}
    assert set(adopted) >= set(NAMES)
    for name in NAMES:
        took_s = backend.failover(adopted[name], None, "proof: site a is dark")
        assert took_s < 3.0
    for name, seen in views.items():
        point = seen.manifest.newest
        assert point is not None
        diary = proofs.judged(b, proofs.files_of(seen))
        newest = diary.per_disk[0].newest
        assert newest is not None
        # Up to the point: the last record is of the instant in which it was taken.
        assert -0.5 < point.taken_at.timestamp() - (newest.time_ns / 1e9 - ahead_s[name]) < 2.0
        verdict = b.wait_boot(name)
        assert (verdict.gaps, verdict.torn, verdict.disks) == (0, 0, len(point.files))
        assert verdict.skew <= 1
        assert verdict.last - verdict.skew == diary.last
        row = stage.row(name)
        assert row.protection.phase.value == "provisional"
        assert row.protection.epoch_number == 2
        assert row.rpo_now_s is None
