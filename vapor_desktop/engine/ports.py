"""What the engine needs of the outside, as Protocols. Adapters implement them; ``app.py`` wires them.

All calls block and may take as long as their time-outs say; all raise only errors of ``model.errors``.
Nothing here is called on a GUI thread.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from vapor_desktop.model.domains import AgentRun, BackupDisk, BackupJob, DomainView
from vapor_desktop.model.drills import DrillJoin, DrillPicture, DrillRecord, DrillRequest, DrillStop, Nic
from vapor_desktop.model.manifest import Manifest, Point
from vapor_desktop.model.operations import Operation
from vapor_desktop.model.plans import Plan, PlanStatus
from vapor_desktop.model.sites import Protection, Site
from vapor_desktop.model.view import Alert, Check, SiteProbe
from vapor_desktop.model.wire import (
    Adopted,
    AdoptRequest,
    CommitRequest,
    CurrentAsOf,
    EpochRequest,
    FoldPlan,
    FoldRequest,
    GiveBackRequest,
    GuardianEvent,
    GuardRecord,
    GuardRelease,
    GuardRequest,
    Health,
    Identity,
    Lease,
    LeaseRequest,
    LetGoRequest,
    PlaceTpm,
    PlanWrite,
    PointDomain,
    Progress,
    ReplicaCreate,
    ReplicaView,
    Run,
    Runbook,
    RunRequest,
    ScratchSpace,
    Scrubbed,
    ScrubSlice,
    SeedRequest,
    SeedState,
    SettingsWrite,
    StorageRoot,
    TcpProbe,
    TcpProbed,
    TpmPlaced,
    TpmState,
    TpmSupport,
    Transfer,
    Transferred,
    WatchFreeze,
    WatchJob,
    WriteGrant,
)


# --- the hypervisor ------------------------------------------------------------------------------
class Hypervisor(Protocol):
    """One site's libvirt, over ``qemu+ssh``."""

    def domains(self) -> Sequence[DomainView]: ...
    def domain(self, vm_uuid: str) -> DomainView: ...
    def domain_xml(self, vm_uuid: str, *, secure: bool = True) -> str: ...
    def checkpoints(self, vm_uuid: str) -> Sequence[str]: ...
    def checkpoint_valid(self, vm_uuid: str, name: str, disks: Sequence[str]) -> bool:
        """REDEFINE_VALIDATE; False exactly for libvirt code 109 or a missing bitmap. Running VMs only."""

    def delete_checkpoint(self, vm_uuid: str, name: str) -> None:
        """Checkpoint and bitmaps as one act; falls back to metadata-only. Idempotent. Only ours."""

    def begin_backup(
        self, vm_uuid: str, disks: Sequence[BackupDisk], checkpoint: str | None, socket_name: str, freeze: bool
    ) -> BackupJob:
        """Freeze if asked, backupBegin(pull) for all disks at once, thaw (always).

        Raises DomainBusy (another job), CheckpointInconsistent, HypervisorFailed. ``BackupJob.thawed`` and an
        error's ``details["thawed"]`` say whether the thaw was confirmed: unless it was, the dead-man stays armed.
        """

    def our_job(self, vm_uuid: str) -> str | None:
        """Socket path of an open backup job of ours (socket name starts with ``vapor-``), else None."""

    def foreign_job(self, vm_uuid: str) -> str | None:
        """A sentence naming another tool's job, else None."""

    def end_backup(self, vm_uuid: str, only: str | None = None) -> None:
        """Abort the pull job (only one whose socket has that name) and wait until it is gone. Idempotent."""

    def disk_errors(self, vm_uuid: str) -> Mapping[str, str]:
        """Disks whose errors paused the VM: target -> "no-space" | "unspecified"."""

    def thaw(self, vm_uuid: str) -> bool:
        """Thaw whatever is frozen; True if something was."""

    def bitmaps_dirty(self, vm_uuid: str, checkpoint: str) -> int | None:
        """Dirty bytes since the checkpoint (CHECKPOINT_XML_SIZE), None when it cannot be told."""

    def networks(self) -> Sequence[str]: ...
    def define(self, xml: str) -> None: ...
    def undefine(self, vm_uuid: str) -> None: ...
    def start(self, vm_uuid: str, *, paused: bool = False) -> None: ...
    def resume(self, vm_uuid: str) -> None: ...
    def shut_down(self, vm_uuid: str, *, agent: bool) -> None:
        """Ask the guest to switch itself off, through its agent or by ACPI. Returns at once; off already is fine."""

    def destroy(self, vm_uuid: str) -> None:
        """Cut its power. Only when a person said so, or for a VM that never ran. Idempotent."""

    def create_checkpoint(self, vm_uuid: str, name: str, disks: Sequence[str]) -> None:
        """Begin to note writes, on all disks at once. Idempotent."""

    def write_down(self, vm_uuid: str, disk: str, foot: str, cancelled: Callable[[], bool]) -> None:
        """A running VM's overlay down into ``foot``, a file of its chain, which it then runs on. Repeatable."""

    def set_autostart(self, vm_uuid: str, on: bool) -> None: ...
    def capabilities_xml(self) -> str: ...
    def nics(self, vm_uuid: str) -> tuple[tuple[Nic, ...], dict[str, str]]:
        """(network cards with their last known addresses, source network -> "gateway/prefix")."""

    def domain_capabilities_xml(self, arch: str, machine: str | None, virt_type: str) -> str: ...
    def agent_ping(self, vm_uuid: str) -> bool: ...
    def agent_run(self, vm_uuid: str, script: str, timeout_s: float) -> AgentRun:
        """Run a shell script in the guest by its agent. Raises HypervisorFailed when the agent does not take it."""

    def agent_addresses(self, vm_uuid: str) -> Mapping[str, Sequence[str]]:
        """What the guest's agent tells: MAC -> "198.51.100.7/24", loopback left out; empty without an agent."""

    def close(self) -> None: ...


