"""The start guard's rules: may this host start a VM, and how a record changes. The hook carries ``refusal`` too.

The higher epoch owns the VM. A record only ever rises in epoch, so a late word of an old owner changes nothing.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from vapor_desktop.model.errors import Conflict, EpochMoved, InvalidRequest
from vapor_desktop.model.manifest import Epoch
from vapor_desktop.model.policy import StartGuard
from vapor_desktop.model.wire import GuardRecord, GuardRequest, GuardState, OwnerWord

RISK = "split-brain risk"


def refusal(record: GuardRecord, boot_id: str) -> str | None:
    """Why this host must not start the VM now, in one sentence; None when it may.

    ``site/qemu_hook.py`` says the same, word by word: a test compares them.
    """
    epoch, why = record.epoch, record.reason
    if record.state is GuardState.MOVING:
        fact = f"operation {record.operation_id} is moving it"
    elif record.state is GuardState.OTHERS or epoch.owner != record.this_site:
        fact = f"another site owns it since epoch {epoch.number}"
    elif record.confirmed_boot_id != boot_id:
        fact = "since this host booted nobody has said that it is still its own"
        why = why if record.held_boot_id == boot_id else "the other site is being asked"
    else:
        return None
    return " ".join(f"{record.vm_name} is not started: {fact} ({why})".split())


def may_start(record: GuardRecord, boot_id: str) -> bool:
    """Whether the hook lets it pass."""
    return refusal(record, boot_id) is None


def unsettled(record: GuardRecord, boot_id: str) -> bool:
    """Whether the peer must be asked soon, not only now and then."""
    unconfirmed = record.confirmed_boot_id != boot_id
    return record.state is not GuardState.OTHERS and (unconfirmed or record.at_risk)


# --- by an engine, under the site's lease -----------------------------------------------------------
def armed(
    before: GuardRecord | None, vm_uuid: str, request: GuardRequest, *, this_site: str, boot_id: str, at: datetime
) -> GuardRecord:
    """The record after the request; ``before`` itself when it says so already.

    Raises EpochMoved (lower epoch, or the same of another owner), Conflict (another operation moves the VM),
    InvalidRequest.
    """
    _fits(request, this_site)
    if before is not None:
        _not_lower(before, request.epoch)
        if _same_epoch(before, request.epoch) and before.state is GuardState.MOVING:
            _same_operation(before, request.operation_id)
    own = request.state is GuardState.OWN
    confirmed = before.confirmed_boot_id if before else None
    if own and request.boot_id == boot_id:
        confirmed = boot_id
    after = GuardRecord(
        vm_uuid=vm_uuid,
        vm_name=request.vm_name,
        epoch=request.epoch,
        this_site=this_site,
        peer_site=request.peer_site,
        state=request.state,
        operation_id=request.operation_id if request.state is GuardState.MOVING else None,
        policy=request.policy,
        confirmed_boot_id=confirmed,
        held_boot_id=before.held_boot_id if before else None,
        at_risk=own and before is not None and before.at_risk and request.boot_id != boot_id,
        was_autostart=before.was_autostart if before else False,
        start_due=before is not None and own and (before.start_due or _back_after_boot(before, request, boot_id)),
        reason=request.reason if before is None or own is False or confirmed == boot_id else before.reason,
        changed_at=at,
        changed_by=request.by,
    )
    return before if before is not None and _same_but_words(before, after) else after


def check_release(record: GuardRecord, epoch: Epoch) -> None:
    """Whether the record may be taken away. Raises EpochMoved, Conflict."""
    _not_lower(record, epoch)
    if record.state is GuardState.MOVING:
        _same_operation(record, None)


# --- by a person on the host ------------------------------------------------------------------------
def overridden(
    before: GuardRecord, *, highest: Epoch | None, boot_id: str, at: datetime, by: str, reason: str
) -> GuardRecord:
    """This site takes the VM under the next epoch above all that is known (``highest``: the peer's, if it told)."""
    number = max(before.epoch.number, highest.number if highest else 0) + 1
    return _changed(
        before,
        at,
        by,
        f"override: {reason}",
        epoch=Epoch(number=number, owner=before.this_site),
        state=GuardState.OWN,
        operation_id=None,
        confirmed_boot_id=boot_id,
        at_risk=False,
        start_due=False,
    )


# --- by the host itself, after it asked the peer ----------------------------------------------------
def heard(record: GuardRecord, word: OwnerWord, *, peer: str, boot_id: str, at: datetime) -> GuardRecord:
    """After the peer's answer. ``peer``: its name, also the one who changed the record."""
    theirs, ours = word.epoch, record.epoch
    if record.state is GuardState.OTHERS:
        return record
    if theirs is not None and theirs.number > ours.number and theirs.owner != record.this_site:
        why = f"{peer} owns it since epoch {theirs.number}"
        # Its confirmation ends: once it is ours again, that has to be said anew.
        change: dict[str, Any] = {"state": GuardState.OTHERS, "epoch": theirs, "operation_id": None}
        return _held(record, boot_id, at, peer, why, **change, confirmed_boot_id=None, at_risk=False, start_due=False)
    if theirs is not None and theirs.number == ours.number and theirs.owner != ours.owner:
        why = f"split brain: {peer} has epoch {theirs.number} too, with another owner; a person must decide"
        return _held(record, boot_id, at, peer, why, confirmed_boot_id=None)
    if record.state is GuardState.MOVING or not unsettled(record, boot_id):
        return record
    if record.confirmed_boot_id != boot_id and word.runs:
        return _held(record, boot_id, at, peer, f"it runs at {peer} right now")
    if theirs is None and word.runs is None:
        return _held(record, boot_id, at, peer, f"{peer} knows no replica of it, and its libvirt does not answer")
    epoch = theirs if theirs is not None and theirs.number > ours.number else ours
    why = f"{peer} says that it is ours" if theirs else f"{peer} has neither a replica nor such a VM"
    return _confirmed(record, boot_id, at, peer, why, epoch=epoch, at_risk=False)


def unheard(record: GuardRecord, *, peer: str, why: str, boot_id: str, at: datetime, patient: bool) -> GuardRecord:
    """After no answer. ``patient``: too early yet to start without the peer's word."""
    if record.state is not GuardState.OWN or record.confirmed_boot_id == boot_id:
        return record
    if record.policy is StartGuard.HOLD:
        return _held(record, boot_id, at, peer, f"{peer} cannot be asked who owns it, and the policy is hold: {why}")
    if patient:
        return record
    words = f"{RISK}: {peer} could not be asked who owns it, and the policy is start: {why}"
    return _confirmed(record, boot_id, at, peer, words, at_risk=True)


def told(before: GuardRecord, after: GuardRecord, boot_id: str) -> str | None:
    """Which event the change is worth (a ``GuardianEvent.what``); None for no news."""
    if after.at_risk and not before.at_risk:
        return "guard-risk"
    held_before = before.held_boot_id == boot_id and not may_start(before, boot_id)
    if not may_start(after, boot_id):
        news = not held_before or before.reason != after.reason
        return "guard-held" if after.held_boot_id == boot_id and news else None
    return "guard-released" if held_before or (before.at_risk and not after.at_risk) else None


# --- how --------------------------------------------------------------------------------------------
def _fits(request: GuardRequest, this_site: str) -> None:
    own = request.epoch.owner == this_site
    if (request.state is GuardState.OWN and not own) or (request.state is GuardState.OTHERS and own):
        raise InvalidRequest(f"A VM that is {request.state} does not fit an epoch of site {request.epoch.owner}")
    if request.state is GuardState.MOVING and not request.operation_id:
        raise InvalidRequest("A VM that is moving needs its operation's id")
    if request.peer_site == this_site:
        raise InvalidRequest("A site is not its own peer")


def _not_lower(record: GuardRecord, epoch: Epoch) -> None:
    same_number_else = epoch.number == record.epoch.number and epoch.owner != record.epoch.owner
    if epoch.number < record.epoch.number or same_number_else:
        raise EpochMoved(
            f"The start guard of “{record.vm_name}” is already in epoch {record.epoch.number}",
            why=record.reason,
            fix="Look with `vapor-site guard show` on the host",
            number=record.epoch.number,
            owner=record.epoch.owner,
        )


def _same_operation(record: GuardRecord, operation_id: str | None) -> None:
    if record.operation_id != operation_id:
        raise Conflict(
            f"Operation {record.operation_id} is moving “{record.vm_name}”",
            why=record.reason,
            fix="Continue or undo that operation",
            operation_id=record.operation_id,
        )


def _same_epoch(record: GuardRecord, epoch: Epoch) -> bool:
    return record.epoch == epoch


def _back_after_boot(before: GuardRecord, request: GuardRequest, boot_id: str) -> bool:
    return (
        before.state is GuardState.OWN
        and before.epoch == request.epoch
        and request.boot_id == boot_id
        and before.confirmed_boot_id not in (None, boot_id)
    )


_WORDS = {"reason", "changed_at", "changed_by"}


def _same_but_words(before: GuardRecord, after: GuardRecord) -> bool:
    return before.model_dump(exclude=_WORDS) == after.model_dump(exclude=_WORDS)


def _changed(record: GuardRecord, at: datetime, by: str, reason: str, **change: Any) -> GuardRecord:
    after = record.model_copy(update={**change, "reason": reason, "changed_at": at, "changed_by": by})
    same = _same_but_words(record, after) and record.reason == after.reason
    return record if same else after


def _held(record: GuardRecord, boot_id: str, at: datetime, by: str, why: str, **change: Any) -> GuardRecord:
    return _changed(record, at, by, why, held_boot_id=boot_id, **change)


def _confirmed(record: GuardRecord, boot_id: str, at: datetime, by: str, why: str, **change: Any) -> GuardRecord:
    due = record.start_due or (record.confirmed_boot_id is not None and record.confirmed_boot_id != boot_id)
    return _changed(record, at, by, why, confirmed_boot_id=boot_id, start_due=due, **change)
