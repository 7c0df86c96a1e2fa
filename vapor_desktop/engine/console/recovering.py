"""Failover, the way home, kept runs, drills."""

from __future__ import annotations

from collections.abc import Sequence

from vapor_desktop.engine import both_sides, drilling, wayhome
from vapor_desktop.engine.console.desk import VERB_DEADLINE_S
from vapor_desktop.engine.console.operating import OperatingDesk
from vapor_desktop.engine.console.particulars import ParticularsDesk
from vapor_desktop.engine.operations.switching_off import SHUTDOWN_S
from vapor_desktop.model.drills import DrillPicture
from vapor_desktop.model.errors import InvalidRequest, from_wire
from vapor_desktop.model.operations import OperationKind
from vapor_desktop.model.view import (
    BothSides,
    DrillStatus,
    FailoverPreview,
    KeptRunView,
    ReprotectPreview,
    SettingsEdit,
)
from vapor_desktop.model.wire import Runbook


class RecoveringDesk(OperatingDesk, ParticularsDesk):
    """What a disaster, or the proof against one, asks for."""

    def failover_preview(self, protection_id: str) -> FailoverPreview:
        """What the sheet states before the button."""
        return self._engine.recovery.preview(protection_id)

    def runbook(self, protection_id: str, seq: int | None = None) -> Runbook:
        """As the target writes it now. Raises NotFound, SiteUnreachable."""
        p = self._protection(protection_id)
        return self._gateway.api(self._near(p.target_site)).runbook(p.vm_uuid, seq)

    def reprotect_preview(self, protection_id: str) -> ReprotectPreview:
        """What the way home costs, and why."""
        p = self._protection(protection_id)
        return wayhome.preview(self._gateway, p, self._site(p.target_site), self._site(p.source_site))

    def failover(self, protection_id: str, seq: int | None, reason: str, source: str = "leave") -> float:
        """Emergency failover. Returns seconds from the call to running. Raises InvalidRequest when it asks."""
        done = self.wait_operation(
            self.begin_operation(OperationKind.FAILOVER, protection_id, {"seq": seq, "source": source}, reason),
            VERB_DEADLINE_S + SHUTDOWN_S,
        )
        if done.question is not None:
            raise InvalidRequest(
                f"The failover of “{done.vm_name}” asks: {done.question.text}",
                fix=f"vaporctl operation answer {done.operation_id[:8]} "
                + "|".join(c.key for c in done.question.choices),
            )
        if done.error is not None:
            raise from_wire(done.error)
        return float(done.result["running_after_s"])

    def both_sides(self, protection_id: str) -> BothSides:
        """For the resolver of a split brain."""
        p = self._protection(protection_id)
        return both_sides.compare(self._gateway, p, self._site(p.source_site), self._site(p.target_site))

    def kept_runs(self, protection_id: str) -> Sequence[KeptRunView]:
        """Of the replica at the target, asked now."""
        return self._engine.recovery.kept_runs(protection_id)

    def let_go(self, protection_id: str, epoch: int, reason: str) -> None:
        """Delete what a kept run has written."""
        self._ask("let-go", {"protection_id": protection_id, "epoch": epoch, "reason": reason}, VERB_DEADLINE_S)

    def drills(self) -> Sequence[DrillStatus]:
        """Of every site that answers, asked now; ended ones too, newest first."""
        return drilling.everywhere(self._repository, self._gateway)

    def schedule_drills(self, protection_id: str, days: int | None, *, auto: bool) -> None:
        """An edit of the policy, on the settings as they are now. Raises what ``edit`` raises."""
        now = self.settings(protection_id)
        policy = now.policy.model_copy(update={"drill_days": days, "drill_auto": auto})
        if policy != now.policy:
            self.edit(protection_id, SettingsEdit(now.version, policy, now.mappings))

    def drill_screen(self, protection_id: str) -> bytes:
        """A PNG of the running (else the last) drill's screen. Raises NotFound."""
        p = self._protection(protection_id)
        return drilling.screen(self._gateway.api(self._near(p.target_site)), p)

    def point_proof(self, protection_id: str, seq: int) -> DrillPicture:
        """What the last drill that passed on the point has left. Raises NotFound."""
        p = self._protection(protection_id)
        return self._gateway.api(self._near(p.target_site)).point_proof(p.vm_uuid, seq)