# --- a site's service ------------------------------------------------------------------------------
class SiteApi(Protocol):
    """One site's HTTPS API. Connections stay alive between calls."""

    def identity(self) -> tuple[Identity, float, float]:
        """(identity, clock offset s, +- error s)."""

    def health(self) -> Health: ...
    def storage(self) -> Sequence[StorageRoot]: ...
    def replicas(self) -> Sequence[ReplicaView]: ...
    def replica(self, vm_uuid: str) -> ReplicaView: ...
    def create_replica(self, vm_uuid: str, request: ReplicaCreate) -> Manifest: ...
    def write_settings(self, vm_uuid: str, request: SettingsWrite) -> Manifest:
        """Raises EditOutdated when the settings were changed since ``expect_version`` was read."""

    def delete_replica(self, vm_uuid: str, grant: WriteGrant) -> None: ...
    def point(self, vm_uuid: str, seq: int) -> Point: ...
    def point_domain(self, vm_uuid: str, seq: int) -> PointDomain: ...
    def runbook(self, vm_uuid: str, seq: int | None) -> Runbook: ...
    def drop_point(self, vm_uuid: str, seq: int, grant: WriteGrant) -> Manifest: ...
    def pin(self, vm_uuid: str, seq: int, pin: str, grant: WriteGrant) -> Manifest: ...
    def unpin(self, vm_uuid: str, seq: int, pin: str, grant: WriteGrant) -> Manifest: ...
    def discard_incoming(self, vm_uuid: str, grant: WriteGrant) -> None: ...
    def seed(self, vm_uuid: str, request: SeedRequest) -> SeedState:
        """Begin to copy images of the site as bases of first copies; the lease must live until it is done."""

    def seed_state(self, vm_uuid: str) -> SeedState: ...
    def current_as_of(self, vm_uuid: str, request: CurrentAsOf) -> Manifest: ...
    def run(self, vm_uuid: str, request: RunRequest) -> Run: ...
    def tpm_support(self) -> TpmSupport: ...
    def point_tpm(self, vm_uuid: str, seq: int) -> TpmSupport: ...
    def place_tpm(self, vm_uuid: str, seq: int, request: PlaceTpm) -> TpmPlaced: ...
    def give_back(self, vm_uuid: str, request: GiveBackRequest) -> Manifest: ...
    def commit(self, vm_uuid: str, request: CommitRequest) -> Manifest:
        """A provisional run stands. Raises EpochMoved. Idempotent."""

    def raise_epoch(self, vm_uuid: str, request: EpochRequest) -> Manifest:
        """The owner's epoch rises, nothing changes hands. Raises EpochMoved. Idempotent."""

    def let_go(self, vm_uuid: str, run_epoch: int, request: LetGoRequest) -> Manifest:
        """Delete what a kept run has written. Raises Conflict (in use). Idempotent."""

    def adopt(self, vm_uuid: str, request: AdoptRequest) -> Adopted:
        """Original disks there become the base of the reverse direction. Raises Conflict, EpochMoved, PointPinned."""

    def fold(self, vm_uuid: str, request: FoldRequest) -> FoldPlan:
        """Before and after ``Hypervisor.write_down``. Raises PointPinned: something of before is kept."""

    def acquire_lease(self, vm_uuid: str, request: LeaseRequest) -> Lease: ...
    def renew_lease(self, vm_uuid: str, fence: int, ttl_s: float) -> Lease: ...
    def release_lease(self, vm_uuid: str, fence: int) -> None: ...
    def lease(self, vm_uuid: str) -> Lease | None: ...
    def watch_job(self, vm_uuid: str, watch: WatchJob) -> None: ...
    def unwatch_job(self, vm_uuid: str) -> None: ...
    def watch_freeze(self, vm_uuid: str, watch: WatchFreeze) -> None: ...
    def unwatch_freeze(self, vm_uuid: str) -> bool:
        """False when the dead-man had already thawed: the point is crash-consistent."""

    def scratch(self) -> ScratchSpace:
        """The space for backup jobs' scratch files on that host, now."""

    def guardian_events(self, since: datetime | None) -> Sequence[GuardianEvent]: ...
    def guards(self) -> Sequence[GuardRecord]: ...
    def guard(self, vm_uuid: str) -> GuardRecord | None:
        """The start guard's record of the VM on that host, None when it is not guarded."""

    def arm_guard(self, vm_uuid: str, request: GuardRequest) -> GuardRecord:
        """Write it, under that site's lease. Raises StaleLease, EpochMoved, Conflict. Idempotent.

        MOVING and OTHERS also switch the VM's autostart off there; OWN gives it back.
        """

    def disarm_guard(self, vm_uuid: str, release: GuardRelease) -> None:
        """Guard the VM no more. Idempotent."""

    def plans(self) -> Sequence[Plan]:
        """The recovery plans kept there, and the tombstones of deleted ones."""

    def write_plan(self, request: PlanWrite) -> Plan:
        """Raises EditOutdated when the copy there has moved since it was read. Idempotent."""

    def probe_tcp(self, request: TcpProbe) -> TcpProbed:
        """Whether that port takes a connection from that host."""

    def drills(self) -> Sequence[DrillRecord]: ...
    def drill(self, drill_id: str) -> DrillRecord: ...
    def begin_drill(self, drill_id: str, request: DrillRequest) -> DrillRecord:
        """Put it on record before anything is made. Idempotent."""

    def join_drill(self, drill_id: str, vm_uuid: str, join: DrillJoin) -> DrillRecord:
        """Networks, overlays and the VM's copy, off. Idempotent."""

    def isolate_drill(self, drill_id: str) -> DrillRecord: ...
    def start_drill(self, drill_id: str, vm_uuid: str) -> DrillRecord:
        """Raises StartFailed when it is not proven that nothing leaves the bubble. Idempotent."""

    def stop_drill(self, drill_id: str, request: DrillStop) -> DrillRecord:
        """Remove everything of it. Idempotent. Raises Conflict naming what is left."""

    def drill_screen(self, drill_id: str, vm_uuid: str) -> DrillPicture: ...
    def point_proof(self, vm_uuid: str, seq: int) -> DrillPicture: ...
    def close(self) -> None: ...


