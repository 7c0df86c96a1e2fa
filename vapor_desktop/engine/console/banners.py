"""What the window says above everything else, and the tasks in its corner: pure functions over what was seen."""

from __future__ import annotations

from collections.abc import Sequence

from vapor_desktop.engine.recovery_plans import not_ready
from vapor_desktop.model import rpo
from vapor_desktop.model.plans import PlanStatus
from vapor_desktop.model.states import Phase, Severity
from vapor_desktop.model.view import Banner, ProtectionStatus, SiteStatus, Task

LOW_SPACE = 0.1
_IN_CYCLE = {Phase.INITIAL_SYNC, Phase.SYNCING, Phase.COMPARING}
DEMO = (Banner("demo", Severity.IDLE, "Demo: both sites and their guests live on this machine only, and go with it"),)


def of_protections(rows: Sequence[ProtectionStatus], engine: str) -> tuple[Banner, ...]:
    """``engine``: where one runs: here, service or none."""
    found = []
    if engine == "none":
        found.append(Banner("engine", Severity.CRITICAL, "No engine runs: nothing is replicated now"))
    over = [r for r in rows if r.protection.phase is Phase.FAILED_OVER]
    if over:
        names = ", ".join(r.protection.vm_name for r in over[:3])
        text = f"{names} {'was' if len(over) == 1 else 'were'} failed over and not protected now"
        found.append(Banner("failed-over", Severity.WARNING, text, "open-vm", over[0].key))
    for r in rows:
        if r.protection.phase is Phase.PROVISIONAL:
            name = r.protection.vm_name
            text = f"{name} runs at {r.target_name} provisionally: commit the failover, or roll it back"
            found.append(Banner(f"provisional:{r.key}", Severity.WARNING, text, "open-vm", r.key))
        found += [
            Banner(f"warning:{r.key}:{text}", Severity.WARNING, f"{r.protection.vm_name}: {text}", "open-vm", r.key)
            for text in r.protection.warnings
        ]
    return tuple(found)


def of_sites(sites: Sequence[SiteStatus]) -> list[Banner]:
    """Sites that do not answer, fill up, or keep another time."""
    found = []
    for s in sites:
        site_id, name = s.site.site_id, s.site.name
        if s.reachable is False:
            text = f"{name} {'cannot be used' if s.refuses else 'does not answer'}: {s.error}"
            found.append(Banner(f"site:{site_id}", Severity.CRITICAL, text, "open-site", site_id))
        if s.free_bytes is not None and s.total_bytes and s.free_bytes < LOW_SPACE * s.total_bytes:
            text = f"{name} has {s.free_bytes / 2**30:.1f} GiB left for replicas"
            found.append(Banner(f"space:{site_id}", Severity.WARNING, text, "open-site", site_id))
        if s.clock_offset_s is not None and abs(s.clock_offset_s) > rpo.CLOCK_TELLS_S:
            text = f"The clock of {name} is {s.clock_offset_s:+.0f} s off; ages are computed with that offset"
            found.append(Banner(f"clock:{site_id}", Severity.WARNING, text, "open-site", site_id))
    return found


def of_plans(plans: Sequence[PlanStatus]) -> list[Banner]:
    """Plans that are not ready."""
    return [Banner(f"plan:{key}", Severity.WARNING, text, "open-plan", key) for key, text in not_ready(plans)]


def tasks(rows: Sequence[ProtectionStatus]) -> tuple[Task, ...]:
    """The cycles that run."""
    return tuple(
        Task(
            f"cycle:{r.key}",
            f"{_doing(r.protection.phase)}: {r.protection.vm_name}",
            r.key,
            r.cycle_started_at,
            None,
            r.progress,
            None,
        )
        for r in rows
        if r.cycle_started_at is not None
    )


def _doing(phase: Phase) -> str:
    """A cycle's name, also in the moment before it knows what it will be."""
    return phase.value.capitalize() if phase in _IN_CYCLE else "Beginning a cycle"
