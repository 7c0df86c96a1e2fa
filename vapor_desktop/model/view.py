"""What a console shows: immutable snapshots the engine publishes, at most once a second.

Every number is either known or None. Times are UTC. Views format; they compute nothing about truth.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, time

from vapor_desktop.model.drills import DrillRecord
from vapor_desktop.model.errors import SiteUnreachable
from vapor_desktop.model.operations import Operation
from vapor_desktop.model.plans import PlanStatus
from vapor_desktop.model.policy import BandwidthWindow, Mappings, Policy
from vapor_desktop.model.sites import Protection, Site
from vapor_desktop.model.states import RpoHealth, Severity
from vapor_desktop.model.wire import Lease, Progress


@dataclass(frozen=True, slots=True)
class SiteStatus:
    """A site as last seen. ``reachable`` None: not tried yet."""

    site: Site
    reachable: bool | None
    last_seen_at: datetime | None
    clock_offset_s: float | None
    clock_error_s: float | None
    latency_s: float | None
    version: str | None
    libvirt_version: str | None
    qemu_version: str | None
    free_bytes: int | None
    total_bytes: int | None
    peers: tuple[str, ...]  # site ids it is paired with
    error: str | None = None
    error_code: str | None = None
    fix: str | None = None
    guard_proven: bool | None = None  # the start guard was seen to refuse; False: it is off; None: not known

    @property
    def refuses(self) -> bool:
        """It is of no use to us, but not because it is silent: whether its VMs run is unknown, not unlikely."""
        return self.reachable is False and self.error_code not in {None, SiteUnreachable.code}


@dataclass(frozen=True, slots=True)
class ProtectionStatus:
    """One row of the protection table."""

    protection: Protection
    source_name: str
    target_name: str
    rpo_now_s: float | None
    rpo_health: RpoHealth
    severity: Severity
    last_seq: int | None
    last_point_taken_at: datetime | None
    current_as_of: datetime | None
    point_count: int
    oldest_taken_at: datetime | None
    progress: Progress | None
    cycle_started_at: datetime | None
    next_due_at: datetime | None
    last_sent_bytes: int | None
    last_duration_s: float | None
    attainable_rpo_s: float | None
    source_power: str | None
    route: str  # direct | relay
    status_text: str  # "Syncing · at risk"
    mismatch: bool = False  # the newest point's data was found to differ from its digests

    @property
    def key(self) -> str:
        """Stable row identity."""
        return self.protection.protection_id


@dataclass(frozen=True, slots=True)
class DiskVerdictView:
    """What can be done with one disk, in words."""

    target: str
    kind: str  # delta | compare | excluded | refused
    reason: str
    fix: str
    size_bytes: int | None


@dataclass(frozen=True, slots=True)
class DiskStatus:
    """A disk of a protected VM: at the source, in the replica, and in the last cycle. Sizes in bytes.

    ``kind`` "": the source could not be asked. ``replica_bytes`` None: the target could not.
    """

    target: str
    bus: str
    format: str
    source: str | None  # path or device at the source
    size_bytes: int | None
    allocated_bytes: int | None
    kind: str  # delta | compare | excluded | refused | ""
    reason: str  # why so, or what to be warned of
    fix: str
    in_point: bool  # the newest recovery point holds it
    seeded: bool  # its first copy will stand on an image that was at the target
    replica_bytes: int | None
    received_bytes: int | None  # durable bytes of an unfinished copy
    last_mode: str  # delta | compare | full: what the last cycle did; "" before the first
    last_why: str
    last_sent_bytes: int | None  # data in the newest point
    last_seq: int | None
    scrub_reached_bytes: int | None  # how far the running pass has come
    scrub_passed_at: datetime | None  # when it was last read to its end and compared
    verified: bool | None  # False: the newest point's data did not match its digests


@dataclass(frozen=True, slots=True)
class DisksView:
    """All disks, with what could not be asked said."""

    disks: tuple[DiskStatus, ...]
    source_trouble: str = ""
    target_trouble: str = ""


@dataclass(frozen=True, slots=True)
class SettingsEdit:
    """What a protection's settings shall be. ``version``: of the settings that the edit was made on."""

    version: int
    policy: Policy
    mappings: Mappings