# --- the mover ---------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class ImageInfo:
    """An image file of a stopped VM. ``bitmaps``: name -> usable (False: in-use flag, content lost)."""

    virtual_size_bytes: int
    format: str
    bitmaps: dict[str, bool]
    stamp: str  # changes with every write to the image and with its replacement
    qcow2_compat: str | None = None  # "0.10" (v2) | "1.1" (v3)


@dataclass(frozen=True, slots=True)
class Cleared:
    """Answer of ``clear_bitmap``; ``stamp`` is the image's after it (the emptying is a write too)."""

    cleared: bool
    stamp: str


class Mover(Protocol):
    """A ``vapor-site mover`` at the source, over one SSH channel that stays open between cycles."""

    def transfer(
        self, request: Transfer, on_progress: Callable[[Progress], None], cancelled: Callable[[], bool]
    ) -> Transferred:
        """Raises TransferInterrupted, TransferCancelled, ReplicaFull, StaleLease, … as the receiver said."""

    def scrub(self, request: ScrubSlice, cancelled: Callable[[], bool]) -> Scrubbed: ...
    def tpm_state(self, vm_uuid: str) -> TpmState:
        """Of a VM's emulated TPM, through the source's root helper. What cannot be read is told, not raised."""

    def image_info(self, path: str) -> ImageInfo:
        """A stopped VM's image, through the source's root helper."""

    def add_bitmap(self, path: str, name: str) -> None:
        """A persistent bitmap in a stopped VM's image. Idempotent."""

    def remove_bitmap(self, path: str, name: str) -> None:
        """A bitmap of ours, from a stopped VM's image. Idempotent."""

    def clear_bitmap(self, path: str, name: str, expect_stamp: str) -> Cleared:
        """Empty it, unless the image changed since. The write lock keeps a starting VM out."""

    def close(self) -> None: ...


