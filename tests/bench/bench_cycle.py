"""Overhead of a cycle with nothing to send, drill and failover to running, on the real lab.

``python -m tests.bench.bench_cycle [--json FILE] [--rounds N]``. The rival is libvirt itself: the same
begin, abort and checkpoint delete over the same open connection, in the same run.
"""

from __future__ import annotations

import statistics
import time

from tests.bench.on_a_lab import measured
from vapor_desktop.engine.source_job import socket_name
from vapor_desktop.lab import guests
from vapor_desktop.lab.processes import wait_until
from vapor_desktop.lab.stage import Stage
from vapor_desktop.model.domains import BackupDisk
from vapor_desktop.model.errors import from_wire
from vapor_desktop.model.operations import OperationKind


def libvirt_alone(stage: Stage, vm_uuid: str, site_id: str, rounds: int) -> list[float]:
    """Seconds of an empty incremental's libvirt calls through the console's own qemu+ssh connection."""
    assert stage.program is not None
    site = stage.program.engine.repository.site(site_id)
    assert site is not None
    hypervisor = stage.program.engine.gateway.hypervisor(site)
    took = []
    for number in range(rounds):
        name = f"vapor-bench000-1-{number:06d}"
        disk = BackupDisk("vda", f"/var/lib/libvirt/images/.vapor-scratch/bench-{number}", None, True, "vda")
        began = time.perf_counter()
        hypervisor.begin_backup(vm_uuid, [disk], name, socket_name("bench000"), False)
        hypervisor.end_backup(vm_uuid)
        hypervisor.delete_checkpoint(vm_uuid, name)
        took.append(time.perf_counter() - began)
    return took


def idle_cycles(stage: Stage, name: str, rounds: int) -> list[float]:
    """Durations of cycles of a silent guest: whole points, though only the freeze itself writes (its superblocks)."""
    key = stage.row(name).key
    for _ in range(rounds + 3):  # the first ones still carry what the guest wrote before it fell silent
        stage.backend.sync_now(key, wait=True)
    cycles = stage.backend.cycles(key, rounds)
    print("outcomes:", [(c.outcome, round(c.duration_s, 3)) for c in cycles])
    return [c.duration_s for c in cycles]


def drills(stage: Stage, key: str, rounds: int) -> list[float]:
    """Seconds from the call to a copy that runs, its bubble proven first; each one removed again."""
    took = []
    for _ in range(max(1, rounds)):
        args = {"wanted": {"boot_s": 1, "agent": False}}
        for kind, arguments in ((OperationKind.DRILL, args), (OperationKind.STOP_DRILL, {"passed": False})):
            done = stage.backend.wait_operation(stage.backend.begin_operation(kind, key, arguments, "bench"), 120)
            if done.error is not None:
                raise from_wire(done.error)
            if kind is OperationKind.DRILL:
                took.append(float(done.result["drill_to_running_s"]))
    return took


def measure(stage: Stage, rounds: int) -> dict[str, float]:
    """All figures of this bench."""
    a = stage.lab.sites["a"]
    guests.add(a, guests.GuestSpec("idle", rate=0, scratch=0), stage.lab.cache)
    guests.wait_for(a, "idle", "VAPOR-DIARY ", timeout_s=90)
    guests.set_rate(a, "idle", rate=0, scratch=0, zero=0, discard=0)
    stage.open()
    site_a, site_b = stage.pair()
    [key] = stage.protect(site_a, site_b, ["idle"], rpo_target_s=86400)
    stage.wait_for_point("idle", 1)
    wait_until(lambda: stage.row("idle").cycle_started_at is None, "the first cycle's end", timeout_s=60)
    own = idle_cycles(stage, "idle", rounds)
    rival = libvirt_alone(stage, stage.row("idle").protection.vm_uuid, site_a.site_id, rounds)
    drill_s = drills(stage, key, rounds // 3)
    stage.lab.kill_site("a")
    failover_s = stage.backend.failover(key, None, "bench")
    figures = {"cycle_overhead_s": round(statistics.median(own), 4)}
    figures["cycle_libvirt_part_s"] = round(statistics.median(rival), 4)
    figures["drill_to_running_s"] = round(statistics.median(drill_s), 3)
    figures["failover_to_running_s"] = round(failover_s, 3)
    return figures


if __name__ == "__main__":
    measured(measure, rounds=9)
