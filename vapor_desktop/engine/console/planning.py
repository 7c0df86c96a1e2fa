"""Recovery plans: kept, looked at, run."""

from __future__ import annotations

from collections.abc import Sequence

from vapor_desktop.engine.console.desk import VERB_DEADLINE_S, Desk
from vapor_desktop.engine.operations.plan_run import steps_of
from vapor_desktop.engine.operations.steps import rows as step_rows
from vapor_desktop.model.operations import StepRow
from vapor_desktop.model.plans import Plan, PlanMode, PlanStatus


class PlanningDesk(Desk):
    """Plans and their runs."""

    def plans(self) -> Sequence[PlanStatus]:
        """Living ones, by name, with what was last found of them."""
        return self._repository.plan_statuses()

    def save_plan(self, plan: Plan) -> Plan:
        """To every target that it uses. Raises EditOutdated, InvalidRequest, SiteUnreachable."""
        saved = self._engine.plans.save(plan)
        self._engine.plans.look(saved.plan_id)
        return saved

    def delete_plan(self, plan_id: str, version: int) -> None:
        """From every site that keeps it."""
        self._engine.plans.delete(plan_id, version)

    def look_at_plan(self, plan_id: str) -> PlanStatus:
        """Whether it is ready, asked now."""
        return self._engine.plans.look(plan_id)

    def plan_steps(self, plan_id: str, mode: PlanMode) -> Sequence[StepRow]:
        """What a run would do, step by step."""
        plan = self._engine.plans.get(plan_id)
        return step_rows(steps_of({"plan": plan.model_dump(mode="json"), "mode": mode.value}))

    def run_plan(self, plan_id: str, mode: PlanMode, reason: str) -> str:
        """Begin it; the operation's id. Raises Conflict naming an open run that shares a VM."""
        me = self._engine.identity.name
        asked: dict[str, object] = {"plan_id": plan_id, "mode": mode.value, "reason": reason, "asked_by": me}
        return str(self._ask("run-plan", asked, VERB_DEADLINE_S)["operation_id"])
