"""A recovery plan on two real hosts: site A is dark, two tiers come up at B, and running it again begins nothing."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from vapor_desktop.cli.main import vaporctl
from vapor_desktop.lab import guests
from vapor_desktop.lab.guests import GuestSpec
from vapor_desktop.lab.keyring_session import KeyringSession
from vapor_desktop.lab.lab import Lab
from vapor_desktop.lab.processes import wait_until
from vapor_desktop.lab.stage import Stage, remove_guests
from vapor_desktop.model.errors import EditOutdated
from vapor_desktop.model.operations import Operation, OperationKind, OperationState, StepState
from vapor_desktop.model.plan_report import report_of
from vapor_desktop.model.plans import Plan, PlanMode

pytestmark = [pytest.mark.lab, pytest.mark.timeout(420)]
DATA, FRONT = "stock", "shop"
NAMES = (DATA, FRONT)


@pytest.fixture(scope="module")
def stage(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Two protected guests, one BIOS disk each."""
    remove_guests(lab)
    home = tmp_path_factory.mktemp("console")
    for name in NAMES:
        guests.add(lab.sites["a"], GuestSpec(name, rate=2, scratch=0), lab.cache)
    with KeyringSession(home):
        made = Stage(lab, home)
        made.open()
        try:
            a, b = made.pair()
            made.protect(a, b, NAMES, rpo_target_s=60)
            for name in NAMES:
                guests.wait_for(lab.sites["a"], name, "VAPOR-GUEST", timeout_s=120)
                made.wait_for_point(name, 1)
            yield made
        finally:
            made.close()
            remove_guests(lab)


# The data first and seen by its agent; then a person; then the front by its port, under a new address.
PLAN = """
name = "Shop"
[[tiers]]
name = "data"
[[tiers.vms]]
name = "stock"
checks = [{{kind = "agent"}}]
[[tiers]]
name = "front"
pause = "Is the DNS moved?"
[[tiers.vms]]
name = "shop"
addresses = [{{address = "{net}.77/24", gateway = "{net}.1"}}]
checks = [{{kind = "running"}}, {{kind = "tcp", port = 80}}]
"""


