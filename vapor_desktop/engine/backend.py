"""What a console or vaporctl may ask, as one Protocol: the only door from `gui` and `cli` to the engine.

Every call blocks (network, database, keyring): a GUI calls it from its worker threads only. All raise
only errors of ``model.errors``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Protocol

from vapor_desktop.engine.ports import CycleRecord, Event, PointRow, RpoSample
from vapor_desktop.model.about import About
from vapor_desktop.model.drills import DrillPicture
from vapor_desktop.model.operations import Operation, OperationKind, StepRow
from vapor_desktop.model.plans import Plan, PlanMode, PlanStatus
from vapor_desktop.model.sites import Protection, Site
from vapor_desktop.model.view import (
    BothSides,
    Check,
    DisksView,
    DrillStatus,
    EngineView,
    FailoverPreview,
    KeptRunView,
    LeaseHolder,
    ProtectionSettings,
    ProtectRequest,
    ReprotectPreview,
    SettingsEdit,
    SiteProbe,
    Snapshot,
    VmStatus,
)
from vapor_desktop.model.wire import ImageFormat, Runbook, SeedState

OnCheck = Callable[[Check], None]
OnSeed = Callable[[SeedState], None]


class Backend(Protocol):
    """The engine's face. Verbs that change something return when done (or raise)."""

    def snapshot(self) -> Snapshot: ...
    def about(self) -> About:
        """Versions, and the licences of what is used."""

    # sites
    def normalise_url(self, text: str) -> str:
        """Pure and instant: may be called while the user types. Raises InvalidRequest."""

    def probe_site(self, url: str) -> SiteProbe: ...
    def add_site(self, probe: SiteProbe, token: str, on_check: OnCheck) -> Site:
        """Pin, exchange the token, learn host keys, enrol our key; each step is reported live."""

    def pair_sites(self, site_a: str, site_b: str, on_check: OnCheck) -> str:
        """Both ways; returns the route: direct or relay."""

    def remove_site(self, site_id: str) -> None: ...
    def site_networks(self, site_id: str) -> Sequence[str]: ...

    # virtual machines
    def vms(self, site_id: str) -> Sequence[VmStatus]: ...
    def preflight(self, request: ProtectRequest, on_check: OnCheck) -> Sequence[Check]: ...
    def protect(self, request: ProtectRequest) -> Sequence[Protection]: ...
    def unprotect(self, protection_id: str, *, delete_replica: bool) -> None: ...
    def adopt_replicas(self, site_id: str) -> Sequence[Protection]:
        """A console that knows only the target: protections as the site's manifests tell them."""

    # replication
    def sync_now(self, protection_id: str, *, wait: bool = False) -> None: ...
    def pause(self, protection_id: str) -> None: ...
    def resume(self, protection_id: str) -> None: ...
    def settings(self, protection_id: str) -> ProtectionSettings:
        """As the target's manifest has them now. Raises SiteUnreachable, …"""

    def edit(self, protection_id: str, edit: SettingsEdit) -> Protection:
        """Write them to the target's manifest, under its lease. Raises EditOutdated, InvalidRequest, LeaseHeld."""

    def disks(self, protection_id: str) -> DisksView:
        """Each disk, asked now at the source and at the target."""

    def seed(
        self, protection_id: str, images: Mapping[str, str], image_format: ImageFormat, on_state: OnSeed
    ) -> None:
        """Copy images that are at the target already (disk -> path there) as bases of the disks' first copies."""

    def cancel(self, task_key: str) -> None: ...
    def pin(self, protection_id: str, seq: int, note: str) -> None: ...
    def unpin(self, protection_id: str, seq: int) -> None: ...

    # recovery
    def failover_preview(self, protection_id: str) -> FailoverPreview: ...
    def runbook(self, protection_id: str, seq: int | None = None) -> Runbook:
        """How to bring it up by hand at the target, from that point (None: the newest). As the target says now."""

    def reprotect_preview(self, protection_id: str) -> ReprotectPreview:
        """What the way home costs and why, asked at both sites now. Raises Conflict: it did not go over."""

    def failover(self, protection_id: str, seq: int | None, reason: str, source: str = "leave") -> float:
        """Emergency failover to that point (None: newest). Returns seconds from the call to running.

        ``source``: what to do with a source that answers: "leave", "shut down", "force off".
        """

    def both_sides(self, protection_id: str) -> BothSides:
        """What both sites have written since the common point, asked now. Raises SiteUnreachable, …"""

    def kept_runs(self, protection_id: str) -> Sequence[KeptRunView]:
        """What the VM wrote at the target in runs that are over, asked there now; oldest first."""

    def let_go(self, protection_id: str, epoch: int, reason: str) -> None:
        """Delete what a kept run has written. Raises Conflict when something uses it."""

    # durable operations
    def begin_operation(
        self, kind: OperationKind, protection_id: str, args: Mapping[str, object], reason: str
    ) -> str:
        """Start one; its id. Raises Conflict naming the open operation of that VM."""

    def operations(self, *, open_only: bool = False, limit: int = 200) -> Sequence[Operation]: ...
    def operation_steps(self, kind: OperationKind, args: Mapping[str, object] | None = None) -> Sequence[StepRow]: ...
    def operation(self, operation_id: str) -> Operation: ...
    def drills(self) -> Sequence[DrillStatus]:
        """Of every site that answers, asked now; ended ones too, newest first."""

    def schedule_drills(self, protection_id: str, days: int | None, *, auto: bool) -> None:
        """How often a drill must pass (None: nobody asks), and whether one begins by itself when none has."""

    def drill_screen(self, protection_id: str) -> bytes:
        """A PNG of the running (else the last) drill's screen. Raises NotFound."""

    def point_proof(self, protection_id: str, seq: int) -> DrillPicture:
        """What the last drill that passed on the point has left. Raises NotFound."""

    def answer_question(self, operation_id: str, question_id: str, choice: str) -> None: ...
    def cancel_operation(self, operation_id: str) -> None:
        """Undo it, up to its point of no return."""

    # recovery plans
    def plans(self) -> Sequence[PlanStatus]: ...
    def save_plan(self, plan: Plan) -> Plan:
        """To every target that it uses; ``version`` is that of the copy edited. Raises EditOutdated, …"""

    def delete_plan(self, plan_id: str, version: int) -> None: ...
    def look_at_plan(self, plan_id: str) -> PlanStatus:
        """Whether it is ready, asked now."""

    def plan_steps(self, plan_id: str, mode: PlanMode) -> Sequence[StepRow]:
        """What a run would do, step by step."""

    def run_plan(self, plan_id: str, mode: PlanMode, reason: str) -> str:
        """Begin it; the operation's id. Raises Conflict naming an open run that shares a VM."""

    # who is at work
    def engines(self) -> Sequence[EngineView]: ...
    def leases(self, protection_id: str) -> Sequence[LeaseHolder]:
        """Of the VM, at each of its sites, asked now."""

    def take_over_lease(self, protection_id: str, site_id: str, reason: str) -> str:
        """End the lease that somebody holds there; who it was. Raises InvalidRequest, NotFound, LeaseHeld."""

    # history
    def points(self, protection_id: str) -> Sequence[PointRow]: ...
    def rpo_samples(self, protection_id: str, since: datetime) -> Sequence[RpoSample]: ...
    def cycles(self, protection_id: str, limit: int = 50) -> Sequence[CycleRecord]: ...
    def events(self, protection_id: str | None = None, limit: int = 200) -> Sequence[Event]: ...