class SiteGateway(Protocol):
    """Opens and keeps connections to sites; safe to call from several threads."""

    def api(self, site: Site) -> SiteApi: ...
    def hypervisor(self, site: Site) -> Hypervisor: ...
    def mover(self, source: Site, target: Site) -> Mover: ...
    def drop(self, site_id: str) -> None:
        """Forget the site's connections (an error made them suspect)."""

    def close(self) -> None: ...


# --- the database --------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class CycleRecord:
    """One finished or failed cycle, for history and for measuring durations."""

    protection_id: str
    started_at: datetime
    duration_s: float
    outcome: str  # point | unchanged | failed | skipped
    seq: int | None
    data_bytes: int
    wire_bytes: int
    mode: str
    error_code: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """Something a person may want to know later."""

    at: datetime
    kind: str
    protection_id: str | None
    site_id: str | None
    severity: int
    text: str


@dataclass(frozen=True, slots=True)
class RpoSample:
    """RPO at a moment; rpo_s None = unknown (drawn as a gap). ``over_s`` > 0: the worst of so long from ``at`` on."""

    at: datetime
    rpo_s: float | None
    target_s: float
    over_s: float = 0.0


@dataclass(frozen=True, slots=True)
class PointRow:
    """A recovery point as the database caches it."""

    protection_id: str
    seq: int
    taken_at: datetime
    current_as_of: datetime
    consistency: str
    bytes_sent: int
    pins: tuple[str, ...]
    verified: bool
    proven_at: datetime | None


@dataclass(frozen=True, slots=True)
class PointSummary:
    """What a row of the table needs of a protection's points."""

    newest: PointRow
    count: int
    oldest_taken_at: datetime


@dataclass(frozen=True, slots=True)
class Command:
    """A verb asked for by a console or vaporctl, run by whichever engine lives."""

    command_id: int
    verb: str
    args: dict[str, object]
    asked_by: str


@dataclass(frozen=True, slots=True)
class EngineRow:
    """A living (or lapsed) engine."""

    engine_id: str
    host: str
    pid: int
    kind: str  # console | service | command
    heartbeat_at: datetime


@dataclass(frozen=True, slots=True)
class LiveRow:
    """What an engine last observed of a protection; shared with viewers through the database."""

    protection_id: str
    at: datetime
    progress: Progress | None
    started_at: datetime | None
    next_due_at: datetime | None
    source_power: str | None


