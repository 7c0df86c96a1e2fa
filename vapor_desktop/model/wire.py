"""What travels between console, sites and movers: the values of the API and of the mover's control channel.

Both ends import these, so they cannot drift. Paths: ``docs/protocols.md``.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field

from vapor_desktop.model.manifest import Consistency, DiskMode, Epoch, Manifest
from vapor_desktop.model.plans import Plan
from vapor_desktop.model.policy import Mappings, Policy, StartGuard, Value

ImageFormat = Literal["qcow2", "raw"]

API_VERSION = 1
API_PORT = 7770
MOVER_PROTOCOL = 1


# --- identity and trust --------------------------------------------------------------------------
class Scope(StrEnum):
    """What a console's token may do."""

    VIEW = "view"
    OPERATE = "operate"
    ADMIN = "admin"


class Identity(Value):
    """GET /identity. Needs no token beyond the one-time token; ``now`` is the site's clock (UTC)."""

    site_id: str
    name: str
    version: str
    api_version: int
    mover_protocol: int
    libvirt_version: str | None  # None: libvirt does not answer
    qemu_version: str | None
    now: datetime
    boot_id: str
    replica_root: str
    scratch_dir: str = "/var/lib/libvirt/images/.vapor-scratch"
    scratch_reserve_bytes: int = 1 << 30
    guard_proven: bool = False  # the start guard was seen to refuse, by the hook that is installed now


class TokenExchange(Value):
    """POST /tokens/exchange: one-time token (bearer) -> console token."""

    console_name: str
    console_id: str


class ConsoleToken(Value):
    """Answer of the exchange; the token itself goes to the OS keyring only."""

    token: str
    token_id: str
    scope: Scope
    expires_at: datetime | None


class SshInfo(Value):
    """GET /ssh: how to reach and recognise this site's sshd, and the key with which it reaches peers."""

    port: int
    user: str
    host_keys: tuple[str, ...]  # "ssh-ed25519 AAAA…"
    user_key: str


class EnrolConsole(Value):
    """POST /enrolments/consoles: the console's SSH public key."""

    console_id: str
    console_name: str
    public_key: str


class EnrolPeer(Value):
    """POST /enrolments/peers: the other site of a pair, as seen from this one."""

    site_id: str
    name: str
    public_key: str
    host_keys: tuple[str, ...]
    address: str
    port: int
    user: str


class PeerCheck(Value):
    """POST /enrolments/peers/{site}/check: can this site reach that peer over SSH?"""

    reachable: bool
    latency_s: float | None = None
    error: dict[str, Any] | None = None


class Health(Value):
    """GET /health."""

    ok: bool
    libvirt: bool
    helper: bool
    guard_proven: bool
    checks: tuple[DoctorCheck, ...]


class DoctorCheck(Value):
    """One line of ``vapor-site doctor``."""

    name: str
    ok: bool
    found: str
    fix: str = ""


class StorageRoot(Value):
    """One replica root."""

    path: str
    total_bytes: int
    free_bytes: int
    reserve_bytes: int


# --- leases ---------------------------------------------------------------------------------------
class LeaseRequest(Value):
    """POST /leases/{vm}. ``takeover_reason`` takes it from a living holder, logged."""

    holder: str
    holder_name: str
    purpose: str
    ttl_s: Annotated[float, Field(gt=0, le=3600)] = 60.0
    takeover_reason: str | None = None
    takeover_from: str | None = None  # only from that holder: another one has come meanwhile otherwise


class Lease(Value):
    """A grant to do things with one VM on one site. Fencing numbers rise and never return."""

    vm_uuid: str
    holder: str
    holder_name: str
    purpose: str
    fence: int
    expires_at: datetime
    since: datetime | None = None  # when this holder got it; None from an older site


class WriteGrant(Value):
    """What every writing verb carries; the site refuses anything else."""

    fence: int
    epoch: Epoch
    source_site: str
    parent_seq: int | None


# --- replicas --------------------------------------------------------------------------------------
class ReplicaCreate(Value):
    """PUT /replicas/{vm}: make the replica. Of one that exists only the VM's name is written: its policy and
    mappings are the truth, and change by SettingsWrite alone."""

    grant: WriteGrant
    protection_id: str
    vm_name: str
    target_site: str
    policy: Policy
    mappings: Mappings


