"""What the engine knows of drills: the sites have the truth, our record of a protection follows it."""

from __future__ import annotations

import base64
from collections.abc import Sequence, Set
from datetime import datetime, timedelta

import structlog

from vapor_desktop.engine import records
from vapor_desktop.engine.ports import Repository, SiteApi, SiteGateway
from vapor_desktop.model.drills import DrillPhase, DrillRecord, overdue
from vapor_desktop.model.errors import NotFound, VaporError
from vapor_desktop.model.operations import Operation, OperationKind
from vapor_desktop.model.sites import Protection, Site
from vapor_desktop.model.states import DrillState, Phase
from vapor_desktop.model.view import DrillStatus

# A drill that did not pass is not begun again before a person had a day to look.
AGAIN = timedelta(days=1)
SCHEDULE_S = 30.0
_QUIET = {Phase.PROTECTED, Phase.SYNCING, Phase.COMPARING, Phase.SOURCE_UNREACHABLE}
log = structlog.get_logger(__name__)


def everywhere(repository: Repository, gateway: SiteGateway) -> tuple[DrillStatus, ...]:
    """Of every site that answers, ended ones too, newest first."""
    found: list[DrillStatus] = []
    for site in repository.sites():
        try:
            found += [DrillStatus(site.site_id, site.name, r) for r in gateway.api(site).drills()]
        except VaporError as error:
            log.info("the drills of a site are not known", site=site.name, error=str(error))
    return tuple(sorted(found, key=lambda d: d.record.created_at, reverse=True))


def screen(api: SiteApi, protection: Protection) -> bytes:
    """A PNG of the running drill's screen, else of the last one's. Raises NotFound."""
    mine = [r for r in api.drills() if r.vm(protection.vm_uuid) is not None]
    if not mine:
        raise NotFound(f"There is no drill of “{protection.vm_name}”")
    newest = max(mine, key=lambda r: (r.open, r.created_at))
    return base64.b64decode(api.drill_screen(newest.drill_id, protection.vm_uuid).png)


def read(repository: Repository, gateway: SiteGateway, site: Site) -> bool:
    """Bring our records in line with what the site says of its drills; whether any changed.

    Called after a look at the site; what cannot be read now is read by the next one.
    """
    mine = [p for p in repository.protections() if p.target_site == site.site_id]
    if not mine:
        return False
    try:
        open_ones = [r for r in gateway.api(site).drills() if r.open]
    except VaporError as error:
        log.info("the drills of a site are read later", site=site.name, error=str(error))
        return False
    changed = False
    for p in mine:
        state = state_of(p.vm_uuid, open_ones)
        if p.drill is not state:
            records.update(repository, p.protection_id, records.drill(state))
            changed = True
    return changed


def state_of(vm_uuid: str, open_ones: Sequence[DrillRecord]) -> DrillState:
    """Of that VM, among the drills at its target that have not ended. Pure."""
    mine = [r for r in open_ones if r.vm(vm_uuid) is not None]
    if any(r.phase is DrillPhase.CLEANUP for r in mine):
        return DrillState.CLEANUP_NEEDED
    return DrillState.RUNNING if mine else DrillState.NONE


def next_scheduled(
    protections: Sequence[Protection], pointed: Set[str], recent: Sequence[Operation], now: datetime
) -> Protection | None:
    """Whose drill is to begin by itself now: overdue, not tried within a day, one at a time. Pure.

    ``pointed``: protections that have a recovery point. ``recent``: operations, newest first.
    """
    drills = [o for o in recent if o.kind is OperationKind.DRILL]
    if any(not o.ended for o in drills):
        return None
    tried = {o.protection_id for o in drills if now - o.started_at < AGAIN}
    busy = {p.target_site for p in protections if p.drill is not DrillState.NONE}
    for p in sorted(protections, key=lambda p: p.drilled_at or p.created_at):
        due = p.policy.drill_auto and overdue(p.policy.drill_days, p.drilled_at, p.created_at, now)
        ready = p.phase in _QUIET and not p.paused and p.protection_id in pointed and p.target_site not in busy
        if due and ready and p.protection_id not in tried:
            return p
    return None
