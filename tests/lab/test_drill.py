"""A drill on two real hosts: a copy boots in a bubble that nothing leaves, replication goes on, and nothing stays."""

from __future__ import annotations

import base64
import os
import signal
from collections.abc import Iterator

import proofs
import pytest

from vapor_desktop.hypervisor.bubbles import _told_by_agent
from vapor_desktop.lab import guests
from vapor_desktop.lab.keyring_session import KeyringSession
from vapor_desktop.lab.lab import Lab
from vapor_desktop.lab.processes import wait_until
from vapor_desktop.lab.stage import Stage, remove_guests
from vapor_desktop.model.drills import DrillPhase, DrillRecord, DrillStop, DrillVm
from vapor_desktop.model.operations import Operation, OperationKind, OperationState
from vapor_desktop.model.states import DrillState, RpoHealth, Verification

pytestmark = [pytest.mark.lab, pytest.mark.timeout(420)]
NAME = "small"
# Not waited for: that it boots is another proof's.
UNWATCHED = {"boot_s": 1, "agent": False}
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def stage(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """One guest with an address of its own, protected and under load."""
    remove_guests(lab)
    home = tmp_path_factory.mktemp("console")
    a = lab.sites["a"]
    guests.add(a, guests.GuestSpec(NAME, rate=5, scratch=1), lab.cache)
    guests.wait_for(a, NAME, "VAPOR-GUEST address ", timeout_s=90)
    with KeyringSession(home):
        made = Stage(lab, home)
        made.open()
        try:
            site_a, site_b = made.pair()
            made.protect(site_a, site_b, [NAME], rpo_target_s=10)
            made.wait_for_point(NAME, 2)
            yield made
        finally:
            made.close()
            remove_guests(lab)


def operate(stage: Stage, kind: OperationKind, timeout_s: float = 150, **args: object) -> Operation:
    key = stage.row(NAME).key
    asked = stage.backend.begin_operation(kind, key, args, "to see that it would start")
    return stage.backend.wait_operation(asked, timeout_s)


def drills(stage: Stage) -> list[DrillRecord]:
    return [r for r in proofs.target_api(stage, NAME).drills() if r.open]


def test_a_copy_boots_in_a_bubble_while_cycles_run_and_leaves_nothing(stage: Stage) -> None:
    a, b, api = stage.lab.sites["a"], stage.lab.sites["b"], proofs.target_api(stage, NAME)
    before, key = proofs.traces_of_drills(stage), stage.row(NAME).key
    protection = stage.row(NAME).protection
    assert stage.program is not None
    source = stage.program.engine.gateway.hypervisor(stage.backend._site(protection.source_site))
    [address] = [nic.address for nic in source.nics(protection.vm_uuid)[0]]
    with source._link.domain(protection.vm_uuid, "-") as dom:  # type: ignore[attr-defined]
        assert set(_told_by_agent(dom).values()) == {address}, "where no lease tells"
    wanted = {"tcp_ports": [80], "script": "hostname"}
    done = operate(stage, OperationKind.DRILL, wanted=wanted)
    assert done.state is OperationState.DONE, done.error
    print(f"drill to running: {done.result['drill_to_running_s']:.2f} s, usable after {done.result['usable_s']} s")
    print(
        {
            s.name: round((s.ended_at - s.started_at).total_seconds(), 2)
            for s in done.steps
            if s.ended_at and s.started_at
        }
    )
    # Isolation was proven before the start, and is shown; the copy has the production VM's address.
    probes = next(text for text in done.result["isolation"] if "probes reach" in text)
    for outsider in (address, a.layout.address, b.layout.address):
        assert outsider in probes
    checks = {c["key"]: c for c in done.result["checks"]}
    assert {k: c["state"] for k, c in checks.items()} == dict.fromkeys(
        ("boot", "dhcp", "agent", "tcp:80", "script", "screen"), "ok"
    ), checks
    assert address in checks["dhcp"]["text"]
    assert checks["script"]["text"].startswith("exit code 0: " + NAME)
    [record] = drills(stage)
    copy = record.vm(stage.row(NAME).protection.vm_uuid)
    assert copy is not None
    # From inside: nobody of the outside is reached, and nothing of the guest's own gets out.
    tried = " ".join((a.layout.address, b.layout.address, a.layout.lab.console_address))
    script = f"for h in {tried}; do ping -c 1 -W 1 $h >/dev/null 2>&1 && echo $h; done"
    script += f"; ip addr show eth0 | grep -c {address}"
    assert guests.guest_shell(b, copy.domain_name, script).split() == ["1"]
    assert stage.row(NAME).protection.drill is DrillState.RUNNING
    # Replication goes on, and a merge never touches what the drill reads.
    seq = stage.row(NAME).last_seq or 0
    stage.wait_for_point(NAME, seq + 2)
    assert stage.row(NAME).rpo_health in {RpoHealth.WITHIN, RpoHealth.AT_RISK}
    assert f"drill:{record.drill_id}" in {pin for p in stage.backend.points(key) for pin in p.pins}
    picture = base64.b64decode(api.drill_screen(record.drill_id, copy.vm_uuid).png)
    assert picture.startswith(PNG)

    stopped = operate(stage, OperationKind.STOP_DRILL, passed=True, note="it works")
    assert stopped.state is OperationState.DONE, stopped.error
    assert (stopped.result["left"], stopped.result["appeared"], stopped.result["gone"]) == ([], [], [])
    assert proofs.traces_of_drills(stage) == before
    assert drills(stage) == []
    proven = next(p for p in stage.backend.points(key) if p.seq == copy.seq)
    assert proven.proven_at is not None
    assert proven.pins == ()
    proof = api.point_proof(copy.vm_uuid, copy.seq)
    assert base64.b64decode(proof.png).startswith(PNG)
    assert proof.boot_s == copy.boot_s
    row = stage.row(NAME).protection
    assert (row.drill, row.verification) == (DrillState.NONE, Verification.PASSED)
    assert stopped.result["rpo_during_s"] is not None
    assert "failed" not in {c.outcome for c in stage.backend.cycles(key) if c.started_at >= done.started_at}
    print({k: stopped.result[k] for k in ("rpo_before_s", "rpo_during_s", "inventory")})


def test_a_drill_that_began_by_itself_is_judged_by_its_checks(stage: Stage) -> None:
    before, key = proofs.traces_of_drills(stage), stage.row(NAME).key
    done = operate(stage, OperationKind.DRILL, scheduled=True)
    assert done.state is OperationState.DONE, done.error
    assert (done.result["passed"], done.result["left"]) == (True, [])
    assert proofs.traces_of_drills(stage) == before
    row = stage.row(NAME).protection
    assert (row.drill, row.verification) == (DrillState.NONE, Verification.PASSED)
    assert row.drilled_at == max(p.proven_at for p in stage.backend.points(key) if p.proven_at is not None)


def test_a_bubble_that_leaks_starts_nothing_and_leaves_nothing(stage: Stage) -> None:
    """Somebody gives the bridge an address between its making and the proof."""
    program = stage.program
    assert program is not None
    b, before = stage.lab.sites["b"], proofs.traces_of_drills(stage)

    def disturb(_operation: str, step: str, moment: str) -> None:
        if (step, moment) == ("isolation", "begin"):
            [record] = drills(stage)
            b.exec(["ip", "address", "add", "203.0.113.7/24", "dev", record.nets[0].bridge])

    program.engine.operations.observer = disturb
    try:
        done = operate(stage, OperationKind.DRILL)
    finally:
        program.engine.operations.observer = lambda _o, _s, _m: None
    assert done.state is OperationState.FAILED
    assert done.error is not None
    assert "203.0.113.7" in done.error["why"]
    assert proofs.traces_of_drills(stage) == before
    assert stage.row(NAME).protection.drill is DrillState.NONE


def test_whatever_is_killed_a_clean_up_leaves_nothing(stage: Stage) -> None:
    """The site service right after the start; then the copy's QEMU, libvirtd and the bubble helper."""
    program = stage.program
    assert program is not None
    b, before = stage.lab.sites["b"], proofs.traces_of_drills(stage)

    def kill(_operation: str, step: str, moment: str) -> None:
        if (step, moment) == ("start", "acted"):
            os.kill(b.pid_of("serve"), signal.SIGKILL)
            b.start_site_service()

    program.engine.operations.observer = kill
    try:
        done = operate(stage, OperationKind.DRILL, wanted=UNWATCHED)
    finally:
        program.engine.operations.observer = lambda _o, _s, _m: None
    assert done.state is OperationState.DONE, done.error
    [record] = drills(stage)
    assert record.phase is DrillPhase.RUNNING
    os.kill(b.pid_of(f"qemu:{record.vms[0].domain_name}"), signal.SIGKILL)
    os.kill(b.pid_of("libvirtd"), signal.SIGKILL)
    os.kill(b.pid_of("bubble"), signal.SIGKILL)
    wait_until(lambda: not b.runs("libvirtd"), "the end of libvirtd", timeout_s=10)
    stuck = operate(stage, OperationKind.STOP_DRILL, passed=False, note="libvirt is gone")
    assert stuck.state is OperationState.FAILED
    b.start_libvirt()
    b.start_bubble_helper()
    wait_until(lambda: not drills(stage) or _stop(stage, record.drill_id), "the clean-up", timeout_s=60, every_s=1)
    assert drills(stage) == []
    assert proofs.traces_of_drills(stage) == before


def _stop(stage: Stage, drill_id: str) -> bool:
    operate(stage, OperationKind.STOP_DRILL, passed=False, drill_id=drill_id)
    return not drills(stage)


def test_a_drill_that_writes_too_much_stands_still_and_ends_with_its_time(stage: Stage) -> None:
    before, key, b = proofs.traces_of_drills(stage), stage.row(NAME).key, stage.lab.sites["b"]
    done = operate(stage, OperationKind.DRILL, lasts_s=25.0, disk_limit_bytes=300 << 10, wanted=UNWATCHED)
    assert done.state is OperationState.DONE, done.error
    [record] = drills(stage)
    wait_until(lambda: "may write 0 MiB" in _copy(stage).paused, "the pause", timeout_s=40, every_s=0.5)
    assert b.virsh("domstate", record.vms[0].domain_name) == "paused"
    stage.backend.sync_now(key, wait=True)  # replication is not what stands still
    wait_until(lambda: not drills(stage), "the end of the drill", timeout_s=60, every_s=0.5)
    assert proofs.traces_of_drills(stage) == before
    last = proofs.target_api(stage, NAME).drills()[-1]
    assert last.end is not None
    assert (last.end.passed, last.end.left) == (None, ())
    again = proofs.target_api(stage, NAME).stop_drill(last.drill_id, DrillStop(passed=True, by="late"))
    assert again == last

    def told(kind: str) -> bool:
        return any(e.kind == f"guardian-{kind}" for e in stage.backend.events(key))

    wait_until(lambda: told("drill-paused") and told("drill-ended"), "the news of it", timeout_s=40, every_s=0.5)


def _copy(stage: Stage) -> DrillVm:
    [record] = drills(stage)
    return record.vms[0]


def test_a_failover_begins_beside_a_drill_and_a_power_cut_ends_the_drill_alone(stage: Stage) -> None:
    """Last: it ends the stage."""
    b, before, row = stage.lab.sites["b"], proofs.traces_of_drills(stage), stage.row(NAME)
    assert operate(stage, OperationKind.DRILL, wanted=UNWATCHED).state is OperationState.DONE
    copy = _copy(stage)
    stage.lab.kill_site("a")
    seconds = stage.backend.failover(row.key, None, "the roof is gone")
    print(f"failover beside a drill: {seconds:.2f} s")
    assert {b.virsh("domstate", NAME), b.virsh("domstate", copy.domain_name)} == {"running"}
    stage.lab.kill_site("b")
    stage.lab.revive_site("b")
    wait_until(lambda: not drills(stage), "the site's own clean-up", timeout_s=60, every_s=0.5)
    after = proofs.traces_of_drills(stage)
    assert (after["domains"], after["networks"]) == ([NAME], before["networks"])
    assert (after["files"], after["probes"]) == ([], [])
    assert set(after["logs"]) == {*before["logs"], f"{NAME}-serial.log", f"{NAME}.log"}  # and none of the drill's
    last = proofs.target_api(stage, NAME).drills()[-1]
    assert last.end is not None
    assert "restarted" in last.end.why
