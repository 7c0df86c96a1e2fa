"""Drill and failover with a 100 GiB disk, and planned migration's downtime with a small and a well-filled disk.

``python -m tests.bench.bench_recovery [--json FILE] [--rounds N] [--filled-gib N]``. Nobody else does these on plain
libvirt: there is no rival, the figures stand for themselves. Downtime counts from "off at the source" to "running at
the target": what is beyond the guest's own shutdown and boot.
"""

from __future__ import annotations

import shutil
import statistics

from tests.bench.on_a_lab import measured
from vapor_desktop.lab import disks, guests
from vapor_desktop.lab.processes import LabFailed, run
from vapor_desktop.lab.stage import Stage
from vapor_desktop.model.errors import from_wire
from vapor_desktop.model.operations import Operation, OperationKind

GIB = 1 << 30
SPARSE, SMALL, FILLED = "sparse", "small", "filled"
SPARE_GIB = 8  # what the machine keeps free beside both copies


def operate(stage: Stage, name: str, kind: OperationKind, **args: object) -> Operation:
    """Begin it, and wait for its end. Raises its error."""
    key = stage.row(name).key
    done = stage.backend.wait_operation(stage.backend.begin_operation(kind, key, args, "bench"), 1200)
    if done.error is not None:
        raise from_wire(done.error)
    if done.ended_at is None:
        raise LabFailed(f"{kind} of {name} waits", why=str(done.question))
    return done


def drills(stage: Stage, name: str, rounds: int) -> float:
    """Median seconds from the call to a copy that runs."""
    took = []
    for _ in range(rounds):
        done = operate(stage, name, OperationKind.DRILL, wanted={"boot_s": 1, "agent": False})
        took.append(float(done.result["drill_to_running_s"]))
        operate(stage, name, OperationKind.STOP_DRILL, passed=False)
    return statistics.median(took)


def migration(stage: Stage, name: str) -> float:
    """Seconds between the VM's end at A and its run at B; prints each step's."""
    guests.wait_for_agent(stage.lab.sites["a"], name)
    done = operate(stage, name, OperationKind.MIGRATION)
    for step in done.steps:
        if step.started_at and step.ended_at:
            print(f"  {name}: {step.name:14} {(step.ended_at - step.started_at).total_seconds():8.2f} s")
    return float(done.result["downtime_s"])


def add_filled(stage: Stage, gib: int) -> None:
    """A guest whose disk has that much allocated, past what its own scratch partition begins with."""
    site, spec = stage.lab.sites["a"], guests.GuestSpec(FILLED, rate=2, scratch=0, size_bytes=(gib + 2) * GIB)
    free = shutil.disk_usage(site.path("/var/lib/libvirt/images")).free
    if free < (2 * gib + SPARE_GIB) * GIB:
        raise LabFailed(f"{gib} GiB at both sites want {2 * gib + SPARE_GIB} GiB free; there are {free // GIB}")
    guests.add(site, spec, stage.lab.cache, start=False)
    [file] = spec.files
    words = []
    for number in range(gib):
        words += ["-c", f"write -q -P {1 + number % 250} {disks.SCRATCH_START + number * GIB} 1G"]
    run(["qemu-io", "-t", "unsafe", "-f", "qcow2", *words, site.path(file)], timeout_s=1800)
    site.virsh("start", FILLED)


def measure(stage: Stage, rounds: int, filled_gib: int) -> dict[str, float]:
    """All figures of this bench."""
    a = stage.lab.sites["a"]
    guests.add(a, guests.GuestSpec(SPARSE, rate=2, scratch=0, size_bytes=100 * GIB), stage.lab.cache)
    guests.add(a, guests.GuestSpec(SMALL, rate=2, scratch=0), stage.lab.cache)
    add_filled(stage, filled_gib)
    names = [SPARSE, SMALL, FILLED]
    for name in names:
        guests.wait_for(a, name, "VAPOR-DIARY ", timeout_s=120)
    stage.open()
    site_a, site_b = stage.pair()
    stage.protect(site_a, site_b, names, rpo_target_s=86400)
    for name in names:
        stage.wait_for_point(name, 1, timeout_s=1800)
    figures = {"drill_to_running_100g_s": round(drills(stage, SPARSE, rounds), 3)}
    figures["migration_downtime_beyond_guest_s"] = migration(stage, SMALL)
    figures[f"migration_downtime_{filled_gib}g_allocated_s"] = migration(stage, FILLED)
    stage.lab.kill_site("a")
    figures["failover_to_running_100g_s"] = round(stage.backend.failover(stage.row(SPARSE).key, None, "bench"), 3)
    return figures


if __name__ == "__main__":
    measured(measure, rounds=3, filled_gib=20)
