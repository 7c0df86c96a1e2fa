"""Looks, every other second, whether a VM that was taken over is in two places: phase, event and alert at once.

Both libvirts are asked, never a record alone. A side that does not answer changes nothing. What both sides wrote is
never forgotten by a look: *split brain* is left by the resolver only.
"""

from __future__ import annotations

from collections.abc import Iterable

import structlog

from vapor_desktop.engine import records
from vapor_desktop.engine.ports import Clock, Repository, SiteGateway
from vapor_desktop.engine.sitewatch import SiteWatch
from vapor_desktop.model import guard as guard_rules
from vapor_desktop.model.errors import DomainNotFound, HypervisorUnreachable, NotFound, VaporError
from vapor_desktop.model.manifest import Epoch
from vapor_desktop.model.sites import Protection, Site
from vapor_desktop.model.split_brain import ON, Finding, Side, Verdict, judge
from vapor_desktop.model.states import Phase, Severity
from vapor_desktop.model.wire import GuardRecord

log = structlog.get_logger(__name__)

WATCH_S = 2.0
TAKEN_OVER = frozenset({Phase.PROVISIONAL, Phase.FAILED_OVER, Phase.SPLIT_BRAIN_RISK, Phase.SPLIT_BRAIN})
_SOURCE_SIDE = frozenset(
    {Phase.PROTECTED, Phase.SYNCING, Phase.COMPARING, Phase.PAUSED, Phase.ERROR, Phase.SOURCE_UNREACHABLE}
)
CODE = "SPLIT-BRAIN"
# A host that is back hears within seconds whose the VM is; until then it is not yet worth an alarm.
PASSING_S = 20.0


