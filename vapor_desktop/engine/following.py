"""What another console did with a VM that was taken over: committed it, rolled it back, turned its direction.

A console's own operations write down themselves what they did. Of another console's the manifests tell: the target's,
and after a reprotect that of the site which the VM left.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

import structlog

from vapor_desktop.engine import records
from vapor_desktop.engine.ports import Clock, Repository, SiteGateway
from vapor_desktop.engine.records import Change
from vapor_desktop.engine.sitewatch import SiteWatch
from vapor_desktop.engine.split_watch import TAKEN_OVER
from vapor_desktop.model.errors import NotFound, VaporError
from vapor_desktop.model.manifest import Manifest
from vapor_desktop.model.sites import Protection
from vapor_desktop.model.states import Phase, Severity

log = structlog.get_logger(__name__)

FOLLOW_S = 10.0
# Under one of these leases the replica is not what it will be: whoever holds it has not finished.
_PASSING = frozenset({"cycle", "retention"})


class Follower:
    """``round`` blocks; one at a time."""

    def __init__(self, repository: Repository, gateway: SiteGateway, sites: SiteWatch, clock: Clock) -> None:
        self._repository = repository
        self._gateway = gateway
        self._sites = sites
        self._clock = clock
        self._looked_at: dict[str, float] = {}

    def round(self, protections: Iterable[Protection]) -> bool:
        """Look at every VM that was taken over, each of them every FOLLOW_S. True when something changed."""
        over = [p for p in protections if p.phase in TAKEN_OVER]
        if not over:
            return False
        busy = {o.protection_id for o in self._repository.operations(open_only=True)}
        now_s = self._clock.monotonic()
        due = [p for p in over if now_s - self._looked_at.get(p.protection_id, float("-inf")) >= FOLLOW_S]
        self._looked_at.update((p.protection_id, now_s) for p in due)
        changed = [self._look(p) for p in due if p.protection_id not in busy]
        return any(changed)

    def _look(self, p: Protection) -> bool:
        here = self._settled(p.target_site, p.vm_uuid)
        there = self._settled(p.source_site, p.vm_uuid)
        found = followed(p, here, there, self._clock.now())
        if found is None:
            return False
        text, manifest, change = found
        ours = False

        def unless_moved(q: Protection) -> Protection:
            nonlocal ours
            ours = (q.phase, q.epoch_number, q.commit_ask_at) == (p.phase, p.epoch_number, p.commit_ask_at)
            return change(q) if ours else q  # an operation of our own was faster

        records.update(self._repository, p.protection_id, unless_moved)
        if ours:
            records.cache_manifest(self._repository, p.protection_id, manifest)
            records.note(
                self._repository,
                self._clock.now(),
                "followed",
                f"At another console: {text}",
                severity=Severity.WARNING,
                protection_id=p.protection_id,
            )
            log.info("followed another console", vm=p.vm_name, what=text)
        return ours

    def _settled(self, site_id: str, vm_uuid: str) -> Manifest | None:
        """That site's word on its replica; None when there is none, it cannot be asked, or an operation is at it."""
        site, seen = self._repository.site(site_id), self._sites.seen(site_id)
        if site is None or (seen is not None and seen.status.reachable is False):
            return None  # a dark one is not waited for, VM by VM: its return is seen by the watch
        try:
            api = self._gateway.api(site)
            lease = api.lease(vm_uuid)
            if lease is not None and lease.purpose not in _PASSING:
                return None
            return api.replica(vm_uuid).manifest
        except NotFound:
            return None
        except VaporError as error:
            log.info("a replica was not asked for", site=site.name, code=error.code)
            return None


def followed(
    p: Protection, here: Manifest | None, there: Manifest | None, now: datetime
) -> tuple[str, Manifest, Change] | None:
    """What happened to a VM that was taken over, whose word that is, the change that says so; None: nothing. Pure.

    here: manifest at the target; there: at the source that the VM left, as a replica's.
    """
    if there is not None and _is_turned(p, there):
        return "it is protected the other way now", there, _turned(there)
    if here is None or here.protection_id != p.protection_id or here.target_site != p.target_site or here.folded:
        return None
    if here.epoch.number > p.epoch_number and here.epoch.owner == p.target_site:
        again = records.taken_over(here, now)
        return f"it runs under epoch {here.epoch.number}", here, lambda q: again(_over(q))
    committed = here.epoch.number == p.epoch_number and here.provisional != here.epoch.number
    if committed and p.commit_ask_at is not None:
        return "its failover was committed", here, _committed
    return None


def _is_turned(p: Protection, m: Manifest) -> bool:
    ends = (m.protection_id, m.source_site, m.target_site) == (p.protection_id, p.target_site, p.source_site)
    return ends and m.epoch.owner == p.target_site and m.epoch.number >= p.epoch_number and not m.folded


def _over(p: Protection) -> Protection:
    """A split brain that another console resolved is left by the resolver's own way."""
    return records.to_phase(Phase.FAILED_OVER)(p) if p.phase is Phase.SPLIT_BRAIN else p


def _committed(p: Protection) -> Protection:
    phase = records.to_phase(Phase.FAILED_OVER)(p) if p.phase is Phase.PROVISIONAL else p
    return phase.model_copy(update={"commit_ask_at": None})


def _turned(m: Manifest) -> Change:
    def change(p: Protection) -> Protection:
        over = p if p.phase is Phase.FAILED_OVER else records.to_phase(Phase.FAILED_OVER)(p)
        resting = Phase.PAUSED if p.paused else Phase.PROTECTED if m.newest is not None else Phase.INITIAL_SYNC
        moved = records.to_phase(resting)(records.to_phase(Phase.REPROTECTING)(over))
        settings = (m.policy, m.mappings, m.settings_version)
        other_way = records.turned((m.source_site, m.target_site), settings, m.epoch)
        return other_way(moved).model_copy(update={"commit_ask_at": None})

    return change
