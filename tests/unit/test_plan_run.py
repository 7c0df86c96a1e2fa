"""Plan runs: their order, what a person is asked, running one again, and the engine killed at every step.

The VMs' own operation is a toy that writes what it did into files, and the sites read those files: so the world
outlives a killed process.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vapor_desktop.app import SystemClock
from vapor_desktop.engine.operations.plan_run import PLAN_RUN, steps_of
from vapor_desktop.engine.operations.runner import OperationRunner
from vapor_desktop.engine.operations.steps import EngineStopping, OperationType, Step, StepContext, Tools
from vapor_desktop.engine.ports import Journal
from vapor_desktop.engine.worker import EngineIdentity
from vapor_desktop.lab.processes import wait_until
from vapor_desktop.model.domain_xml.mark import NAMESPACE
from vapor_desktop.model.errors import Conflict, DomainNotFound, InvalidRequest, NotFound, StartFailed
from vapor_desktop.model.manifest import Epoch, Manifest, seal
from vapor_desktop.model.operations import Operation, OperationKind, OperationState, StepState
from vapor_desktop.model.plan_report import report_of
from vapor_desktop.model.plans import CheckKind, Plan, PlanMode, PlanVm, Tier, WaitFor
from vapor_desktop.model.policy import Policy
from vapor_desktop.model.sites import Protection, Site
from vapor_desktop.model.wire import Lease, TcpProbe, TcpProbed
from vapor_desktop.store.repository import SqlRepository

HERE = Path(__file__)
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
NAMES = ("db", "stock", "web")
XML = """<domain type='qemu'><name>x</name><metadata>
<vapor:replica xmlns:vapor='{namespace}' protection='p-{name}' epoch='2' point='1'/>
</metadata></domain>"""


class World:
    """Two sites in a folder. One file per VM that runs at B; ``log`` is the order of everything."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.leases: dict[str, Lease] = {}
        self.closed_ports: set[str] = set()
        self.copies: list[str] = []

    def note(self, line: str) -> None:
        with (self.folder / "log").open("a") as log:
            log.write(line + "\n")

    def log(self) -> list[str]:
        path = self.folder / "log"
        return path.read_text().splitlines() if path.exists() else []

    def file(self, vm_uuid: str) -> Path:
        return self.folder / f"runs-{vm_uuid}"

    # --- the gateway, and both of a site's faces --------------------------------------------------
    def api(self, _site: Site) -> Any:
        return self

    hypervisor = api

    def replica(self, vm_uuid: str) -> Any:
        over = self.file(vm_uuid).exists()
        epoch = Epoch(number=2 if over else 1, owner="B" if over else "A")
        manifest = Manifest(
            vm_uuid=vm_uuid, vm_name=vm_uuid, protection_id=f"p-{vm_uuid[2:]}", source_site="A", target_site="B",
            epoch=epoch, next_seq=1, points=(),
        )  # fmt: skip
        return SimpleNamespace(manifest=seal(manifest))

    def lease(self, vm_uuid: str) -> Lease | None:
        return self.leases.get(vm_uuid)

    def probe_tcp(self, request: TcpProbe) -> TcpProbed:
        closed = request.address in self.closed_ports
        return TcpProbed(open=not closed, why="connection refused" if closed else "")

    def domain(self, vm_uuid: str) -> Any:
        if not self.file(vm_uuid).exists():
            raise DomainNotFound("no such VM")
        return SimpleNamespace(state="running")

    def domain_xml(self, vm_uuid: str, *, secure: bool = True) -> str:
        return XML.format(namespace=NAMESPACE, name=vm_uuid[2:])

    def networks(self) -> list[str]:
        return ["dr"]

    def capabilities_xml(self) -> str:
        return "<capabilities/>"

    def domains(self) -> list[Any]:
        return [SimpleNamespace(name=name, vm_uuid=f"copy of {name}", state="running") for name in self.copies]

    def storage(self) -> list[Any]:
        return []

    def agent_ping(self, _vm_uuid: str) -> bool:
        return True