class SettingsWrite(Value):
    """PUT /replicas/{vm}/settings: another policy and other mappings.

    ``expect_version``: the ``settings_version`` that the edit was made on; EDIT-OUTDATED when it has moved.
    """

    grant: WriteGrant
    expect_version: int
    policy: Policy
    mappings: Mappings


class ReplicaView(Value):
    """GET /replicas/{vm}."""

    manifest: Manifest
    root: str
    used_bytes: int
    incoming: IncomingView | None
    files_in_chain: int
    disk_bytes: dict[str, int] = {}  # disk target -> bytes that its points and its unfinished copy take up
    run_bytes: dict[str, dict[str, int]] = {}  # epoch -> disk -> bytes that its run has written
    run_written_at: dict[str, datetime] = {}  # epoch -> when its overlays were last written, on this site's clock
    seeded: tuple[str, ...] = ()  # disks whose first copy stands on an image that was at the target already
    valid: bool
    trouble: dict[str, Any] | None = None


class IncomingView(Value):
    """An unfinished point: what a resume needs. ``received`` counts durable bytes of a disk."""

    seq: int
    parent_seq: int | None
    checkpoint: str | None  # the checkpoint whose moment the incoming data belongs to
    disks: dict[str, DiskMode]
    sizes: dict[str, int]
    received_bytes: dict[str, int]
    complete_first_copy: bool = False


class CurrentAsOf(Value):
    """POST /replicas/{vm}/current-as-of: the source was proven unchanged until then."""

    grant: WriteGrant
    seq: int
    at: datetime
    images: dict[str, str] | None = None  # stamps of a stopped VM's images at that moment; None: as they were


class SeedImage(Value):
    """An image at the target, below its image roots (``helper_image_roots``).

    ``disk_bytes``: the disk's size at the source, where known; a larger image is refused.
    """

    path: str
    format: ImageFormat
    disk_bytes: int | None = None


class SeedRequest(Value):
    """POST /replicas/{vm}/seed: begin to copy these images, as bases of the disks' first copies."""

    grant: WriteGrant
    disks: dict[str, SeedImage]


class SeedState(Value):
    """GET /replicas/{vm}/seed: how far it is. ``error``: why the last one stopped."""

    running: bool
    disk: str = ""
    done_bytes: int = 0
    total_bytes: int = 0
    error: dict[str, Any] | None = None


class PinRequest(Value):
    """POST /replicas/{vm}/points/{seq}/pins (and DELETE with the same body)."""

    grant: WriteGrant
    pin: str


class PointDomain(Value):
    """GET /replicas/{vm}/points/{seq}/domain: what a failover would define, to be judged before anything moves."""

    domain_xml: str
    disks: tuple[str, ...]
    nvram: bool


class MergeRequest(Value):
    """POST /replicas/{vm}/points/{seq}/drop: forget one point by merging the next one down."""

    grant: WriteGrant


class RunRequest(Value):
    """POST /replicas/{vm}/runs: take the VM over. CAS on the epoch, then an overlay per disk on ``seq``.

    Idempotent for the same new epoch. The caller holds this site's lease. ``provisional``: until it is committed.
    A run that was the VM's until now is kept, as ``keep_as``.
    """

    fence: int
    new_epoch: Epoch
    seq: int
    reason: str
    provisional: bool = False
    keep_as: str = ""


class CommitRequest(Value):
    """POST /replicas/{vm}/commit: the run of ``epoch`` is no longer provisional. Idempotent."""

    fence: int
    epoch: int
    reason: str


class EpochRequest(Value):
    """POST /replicas/{vm}/epoch: the owner's epoch rises, because the other site has heard of a higher one.

    Nothing changes hands: another owner than the manifest's is EPOCH-MOVED. Idempotent.
    """

    fence: int
    new_epoch: Epoch
    reason: str


class LetGoRequest(Value):
    """POST /replicas/{vm}/runs/{epoch}/let-go: delete a kept run's overlays. Not the run the VM is in. Idempotent."""

    fence: int
    reason: str


class Run(Value):
    """The overlays of a taken-over VM and the configuration its point carries."""

    epoch: Epoch
    seq: int
    disks: dict[str, str]  # target -> absolute path of the overlay
    domain_xml: str
    nvram: str | None  # absolute path of the copied varstore


