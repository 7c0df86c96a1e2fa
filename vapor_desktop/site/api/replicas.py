"""``/replicas``: this site's recovery points. Every writing verb is judged by the store, under its lock."""

from __future__ import annotations

from fastapi import APIRouter

from vapor_desktop.model.manifest import Manifest, Point
from vapor_desktop.model.wire import (
    Adopted,
    AdoptRequest,
    CommitRequest,
    CurrentAsOf,
    EpochRequest,
    FoldPlan,
    FoldRequest,
    GiveBackRequest,
    LetGoRequest,
    MergeRequest,
    PinRequest,
    PlaceTpm,
    PointDomain,
    ReplicaCreate,
    ReplicaView,
    Run,
    Runbook,
    RunRequest,
    SeedRequest,
    SeedState,
    SettingsWrite,
    TpmPlaced,
    TpmSupport,
    WriteGrant,
)
from vapor_desktop.site.api.auth import Admin, Operator, Site, Viewer
from vapor_desktop.site.enrolments import uuid_text

router = APIRouter(prefix="/replicas", tags=["replicas"])


@router.get("")
def every(_caller: Viewer, site: Site) -> list[ReplicaView]:
    """Every replica, broken ones too."""
    return site.store.list()


@router.get("/{vm}")
def one(vm: str, _caller: Viewer, site: Site) -> ReplicaView:
    """One replica."""
    return site.store.view(_vm(vm))


@router.put("/{vm}")
def create(vm: str, body: ReplicaCreate, _caller: Operator, site: Site) -> Manifest:
    """Make the replica, or follow the VM's name."""
    return site.store.create(_vm(vm), body)


@router.put("/{vm}/settings")
def write_settings(vm: str, body: SettingsWrite, caller: Operator, site: Site) -> Manifest:
    """Another policy and other mappings; refused when they were changed since they were read."""
    site.audit(
        "settings",
        vm_uuid=_vm(vm),
        version=body.expect_version,
        token_id=caller.token_id,
        console=caller.console_name,
    )
    return site.store.write_settings(_vm(vm), body)


@router.delete("/{vm}", status_code=204)
def delete(vm: str, body: WriteGrant, caller: Admin, site: Site) -> None:
    """Delete a replica that nothing runs on and nothing hangs on."""
    site.audit("delete-replica", vm_uuid=_vm(vm), token_id=caller.token_id, console=caller.console_name)
    site.store.delete(_vm(vm), body)


@router.get("/{vm}/points/{seq}")
def point(vm: str, seq: int, _caller: Viewer, site: Site) -> Point:
    """One recovery point."""
    return site.store.point(_vm(vm), seq)


@router.get("/{vm}/points/{seq}/domain")
def point_domain(vm: str, seq: int, _caller: Operator, site: Site) -> PointDomain:
    """The configuration of one recovery point. Not for viewers: it may hold the VM's secrets."""
    return site.store.point_domain(_vm(vm), seq)


@router.get("/{vm}/points/{seq}/tpm")
def point_tpm(vm: str, seq: int, _caller: Viewer, site: Site) -> TpmSupport:
    """Could this point's TPM state be put in place here, and does this host's swtpm take it?"""
    return site.tpm.of_point(_vm(vm), seq)


@router.post("/{vm}/points/{seq}/tpm")
def place_tpm(vm: str, seq: int, body: PlaceTpm, caller: Operator, site: Site) -> TpmPlaced:
    """Put it in place for a VM that is off; what lay there is kept aside. Idempotent."""
    site.audit(
        "place-tpm",
        vm_uuid=_vm(vm),
        seq=seq,
        as_uuid=body.as_uuid,
        token_id=caller.token_id,
        console=caller.console_name,
    )
    return site.tpm.place(_vm(vm), seq, body)


@router.post("/{vm}/points/{seq}/drop")
def drop(vm: str, seq: int, body: MergeRequest, _caller: Operator, site: Site) -> Manifest:
    """Forget one point by merging the next one down."""
    return site.store.drop(_vm(vm), seq, body.grant)


@router.post("/{vm}/points/{seq}/pins")
def pin(vm: str, seq: int, body: PinRequest, _caller: Operator, site: Site) -> Manifest:
    """Keep a point."""
    return site.store.pin(_vm(vm), seq, body.grant, body.pin)


@router.delete("/{vm}/points/{seq}/pins")
def unpin(vm: str, seq: int, body: PinRequest, _caller: Operator, site: Site) -> Manifest:
    """Let it go."""
    return site.store.unpin(_vm(vm), seq, body.grant, body.pin)