@dataclass(frozen=True, slots=True)
class ProtectionSettings:
    """A protection's settings as its target has them, and what an editor needs beside them."""

    protection_id: str
    vm_name: str
    target_name: str
    version: int
    policy: Policy
    mappings: Mappings
    chain_limit: int  # files that a chain may have at the target
    source_networks: tuple[str, ...]  # of the VM, and those mapped already
    target_networks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class VmStatus:
    """A VM seen at a site that no protection covers (or a candidate in the protect wizard)."""

    vm_uuid: str
    name: str
    site_id: str
    site_name: str
    state: str
    networks: tuple[str, ...]
    disks: tuple[DiskVerdictView, ...]
    protectable: bool
    reason: str  # why not; "" when it is


@dataclass(frozen=True, slots=True)
class Banner:
    """A standing condition. ``key`` is its identity: one banner per cause."""

    key: str
    severity: Severity
    text: str
    action: str | None = None  # verb, e.g. "open-vm"
    subject: str | None = None  # protection or site id


@dataclass(frozen=True, slots=True)
class Alert:
    """One episode of one cause: opened once, closed once ("recovered")."""

    key: str  # e.g. "rpo:<protection>"
    opened_at: datetime
    closed_at: datetime | None
    severity: Severity
    title: str
    body: str
    protection_id: str | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """Something running, or lately finished."""

    key: str
    title: str
    subject: str | None
    started_at: datetime
    finished_at: datetime | None
    progress: Progress | None
    outcome: str | None  # None while it runs; else done | failed | cancelled
    detail: str = ""


@dataclass(frozen=True, slots=True)
class EngineView:
    """An engine that lives."""

    engine_id: str
    host: str
    pid: int
    kind: str  # console | service | command
    heartbeat_at: datetime
    acts: bool
    protections: int  # whose work is its