class Toy:
    """The VMs' own operation. ``broken``: name -> how often it fails first."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.broken: dict[str, int] = {}
        self.takes_s = 0.0
        self.together = self.most = 0
        self.lock = threading.Lock()

    def boot(self, ctx: StepContext) -> dict[str, Any]:
        name = ctx.protection.vm_name
        with self.lock:
            self.together += 1
            self.most = max(self.most, self.together)
        try:
            self.world.note(f"begin {name}")
            ctx.wait_until(lambda: False, self.takes_s, 0.02)
            if self.broken.get(name, 0) > 0:
                self.broken[name] -= 1
                raise StartFailed(f"“{name}” did not start")
            self.world.file(ctx.protection.vm_uuid).write_text("running")
            self.world.note(f"up {name}")
            return {"networks": ctx.protection.mappings.networks}
        finally:
            with self.lock:
                self.together -= 1

    def type(self) -> OperationType:
        steps = (Step("boot", "Start it", self.boot),)
        return OperationType(OperationKind.FAILOVER, steps, False, lambda _c, _e: None)


class ThreadDurable:
    """Each operation in a thread of its own, recorded in memory."""

    def __init__(self) -> None:
        self.body: Callable[[str, Journal], None] | None = None

    def launch(self, engine_id: str, body: Callable[[str, Journal], None]) -> None:
        self.body = body

    def start(self, operation_id: str) -> None:
        body = self.body
        assert body is not None

        def run() -> None:
            with contextlib.suppress(EngineStopping):
                body(operation_id, _Record())

        threading.Thread(target=run, daemon=True).start()

    adopt = start

    def close(self) -> None:
        """Nothing is kept."""


class _Record:
    def step(self, name: str, act: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        out: dict[str, Any] = json.loads(json.dumps(act()))
        return out


def vm(name: str, **more: Any) -> PlanVm:
    return PlanVm(vm_uuid=f"u-{name}", name=name, **more)


def shop(**more: Any) -> Plan:
    tiers = (Tier(name="data", vms=(vm("db"), vm("stock"))), Tier(name="front", vms=(vm("web"),)))
    plan_id = "00000000-0000-4000-8000-000000000001"
    return Plan(**({"plan_id": plan_id, "name": "Shop", "tiers": tiers, "changed_at": NOW} | more))


def open_repository(path: Path) -> SqlRepository:
    repository = SqlRepository(f"sqlite:///{path}")
    for site_id in ("A", "B"):
        repository.save_site(
            Site(
                site_id=site_id,
                name=f"site-{site_id}",
                api_url="https://192.0.2.1:7770/api/v1",
                cert_pem="",
                cert_sha256="",
                ssh_host="192.0.2.1",
                ssh_port=22,
                ssh_user="vapor",
                ssh_host_keys=(),
                replica_root="/r",
                paired_at=NOW,
            )
        )
    for name in NAMES:
        if repository.protection(f"p-{name}") is None:
            repository.save_protection(
                Protection(
                    protection_id=f"p-{name}",
                    vm_uuid=f"u-{name}",
                    vm_name=name,
                    source_site="A",
                    target_site="B",
                    policy=Policy(),
                    epoch_owner="A",
                    created_at=NOW,
                )
            )
    return repository


def runner_of(repository: SqlRepository, world: World, toy: Toy, engine_id: str, durable: Any) -> OperationRunner:
    identity = EngineIdentity(engine_id, "me@here", "console")
    tools = Tools(repository, world, None, SystemClock(), identity, None)  # type: ignore[arg-type]  # neither is used
    types = {OperationKind.FAILOVER: toy.type(), OperationKind.PLAN: PLAN_RUN}
    return OperationRunner(tools, durable, types)


class Rig:
    def __init__(self, folder: Path) -> None:
        self.world = World(folder)
        self.toy = Toy(self.world)
        self.repository = open_repository(folder / "v.db")
        self.runner = runner_of(self.repository, self.world, self.toy, "e1", ThreadDurable())

    def begin(self, plan: Plan, mode: PlanMode = PlanMode.FAILOVER) -> str:
        return self.runner.begin_plan(plan, mode, "a fire", "anna").operation_id

    def settle(self, operation_id: str) -> Operation:
        return self.runner.wait(operation_id, 30)

    def answer(self, operation_id: str, choice: str) -> Operation:
        asked = self.settle(operation_id).question
        assert asked is not None
        self.runner.answer(operation_id, asked.question_id, choice)
        wait_until(lambda: self.now(operation_id).question != asked, "the answer is taken", timeout_s=10)
        return self.settle(operation_id)

    def run(self, plan: Plan) -> Operation:
        """The toy's VMs have no recovery points, so the first step always asks."""
        return self.answer(self.begin(plan), "go")

    def now(self, operation_id: str) -> Operation:
        found = self.repository.operation(operation_id)
        assert found is not None
        return found

    def commands(self) -> list[str]:
        verbs = []
        while (command := self.repository.take_command("test")) is not None:
            verbs.append(command.verb)
        return verbs

    def children(self) -> list[Operation]:
        return [o for o in self.repository.operations() if o.kind is OperationKind.FAILOVER]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.runner.close()
    made.repository.close()