class Runbook(Value):
    """GET /replicas/{vm}/runbook: how to bring the VM up by hand on the site's host; no secret is in it.

    ``path``: where the one for the newest point is kept there; ``domain_path``: the finished definition.
    """

    vm_uuid: str
    vm_name: str
    seq: int | None  # the point it brings up; None: there is none yet
    written_at: datetime
    path: str
    domain_path: str
    text: str


# --- an emulated TPM's state -----------------------------------------------------------------------
class TpmState(Value):
    """The mover's verb ``tpm-state``: what the next point could hold. ``why``: why it cannot be read."""

    digest: str | None  # SHA-256 of what the point would hold
    why: str = ""
    fix: str = ""


class TpmSupport(Value):
    """GET /tpm, and GET /replicas/{vm}/points/{seq}/tpm for one point's state: what a start here would find.

    ``emulates`` False: this host cannot start a VM with a TPM at all. ``why``: why no state could be put in
    place; "" = it could.
    """

    emulates: bool
    why: str = ""
    fix: str = ""


class PlaceTpm(Value):
    """POST /replicas/{vm}/points/{seq}/tpm: make the point's state that of the VM ``as_uuid``, which is off.

    ``as_uuid``: the VM itself, or a copy of it with a UUID of its own. ``fence``: of this site's lease for the VM.
    """

    fence: int
    as_uuid: str


class TpmPlaced(Value):
    """``kept``: where the state is now that lay there before; None: there was none, or the very same."""

    kept: str | None


class GiveBackRequest(Value):
    """POST /replicas/{vm}/give-back: the undo of a take-over before the VM ran here.

    The source owns the VM again under ``new_epoch``; the overlays of ``run_epoch`` go, unless something uses them.
    ``keep_as``: it did run here, and lost: the overlays stay under that name.
    """

    fence: int
    new_epoch: Epoch
    run_epoch: int
    reason: str
    keep_as: str = ""


# --- the way home ----------------------------------------------------------------------------------
class AdoptDisk(Value):
    """An original disk at this site, off since its VM runs elsewhere. qcow2 files only.

    ``expect_stamp``: the image's stamp when it was last proven to hold the point that the VM went on from; "": never.
    """

    path: str
    size_bytes: int
    expect_stamp: str = ""


class AdoptRequest(Value):
    """POST /replicas/{vm}/adopt, at the site that the VM came from: it becomes the target of the reverse direction.

    Every disk as it was proven: the base is point ``seq`` itself, and ``checkpoint`` (at the new source) tells what
    changed since. Any other state becomes a point of its own, ``next_seq``, pinned as ``kept_as``, with no
    checkpoint: the first cycle compares. Idempotent for the same epoch. The caller holds this site's lease.
    """

    fence: int
    protection_id: str
    vm_name: str
    source_site: str
    epoch: Epoch
    policy: Policy
    mappings: Mappings
    settings_version: int = 1
    seq: int
    next_seq: int
    taken_at: datetime
    current_as_of: datetime
    checkpoint: str | None
    consistency: Consistency
    domain_xml: str
    disks: dict[str, AdoptDisk]
    kept_as: str
    reason: str


class Adopted(Value):
    """What came of it. ``missing``: disks without an image here, copied whole. ``diverged``: not as proven."""

    manifest: Manifest
    missing: tuple[str, ...] = ()
    diverged: tuple[str, ...] = ()


class FoldRequest(Value):
    """POST /replicas/{vm}/fold, at the site where the VM runs and is the source now; twice: before and ``done``."""

    fence: int
    epoch: Epoch
    done: bool = False


class FoldPlan(Value):
    """Disk target -> (file it runs on, file that its content goes down into); equal where it is flat already."""

    disks: dict[str, tuple[str, str]]
    manifest: Manifest


# --- guardian --------------------------------------------------------------------------------------
class WatchJob(Value):
    """PUT /guardian/{vm}/job on the source, before backupBegin and then every renewal.

    The guardian ends the job when ``ttl_s`` lapses, or when the scratch's file system has less than
    ``reserve_bytes`` free; it resumes the guest only when the pause is this job's ENOSPC.
    """

    holder: str
    ttl_s: float = 60.0
    scratch_dir: str
    reserve_bytes: int


