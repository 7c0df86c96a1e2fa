"""Leases: fences rise for ever, whoever asks from whatever process, after whatever happened."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import time_machine

from vapor_desktop.model.errors import InvalidRequest, LeaseHeld, NotFound, StaleLease, Unexpected
from vapor_desktop.model.wire import LeaseRequest
from vapor_desktop.site import leases

VM = "8f1d6f0e-2c0b-4f7a-9d52-0a3b6f1f2a11"


class Audit:
    """Keeps what is told."""

    def __init__(self) -> None:
        self.acts: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, act: str, **facts: Any) -> None:
        self.acts.append((act, facts))


def request(holder: str = "a", ttl_s: float = 60, takeover: str | None = None) -> LeaseRequest:
    return LeaseRequest(
        holder=holder, holder_name=f"Engine {holder}", purpose="t", ttl_s=ttl_s, takeover_reason=takeover
    )


@pytest.fixture
def boot_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves the boot-time clock by hand."""
    now = [1000.0]
    monkeypatch.setattr(leases, "boot_time_s", lambda: now[0])

    def advance(seconds: float) -> None:
        now[0] += seconds

    return advance


def test_held_taken_over_and_fenced_off(tmp_path: Path) -> None:
    audit = Audit()
    first = leases.acquire(tmp_path, VM, request("a"), audit)
    with pytest.raises(LeaseHeld) as held:
        leases.acquire(tmp_path, VM, request("b"), audit)
    assert held.value.details["holder"] == "a"
    assert "Engine a" in held.value.what
    assert audit.acts == []
    second = leases.acquire(tmp_path, VM, request("b", takeover="site a burns"), audit)
    assert second.fence > first.fence
    assert audit.acts[0][0] == "lease-takeover"
    assert audit.acts[0][1]["reason"] == "site a burns"
    leases.check(tmp_path, VM, second.fence)
    with pytest.raises(StaleLease):
        leases.check(tmp_path, VM, first.fence)
    with pytest.raises(StaleLease):
        leases.renew(tmp_path, VM, first.fence, 60)


def test_fences_never_return(tmp_path: Path, boot_clock: Callable[[float], None]) -> None:
    seen = [leases.acquire(tmp_path, VM, request(), Audit()).fence]
    leases.release(tmp_path, VM, seen[-1])
    seen.append(leases.acquire(tmp_path, VM, request(), Audit()).fence)  # after release
    boot_clock(61)
    with pytest.raises(StaleLease):
        leases.check(tmp_path, VM, seen[-1])
    seen.append(leases.acquire(tmp_path, VM, request("b"), Audit()).fence)  # after expiry, by another
    seen.append(leases.acquire(tmp_path, VM, request("b"), Audit()).fence)  # the same holder anew
    assert seen == sorted(set(seen))
    leases.release(tmp_path, VM, seen[0])  # a release that comes late ends nothing
    leases.check(tmp_path, VM, seen[-1])


def test_renewal_prolongs_and_expiry_ends(tmp_path: Path, boot_clock: Callable[[float], None]) -> None:
    fence = leases.acquire(tmp_path, VM, request(ttl_s=10), Audit()).fence
    boot_clock(9)
    leases.renew(tmp_path, VM, fence, 10)
    boot_clock(9)
    assert leases.current(tmp_path, VM).fence == fence
    boot_clock(2)
    with pytest.raises(NotFound):
        leases.current(tmp_path, VM)
    with pytest.raises(StaleLease):
        leases.renew(tmp_path, VM, fence, 10)


def test_a_step_of_the_wall_clock_changes_nothing(tmp_path: Path) -> None:
    fence = leases.acquire(tmp_path, VM, request(ttl_s=60), Audit()).fence
    with time_machine.travel(time.time() + 86400, tick=True):
        leases.check(tmp_path, VM, fence)


def test_after_a_reboot_the_wall_clock_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fence = leases.acquire(tmp_path, VM, request(ttl_s=60), Audit()).fence
    monkeypatch.setattr(leases, "boot_id", lambda: "another boot")
    leases.check(tmp_path, VM, fence)
    with time_machine.travel(time.time() + 61, tick=True), pytest.raises(StaleLease):
        leases.check(tmp_path, VM, fence)


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"fence": 3', b'{"fence": null, "lease": null, "ends": null}'])
def test_a_damaged_file_grants_nothing(tmp_path: Path, damage: bytes) -> None:
    leases.acquire(tmp_path, VM, request(), Audit())
    (tmp_path / f"{VM}.json").write_bytes(damage)
    with pytest.raises(Unexpected, match="damaged"):
        leases.acquire(tmp_path, VM, request(), Audit())
    with pytest.raises(Unexpected):
        leases.check(tmp_path, VM, 1)


def test_names_are_uuids_only(tmp_path: Path) -> None:
    for bad in ("../x", "", "a/b", "8f1d6f0e"):
        with pytest.raises(InvalidRequest):
            leases.check(tmp_path, bad, 1)


WORKER = """
import json, sys
from pathlib import Path
from vapor_desktop.model.wire import LeaseRequest
from vapor_desktop.site import leases
directory, vm, name = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
got = []
for _ in range(100):
    ask = LeaseRequest(holder=name, holder_name=name, purpose="race", takeover_reason="race")
    got.append(leases.acquire(directory, vm, ask, lambda *a, **k: None).fence)
print(json.dumps(got))
"""


def test_two_processes_never_get_the_same_fence(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", WORKER, str(tmp_path), VM]
    racers = [subprocess.Popen([*argv, name], stdout=subprocess.PIPE, text=True) for name in ("a", "b")]
    got = [json.loads(racer.communicate(timeout=60)[0]) for racer in racers]
    assert all(fences == sorted(fences) for fences in got)
    assert sorted(got[0] + got[1]) == list(range(1, 201))


def test_check_is_cheap(tmp_path: Path) -> None:
    fence = leases.acquire(tmp_path, VM, request(), Audit()).fence
    times = []
    for _ in range(200):
        begun = time.perf_counter()
        leases.check(tmp_path, VM, fence)
        times.append(time.perf_counter() - begun)
    assert sorted(times)[100] < 0.001


def test_a_refusal_tells_since_when_and_a_take_over_meets_only_the_holder_it_means(tmp_path: Path) -> None:
    audit = Audit()
    first = leases.acquire(tmp_path, VM, request("a"), audit)
    again = leases.acquire(tmp_path, VM, request("a"), audit)
    assert first.since is not None
    assert again.since == first.since  # the same holder, all the while
    renewed = leases.renew(tmp_path, VM, again.fence, 60)
    assert renewed.since == first.since
    with pytest.raises(LeaseHeld) as held:
        leases.acquire(tmp_path, VM, request("b"), audit)
    assert held.value.details["since"] == first.since.isoformat()
    assert held.value.details["vm_uuid"] == VM
    meant = request("b", takeover="c is dead").model_copy(update={"takeover_from": "c"})
    with pytest.raises(LeaseHeld):  # c's lease was gone and a has come: nobody said anything about a
        leases.acquire(tmp_path, VM, meant, audit)
    taken = leases.acquire(tmp_path, VM, meant.model_copy(update={"takeover_from": "a"}), audit)
    assert taken.since is not None
    assert taken.since > first.since
    with pytest.raises(StaleLease):
        leases.check(tmp_path, VM, again.fence)
