"""Several engine processes on one database, PostgreSQL and SQLite: who does what, and what a dead one leaves.

Real processes, a real database server, the real leases of a site; only the cycles and the steps are toys that write
down who ran them.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from store_postgres import crash, new_database, postgres_server

from vapor_desktop.app import SystemClock
from vapor_desktop.engine import sharing
from vapor_desktop.engine.lease import HeldLease
from vapor_desktop.engine.operations.runner import OperationRunner
from vapor_desktop.engine.operations.steps import OperationType, Step, StepContext, Tools
from vapor_desktop.engine.ports import EngineRow
from vapor_desktop.engine.runtime import Engine, new_identity
from vapor_desktop.lab.processes import LabFailed, wait_until
from vapor_desktop.model.errors import SiteUnreachable, StaleLease
from vapor_desktop.model.operations import OperationKind, OperationState
from vapor_desktop.model.policy import Policy
from vapor_desktop.model.sites import Protection, Site
from vapor_desktop.model.wire import Lease, LeaseRequest
from vapor_desktop.site import leases
from vapor_desktop.store.durable import DbosOperations
from vapor_desktop.store.repository import SqlRepository

HERE = Path(__file__)
CLOCK = SystemClock()
# So many that chance does not give all of them to one engine (2 in 16384).
VMS = {f"p{n}": f"00000000-0000-4000-8000-{n:012d}" for n in range(14)}
WINDOW_S = 4.0
TAKEN_OVER_S = 45.0  # lapsed after 10 s without a heart-beat, seen with the next one, and a busy machine
_numbers = itertools.count()


# --- pure --------------------------------------------------------------------------------------------------
def row(engine_id: str, kind: str) -> EngineRow:
    return EngineRow(engine_id, "host", 1, kind, datetime.now(UTC))


def test_services_act_together_only_where_the_database_is_shared() -> None:
    living = [row("3", "service"), row("1", "console"), row("2", "service"), row("0", "command")]
    assert sharing.acting(living, shared=True) == ("2", "3")
    assert sharing.acting(living, shared=False) == ("2",)
    assert sharing.acting([row("5", "console"), row("4", "console"), row("0", "command")], shared=True) == ("4",)
    assert sharing.acting([row("1", "command")], shared=False) == ("1",)
    assert sharing.acting([], shared=True) == ()


def test_an_engine_that_comes_or_goes_moves_its_own_share_only() -> None:
    keys = [f"p{n}" for n in range(600)]
    two = {k: sharing.proper(k, ["a", "b"]) for k in keys}
    three = {k: sharing.proper(k, ["a", "b", "c"]) for k in keys}
    assert all(three[k] in {two[k], "c"} for k in keys)
    assert all(150 < n < 250 for n in Counter(three.values()).values())
    assert sharing.proper("p", []) is None


# --- the engine process --------------------------------------------------------------------------------------
class Leases:
    """A site's leases, by files: the lease part of a site's API."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def acquire_lease(self, vm_uuid: str, request: LeaseRequest) -> Lease:
        return leases.acquire(self.folder, vm_uuid, request, lambda *_a, **_k: None)

    def renew_lease(self, vm_uuid: str, fence: int, ttl_s: float) -> Lease:
        return leases.renew(self.folder, vm_uuid, fence, ttl_s)

    def release_lease(self, vm_uuid: str, fence: int) -> None:
        leases.release(self.folder, vm_uuid, fence)


class Nowhere:
    """No site answers; the toys need none."""

    def api(self, site: Site) -> Any:
        raise SiteUnreachable("no site")

    hypervisor = api

    def mover(self, source: Site, target: Site) -> Any:
        raise SiteUnreachable("no mover")

    def drop(self, site_id: str) -> None: ...

    def close(self) -> None: ...


def tell(folder: Path, **facts: object) -> None:
    line = json.dumps({"at": time.time(), **facts, "pid": os.getpid()}) + "\n"
    with (folder / "told").open("a") as told:  # one short write in append mode: whole lines
        told.write(line)