@dataclass(frozen=True, slots=True)
class LeaseHolder:
    """A VM's lease at one site."""

    site_id: str
    site_name: str
    lease: Lease | None  # None: nobody holds it, or it is not known
    trouble: str = ""  # what kept the site from answering


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything a console shows at one moment."""

    at: datetime
    engine: str  # here | service | none
    engine_seen_at: datetime | None
    sites: tuple[SiteStatus, ...] = ()
    pairs: tuple[tuple[str, str, str], ...] = ()  # site id, site id, route
    protections: tuple[ProtectionStatus, ...] = ()
    unprotected: tuple[VmStatus, ...] = ()
    banners: tuple[Banner, ...] = ()
    alerts: tuple[Alert, ...] = ()
    tasks: tuple[Task, ...] = ()
    operations: tuple[Operation, ...] = ()  # newest first: the open ones and the last few
    plans: tuple[PlanStatus, ...] = ()  # by name
    engines: tuple[EngineView, ...] = ()
    demo: bool = False
    trouble: str | None = None  # e.g. the keyring is locked


@dataclass(frozen=True, slots=True)
class DrillStatus:
    """A drill as its site tells it."""

    site_id: str
    site_name: str
    record: DrillRecord


@dataclass(frozen=True, slots=True)
class Check:
    """One line of a running check list (pairing, preflight)."""

    key: str
    title: str
    state: str  # waiting | running | ok | warning | failed
    text: str = ""
    fix: str = ""
    code: str = ""


@dataclass(frozen=True, slots=True)
class SiteProbe:
    """The first look at a site, before any secret is sent."""

    api_url: str
    host: str
    cert_pem: str
    cert_sha256: str  # hex


@dataclass(frozen=True, slots=True)
class FailoverPreview:
    """What the failover sheet states before the button."""

    protection_id: str
    vm_name: str
    target_name: str
    source_name: str
    source_reachable: bool | None
    source_last_seen_at: datetime | None
    tried: tuple[str, ...]  # "API of site-a: timed out"
    points: tuple[FailoverPoint, ...]  # newest first
    effects: tuple[str, ...]  # what will happen, sentence by sentence
    blockers: tuple[str, ...] = ()  # e.g. a network that the target lacks
    source_state: str | None = None  # libvirt's word for the VM at its source, when that answered just now
    unsent_bytes: int | None = None  # known to be written at the source and not in the newest point; None: unknown

    @property
    def may_fence(self) -> bool:
        """The source answers: it can be kept from running the VM."""
        return self.source_reachable is True

    @property
    def newest_proven(self) -> FailoverPoint | None:
        """The newest point that a drill has passed on."""
        return next((p for p in self.points if p.proven_at is not None), None)

    def facts(self) -> tuple[str, ...]:
        """The newest point, the newest proven one, what is known to be unsent: one line each."""
        unsent = "unknown" if self.unsent_bytes is None else f"{self.unsent_bytes / 2**20:.1f} MiB"
        proven = self.newest_proven
        return (
            f"Newest complete point: {self.points[0].line()}" if self.points else "No complete point",
            f"Newest proven point: {proven.line()}" if proven else "No point is proven by a drill",
            f"Known to be written since the newest point and not sent: {unsent}",
        )


@dataclass(frozen=True, slots=True)
class SideView:
    """One side of a split brain. ``changed_bytes`` since the common point; None: it cannot be told, ``note`` why."""

    site_id: str
    site_name: str
    state: str  # libvirt's word, "undefined" for none
    epoch: int | None  # under which this site claims it
    changed_bytes: int | None
    changed_by_disk: dict[str, int]
    last_write_at: datetime | None  # of its disk images, on that host's clock
    note: str = ""

    def line(self) -> str:
        """One sentence or two."""
        size = "an unknown number of bytes" if self.changed_bytes is None else f"{self.changed_bytes / 2**20:.1f} MiB"
        disks = ", ".join(f"{d} {n / 2**20:.1f} MiB" for d, n in sorted(self.changed_by_disk.items()))
        epoch = f", epoch {self.epoch}" if self.epoch is not None else ""
        wrote = f" It has written {size} since the common point" + (f" ({disks})" if disks else "")
        last = f"; last write {self.last_write_at:%Y-%m-%d %H:%M:%S}Z" if self.last_write_at else ""
        note = f"; {self.note}" if self.note else ""
        return f"{self.site_name}: {self.state}{epoch}.{wrote}{last}{note}."


@dataclass(frozen=True, slots=True)
class BothSides:
    """What the resolver of a split brain shows before the choice."""

    protection_id: str
    vm_name: str
    common_seq: int | None
    common_at: datetime | None  # on the target's clock
    source: SideView
    target: SideView

    def lines(self) -> tuple[str, ...]:
        """For people, in one order everywhere."""
        common = "There is no common point on record."
        if self.common_seq is not None and self.common_at is not None:
            common = f"The common point is {self.common_seq}, of {self.common_at:%Y-%m-%d %H:%M:%S}Z."
        return (common, self.source.line(), self.target.line())


@dataclass(frozen=True, slots=True)
class KeptRunView:
    """What a VM wrote at the target in a run that is over."""

    epoch: int
    name: str
    at: datetime  # over since, on the target's clock
    seq: int  # the point it ran on
    bytes: int


@dataclass(frozen=True, slots=True)
class ReprotectPreview:
    """What the reprotect sheet states before the button. ``price``: "bitmap: 1.2 GiB"; "" with blockers.

    ``source_name``: where the VM runs, the source to be. Bytes None: not known beforehand.
    """

    protection_id: str
    vm_name: str
    source_name: str
    target_name: str
    method: str = ""
    price: str = ""
    why: str = ""
    read_bytes: int = 0
    send_bytes: int | None = None
    old_runs: bool = False
    effects: tuple[str, ...] = ()
    blockers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FailoverPoint:
    """A point one can fail over to. age_s None: unknown."""

    seq: int
    taken_at: datetime
    current_as_of: datetime
    age_s: float | None
    consistency: str
    proven_at: datetime | None
    verified: bool
    note: str = ""

    def line(self) -> str:
        """Number, age, consistency."""
        age = "of unknown age" if self.age_s is None else f"{self.age_s:.0f} s old"
        return f"{self.seq}, {age}, {self.consistency}" + (f"; {self.note}" if self.note else "")


@dataclass(frozen=True, slots=True)
class ProtectRequest:
    """What the protect wizard asks for. ``networks``: source name -> target name."""

    vm_uuids: tuple[str, ...]
    source_site: str
    target_site: str
    rpo_target_s: int
    networks: dict[str, str] = field(default_factory=dict)
    newest: int = 6
    hourly: int = 6
    daily: int = 3
    bandwidth_bytes_s: int | None = None
    quiesce: str = "try"
    start_guard: str = "hold"
    at_times: tuple[time, ...] = ()  # fixed times of day (UTC) instead of deadlines
    bandwidth_windows: tuple[BandwidthWindow, ...] = ()
    streams: int = 1
    priority: int = 5
