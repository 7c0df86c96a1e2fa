"""The start guard: may this host start the VM?"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from vapor_desktop.model.manifest import Epoch
from vapor_desktop.model.policy import StartGuard, Value


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
