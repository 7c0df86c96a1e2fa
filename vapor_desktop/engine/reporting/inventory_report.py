"""The inventory: every protection with its promise and its newest point, and what nothing protects. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vapor_desktop.engine.reporting.document import Cell, Column, Is, Section, duration_text
from vapor_desktop.model.drills import is_copy
from vapor_desktop.model.policy import Policy
from vapor_desktop.model.times import times_text
from vapor_desktop.model.view import ProtectionStatus, VmStatus

PROTECTIONS = (
    Column("vm", "VM"),
    Column("vm_uuid", "UUID"),
    Column("source", "Source"),
    Column("target", "Target"),
    Column("state", "State"),
    Column("policy", "Policy"),
    Column("rpo_now_s", "RPO now", Is.SECONDS),
    Column("last_point", "Last point", Is.COUNT),
    Column("taken_at", "Taken", Is.TIME),
    Column("current_as_of", "Current as of", Is.TIME),
    Column("points", "Points", Is.COUNT),
    Column("drilled_at", "Last drill passed", Is.TIME),
    Column("not_covered", "Not fully protected"),
)
UNPROTECTED = (
    Column("vm", "VM"),
    Column("vm_uuid", "UUID"),
    Column("site", "Site"),
    Column("state", "State"),
    Column("can_be_protected", "Can be protected"),
)


def sections(
    rows: Sequence[ProtectionStatus], vms: Mapping[str, Sequence[VmStatus]], silent: Mapping[str, str]
) -> tuple[Section, ...]:
    """``vms``: site name -> its VMs, asked now; ``silent``: site name -> why it could not be asked."""
    covered = {r.protection.vm_uuid for r in rows}
    bare = sorted(
        (vm for found in vms.values() for vm in found if vm.vm_uuid not in covered and not is_copy(vm.name)),
        key=lambda vm: (vm.site_name, vm.name),
    )
    unknown = tuple(f"{site}: its VMs are not known ({why})." for site, why in sorted(silent.items()))
    told = "None" if vms and not silent else "None is known" if vms else "— : no site could be asked"
    ordered = sorted(rows, key=lambda r: (r.protection.vm_name, r.key))
    return (
        Section("Protected VMs", (), PROTECTIONS, tuple(_row(r) for r in ordered), "No VM is protected"),
        Section(
            "VMs that nothing protects",
            unknown,
            UNPROTECTED,
            tuple((v.name, v.vm_uuid, v.site_name, v.state, "yes" if v.protectable else v.reason) for v in bare),
            told,
        ),
    )


def policy_text(policy: Policy) -> str:
    """The promise in one line."""
    kept = policy.retention
    parts = [f"RPO {duration_text(policy.rpo_target_s)}"]
    if policy.at_times:
        parts.append(f"at {times_text(policy.at_times)} UTC")
    parts.append(f"keeps {kept.newest} newest, {kept.hourly} hourly, {kept.daily} daily")
    parts.append("crash-consistent" if policy.quiesce.value == "never" else "frozen when the agent answers")
    if policy.drill_days is not None:
        parts.append(f"a drill every {policy.drill_days} days")
    return "; ".join(parts)


def _row(r: ProtectionStatus) -> tuple[Cell, ...]:
    p = r.protection
    return (
        p.vm_name,
        p.vm_uuid,
        r.source_name,
        r.target_name,
        f"{r.status_text} · paused" if p.paused else r.status_text,
        policy_text(p.policy),
        r.rpo_now_s,
        r.last_seq,
        r.last_point_taken_at,
        r.current_as_of,
        r.point_count,
        p.drilled_at,
        "; ".join(p.warnings),
    )