def child(url: str, folder: Path, kind: str) -> None:
    repository = SqlRepository(url)
    identity = new_identity(kind, CLOCK)
    engine = Engine(repository, Nowhere(), CLOCK, identity, DbosOperations(url))
    site = Leases(folder / "leases")

    def cycle(protection_id: str, *, asked: bool) -> None:
        vm = VMS[protection_id]
        try:
            with HeldLease(
                site,  # type: ignore[arg-type]  # its lease part
                vm,
                identity.engine_id,
                "me",
                "cycle",
                lapsed=engine.worker.lapsed,
            ) as lease:
                for _ in range(3):
                    # A site checks and writes in one; this process may be stopped between the two, so the write's
                    # moment is one before its check.
                    at = time.time()
                    leases.check(site.folder, vm, lease.fence)
                    tell(folder, what="write", vm=protection_id, fence=lease.fence, at=at)
                    threading.Event().wait(0.05)
        except StaleLease:
            tell(folder, what="refused", vm=protection_id)

    engine.worker.run = cycle  # type: ignore[method-assign,assignment]

    def act(name: str) -> Callable[[StepContext], dict[str, Any]]:
        def run(ctx: StepContext) -> dict[str, Any]:
            tell(folder, what="step", vm=ctx.protection.protection_id, step=name)
            if name == "two":
                ctx.wait_until((folder / "go").exists, 60, 0.05)
            tell(folder, what="stepped", vm=ctx.protection.protection_id, step=name)
            return {}

        return run

    steps = tuple(Step(n, n, act(n)) for n in ("one", "two", "three"))
    toy = OperationType(OperationKind.MIGRATION, steps, False, lambda _c, _e: None)
    tools = Tools(repository, engine.gateway, engine.sites, CLOCK, identity, engine.worker, engine.worker.lapsed)
    engine.operations = OperationRunner(tools, DbosOperations(url), {OperationKind.MIGRATION: toy})
    signal.signal(signal.SIGTERM, lambda _s, _f: engine.stop())
    print(identity.engine_id, flush=True)
    engine.run()


# --- the desk of the tests --------------------------------------------------------------------------------------
@dataclass
class Desk:
    url: str
    folder: Path
    repository: SqlRepository

    def told(self, what: str, since: float = 0.0) -> list[dict[str, Any]]:
        path = self.folder / "told"
        lines = path.read_text().splitlines() if path.exists() else []
        rows = [json.loads(line) for line in lines]
        return [r for r in rows if r["what"] == what and r["at"] > since]

    def shares(self, since: float = 0.0) -> dict[str, set[int]]:
        """Who wrote for which VM."""
        found: dict[str, set[int]] = {}
        for r in self.told("write", since):
            found.setdefault(r["vm"], set()).add(r["pid"])
        return found

    @contextmanager
    def engine(self, kind: str) -> Iterator[subprocess.Popen[str]]:
        command = [sys.executable, str(HERE), self.url, str(self.folder), kind]
        with (self.folder / "err").open("a") as err:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=err, text=True)
        try:
            assert process.stdout is not None
            assert process.stdout.readline(), (self.folder / "err").read_text()
            yield process
        finally:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            process.wait(30)
            process.stdout.close()

    def settled(self, *pids: int) -> None:
        """Each VM's cycles run in one of these, and each of these has some."""
        now: dict[str, set[int]] = {}

        def so() -> bool:
            now.clear()
            now.update(self.shares(time.time() - WINDOW_S))
            return len(now) == len(VMS) and {p for s in now.values() for p in s} == set(pids)

        try:
            wait_until(so, f"shares of {pids}", timeout_s=TAKEN_OVER_S)
        except LabFailed:
            pytest.fail(f"wanted {pids}, found {now}; {(self.folder / 'err').read_text()[-3000:]}")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgres_server() as url:
        yield url


@pytest.fixture
def desk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Desk]:
    if getattr(request, "param", "postgresql") == "sqlite":
        url = f"sqlite:///{tmp_path}/v.db"
    else:
        url = new_database(request.getfixturevalue("server"), f"e{next(_numbers)}")
    repository = SqlRepository(url)
    for name in ("B", *VMS):
        repository.save_site(site(name))
    for key, vm in VMS.items():
        policy = Policy(rpo_target_s=10)
        repository.save_protection(
            Protection(protection_id=key, vm_uuid=vm, vm_name=key, source_site=key, target_site="B", policy=policy,
                       epoch_owner=key, created_at=CLOCK.now())
        )  # fmt: skip
    yield Desk(url, tmp_path, repository)
    repository.close()


def site(site_id: str) -> Site:
    return Site(
        site_id=site_id, name=site_id, api_url="https://192.0.2.1:7770/api/v1", cert_pem="", cert_sha256="",
        ssh_host="192.0.2.1", ssh_port=22, ssh_user="vapor", ssh_host_keys=(), replica_root="/r",
        paired_at=CLOCK.now(),
    )  # fmt: skip


def never_twice(desk: Desk) -> None:
    """Writes that a site accepted: per VM the fencing number never falls, and one number is one process's."""
    last: dict[str, int] = {}
    whose: dict[tuple[str, int], int] = {}
    writes = sorted(desk.told("write"), key=lambda r: float(r["at"]))
    assert writes
    for r in writes:
        assert r["fence"] >= last.get(r["vm"], 0), r
        last[r["vm"]] = r["fence"]
        assert whose.setdefault((r["vm"], r["fence"]), r["pid"]) == r["pid"], r