class Repository(Protocol):
    """The database. Every call is one short transaction."""

    def sites(self) -> Sequence[Site]: ...
    def site(self, site_id: str) -> Site | None: ...
    def save_site(self, site: Site) -> None: ...
    def remove_site(self, site_id: str) -> None: ...
    def pairs(self) -> Sequence[tuple[str, str, str]]:
        """(site a, site b, route "direct" | "relay")."""

    def save_pair(self, a: str, b: str, route: str) -> None: ...
    def protections(self) -> Sequence[Protection]: ...
    def protection(self, protection_id: str) -> Protection | None: ...
    def save_protection(self, protection: Protection, *, expect_version: int | None = None) -> Protection:
        """Writes and returns it with version + 1. Raises Conflict when the stored version differs."""

    def remove_protection(self, protection_id: str) -> None: ...
    def replace_points(self, protection_id: str, points: Sequence[PointRow]) -> None: ...
    def points(self, protection_id: str) -> Sequence[PointRow]: ...
    def point_summaries(self) -> dict[str, PointSummary]:
        """By protection id; in one query, however many there are. Protections without points are absent."""

    def add_cycle(self, record: CycleRecord) -> None: ...
    def cycles(self, protection_id: str, limit: int = 50) -> Sequence[CycleRecord]: ...
    def add_event(self, event: Event) -> None: ...
    def events(self, protection_id: str | None = None, limit: int = 200) -> Sequence[Event]: ...
    def add_rpo_samples(self, samples: Sequence[tuple[str, RpoSample]]) -> None: ...
    def rpo_samples(self, protection_id: str, since: datetime) -> Sequence[RpoSample]: ...
    def thin(self, now: datetime) -> None:
        """Roll old samples and history up, so that the database keeps its size. Call about hourly."""

    def save_clock(self, site_id: str, offset_s: float, error_s: float, at: datetime) -> None: ...
    def clock(self, site_id: str) -> tuple[float, float, datetime] | None: ...
    def save_live(self, rows: Sequence[LiveRow]) -> None: ...
    def live(self) -> dict[str, LiveRow]: ...
    def time(self) -> datetime:
        """The one clock that all engines of this database share: heart-beats are written and judged on it."""

    def shared(self) -> bool:
        """May engines of several machines meet here?"""

    def beat(self, engine: EngineRow) -> None: ...
    def engines(self) -> Sequence[EngineRow]: ...
    def drop_engine(self, engine_id: str) -> None: ...
    def claims(self) -> dict[str, str]:
        """Protection -> the engine whose work it is."""

    def claim(self, protection_ids: Collection[str], engine_id: str, instead_of: str | None) -> None:
        """Compare-and-set: make each this engine's, if it still is ``instead_of``'s (None: nobody's)."""

    def unclaim(self, protection_ids: Collection[str], engine_id: str) -> None: ...
    def ask(self, verb: str, args: dict[str, object], asked_by: str, valid_s: float) -> int:
        """Leave a command for whichever engine lives; its number. Not taken within ``valid_s``, it is void."""

    def withdraw(self, command_id: int) -> bool:
        """Take a command back. False when an engine has it already."""

    def save_alerts(self, alerts: Mapping[str, Alert]) -> None: ...
    def alerts(self) -> dict[str, Alert]: ...
    def take_command(self, engine_id: str, may: Callable[[Command], bool] = lambda _command: True) -> Command | None:
        """Claim the oldest unclaimed command that ``may``, by compare-and-set."""

    def answer(self, command_id: int, result: dict[str, object] | None, error: dict[str, object] | None) -> None: ...
    def save_operation(self, operation: Operation, *, expect_version: int | None = None) -> Operation:
        """Insert (``expect_version`` None: refused while another of that VM is open) or compare-and-set.

        Raises Conflict.
        """

    def operation(self, operation_id: str) -> Operation | None: ...
    def operations(self, *, open_only: bool = False, limit: int = 200) -> Sequence[Operation]:
        """Newest first."""

    def answer_of(self, command_id: int) -> tuple[dict[str, object] | None, dict[str, object] | None] | None: ...
    def save_plan(self, plan: Plan) -> None:
        """Follow a newer copy (its tombstone too); an older one is left out."""

    def plan_statuses(self) -> Sequence[PlanStatus]:
        """Living plans, by name, with what was last found of them."""

    def plan_copies(self) -> Sequence[Plan]:
        """All, tombstones too."""

    def save_readiness(self, status: PlanStatus) -> None:
        """What was found of it just now."""

    def setting(self, key: str) -> str | None: ...
    def set_setting(self, key: str, value: str) -> None: ...
    def close(self) -> None:
        """Give back all connections."""


class Secrets(Protocol):
    """The OS keyring. Never on a GUI thread; every call has a time-out. Raises KeyringMissing/KeyringLocked."""

    def get(self, name: str) -> str | None: ...
    def put(self, name: str, value: str) -> None: ...
    def forget(self, name: str) -> None: ...


class Clock(Protocol):
    """Time, so that tests own it."""

    def now(self) -> datetime:
        """Aware, UTC."""

    def monotonic(self) -> float: ...


# --- durable operations ----------------------------------------------------------------------------------
class Journal(Protocol):
    """What makes one operation durable: a step's answer is recorded and not asked for again."""

    def step(self, name: str, act: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Run ``act`` once; its recorded answer on every later run. ``act`` may run again if cut off within."""


class Durable(Protocol):
    """The engine of durable operations. One body serves all; it must decide by recorded answers only."""

    def launch(self, engine_id: str, body: Callable[[str, Journal], None]) -> None:
        """Once per process, before anything else. Idempotent."""

    def start(self, operation_id: str) -> None: ...
    def adopt(self, operation_id: str) -> None:
        """Go on with an operation that a dead engine left, at the step that was cut."""

    def close(self) -> None:
        """Let go of running operations; another engine, or the next start, goes on with them."""


# --- pairing ------------------------------------------------------------------------------------------
class Pairing(Protocol):
    """Trust, in the order it is made (DESIGN §2). Each step reports itself through ``on_check``."""

    def normalise_url(self, text: str) -> str: ...
    def probe(self, url: str) -> SiteProbe: ...
    def add_site(self, probe: SiteProbe, token: str, on_check: Callable[[Check], None]) -> Site: ...
    def pair_sites(self, a: Site, b: Site, on_check: Callable[[Check], None]) -> str: ...
    def forget_site(self, site: Site) -> None: ...