def states(operation: Operation) -> dict[str, str]:
    return {line.vm: line.state for line in report_of(operation)}


def test_tiers_come_up_one_after_the_other_and_the_report_says_what_was_seen(rig: Rig) -> None:
    done = rig.run(shop())
    assert done.state is OperationState.DONE
    log = rig.world.log()
    assert log.index("begin web") > max(log.index("up db"), log.index("up stock"))
    assert states(done) == {"db": "up", "stock": "up", "web": "up"}
    assert {line.now for line in report_of(done)} == {"running"}
    assert {line.target for line in report_of(done)} == {"site-B"}
    assert [s.state for s in done.steps] == [StepState.DONE] * 7
    by_name = {o.operation_id: o for o in rig.children()}
    for row in (s for s in done.steps if s.parent):
        child = by_name[row.operation_id]
        assert (child.vm_name, child.parent_id, child.reason) == (row.title, done.operation_id, "a fire")


def test_before_anything_is_touched_a_person_hears_what_is_not_ready(rig: Rig) -> None:
    asked = rig.settle(rig.begin(shop()))
    assert asked.question is not None
    assert "web: it has no complete recovery point" in asked.question.text
    assert rig.answer(asked.operation_id, "stop").state is OperationState.FAILED
    assert rig.children() == []


def test_no_more_at_a_time_than_the_plan_allows(rig: Rig) -> None:
    rig.toy.takes_s = 0.3
    one = Tier(vms=(vm("db"), vm("stock"), vm("web")))
    assert rig.run(shop(tiers=(one,), parallel=2)).state is OperationState.DONE
    assert rig.toy.most == 2


def test_a_delay_keeps_the_place_and_a_tier_waits_for_its_own(rig: Rig) -> None:
    tiers = (Tier(vms=(vm("db", delay_s=0.6), vm("stock")), delay_s=0.6), Tier(vms=(vm("web"),)))
    stamps: dict[str, float] = {}
    note = rig.world.note
    rig.world.note = lambda line: (stamps.setdefault(line, time.monotonic()), note(line))[1]  # type: ignore[method-assign]
    assert rig.run(shop(tiers=tiers, parallel=1)).state is OperationState.DONE
    assert stamps["begin stock"] - stamps["up db"] >= 0.6
    assert stamps["begin web"] - stamps["up stock"] >= 0.6


def test_a_pause_waits_for_a_person(rig: Rig) -> None:
    tiers = (Tier(vms=(vm("db"),)), Tier(vms=(vm("web"),), pause="Is the DNS moved?"))
    asked = rig.run(shop(tiers=tiers))
    assert asked.question is not None
    assert asked.question.text == "Is the DNS moved?"
    assert rig.world.log() == ["begin db", "up db"]
    assert rig.answer(asked.operation_id, "go").state is OperationState.DONE
    assert rig.world.log()[-1] == "up web"


