"""What travels between console, sites and movers: the values of the API and of the mover's control channel.

Both ends import these, so they cannot drift. One module per topic; paths: ``docs/protocols.md``.
"""

from vapor_desktop.model.wire.guardian import SCRATCH_FULL_BYTES, GuardianEvent, ScratchSpace, WatchFreeze, WatchJob
from vapor_desktop.model.wire.health import DoctorCheck, Health, StorageRoot, TcpProbe, TcpProbed
from vapor_desktop.model.wire.leases import Lease, LeaseRequest, WriteGrant
from vapor_desktop.model.wire.mover import (
    DiskTransfer,
    NbdSource,
    PointDraft,
    Progress,
    Scrubbed,
    ScrubSlice,
    Transfer,
    Transferred,
)
from vapor_desktop.model.wire.plans import PlanWrite
from vapor_desktop.model.wire.points import CurrentAsOf, MergeRequest, PinRequest, PointDomain
from vapor_desktop.model.wire.replicas import IncomingView, ReplicaCreate, ReplicaView, SettingsWrite
from vapor_desktop.model.wire.runs import (
    CommitRequest,
    EpochRequest,
    GiveBackRequest,
    LetGoRequest,
    Run,
    Runbook,
    RunRequest,
)
from vapor_desktop.model.wire.seeds import ImageFormat, SeedImage, SeedRequest, SeedState
from vapor_desktop.model.wire.start_guard import GuardRecord, GuardRelease, GuardRequest, GuardState, OwnerWord
from vapor_desktop.model.wire.tpm import PlaceTpm, TpmPlaced, TpmState, TpmSupport
from vapor_desktop.model.wire.trust import (
    API_PORT,
    API_VERSION,
    MOVER_PROTOCOL,
    ConsoleToken,
    EnrolConsole,
    EnrolPeer,
    Identity,
    PeerCheck,
    Scope,
    SshInfo,
    TokenExchange,
)
from vapor_desktop.model.wire.way_home import AdoptDisk, Adopted, AdoptRequest, FoldPlan, FoldRequest

__all__ = [
    "API_PORT",
    "API_VERSION",
    "MOVER_PROTOCOL",
    "SCRATCH_FULL_BYTES",
    "AdoptDisk",
    "AdoptRequest",
    "Adopted",
    "CommitRequest",
    "ConsoleToken",
    "CurrentAsOf",
    "DiskTransfer",
    "DoctorCheck",
    "EnrolConsole",
    "EnrolPeer",
    "EpochRequest",
    "FoldPlan",
    "FoldRequest",
    "GiveBackRequest",
    "GuardRecord",
    "GuardRelease",
    "GuardRequest",
    "GuardState",
    "GuardianEvent",
    "Health",
    "Identity",
    "ImageFormat",
    "IncomingView",
    "Lease",
    "LeaseRequest",
    "LetGoRequest",
    "MergeRequest",
    "NbdSource",
    "OwnerWord",
    "PeerCheck",
    "PinRequest",
    "PlaceTpm",
    "PlanWrite",
    "PointDomain",
    "PointDraft",
    "Progress",
    "ReplicaCreate",
    "ReplicaView",
    "Run",
    "RunRequest",
    "Runbook",
    "Scope",
    "ScratchSpace",
    "ScrubSlice",
    "Scrubbed",
    "SeedImage",
    "SeedRequest",
    "SeedState",
    "SettingsWrite",
    "SshInfo",
    "StorageRoot",
    "TcpProbe",
    "TcpProbed",
    "TokenExchange",
    "TpmPlaced",
    "TpmState",
    "TpmSupport",
    "Transfer",
    "Transferred",
    "WatchFreeze",
    "WatchJob",
    "WriteGrant",
]
