"""A recovery plan of twenty small VMs, run as failover with the source dark, on the real lab: click to all running.

``python -m tests.bench.bench_plan [--json FILE] [--vms N]``. The VMs have an empty disk each: what is measured is
ours and libvirt's, not the guests' boot.
"""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime

from tests.bench.on_a_lab import measured
from vapor_desktop.lab import guests, hostfiles
from vapor_desktop.lab.lab import Site
from vapor_desktop.lab.stage import Stage
from vapor_desktop.model.operations import OperationState
from vapor_desktop.model.plan_report import report_of
from vapor_desktop.model.plans import CheckKind, Plan, PlanMode, PlanVm, Tier, WaitFor

DISK = "64M"
MEMORY_MIB = 48
PARALLEL = 4


def add_empty(site: Site, name: str) -> None:
    """A VM with an empty disk, running its firmware."""
    spec = guests.GuestSpec(name)
    [file] = spec.files
    site.run(["qemu-img", "create", "-q", "-f", "qcow2", file, DISK])
    os.chown(site.path(file), *hostfiles.user_ids(site.layout, "libvirt-qemu"))
    xml = guests.domain_xml(spec, site.network)
    small = xml.replace(f"<memory unit='MiB'>{guests.MEMORY_MIB}<", f"<memory unit='MiB'>{MEMORY_MIB}<")
    site.run([*guests.URI, "define", "/dev/stdin"], input=small)
    site.run([*guests.URI, "start", name])


def measure(stage: Stage, vms: int) -> dict[str, float]:
    """All figures of this bench."""
    names = [f"vm{number:02}" for number in range(1, vms + 1)]
    for name in names:
        add_empty(stage.lab.sites["a"], name)
    stage.open()
    a, b = stage.pair()
    stage.protect(a, b, names, rpo_target_s=86400)
    for name in names:
        stage.wait_for_point(name, 1, timeout_s=300)
    uuids = {name: stage.row(name).protection.vm_uuid for name in names}
    running = (WaitFor(kind=CheckKind.RUNNING),)
    planned = tuple(PlanVm(vm_uuid=uuids[name], name=name, checks=running) for name in names)
    tiers = (Tier(name="first", vms=planned[: vms // 2]), Tier(name="second", vms=planned[vms // 2 :]))
    plan = Plan(plan_id="", name="All", tiers=tiers, parallel=PARALLEL, changed_at=datetime.now(UTC))
    saved = stage.backend.save_plan(plan)
    stage.lab.kill_site("a")
    began = time.monotonic()
    done = stage.backend.wait_operation(stage.backend.run_plan(saved.plan_id, PlanMode.FAILOVER, "bench"), 300)
    took = time.monotonic() - began
    up = [line for line in report_of(done) if (line.state, line.now) == ("up", "running")]
    if done.state is not OperationState.DONE or len(up) != vms:
        raise SystemExit(f"{len(up)} of {vms} up: {done.state}, {done.question}, {done.error}")
    each = sorted(line.seconds or 0.0 for line in up)
    print(f"per VM: fastest {each[0]:.2f} s, slowest {each[-1]:.2f} s, {PARALLEL} at a time, two tiers")
    return {f"plan_{vms}_vms_s": round(took, 2)}


if __name__ == "__main__":
    measured(measure, vms=20)