def test_try_again_begins_a_second_operation_and_no_third(rig: Rig) -> None:
    rig.toy.broken["db"] = 1
    asked = rig.run(shop())
    assert asked.question is not None
    assert [c.key for c in asked.question.choices] == ["retry", "skip", "stop"]
    assert asked.step("vm-u-db").state is StepState.FAILED
    assert "web" not in " ".join(rig.world.log())
    done = rig.answer(asked.operation_id, "retry")
    assert done.state is OperationState.DONE
    assert states(done)["db"] == "up"
    assert [o.state for o in rig.children() if o.vm_name == "db"] == [OperationState.DONE, OperationState.FAILED]


def test_without_that_vm(rig: Rig) -> None:
    rig.toy.broken["db"] = 9
    asked = rig.run(shop())
    done = rig.answer(asked.operation_id, "skip")
    assert done.state is OperationState.DONE
    assert states(done) == {"db": "skipped", "stock": "up", "web": "up"}
    assert next(line for line in report_of(done) if line.vm == "db").now == "undefined"
    assert (done.result["up"], "did not start" in report_of(done)[0].note) == (2, True)


def test_left_as_it_is_the_run_fails_with_what_the_vm_failed_with(rig: Rig) -> None:
    rig.toy.broken["db"] = 9
    done = rig.answer(rig.run(shop()).operation_id, "stop")
    assert done.state is OperationState.FAILED
    assert done.error is not None
    assert done.error["code"] == StartFailed.code
    assert states(done) == {"db": "failed", "stock": "up", "web": "waiting"}


def test_a_check_that_does_not_pass_is_asked_about_and_can_be_taken_as_it_is(rig: Rig) -> None:
    rig.world.closed_ports.add("192.0.2.7")
    closed = WaitFor(kind=CheckKind.TCP, port=80, address="192.0.2.7", timeout_s=0.2)
    tiers = (
        Tier(vms=(vm("db", checks=(WaitFor(kind=CheckKind.AGENT), closed)),)),
        Tier(vms=(vm("web", networks={"lan": "dr"}),)),
    )
    asked = rig.run(shop(tiers=tiers))
    assert asked.question is not None
    assert "192.0.2.7 port 80: connection refused" in asked.question.text
    assert "accept" in {c.key for c in asked.question.choices}
    done = rig.answer(asked.operation_id, "accept")
    assert states(done) == {"db": "unchecked", "web": "up"}
    assert report_of(done)[0].checks == ("agent answers",)
    child = next(o for o in rig.children() if o.vm_name == "web")
    assert child.result["networks"] == {"lan": "dr"}, "the plan's own mapping reaches the VM's operation"


def test_running_it_again_begins_nothing(rig: Rig) -> None:
    tiers = (Tier(vms=(vm("db"), vm("stock"))), Tier(vms=(vm("web"),), pause="Is the DNS moved?"))
    rig.answer(rig.run(shop(tiers=tiers)).operation_id, "go")
    before = rig.world.log()
    again = rig.settle(rig.begin(shop(tiers=tiers)))
    assert again.question is None, "neither what belongs to the target already nor a pause before what is up"
    assert again.state is OperationState.DONE
    assert rig.world.log() == before
    assert len(rig.children()) == 3
    assert {line.how for line in report_of(again)} == {"ran at its target already (epoch 2)"}