SCRATCH_FULL_BYTES = 16 << 20  # less than this is "full" whatever reserve was asked for


class ScratchSpace(Value):
    """GET /guardian/scratch: where backup jobs put their scratch files, and what is free there for us."""

    path: str
    free_bytes: int
    reserve_bytes: int
    at: datetime  # the site's clock

    @property
    def low(self) -> bool:
        """Below the reserve: the guardian ends jobs, and none may begin."""
        return self.free_bytes < max(self.reserve_bytes, SCRATCH_FULL_BYTES)


class WatchFreeze(Value):
    """PUT /guardian/{vm}/freeze on the source, before fsFreeze: the host thaws after ``deadline_s``."""

    holder: str
    deadline_s: float = 20.0


class GuardianEvent(Value):
    """GET /guardian/events: what the guardian did by itself."""

    at: datetime
    vm_uuid: str
    what: Literal[
        "job-ended",
        "thawed",
        "resumed",
        "rpo-alarm",
        "rpo-recovered",
        "guard-held",  # a VM is not started here, and why
        "guard-released",  # it was held, and may start now
        "guard-risk",  # started without the peer's word: split-brain risk
        "guard-started",  # what autostart wanted
        "guard-override",  # a person on the host took it, under a new epoch
        "guard-failed",  # it may start, and did not
        "taken-over",  # a person on the host failed it over, without a console
        "drill-ended",  # a drill's time was over, or its host was restarted
        "drill-paused",  # it wrote more than it may
        "drill-stuck",  # something of it could not be removed
    ]
    why: str
    cause: Literal["", "scratch", "lapsed"] = ""  # of job-ended


# --- start guard -----------------------------------------------------------------------------------
class GuardState(StrEnum):
    """Whose VM it is, as this host knows. The words are what the hook and `vapor-site guard list` print."""

    OWN = "own"
    OTHERS = "other's"
    MOVING = "moving"  # under an operation: nobody starts it here but that operation


class GuardRecord(Value):
    """GET /guard/{vm}: may this host start the VM? Rules: ``model/guard.py``. Times on this site's clock."""

    vm_uuid: str
    vm_name: str
    epoch: Epoch
    this_site: str
    peer_site: str
    state: GuardState
    operation_id: str | None = None  # of MOVING
    policy: StartGuard = StartGuard.HOLD
    confirmed_boot_id: str | None = None  # the boot of this host in which it was said to be ours
    held_boot_id: str | None = None  # the boot in which it was told to be held
    at_risk: bool = False  # let start without the peer's word
    was_autostart: bool = False  # its autostart was switched off here and is owed back when it is ours again
    start_due: bool = False  # confirmed after a boot: what autostart wants is started once
    reason: str
    changed_at: datetime
    changed_by: str


class GuardRequest(Value):
    """PUT /guard/{vm}, by the holder of this site's lease for the VM.

    OWN: the epoch's owner is this site; OTHERS: another; MOVING: with the operation's id, which alone ends it under
    the same epoch. ``boot_id`` (Identity): the caller has just seen at the peer that the VM is this site's, in that
    boot of this host; without it a VM not yet confirmed stays held.
    """

    fence: int
    epoch: Epoch
    state: GuardState
    vm_name: str
    peer_site: str
    operation_id: str | None = None
    policy: StartGuard = StartGuard.HOLD
    boot_id: str | None = None
    reason: str
    by: str


class GuardRelease(Value):
    """DELETE /guard/{vm}: the VM is not protected any more. A lower epoch than the recorded one is refused."""

    fence: int
    epoch: Epoch
    reason: str
    by: str


class OwnerWord(Value):
    """A site's answer about a VM (peer verb ``owners``). ``epoch`` None: it has neither replica nor guard record."""

    epoch: Epoch | None
    runs: bool | None  # does the VM run there; None: libvirt did not answer


# --- the mover's control channel (JSON lines on `vapor-site mover`, run over SSH by the engine) ----------
class NbdSource(Value):
    """Where ``send`` reads a disk: a live export on a unix socket, or a stopped VM's image."""

    kind: Literal["live", "offline"]
    path: str  # socket path, or image path
    export: str  # export name
    bitmap: str | None  # live: the exportbitmap; offline: the persistent bitmap. None: no bitmap to read
    image_format: str = "qcow2"


