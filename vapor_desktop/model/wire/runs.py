"""Taking a VM over, giving it back, and what its runs leave."""

from __future__ import annotations

from datetime import datetime

from vapor_desktop.model.manifest import Epoch
from vapor_desktop.model.policy import Value


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