def test_stopped_by_a_person_it_begins_no_more_and_takes_nothing_back(rig: Rig) -> None:
    rig.toy.takes_s = 1.0
    run = rig.begin(shop(parallel=1))
    asked = rig.settle(run).question
    assert asked is not None
    rig.runner.answer(run, asked.question_id, "go")
    wait_until(lambda: "begin db" in rig.world.log(), "the first VM", timeout_s=10)
    rig.runner.cancel(run)
    wait_until(lambda: rig.now(run).ended, "the end", timeout_s=10)
    done = rig.now(run)
    assert (done.state, done.error and done.error["code"]) == (OperationState.FAILED, "OPERATION-STOPPED")
    assert states(done) == {"db": "failed", "stock": "failed", "web": "waiting"}
    wait_until(lambda: "up db" in rig.world.log(), "its own operation goes on", timeout_s=10)
    assert [o.vm_name for o in rig.children()] == ["db"]


def test_who_holds_a_vm_is_named_at_once_the_first_by_uuid(rig: Rig) -> None:
    for name in ("web", "db"):
        rig.world.leases[f"u-{name}"] = Lease(
            vm_uuid=f"u-{name}", holder="other/seed", holder_name=f"bob for {name}", purpose="seed", fence=3,
            expires_at=NOW,
        )  # fmt: skip
    asked = rig.settle(rig.begin(shop()))
    assert asked.question is not None
    assert "“db” is in use at site-B: bob for db (seed)" in asked.question.text
    assert rig.children() == []


def test_two_runs_never_share_a_vm(rig: Rig) -> None:
    rig.settle(rig.begin(shop()))
    other = shop(plan_id="00000000-0000-4000-8000-000000000002", name="All", tiers=(Tier(vms=(vm("web"),)),))
    with pytest.raises(Conflict, match="Shop"):
        rig.begin(other)
    apart = other.model_copy(update={"tiers": (Tier(vms=(PlanVm(vm_uuid="u-x", name="x"),)),)})
    assert rig.begin(apart)


def test_what_cannot_be_run_is_refused(rig: Rig) -> None:
    with pytest.raises(InvalidRequest, match="drill"):
        rig.begin(shop(), PlanMode.DRILL)
    with pytest.raises(InvalidRequest, match="reason"):
        rig.runner.begin_plan(shop(), PlanMode.FAILOVER, " ", "anna")


def test_as_a_drill_each_vm_is_asked_for_the_plans_checks_and_a_failed_one_is_told(rig: Rig) -> None:
    asked: dict[str, dict[str, Any]] = {}

    def drill(ctx: StepContext) -> dict[str, Any]:
        name = ctx.protection.vm_name
        asked[name] = ctx.operation.args
        state = "failed" if name == "web" else "ok"
        rig.world.copies.append(f"{name}-drill")
        port = {"key": "tcp:80", "title": "port 80", "state": state, "text": "refused" if state != "ok" else ""}
        # A server's blank screen is no failure of its plan.
        screen = {"key": "screen", "title": "Its screen", "state": "failed", "text": "blank"}
        return {"domain": f"{name}-drill", "checks": [port, screen]}

    steps = (Step("drill", "Start a copy", drill),)
    kind = OperationType(OperationKind.DRILL, steps, False, lambda _c, _e: None)
    rig.runner._types = {**rig.runner._types, OperationKind.DRILL: kind}
    checks = (WaitFor(kind=CheckKind.TCP, port=80, timeout_s=30), WaitFor(kind=CheckKind.AGENT, timeout_s=40))
    tiers = (Tier(vms=(vm("db", checks=checks),)), Tier(vms=(vm("web", networks={"lan": "dr"}),)))
    run = rig.answer(rig.begin(shop(tiers=tiers), PlanMode.DRILL), "go")
    assert run.question is not None
    assert "not all of its checks passed: port 80: refused" in run.question.text
    done = rig.answer(run.operation_id, "accept")
    assert done.state is OperationState.DONE
    assert asked == {
        "db": {"wanted": {"agent": True, "tcp_ports": [80], "boot_s": 40.0}},
        "web": {"wanted": {"agent": False, "tcp_ports": []}},
    }
    assert [(line.vm, line.state, line.now) for line in report_of(done)] == [
        ("db", "up", "running"),
        ("web", "unchecked", "running"),
    ]
    assert not [c for c in rig.commands() if c == "cancel"], "replication goes on"