class DiskTransfer(Value):
    """One disk of one transfer."""

    target: str
    size_bytes: int
    mode: DiskMode
    source: NbdSource
    # Of a stopped VM's image when it was last proven equal. Moved with an empty bitmap: the disk is compared.
    known_stamp: str = ""


class PointDraft(Value):
    """What the source knows of the point; the receiver adds digests, sizes and its own clock."""

    protection_id: str
    vm_name: str
    checkpoint: str | None
    taken_at: datetime
    consistency: Consistency
    domain_xml: str
    nvram_path: str | None = None  # on the source; read through the root helper
    tpm_dir: str | None = None
    without_disks: tuple[str, ...] = ()
    frozen_s: float = 0.0  # how long the guest's file systems were held, at most
    images: dict[str, str] = {}  # disk target -> stamp of a stopped VM's image
    config: str = ""  # ``configuration_digest`` of ``domain_xml``; the mover adds NVRAM and TPM. "": not told


class Transfer(Value):
    """Verb ``transfer``: make point ``seq`` at the peer from these disks, publish it, answer Transferred.

    ``resume_incoming``: keep what the receiver holds of an incoming whose own checkpoint still
    validates: it then wants this delta united with everything it has not received.
    """

    vm_uuid: str
    peer_site: str
    grant: WriteGrant
    seq: int
    disks: tuple[DiskTransfer, ...]
    draft: PointDraft
    bandwidth_bytes_s: int | None = None
    streams: int = 1
    resume_incoming: bool = False
    complete: bool = True  # False: a first copy made of several jobs; keep it incoming, do not publish
    deadline_s: float | None = None  # stop cleanly after this long and keep the incoming
    skip_if_empty: bool = False  # nothing dirty on any disk: open no incoming, publish nothing, answer empty
    known_config: str = ""  # the newest point's ``PointEntry.config``; another one now is a change too


class Transferred(Value):
    """Answer of ``transfer``. ``published`` False: the incoming was kept (deadline or first part)."""

    published: bool
    seq: int
    data_bytes: int
    zero_bytes: int
    wire_bytes: int
    read_bytes: int
    duration_s: float
    manifest: Manifest | None
    empty: bool = False  # nothing had changed; no point was made
    images: dict[str, str] = {}  # disk target -> stamp of a stopped VM's image as it was read
    compared: tuple[str, ...] = ()  # disks that were to be sent by their changes, and were read whole instead


class Progress(Value):
    """Event ``progress``, once a second."""

    done_bytes: int
    total_bytes: int
    rate_bytes_s: float
    disk: str
    wire_bytes: int


class ScrubSlice(Value):
    """Verb ``scrub``: compare a slice of every disk's digests, source export against the newest point."""

    vm_uuid: str
    peer_site: str
    grant: WriteGrant
    disks: tuple[DiskTransfer, ...]
    budget_bytes: int
    whole: bool = False  # from the beginning of the first disk, wherever the last slice ended


class Scrubbed(Value):
    """Answer of ``scrub``. Blocks are 64 KiB block numbers."""

    checked_bytes: int
    source_mismatch: dict[str, tuple[int, ...]]  # the source differs from what the target recorded
    target_mismatch: dict[str, tuple[int, ...]]  # the target's data differs from its own record
    wrapped: bool  # a whole pass over all disks is complete
    reached_bytes: dict[str, int] = {}  # disk -> how far this pass has come
    passed_at: dict[str, datetime] = {}  # disk -> when it was last read to its end (the source's clock)


Health.model_rebuild()
ReplicaView.model_rebuild()


# --- recovery plans ----------------------------------------------------------------------------------------
class PlanWrite(Value):
    """PUT /plans/{plan}: keep this copy. ``expect_version``: of the copy that is there now, 0 for none.

    EDIT-OUTDATED when it has moved; a tombstone (``plan.deleted``) is written the same way. Idempotent.
    """

    plan: Plan
    expect_version: int


class TcpProbe(Value):
    """POST /probes/tcp: does that port take a connection from this host?"""

    address: str
    port: Annotated[int, Field(ge=1, le=65535)]
    timeout_s: Annotated[float, Field(gt=0, le=10)] = 3.0


class TcpProbed(Value):
    """Its answer. ``why``: the system's word for what went wrong."""

    open: bool
    why: str = ""