def ctl(*arguments: str) -> Any:
    """What vaporctl answers, as JSON; it speaks to the stage's database as a shell beside the console would."""
    done = CliRunner().invoke(vaporctl, [*arguments, "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.output)


def settle(stage: Stage, operation_id: str) -> Operation:
    return stage.backend.wait_operation(operation_id, 180)


def test_a_plan_is_kept_at_its_target_and_loses_its_tick_the_moment_something_is_missing(
    stage: Stage, tmp_path: Path
) -> None:
    file = tmp_path / "shop.toml"
    file.write_text(PLAN.format(net=stage.lab.sites["b"].layout.network_prefix))
    made = Plan.model_validate(ctl("plan", "create", str(file))["plan"])
    assert [vm.vm_uuid for vm in made.vms()] == [stage.row(name).protection.vm_uuid for name in NAMES]
    file.write_text(json.dumps({**ctl("plan", "show", "Shop"), "parallel": 2}))
    saved = Plan.model_validate(ctl("plan", "edit", "Shop", str(file))["plan"])
    assert (saved.version, saved.parallel, saved.tiers) == (2, 2, made.tiers)
    with pytest.raises(EditOutdated):  # the file still holds the first version
        CliRunner().invoke(vaporctl, ["plan", "edit", "Shop", str(file)], catch_exceptions=False)
    assert ctl("plan", "ready", "Shop")["ready"] is True
    [status] = stage.backend.plans()
    assert (status.ready, status.problems, status.targets) == (True, (), ("site-b",))
    program = stage.program
    assert program is not None
    target = stage.row(FRONT).protection.target_site
    kept = program.engine.gateway.api(stage.backend._site(target)).plans()
    assert [(p.name, p.version) for p in kept] == [("Shop", saved.version)]
    # The network that the plan's VMs are mapped to goes away at B.
    b = stage.lab.sites["b"]
    b.virsh("net-destroy", b.network)
    try:
        wait_until(lambda: stage.backend.plans()[0].ready is False, "the tick goes", timeout_s=40)
        [first, *_] = stage.backend.plans()[0].problems
        assert (first.vm_name, b.network in first.what) == (DATA, True), first
        assert [x.text for x in stage.backend.snapshot().banners if x.action == "open-plan"]
    finally:
        b.virsh("net-start", b.network)
    wait_until(lambda: stage.backend.plans()[0].ready is True, "the tick is back", timeout_s=40)


def test_as_a_drill_its_copies_share_a_bubble_and_the_vms_go_on(stage: Stage) -> None:
    a, b = stage.lab.sites["a"], stage.lab.sites["b"]
    run = stage.backend.run_plan(stage.backend.plans()[0].plan.plan_id, PlanMode.DRILL, "a rehearsal")
    asked = settle(stage, run)
    assert asked.question is not None, asked.error
    assert asked.question.text == "Is the DNS moved?", "before that nothing else was asked"
    stage.backend.answer_question(run, asked.question.question_id, "go")
    wait_until(lambda: stage.backend.operation(run).question != asked.question, "the answer is taken", timeout_s=20)
    done = settle(stage, run)
    assert done.state is OperationState.DONE, (done.question, done.error)
    assert [(line.vm, line.state, line.now) for line in report_of(done)] == [(n, "up", "running") for n in NAMES]
    assert sorted(a.virsh("list", "--name").split()) == sorted(NAMES), "nothing that runs was touched"
    assert len(b.virsh("list", "--name").split()) == len(NAMES)
    # Under their production addresses the copies see each other.
    assert stage.program is not None
    api = stage.program.engine.gateway.api(stage.backend._site(stage.row(DATA).protection.target_site))
    [record] = [r for r in api.drills() if r.open]
    copies = {v.vm_name: v.domain_name for v in record.vms}
    address = record.nets[0].hosts[GuestSpec(FRONT).mac]
    assert f"VAPOR-GUEST address {address}" in a.serial(FRONT)
    heard = guests.guest_shell(b, copies[DATA], f"ping -c 3 -W 5 {address} >/dev/null && echo heard")
    assert heard.split() == ["heard"]
    stop = stage.backend.begin_operation(
        OperationKind.STOP_DRILL, stage.row(DATA).key, {"passed": True, "note": "all well"}, "seen"
    )
    stopped = settle(stage, stop)
    assert stopped.state is OperationState.DONE, (stopped.question, stopped.error)
    assert stopped.result["left"] == []
    assert sorted(stopped.result["vms"]) == sorted(stage.row(n).protection.vm_uuid for n in NAMES), "one bubble"
    assert b.virsh("list", "--all", "--name").split() == []


def test_with_the_source_dark_it_comes_up_tier_by_tier_and_a_second_run_begins_nothing(stage: Stage) -> None:
    b = stage.lab.sites["b"]
    plan_id = stage.backend.plans()[0].plan.plan_id
    stage.lab.kill_site("a")
    began = time.monotonic()
    run = stage.backend.run_plan(plan_id, PlanMode.FAILOVER, "site a is dark")
    asked = settle(stage, run)
    assert asked.question is not None, asked.error
    assert asked.question.text == "Is the DNS moved?", "before that nothing else was asked"
    running = b.virsh("list", "--name").split()
    assert running == [DATA], "the second tier waits for the person"
    stage.backend.answer_question(run, asked.question.question_id, "go")
    wait_until(lambda: stage.backend.operation(run).question != asked.question, "the answer is taken", timeout_s=20)
    done = settle(stage, run)
    assert done.state is OperationState.DONE, (done.question, done.error)
    print(f"plan of 2 VMs in 2 tiers with checks: {time.monotonic() - began:.1f} s")
    assert sorted(b.virsh("list", "--name").split()) == sorted(NAMES)
    lines = {line.vm: line for line in report_of(done)}
    seen = {name: (line.state, line.now, line.target) for name, line in lines.items()}
    assert seen == dict.fromkeys(NAMES, ("up", "running", "site-b"))
    assert lines[DATA].checks == ("agent answers",)
    assert lines[FRONT].checks == ("guest runs", "port 80")
    assert all(s.state is StepState.DONE for s in done.steps)
    # What the guest has, by its own word, and what its web server says to the host under that address.
    address = stage.backend.plans()[0].plan.tiers[1].vms[0].addresses[0]
    assert address.address in b.guest_shell(FRONT, "ip -4 addr show eth0")
    assert b.exec(["curl", "-s", "-m", "5", f"http://{address.ip}/"]).stdout.strip() == FRONT
    children = [o for o in stage.backend.operations() if o.kind is OperationKind.FAILOVER]
    again = settle(stage, stage.backend.run_plan(plan_id, PlanMode.FAILOVER, "once more"))
    assert again.state is OperationState.DONE, (again.question, again.error)
    assert [o for o in stage.backend.operations() if o.kind is OperationKind.FAILOVER] == children
    assert all(line.how.startswith("ran at its target already") for line in report_of(again))


def test_vaporctl_tells_the_same(stage: Stage) -> None:
    facts = ctl("plan", "report", "Shop")
    assert (facts["state"], facts["mode"]) == ("done", "failover")
    assert {v["vm"]: v["now"] for v in facts["vms"]} == dict.fromkeys(NAMES, "running")
    stage.backend.look_at_plan(stage.backend.plans()[0].plan.plan_id)  # now, not with the next look
    shown = ctl("plan", "list")
    assert [p["name"] for p in shown] == ["Shop"]
    assert "belongs to site-b already" in shown[0]["problems"][0]["what"], "nothing protects them at B now"


def test_a_fresh_console_that_knows_the_target_alone_has_the_plan(stage: Stage, tmp_path: Path) -> None:
    """The last one: it pairs anew out of the same keyring, and the stage's own token goes with that."""
    fresh = Stage(stage.lab, tmp_path)
    known = os.environ["VAPOR_DATABASE_URL"]
    try:
        backend = fresh.open(run_engine=False)
        [b] = fresh.add_sites(("b",))
        assert backend.plans() == ()
        backend.adopt_replicas(b.site_id)
        assert [s.plan for s in backend.plans()] == [s.plan for s in stage.backend.plans()]
    finally:
        fresh.close()
        os.environ["VAPOR_DATABASE_URL"] = known