def test_a_vm_that_is_not_protected_is_told(rig: Rig) -> None:
    asked = rig.run(shop(tiers=(Tier(vms=(PlanVm(vm_uuid="u-x", name="x"),)),)))
    assert asked.question is not None
    assert "“x” is not protected" in asked.question.text
    done = rig.answer(asked.operation_id, "skip")
    assert states(done) == {"x": "skipped"}
    assert NotFound.code not in str(done.error)


# --- the engine is killed -------------------------------------------------------------------------------------
KILLED = shop(
    tiers=(
        Tier(vms=(vm("db"), vm("stock")), delay_s=0.1),
        Tier(vms=(vm("web", checks=(WaitFor(kind=CheckKind.AGENT),)),), pause="Go on?"),
    )
)
STEPS = [s.name for s in steps_of({"plan": KILLED.model_dump(mode="json"), "mode": "failover"})]


def child(folder: Path, engine_id: str, cut: str) -> None:
    """Begin or adopt, answering every question with "go"; ``cut``: "step:moment" at which this process dies."""
    from vapor_desktop.store.durable import DbosOperations

    repository = open_repository(folder / "v.db")
    world = World(folder)
    made = runner_of(repository, world, Toy(world), engine_id, DbosOperations(f"sqlite:///{folder}/v.db"))

    def observe(_operation: str, step: str, moment: str) -> None:
        if f"{step}:{moment}" == cut:
            os._exit(9)

    made.observer = observe
    waiting = repository.operations(open_only=True)
    made.adopt({engine_id})
    runs = [o.operation_id for o in waiting if o.kind is OperationKind.PLAN]
    run = runs[0] if runs else made.begin_plan(KILLED, PlanMode.FAILOVER, "a fire", "anna").operation_id
    while not (found := made.wait(run, 60)).ended:
        asked = found.question
        if asked is not None and asked.question_id not in found.answers:
            made.answer(run, asked.question_id, "go")
        threading.Event().wait(0.02)
    print(found.state.value, flush=True)
    made.close()


def run_child(folder: Path, engine_id: str, cut: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(HERE), str(folder), engine_id, cut]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_an_engine_killed_at_every_step_ends_where_one_that_lives_does(tmp_path: Path) -> None:
    """One run, a new engine after each kill: no VM is begun twice, and no tier before its turn."""
    cuts = [
        *("check:recorded", "boot:begin", "boot:acted", "tier-1:acted", "tier-1:recorded"),
        *("vm-u-db:recorded", "vm-u-stock:recorded", "delay-1:acted", "delay-1:recorded", "pause-2:recorded"),
        *("tier-2:begin", "boot:recorded", "tier-2:recorded", "vm-u-web:recorded", "report:acted"),
    ]
    assert {c.removesuffix(":recorded") for c in cuts if c.endswith(":recorded")} >= set(STEPS) - {"report"}
    for n, cut in enumerate(cuts):
        killed = run_child(tmp_path, f"e{n:02}", cut)
        assert killed.returncode == 9, (cut, killed.stdout, killed.stderr)
    rest = run_child(tmp_path, "last", "")
    assert rest.stdout.split()[-1:] == ["done"], rest.stderr
    repository = open_repository(tmp_path / "v.db")
    every = repository.operations()
    repository.close()
    run = next(o for o in every if o.kind is OperationKind.PLAN)
    assert states(run) == {"db": "up", "stock": "up", "web": "up"}
    assert [line.now for line in report_of(run)] == ["running"] * 3
    assert sorted(o.vm_name for o in every if o.kind is OperationKind.FAILOVER) == ["db", "stock", "web"]
    log = World(tmp_path).log()
    assert sorted({line for line in log if line.startswith("up")}) == ["up db", "up stock", "up web"]
    assert log.index("begin web") > max(log.index("up db"), log.index("up stock"))


if __name__ == "__main__":
    child(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
