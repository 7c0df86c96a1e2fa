"""The power of site A goes in each phase of a cycle. Its VM runs at B, nothing of the cut point is seen, A's own last
records are kept, and the VM comes home: the diary's timeline explains every record."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import proofs
import pytest
from test_round_trip import (
    NAME,
    blockers,
    chain,
    cycles_go_on,
    last_of,
    move,
    operate,
    stage,  # noqa: F401  (the fixture)
)

from vapor_desktop.engine.source_job import SourceJob
from vapor_desktop.hypervisor import backup
from vapor_desktop.lab.lab import Lab
from vapor_desktop.lab.processes import wait_until
from vapor_desktop.lab.stage import Stage
from vapor_desktop.model.operations import OperationKind
from vapor_desktop.transport.api_client import HttpSiteApi

pytestmark = [pytest.mark.lab, pytest.mark.soak, pytest.mark.timeout(600)]


class PowerCut:
    """Of site A, once, in whichever thread comes by first."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._first = threading.Lock()
        self.done = threading.Event()

    def __call__(self) -> None:
        if self._first.acquire(blocking=False):
            self._lab.kill_site("a")
            self.done.set()


def wrapped(
    patch: pytest.MonkeyPatch, owner: Any, name: str, cut: Callable[[], None], *, after: bool = False
) -> None:
    """The power goes when the engine comes to this call, or right after it."""
    whole = getattr(owner, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        if not after:
            cut()
        answer = whole(*args, **kwargs)
        if after:
            cut()
        return answer

    patch.setattr(owner, name, call)


@contextmanager
def power_goes(stage: Stage, phase: str) -> Iterator[None]:  # noqa: F811
    """Inside, site A is dark since that phase of a cycle."""
    cut = PowerCut(stage.lab)
    assert stage.program is not None
    worker = stage.program.engine.worker
    with pytest.MonkeyPatch.context() as patch:
        if phase == "before the freeze":
            wrapped(patch, SourceJob, "open", cut)
        elif phase == "while frozen":
            wrapped(patch, backup, "freeze", cut, after=True)
        elif phase == "job begun":
            wrapped(patch, SourceJob, "_begin", cut, after=True)
        elif phase == "sending":
            proofs.begin_sending(stage, NAME)
            cut()
        elif phase == "published":
            patch.setattr(worker, "before_job_end", lambda _pid, _manifest, _socket: cut())
        elif phase == "letting old points go":
            wrapped(patch, HttpSiteApi, "drop_point", cut)
        assert cut.done.wait(90), f"no cycle came to “{phase}”"
        yield


@pytest.mark.parametrize(
    "phase",
    ["before the freeze", "while frozen", "job begun", "sending", "published", "letting old points go"],
)
def test_every_record_is_explained(stage: Stage, phase: str) -> None:  # noqa: F811
    lab, backend = stage.lab, stage.backend
    a, b = lab.sites["a"], lab.sites["b"]
    key = stage.row(NAME).key
    rate = stage.row(NAME).protection.policy.bandwidth_bytes_s
    [original] = a.disks_of(NAME)
    cycles_go_on(stage)
    said = len(b.serial(NAME))
    with power_goes(stage, phase):
        wait_until(lambda: not proofs.running(stage), "the end of the cut cycle", timeout_s=120)
        seen = proofs.view(stage, NAME)
        point = proofs.judged(b, proofs.files_of(seen))
        backend.failover(key, None, f"site a has no power: {phase}")
    verdict = b.wait_boot(NAME, timeout_s=120, after=said)
    assert (verdict.gaps, verdict.torn, verdict.last) == (0, 0, point.last), "the newest complete point, and no more"
    operate(stage, OperationKind.COMMIT)

    lab.revive_site("a")
    wait_until(lambda: not blockers(stage), "site a answers", timeout_s=90, every_s=0.5)
    assert a.exec(["virsh", "-c", "qemu:///system", "start", NAME], check=False).returncode != 0, "its guard"
    wrote = last_of(a.diary([original]))
    assert wrote >= verdict.last, "what A wrote after the point is A's alone"
    if stage.row(NAME).protection.policy.bandwidth_bytes_s != rate:
        proofs.set_policy(stage, NAME, bandwidth_bytes_s=rate)
    done = operate(stage, OperationKind.REPROTECT)
    assert done.result["mode"] == "compare"
    cycles_go_on(stage)
    assert last_of(a.diary([original])) == wrote, "and it is kept"
    assert done.result["diverged"] == ["vda"]
    backend.unpin(key, done.result["base_seq"])  # until a person lets it go
    move(stage, b, a)  # every record that B wrote is there
    assert operate(stage, OperationKind.REPROTECT).result["flat"] is True
    assert a.disks_of(NAME) == [original]
    assert chain(a, original) == [original]