def test_services_share_and_the_dead_ones_work_is_taken_over(desk: Desk) -> None:
    """Two services and a console on PostgreSQL: each VM on exactly one; kill -9; operations go on at the cut step."""
    with desk.engine("console") as console, ExitStack() as stack:
        desk.settled(console.pid)  # alone, it acts
        one, two = stack.enter_context(desk.engine("service")), stack.enter_context(desk.engine("service"))
        desk.settled(one.pid, two.pid)
        quiet = time.time()
        wait_until(lambda: len(desk.told("write", quiet)) > 6 * len(VMS), "more cycles", timeout_s=TAKEN_OVER_S)
        shares = desk.shares(quiet)
        assert all(len(pids) == 1 for pids in shares.values()), shares
        assert {next(iter(pids)) for pids in shares.values()} == {one.pid, two.pid}
        assert not any(r["pid"] == console.pid for r in desk.told("write", quiet))

        for key in VMS:  # an operation of each VM, asked by anybody: it begins where the VM's cycles run
            asked = {
                "kind": "planned migration",
                "protection_id": key,
                "args": {},
                "reason": "test",
                "asked_by": "me",
            }
            desk.repository.ask("begin", asked, "me", 30)
        wait_until(lambda: len(in_two(desk)) == len(VMS), "all in step two", timeout_s=TAKEN_OVER_S)
        assert {vm: {pid} for vm, pid in in_two(desk).items()} == shares
        killed_at = time.time()
        one.kill()
        one.wait()
        (desk.folder / "go").touch()
        wait_until(lambda: all(o.state is OperationState.DONE for o in desk.repository.operations()),
                   "the end of all operations", timeout_s=TAKEN_OVER_S)  # fmt: skip
        left = {vm for vm, pids in shares.items() if pids == {one.pid}}
        again = [(r["vm"], r["step"]) for r in desk.told("step", killed_at) if r["vm"] in left]
        assert sorted(again) == sorted((vm, s) for vm in left for s in ("two", "three"))  # not the first, and once
        assert {r["pid"] for r in desk.told("step", killed_at)} == {two.pid}
        desk.settled(two.pid)
        never_twice(desk)


def in_two(desk: Desk) -> dict[str, int]:
    return {r["vm"]: r["pid"] for r in desk.told("step") if r["step"] == "two"}


def freeze(desk: Desk, process: subprocess.Popen[str]) -> None:
    """Not with a lease's file locked: that is the site's doing, which does not freeze with an engine."""

    def outside() -> bool:
        process.send_signal(signal.SIGSTOP)
        wait_until(lambda: "T (stopped)" in Path(f"/proc/{process.pid}/status").read_text(), "it stops", timeout_s=5)
        for path in (desk.folder / "leases").glob(".*.lock"):
            with path.open() as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    process.send_signal(signal.SIGCONT)
                    return False
        return True

    wait_until(outside, "a moment outside the leases", timeout_s=20, every_s=0.01)


def test_an_engine_that_froze_is_fenced_off_when_it_comes_back(desk: Desk) -> None:
    """Its process lives, its heart does not beat: taken over after 10 s, and what it writes afterwards is refused."""
    with desk.engine("service") as one, desk.engine("service") as two:
        desk.settled(one.pid, two.pid)
        freeze(desk, one)
        began = time.monotonic()
        desk.settled(two.pid)
        assert 8 < time.monotonic() - began < TAKEN_OVER_S
        one.send_signal(signal.SIGCONT)
        desk.settled(one.pid, two.pid)  # and it gets its share back
        never_twice(desk)


def test_a_database_that_crashes_under_operations_fails_none_of_them(desk: Desk) -> None:
    with desk.engine("service") as one:
        desk.settled(one.pid)
        for key in VMS:
            asked = {"kind": "planned migration", "protection_id": key, "reason": "test", "asked_by": "me"}
            desk.repository.ask("begin", dict(asked), "me", 30)
        wait_until(lambda: len(in_two(desk)) == len(VMS), "all in step two", timeout_s=TAKEN_OVER_S)
        desk.repository.close()
        (desk.folder / "go").touch()  # the steps end while the server is away
        crash(desk.url)
        desk.repository = SqlRepository(desk.url)
        wait_until(lambda: all(o.ended for o in desk.repository.operations()), "the end of all", timeout_s=60)
        assert {o.state for o in desk.repository.operations()} == {OperationState.DONE}
        desk.settled(one.pid)
        never_twice(desk)
        desk.repository.close()


@pytest.mark.parametrize("desk", ["sqlite"], indirect=True)
def test_two_services_on_one_file_take_turns(desk: Desk) -> None:
    with desk.engine("service") as one, desk.engine("service") as two:
        desk.settled(one.pid)
        one.kill()
        one.wait()
        desk.settled(two.pid)
        never_twice(desk)


if __name__ == "__main__":
    child(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
