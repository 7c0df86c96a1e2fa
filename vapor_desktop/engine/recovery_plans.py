"""Recovery plans between this database and the targets that keep them, and the look whether they are ready.

A plan is written to every target that it uses and to every site that holds an older copy. A site that was away
gets the newest copy when it answers again; of two copies the one of the higher version is the newer, and a deleted
plan is a copy too (its tombstone).
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Set

import structlog

from vapor_desktop.engine import records
from vapor_desktop.engine.ports import Clock, Repository, SiteGateway
from vapor_desktop.engine.readiness import PlanLook
from vapor_desktop.engine.worker import EngineIdentity
from vapor_desktop.model.errors import EditOutdated, InvalidRequest, NotFound, SiteUnreachable, VaporError
from vapor_desktop.model.plans import Plan, PlanStatus, newest
from vapor_desktop.model.sites import Site
from vapor_desktop.model.states import Severity
from vapor_desktop.model.wire import PlanWrite

log = structlog.get_logger(__name__)


class RecoveryPlans:
    """``answers``: whether a site is worth asking (the last look found it alive, or nobody has looked yet)."""

    def __init__(
        self,
        repository: Repository,
        gateway: SiteGateway,
        clock: Clock,
        identity: EngineIdentity,
        answers: Callable[[str], bool],
    ) -> None:
        self._repository = repository
        self._gateway = gateway
        self._clock = clock
        self._identity = identity
        self._answers = answers

    # --- what is asked of them ---------------------------------------------------------------------------
    def get(self, plan_id: str) -> Plan:
        """As cached. Raises NotFound."""
        for plan in self._repository.plan_copies():
            if plan.plan_id == plan_id and not plan.deleted:
                return plan
        raise NotFound("There is no such recovery plan", fix="`vaporctl plan list` shows them")

    def current(self, plan_id: str) -> Plan:
        """The newest copy, after asking its targets alone: a source that is lost is never waited for.

        Raises NotFound.
        """
        self._exchange(self._targets(self.get(plan_id)))
        return self.get(plan_id)

    def save(self, plan: Plan) -> Plan:
        """Write it to its targets; ``plan.version`` is that of the copy that was edited, 0 for a new one.

        Raises EditOutdated, SiteUnreachable when not one target answered, InvalidRequest without a protected VM.
        """
        self._exchange(self._targets(plan))
        copies = newest(self._repository.plan_copies())
        known = copies.get(plan.plan_id)
        base = known.version if known is not None else 0
        if base != plan.version:
            raise EditOutdated(
                f"The recovery plan “{plan.name}” was changed since it was read",
                why=f"version {base} is the newest, the edit was made on {plan.version}",
                fix="Look at it again, then repeat the change",
            )
        for other in copies.values():
            if other.name == plan.name and other.plan_id != plan.plan_id and not other.deleted:
                raise InvalidRequest(f"Another recovery plan is called “{plan.name}”", fix="Choose another name")
        stamp = {"version": base + 1, "changed_at": self._clock.now(), "changed_by": self._identity.name}
        saved = plan.model_copy(update={"plan_id": plan.plan_id or str(uuid.uuid4()), **stamp})
        self._write_to_targets(saved, known)
        self._repository.save_plan(saved)
        text = "deleted" if saved.deleted else f"saved (version {saved.version})"
        records.note(self._repository, self._clock.now(), "plan", f"Recovery plan “{saved.name}” {text}")
        return saved

    def delete(self, plan_id: str, version: int) -> None:
        """Raises what ``save`` raises."""
        self.save(self.get(plan_id).model_copy(update={"version": version, "deleted": True}))

    def watch(self) -> None:
        """Exchange copies with the sites, then look at each plan. Blocks; call it now and then."""
        self._exchange()
        look = PlanLook(self._repository, self._gateway)
        for before in self._repository.plan_statuses():
            self._judge(before, look)

    def look(self, plan_id: str) -> PlanStatus:
        """Look at one now."""
        before = next((s for s in self._repository.plan_statuses() if s.plan.plan_id == plan_id), None)
        if before is None:
            raise NotFound("There is no such recovery plan", fix="`vaporctl plan list` shows them")
        return self._judge(before, PlanLook(self._repository, self._gateway))

    # --- copies ------------------------------------------------------------------------------------------
    def _exchange(self, only: Set[str] | None = None) -> None:
        """Follow what is newer at a site; bring what is older there up to date."""
        for site in self._repository.sites():
            if not self._answers(site.site_id) or (only is not None and site.site_id not in only):
                continue
            try:
                self._exchange_with(site)
            except VaporError as error:  # it gets its copies when it answers again
                log.debug("plans were not exchanged", site=site.name, error=str(error))

    def _exchange_with(self, site: Site) -> None:
        api = self._gateway.api(site)
        theirs = newest(api.plans())
        for plan in theirs.values():
            self._repository.save_plan(plan)
        for plan in newest(self._repository.plan_copies()).values():
            there = theirs.get(plan.plan_id)
            wanted = there is not None or (not plan.deleted and site.site_id in self._targets(plan))
            if wanted and (there is None or plan.version > there.version):
                api.write_plan(PlanWrite(plan=plan, expect_version=there.version if there else 0))

    def _targets(self, plan: Plan) -> set[str]:
        uuids = {vm.vm_uuid for vm in plan.vms()}
        return {p.target_site for p in self._repository.protections() if p.vm_uuid in uuids}

    def _write_to_targets(self, plan: Plan, known: Plan | None) -> None:
        used = self._targets(plan) | (self._targets(known) if known is not None else set())
        sites = [s for s in self._repository.sites() if s.site_id in used]
        if not sites and not plan.deleted:
            fix = "Protect them first: a plan lies at the targets of its VMs"
            raise InvalidRequest("Not one VM of the plan is protected", fix=fix)
        troubles = [t for s in sites if (t := self._write_to(s, plan)) is not None]
        if sites and len(troubles) == len(sites):
            raise SiteUnreachable("The plan could be written to none of its targets", why="; ".join(troubles))
        for trouble in troubles:
            records.note(
                self._repository, self._clock.now(), "plan", f"Recovery plan “{plan.name}”: {trouble}",
                severity=Severity.WARNING,
            )  # fmt: skip

    def _write_to(self, site: Site, plan: Plan) -> str | None:
        """None when it is kept there; else why not. Raises EditOutdated: somebody else was faster."""
        try:
            api = self._gateway.api(site)
            there = next((p for p in api.plans() if p.plan_id == plan.plan_id), None)
            api.write_plan(PlanWrite(plan=plan, expect_version=there.version if there else 0))
        except EditOutdated:
            raise
        except VaporError as error:
            return f"{site.name} gets it when it answers again: {error}"
        return None

    # --- readiness -----------------------------------------------------------------------------------------
    def _judge(self, before: PlanStatus, look: PlanLook) -> PlanStatus:
        seen = look.look(before.plan)
        ready = not seen.problems
        after = PlanStatus(before.plan, ready, seen.problems, self._clock.now(), seen.targets)
        self._repository.save_readiness(after)
        if before.ready is not None and before.ready != ready:
            text = "is ready again" if ready else f"is not ready any more: {_sentences(after)}"
            severity = Severity.OK if ready else Severity.WARNING
            words = f"Recovery plan “{before.plan.name}” {text}"
            records.note(self._repository, self._clock.now(), "plan", words, severity=severity)
        return after


def _sentences(status: PlanStatus) -> str:
    return "; ".join(p.words for p in status.problems)


def not_ready(statuses: Iterable[PlanStatus]) -> list[tuple[str, str]]:
    """(plan id, one sentence) of those without their tick."""
    return [
        (s.plan.plan_id, f"Recovery plan “{s.plan.name}” is not ready: {_sentences(s)}")
        for s in statuses
        if s.ready is False
    ]