@router.post("/{vm}/seed", status_code=202)
def seed(vm: str, body: SeedRequest, caller: Operator, site: Site) -> SeedState:
    """Begin to copy images of this host, as bases of the disks' first copies. Keep the lease alive meanwhile."""
    images = {disk: image.path for disk, image in body.disks.items()}
    site.audit("seed", vm_uuid=_vm(vm), images=images, token_id=caller.token_id, console=caller.console_name)
    return site.seeding.start(_vm(vm), body)


@router.get("/{vm}/seed")
def seed_state(vm: str, _caller: Viewer, site: Site) -> SeedState:
    """How far the copying is."""
    return site.seeding.state(_vm(vm))


@router.delete("/{vm}/incoming", status_code=204)
def discard_incoming(vm: str, body: WriteGrant, _caller: Operator, site: Site) -> None:
    """Delete what is unfinished."""
    site.store.discard_incoming(_vm(vm), body)


@router.post("/{vm}/current-as-of")
def current_as_of(vm: str, body: CurrentAsOf, _caller: Operator, site: Site) -> Manifest:
    """The source was proven unchanged until then."""
    return site.store.current_as_of(_vm(vm), body)


@router.post("/{vm}/runs")
def run(vm: str, body: RunRequest, caller: Operator, site: Site) -> Run:
    """Take the VM over: epoch, overlays, NVRAM. Idempotent for the same new epoch."""
    site.audit(
        "take-over",
        vm_uuid=_vm(vm),
        seq=body.seq,
        epoch=body.new_epoch.number,
        reason=body.reason,
        token_id=caller.token_id,
        console=caller.console_name,
    )
    return site.store.run(_vm(vm), body)


@router.get("/{vm}/runbook")
def runbook(vm: str, _caller: Viewer, site: Site, point: int | None = None) -> Runbook:
    """How to bring the VM up by hand on this host, from its newest point or another."""
    return site.runbooks.write(_vm(vm), point)


@router.post("/{vm}/give-back")
def give_back(vm: str, body: GiveBackRequest, caller: Operator, site: Site) -> Manifest:
    """The undo of a take-over, while the VM has not run here."""
    site.audit(
        "give-back",
        vm_uuid=_vm(vm),
        epoch=body.new_epoch.number,
        reason=body.reason,
        token_id=caller.token_id,
        console=caller.console_name,
    )
    return site.store.give_back(_vm(vm), body)


@router.post("/{vm}/commit")
def commit(vm: str, body: CommitRequest, caller: Operator, site: Site) -> Manifest:
    """A failover that was provisional stands."""
    told = {"epoch": body.epoch, "reason": body.reason}
    site.audit("commit", vm_uuid=_vm(vm), **told, token_id=caller.token_id, console=caller.console_name)
    return site.store.commit(_vm(vm), body)


@router.post("/{vm}/epoch")
def raise_epoch(vm: str, body: EpochRequest, caller: Operator, site: Site) -> Manifest:
    """The epoch rises, its owner stays."""
    told = {"epoch": body.new_epoch.number, "reason": body.reason}
    site.audit("raise-epoch", vm_uuid=_vm(vm), **told, token_id=caller.token_id, console=caller.console_name)
    return site.store.raise_epoch(_vm(vm), body)


@router.post("/{vm}/runs/{epoch}/let-go")
def let_go(vm: str, epoch: int, body: LetGoRequest, caller: Operator, site: Site) -> Manifest:
    """Delete what a run that is over has written."""
    told = {"epoch": epoch, "reason": body.reason}
    site.audit("let-go", vm_uuid=_vm(vm), **told, token_id=caller.token_id, console=caller.console_name)
    return site.store.let_go(_vm(vm), epoch, body)


@router.post("/{vm}/adopt")
def adopt(vm: str, body: AdoptRequest, caller: Operator, site: Site) -> Adopted:
    """The VM's original disks here become the base of the reverse direction; they are never removed."""
    site.audit(
        "adopt",
        vm_uuid=_vm(vm),
        epoch=body.epoch.number,
        disks={disk: d.path for disk, d in body.disks.items()},
        reason=body.reason,
        token_id=caller.token_id,
        console=caller.console_name,
    )
    return site.adopting.adopt(_vm(vm), body)


@router.post("/{vm}/fold")
def fold(vm: str, body: FoldRequest, caller: Operator, site: Site) -> FoldPlan:
    """Before and after the overlay of a VM that runs here is written down: the old direction's points go."""
    site.audit("fold", vm_uuid=_vm(vm), done=body.done, token_id=caller.token_id, console=caller.console_name)
    return site.adopting.fold(_vm(vm), body)


def _vm(text: str) -> str:
    return uuid_text(text, "the VM")
