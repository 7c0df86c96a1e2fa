"""``engine.ports.SiteApi`` over HTTPS with a pinned certificate and a bearer token."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, TypeAdapter, ValidationError

from vapor_desktop.model.drills import DrillJoin, DrillPicture, DrillRecord, DrillRequest, DrillStop
from vapor_desktop.model.errors import ApiVersionMismatch, NotFound, TokenExpired, TokenInvalid, TokenRevoked
from vapor_desktop.model.manifest import Manifest, Point
from vapor_desktop.model.plans import Plan
from vapor_desktop.model.rpo import ClockOffset
from vapor_desktop.model.wire import (
    API_VERSION,
    Adopted,
    AdoptRequest,
    CommitRequest,
    CurrentAsOf,
    EnrolConsole,
    EnrolPeer,
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
    MergeRequest,
    PeerCheck,
    PinRequest,
    PlaceTpm,
    PlanWrite,
    PointDomain,
    ReplicaCreate,
    ReplicaView,
    Run,
    Runbook,
    RunRequest,
    ScratchSpace,
    SeedRequest,
    SeedState,
    SettingsWrite,
    SshInfo,
    StorageRoot,
    TcpProbe,
    TcpProbed,
    TpmPlaced,
    TpmSupport,
    WatchFreeze,
    WatchJob,
    WriteGrant,
)
from vapor_desktop.transport.pinned import PinnedHttp

_T = TypeVar("_T")
# Above this the first measurement probably held the connection's making: ask once more, keep the better.
_QUICK_S = 0.02
# A kept connection to a host without power stays silent: who looks whether it lives must not wait for long.
LOOK_TIMEOUT_S = 8.0


def parsed(kind: Any, value: Any, place: str) -> Any:
    """``value`` as ``kind``. Raises ApiVersionMismatch when it has another shape."""
    try:
        return TypeAdapter(kind).validate_python(value, strict=False)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise ApiVersionMismatch(
            f"{place} answered in a shape that this program does not know",
            why=f"{'.'.join(map(str, first['loc']))}: {first['msg']}",
        ) from error


class HttpSiteApi:
    """One site's API. Thread-safe.

    api_url: ``https://HOST:7770/api/v1``. token_provider is asked once, and again after the site refused
    the token. Raises what ``PinnedHttp`` raises, and what the token provider raises (KeyringLocked …).
    """

    def __init__(self, api_url: str, cert_pem: str, token_provider: Callable[[], str]) -> None:
        self._http = PinnedHttp(api_url, cert_pem)
        self._provider = token_provider
        self._token: str | None = None
        self._lock = threading.Lock()

    # --- what a site is -------------------------------------------------------------------------
    def identity(self) -> tuple[Identity, float, float]:
        """(identity, clock offset s, +- error s). Raises ApiVersionMismatch."""
        identity, clock = self._measured()
        if clock.error_s > _QUICK_S:
            again, second = self._measured()
            if second.error_s < clock.error_s:
                identity, clock = again, second
        if identity.api_version != API_VERSION:
            raise ApiVersionMismatch(
                f"{identity.name} speaks version {identity.api_version} of the API, this program {API_VERSION}"
            )
        return identity, clock.offset_s, clock.error_s

    def _measured(self) -> tuple[Identity, ClockOffset]:
        token = self._bearer()  # asked before the clock runs: the keyring may take its time
        sent, began = datetime.now(UTC), time.monotonic()
        answer = self._call("GET", "/identity", token=token, read_s=LOOK_TIMEOUT_S)
        received = sent + timedelta(seconds=time.monotonic() - began)
        identity: Identity = self._parsed(Identity, answer)
        return identity, ClockOffset.measure(sent, identity.now, received)

    def health(self) -> Health:
        """As the site's doctor found it."""
        return self._get(Health, "/health")

    def storage(self) -> Sequence[StorageRoot]:
        """The replica roots."""
        return self._get(tuple[StorageRoot, ...], "/storage")

    # --- trust ----------------------------------------------------------------------------------
    def ssh_info(self) -> SshInfo:
        """How to reach and recognise the site's sshd."""
        return self._get(SshInfo, "/ssh")

    def enrol_console(self, console: EnrolConsole) -> None:
        """Let this console's SSH key in."""
        self._call("POST", "/enrolments/consoles", body=_json(console))

    def enrol_peer(self, peer: EnrolPeer) -> None:
        """Make the other site of a pair known to this one."""
        self._call("POST", "/enrolments/peers", body=_json(peer))

    def remove_peer(self, site_id: str) -> None:
        """End the trust in a peer."""
        self._call("DELETE", f"/enrolments/peers/{_seg(site_id)}")

    def check_peer(self, site_id: str) -> PeerCheck:
        """Can this site reach that peer over SSH?"""
        return self._parsed(PeerCheck, self._call("POST", f"/enrolments/peers/{_seg(site_id)}/check", long=True))

    def revoke_own_token(self) -> None:
        """End this console's token at the site."""
        self._call("DELETE", "/tokens/self")

    # --- replicas -------------------------------------------------------------------------------
    def replicas(self) -> Sequence[ReplicaView]:
        """All replicas at this site."""
        return self._get(tuple[ReplicaView, ...], "/replicas")

    def replica(self, vm_uuid: str) -> ReplicaView:
        """Raises NotFound."""
        return self._get(ReplicaView, _replica(vm_uuid))

    def create_replica(self, vm_uuid: str, request: ReplicaCreate) -> Manifest:
        """Make the replica, or follow the VM's name."""
        return self._send(Manifest, "PUT", _replica(vm_uuid), request)

    def write_settings(self, vm_uuid: str, request: SettingsWrite) -> Manifest:
        """Another policy and other mappings. Raises EditOutdated."""
        return self._send(Manifest, "PUT", f"{_replica(vm_uuid)}/settings", request)

    def delete_replica(self, vm_uuid: str, grant: WriteGrant) -> None:
        """Delete all its points."""
        self._call("DELETE", _replica(vm_uuid), body=_json(grant), long=True)

    def point(self, vm_uuid: str, seq: int) -> Point:
        """One point, whole."""
        return self._get(Point, _point(vm_uuid, seq))

    def point_domain(self, vm_uuid: str, seq: int) -> PointDomain:
        """The configuration a point carries; it may hold the VM's secrets."""
        return self._get(PointDomain, f"{_point(vm_uuid, seq)}/domain")

    def runbook(self, vm_uuid: str, seq: int | None) -> Runbook:
        """How to bring it up by hand there, from that point (None: the newest)."""
        return self._get(Runbook, f"{_replica(vm_uuid)}/runbook" + (f"?point={seq}" if seq is not None else ""))

    def drop_point(self, vm_uuid: str, seq: int, grant: WriteGrant) -> Manifest:
        """Merge the next point down into this one. May take long."""
        return self._send(Manifest, "POST", f"{_point(vm_uuid, seq)}/drop", MergeRequest(grant=grant), long=True)

    def pin(self, vm_uuid: str, seq: int, pin: str, grant: WriteGrant) -> Manifest:
        """Keep this point from being merged."""
        return self._send(Manifest, "POST", f"{_point(vm_uuid, seq)}/pins", PinRequest(grant=grant, pin=pin))

    def unpin(self, vm_uuid: str, seq: int, pin: str, grant: WriteGrant) -> Manifest:
        """Undo ``pin``."""
        return self._send(Manifest, "DELETE", f"{_point(vm_uuid, seq)}/pins", PinRequest(grant=grant, pin=pin))

    def seed(self, vm_uuid: str, request: SeedRequest) -> SeedState:
        """Begin to copy images of the site as bases of the disks' first copies; ask ``seed_state`` how far it is."""
        return self._send(SeedState, "POST", f"{_replica(vm_uuid)}/seed", request)

    def seed_state(self, vm_uuid: str) -> SeedState:
        """Of the running or the last seed."""
        return self._get(SeedState, f"{_replica(vm_uuid)}/seed")

    def discard_incoming(self, vm_uuid: str, grant: WriteGrant) -> None:
        """Delete an unfinished point."""
        self._call("DELETE", f"{_replica(vm_uuid)}/incoming", body=_json(grant), long=True)

    def current_as_of(self, vm_uuid: str, request: CurrentAsOf) -> Manifest:
        """The source was proven unchanged until then."""
        return self._send(Manifest, "POST", f"{_replica(vm_uuid)}/current-as-of", request)

    def run(self, vm_uuid: str, request: RunRequest) -> Run:
        """Take the VM over."""
        return self._send(Run, "POST", f"{_replica(vm_uuid)}/runs", request)

    def tpm_support(self) -> TpmSupport:
        """Could a VM's TPM be brought back here?"""
        return self._get(TpmSupport, "/tpm")

    def point_tpm(self, vm_uuid: str, seq: int) -> TpmSupport:
        """The same of one point's state."""
        return self._get(TpmSupport, f"{_replica(vm_uuid)}/points/{seq}/tpm")

    def place_tpm(self, vm_uuid: str, seq: int, request: PlaceTpm) -> TpmPlaced:
        """Make a point's TPM state that of a VM that is off. Raises Conflict, StaleLease."""
        return self._send(TpmPlaced, "POST", f"{_replica(vm_uuid)}/points/{seq}/tpm", request)

    def give_back(self, vm_uuid: str, request: GiveBackRequest) -> Manifest:
        """Undo a take-over while the VM has not run there."""
        return self._send(Manifest, "POST", f"{_replica(vm_uuid)}/give-back", request)

    def commit(self, vm_uuid: str, request: CommitRequest) -> Manifest:
        """A provisional failover stands."""
        return self._send(Manifest, "POST", f"{_replica(vm_uuid)}/commit", request)

    def raise_epoch(self, vm_uuid: str, request: EpochRequest) -> Manifest:
        """The owner's epoch rises. Raises EpochMoved for another owner."""
        return self._send(Manifest, "POST", f"{_replica(vm_uuid)}/epoch", request)

    def let_go(self, vm_uuid: str, run_epoch: int, request: LetGoRequest) -> Manifest:
        """Delete what a kept run has written."""
        return self._send(Manifest, "POST", f"{_replica(vm_uuid)}/runs/{run_epoch}/let-go", request)

    def adopt(self, vm_uuid: str, request: AdoptRequest) -> Adopted:
        """The VM's original disks there become the base of the reverse direction."""
        return self._send(Adopted, "POST", f"{_replica(vm_uuid)}/adopt", request)

    def fold(self, vm_uuid: str, request: FoldRequest) -> FoldPlan:
        """Before and after the overlay of a VM that runs there is written down."""
        return self._send(FoldPlan, "POST", f"{_replica(vm_uuid)}/fold", request)

    # --- leases ---------------------------------------------------------------------------------
    def acquire_lease(self, vm_uuid: str, request: LeaseRequest) -> Lease:
        """Raises LeaseHeld naming the holder."""
        return self._send(Lease, "POST", _lease(vm_uuid), request)

    def renew_lease(self, vm_uuid: str, fence: int, ttl_s: float) -> Lease:
        """Raises StaleLease."""
        answer = self._call("PUT", f"{_lease(vm_uuid)}/{fence}", params={"ttl_s": repr(float(ttl_s))})
        return self._parsed(Lease, answer)

    def release_lease(self, vm_uuid: str, fence: int) -> None:
        """Give it back."""
        self._call("DELETE", f"{_lease(vm_uuid)}/{fence}")

    def lease(self, vm_uuid: str) -> Lease | None:
        """The living lease, None when there is none."""
        try:
            answer = self._call("GET", _lease(vm_uuid))
        except NotFound:
            return None
        return None if answer is None else self._parsed(Lease, answer)

    # --- guardian -------------------------------------------------------------------------------
    def watch_job(self, vm_uuid: str, watch: WatchJob) -> None:
        """Begin or renew the watch over a backup job."""
        self._call("PUT", f"{_guardian(vm_uuid)}/job", body=_json(watch))

    def unwatch_job(self, vm_uuid: str) -> None:
        """The job has ended."""
        self._call("DELETE", f"{_guardian(vm_uuid)}/job")

    def watch_freeze(self, vm_uuid: str, watch: WatchFreeze) -> None:
        """Arm the dead-man thaw."""
        self._call("PUT", f"{_guardian(vm_uuid)}/freeze", body=_json(watch))

    def unwatch_freeze(self, vm_uuid: str) -> bool:
        """Disarm it; False when it had already thawed."""
        answer = self._call("DELETE", f"{_guardian(vm_uuid)}/freeze")
        in_time: dict[str, bool] = self._parsed(dict[str, bool], answer)
        return in_time.get("in_time", False)

    def scratch(self) -> ScratchSpace:
        """Free space for the scratch files of backup jobs."""
        return self._parsed(ScratchSpace, self._call("GET", "/guardian/scratch"))

    def guardian_events(self, since: datetime | None) -> Sequence[GuardianEvent]:
        """What the guardian did by itself."""
        params = {} if since is None else {"since": since.astimezone(UTC).isoformat()}
        return self._parsed(tuple[GuardianEvent, ...], self._call("GET", "/guardian/events", params=params))

    # --- start guard ----------------------------------------------------------------------------
    def guards(self) -> Sequence[GuardRecord]:
        """Every guarded VM of the host."""
        return self._get(tuple[GuardRecord, ...], "/guard")

    def guard(self, vm_uuid: str) -> GuardRecord | None:
        """The VM's record, None when it is not guarded there."""
        try:
            return self._get(GuardRecord, _guard(vm_uuid))
        except NotFound:
            return None

    def arm_guard(self, vm_uuid: str, request: GuardRequest) -> GuardRecord:
        """Raises StaleLease, EpochMoved, Conflict."""
        return self._send(GuardRecord, "PUT", _guard(vm_uuid), request)

    def disarm_guard(self, vm_uuid: str, release: GuardRelease) -> None:
        """Guard the VM no more."""
        self._call("DELETE", _guard(vm_uuid), body=_json(release))

    def plans(self) -> Sequence[Plan]:
        """The recovery plans kept there, tombstones too."""
        return self._get(tuple[Plan, ...], "/plans")

    def write_plan(self, request: PlanWrite) -> Plan:
        """Compare-and-set. Raises EditOutdated."""
        return self._send(Plan, "PUT", f"/plans/{_seg(request.plan.plan_id)}", request)

    def probe_tcp(self, request: TcpProbe) -> TcpProbed:
        """Whether that port takes a connection from that host."""
        return self._send(TcpProbed, "POST", "/probes/tcp", request)

    # --- drills ---------------------------------------------------------------------------------
    def drills(self) -> Sequence[DrillRecord]:
        """Oldest first, the last ended ones too."""
        return self._get(tuple[DrillRecord, ...], "/drills")

    def drill(self, drill_id: str) -> DrillRecord:
        """Raises NotFound."""
        return self._get(DrillRecord, _drill(drill_id))

    def begin_drill(self, drill_id: str, request: DrillRequest) -> DrillRecord:
        """Put it on record; nothing is made yet. Idempotent."""
        return self._send(DrillRecord, "PUT", _drill(drill_id), request)

    def join_drill(self, drill_id: str, vm_uuid: str, join: DrillJoin) -> DrillRecord:
        """Make the bubble's networks, overlays and the VM's copy, off. Idempotent."""
        return self._send(DrillRecord, "PUT", f"{_drill(drill_id)}/vms/{_seg(vm_uuid)}", join, long=True)

    def isolate_drill(self, drill_id: str) -> DrillRecord:
        """Look whether anything could leave the bubble."""
        return self._parsed(DrillRecord, self._call("POST", f"{_drill(drill_id)}/isolation", long=True))

    def start_drill(self, drill_id: str, vm_uuid: str) -> DrillRecord:
        """Start the copy. Raises StartFailed when the bubble is not proven. Idempotent."""
        path = f"{_drill(drill_id)}/vms/{_seg(vm_uuid)}/start"
        return self._parsed(DrillRecord, self._call("POST", path, long=True))

    def stop_drill(self, drill_id: str, request: DrillStop) -> DrillRecord:
        """Remove everything of it. Idempotent. Raises Conflict naming what is left."""
        return self._send(DrillRecord, "DELETE", _drill(drill_id), request, long=True)

    def drill_screen(self, drill_id: str, vm_uuid: str) -> DrillPicture:
        """Its screen now, or the last picture. Raises NotFound."""
        return self._get(DrillPicture, f"{_drill(drill_id)}/vms/{_seg(vm_uuid)}/screen")

    def point_proof(self, vm_uuid: str, seq: int) -> DrillPicture:
        """What the last drill that passed on the point has left. Raises NotFound."""
        return self._get(DrillPicture, f"{_point(vm_uuid, seq)}/drill")

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    # --- how ------------------------------------------------------------------------------------
    def _bearer(self) -> str:
        with self._lock:
            if self._token is None:
                self._token = self._provider()
            return self._token

    def _call(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        params: dict[str, str] | None = None,
        long: bool = False,
        read_s: float | None = None,
        token: str | None = None,
    ) -> Any:
        token = token or self._bearer()
        try:
            return self._http.request(method, path, token=token, body=body, params=params, long=long, read_s=read_s)
        except (TokenInvalid, TokenExpired, TokenRevoked):
            with self._lock:
                self._token = None  # the site may have been paired again meanwhile
            raise

    def _get(self, kind: type[_T], path: str) -> _T:
        return self._parsed(kind, self._call("GET", path))

    def _send(self, kind: type[_T], method: str, path: str, body: BaseModel, *, long: bool = False) -> _T:
        return self._parsed(kind, self._call(method, path, body=_json(body), long=long))

    def _parsed(self, kind: type[_T], answer: Any) -> _T:
        value: _T = parsed(kind, answer, self._http.place)
        return value


def _json(value: BaseModel) -> Any:
    return value.model_dump(mode="json")


def _seg(text: str) -> str:
    return quote(text, safe="")


def _replica(vm_uuid: str) -> str:
    return f"/replicas/{_seg(vm_uuid)}"


def _point(vm_uuid: str, seq: int) -> str:
    return f"{_replica(vm_uuid)}/points/{seq}"


def _lease(vm_uuid: str) -> str:
    return f"/leases/{_seg(vm_uuid)}"


def _guardian(vm_uuid: str) -> str:
    return f"/guardian/{_seg(vm_uuid)}"


def _drill(drill_id: str) -> str:
    return f"/drills/{_seg(drill_id)}"


def _guard(vm_uuid: str) -> str:
    return f"/guard/{_seg(vm_uuid)}"