class SplitWatch:
    """``round`` blocks; one at a time."""

    def __init__(self, repository: Repository, gateway: SiteGateway, sites: SiteWatch, clock: Clock) -> None:
        self._repository = repository
        self._gateway = gateway
        self._sites = sites
        self._clock = clock
        self._passing: dict[str, float] = {}  # protection id -> since when

    def round(self, protections: Iterable[Protection]) -> bool:
        """Look at every VM of these that could be in two places. True when something changed."""
        busy = {o.protection_id for o in self._repository.operations(open_only=True)}
        candidates = [p for p in protections if p.protection_id not in busy]
        taken = [p for p in candidates if p.phase in TAKEN_OVER]
        twice = self._seen_at_target()
        taken += [p for p in candidates if p.phase in _SOURCE_SIDE and (p.vm_uuid, p.target_site) in twice]
        self._ask_to_commit(candidates)
        self._look_at_dark(taken)
        changed = [self._look(p) for p in taken]
        return any(changed)

    def _ask_to_commit(self, candidates: Iterable[Protection]) -> None:
        """In the history, once for each time that it is due; the alert beside it stays open."""
        now = self._clock.now()
        for p in candidates:
            if p.phase is not Phase.PROVISIONAL or p.commit_ask_at is None or now < p.commit_ask_at:
                continue
            key, due = f"commit-asked/{p.protection_id}", p.commit_ask_at.isoformat()
            if self._repository.setting(key) == due:
                continue
            self._repository.set_setting(key, due)
            text = f"“{p.vm_name}” still runs provisionally: commit the failover, or roll it back"
            records.note(
                self._repository,
                now,
                "commit-asked",
                text,
                severity=Severity.WARNING,
                protection_id=p.protection_id,
            )

    def _seen_at_target(self) -> set[tuple[str, str]]:
        return {(vm.vm_uuid, vm.site_id) for vm in self._sites.vms() if vm.state in ON}

    def _look_at_dark(self, taken: Iterable[Protection]) -> None:
        """A site that was dark is tried each time: its return is to be seen within seconds."""
        for site_id in {s for p in taken for s in (p.source_site, p.target_site)}:
            seen, site = self._sites.seen(site_id), self._repository.site(site_id)
            if site is not None and (seen is None or seen.status.reachable is False):
                self._sites.look(site, inventory=False)

    def _look(self, p: Protection) -> bool:
        sides = [self.side(site_id, p.vm_uuid) for site_id in (p.source_site, p.target_site)]
        if sides[0] is None or sides[1] is None:
            return False
        epoch = Epoch(number=p.epoch_number, owner=p.epoch_owner)
        finding = judge(sides[0], sides[1], epoch, committed=p.commit_ask_at is None)
        if not finding.passing:
            self._passing.pop(p.protection_id, None)
        elif self._clock.monotonic() - self._passing.setdefault(p.protection_id, self._clock.monotonic()) < PASSING_S:
            return False
        return self._apply(p, finding)

    def side(self, site_id: str, vm_uuid: str) -> Side | None:
        """What that site says now; None when it is not paired here."""
        site = self._repository.site(site_id)
        if site is None:
            return None
        seen = self._sites.seen(site_id)
        if seen is not None and seen.status.reachable is False:
            return Side(site_id, site.name, None)
        try:
            state = self._state(site, vm_uuid)
            record = self._guard(site, vm_uuid)
        except VaporError as error:
            log.info("a side was not seen", site=site.name, code=error.code)
            return Side(site_id, site.name, None)
        boot_id = seen.identity.boot_id if seen and seen.identity else ""
        proven = bool(seen and seen.status.guard_proven)
        fenced = record is not None and proven and not guard_rules.may_start(record, boot_id)
        return Side(site_id, site.name, state, record, fenced)

    def _state(self, site: Site, vm_uuid: str) -> str:
        try:
            return self._gateway.hypervisor(site).domain(vm_uuid).state
        except DomainNotFound:
            return "undefined"
        except HypervisorUnreachable:
            self._gateway.drop(site.site_id)  # of before it went dark: the next look opens new ones
            raise

    def _guard(self, site: Site, vm_uuid: str) -> GuardRecord | None:
        try:
            return self._gateway.api(site).guard(vm_uuid)
        except NotFound:
            return None

    def _apply(self, p: Protection, finding: Finding) -> bool:
        """Phase, event; True when something changed."""
        to = phase_after(p, finding)
        if to is None:
            return False

        ours = False

        def change(q: Protection) -> Protection:
            nonlocal ours
            ours = q.phase is p.phase
            if not ours:
                return q  # somebody else was faster: look again
            # One door: a VM of the source's is at risk before it is split.
            through = q if q.phase in TAKEN_OVER else records.to_phase(Phase.SPLIT_BRAIN_RISK)(q)
            clear = finding.verdict is Verdict.CLEAR
            told = {"last_error": None if clear else finding.why, "last_error_code": None if clear else CODE}
            return records.to_phase(to)(through).model_copy(update=told)

        after = records.update(self._repository, p.protection_id, change)
        if not ours or after.phase is p.phase:
            return after != p
        bad = to in {Phase.SPLIT_BRAIN, Phase.SPLIT_BRAIN_RISK}
        text = f"{to.value.capitalize()}: {finding.why}" if bad else f"No split-brain risk any more: {finding.why}"
        records.note(
            self._repository,
            self._clock.now(),
            "split-brain",
            text,
            severity=Severity.CRITICAL if bad else Severity.WARNING,
            protection_id=p.protection_id,
        )
        log.warning("split brain", vm=p.vm_name, phase=to.value, why=finding.why)
        return True


def phase_after(p: Protection, finding: Finding) -> Phase | None:
    """The phase that the finding means for it; None: leave it as it is. Pure."""
    if finding.verdict is Verdict.UNKNOWN:
        return None
    if finding.verdict is Verdict.SPLIT:
        return Phase.SPLIT_BRAIN if p.phase is not Phase.SPLIT_BRAIN else None
    if p.phase not in TAKEN_OVER or p.phase is Phase.SPLIT_BRAIN:
        return None
    if finding.verdict is Verdict.RISK:
        moved = p.phase is not Phase.SPLIT_BRAIN_RISK or p.last_error != finding.why
        return Phase.SPLIT_BRAIN_RISK if moved else None
    if p.phase is not Phase.SPLIT_BRAIN_RISK:
        return None
    return Phase.FAILED_OVER if p.commit_ask_at is None else Phase.PROVISIONAL
