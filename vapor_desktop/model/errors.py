"""The one tree of errors.

Every error says three things a person needs at 3 a.m. (what failed, why, what to do) and one thing
the engine needs: its *fate*. Adapters translate foreign errors here, at their edge, by code and never
by message text. ``to_wire``/``from_wire`` carry an error across the API and the mover's channel whole.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, ClassVar


class Fate(StrEnum):
    """Who can mend it."""

    RETRY = "retry"  # the same call may succeed later, by itself
    OPERATOR = "operator"  # a person must change something first
    BUG = "bug"  # ours


class VaporError(Exception):
    """Root of the tree.

    ``what`` is one sentence without a full stop; ``why`` the cause if known; ``fix`` what to do.
    ``details`` holds structured facts (never a secret: they are logged and shown).
    """

    code: ClassVar[str] = "VAPOR"
    fate: ClassVar[Fate] = Fate.BUG
    default_fix: ClassVar[str] = ""

    def __init__(self, what: str, *, why: str = "", fix: str = "", **details: Any) -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.fix = fix or self.default_fix
        self.details = details

    def __str__(self) -> str:
        text = self.what
        if self.why:
            text += f": {self.why}"
        if self.fix:
            text += f". {self.fix}"
        return text

    def to_wire(self) -> dict[str, Any]:
        """The error as JSON-ready values."""
        return {
            "code": self.code,
            "what": self.what,
            "why": self.why,
            "fix": self.fix,
            "details": self.details,
        }


# --- reaching a site -----------------------------------------------------------------------------
class SiteUnreachable(VaporError):
    """No answer (refused, timed out, no route). Unreachable is never "no"."""

    code, fate = "SITE-UNREACHABLE", Fate.RETRY
    default_fix = "Check the address, the port, the firewall and that vapor-site runs there"


class NotAVaporSite(VaporError):
    """Something else answers at that address and port."""

    code, fate = "NOT-A-VAPOR-SITE", Fate.OPERATOR
    default_fix = "Check the address and the port; `vapor-site token new` prints the right URL"


class CertificateChanged(VaporError):
    """The TLS certificate is not the pinned one; nothing was sent."""

    code, fate = "CERTIFICATE-CHANGED", Fate.OPERATOR
    default_fix = "Compare with `vapor-site fingerprint` on the host, then pair the site again"


class HostKeyChanged(VaporError):
    """The SSH host key is not the pinned one; nothing was sent."""

    code, fate = "HOST-KEY-CHANGED", Fate.OPERATOR
    default_fix = "Find out why the host's SSH key changed, then pair the site again"


class TokenInvalid(VaporError):
    """The token is wrong, used, or its text is damaged."""

    code, fate = "TOKEN-INVALID", Fate.OPERATOR
    default_fix = "Make a new one on the host with `vapor-site token new` and paste all of it"


class TokenExpired(VaporError):
    """The token was right once."""

    code, fate = "TOKEN-EXPIRED", Fate.OPERATOR
    default_fix = "Make a new one on the host with `vapor-site token new`"


class TokenRevoked(VaporError):
    """The host's administrator revoked this console's token."""

    code, fate = "TOKEN-REVOKED", Fate.OPERATOR
    default_fix = "If this was not meant, make a new token on the host and pair the site again"


class TooManyAttempts(VaporError):
    """Failed tokens are rate-limited."""

    code, fate = "TOO-MANY-ATTEMPTS", Fate.RETRY
    default_fix = "Wait a minute, then try again with the right token"


class NotAllowed(VaporError):
    """The token or key is good, but not for this."""

    code, fate = "NOT-ALLOWED", Fate.OPERATOR


class ApiVersionMismatch(VaporError):
    """Console and site speak different versions."""

    code, fate = "API-VERSION", Fate.OPERATOR
    default_fix = "Upgrade the older of the two"


class InvalidRequest(VaporError):
    """A value does not fit; says which and why."""

    code, fate = "INVALID-REQUEST", Fate.OPERATOR


class NotFound(VaporError):
    """The named thing does not exist (we looked)."""

    code, fate = "NOT-FOUND", Fate.OPERATOR


class Conflict(VaporError):
    """Somebody changed it meanwhile: compare-and-set lost."""

    code, fate = "CONFLICT", Fate.RETRY


# --- who may act ---------------------------------------------------------------------------------
class LeaseHeld(VaporError):
    """Another holder has the VM's lease at that site; ``details['holder']`` names it."""

    code, fate = "LEASE-HELD", Fate.RETRY


class StaleLease(VaporError):
    """A writing verb came with a fencing number that is no longer the newest."""

    code, fate = "STALE-LEASE", Fate.RETRY


class EpochMoved(VaporError):
    """The VM changed owner meanwhile; this side may not write any more."""

    code, fate = "EPOCH-MOVED", Fate.OPERATOR


class ParentMoved(VaporError):
    """The newest point is not the one this transfer was made from."""

    code, fate = "PARENT-MOVED", Fate.RETRY


class EditOutdated(VaporError):
    """The settings were changed by somebody else since they were read."""

    code, fate = "EDIT-OUTDATED", Fate.OPERATOR
    default_fix = "Read the settings again, then make the change on what they are now"


# --- the hypervisor ------------------------------------------------------------------------------
class HypervisorUnreachable(VaporError):
    """libvirt did not answer."""

    code, fate = "LIBVIRT-UNREACHABLE", Fate.RETRY
    default_fix = "Check that libvirtd runs on the host (`vapor-site doctor`)"


class HypervisorFailed(VaporError):
    """libvirt refused for a reason that has no class of its own; ``details['libvirt_code']``."""

    code, fate = "LIBVIRT-FAILED", Fate.RETRY


class DomainBusy(VaporError):
    """Another job (ours or another tool's) holds the VM; not a failure."""

    code, fate = "VM-BUSY", Fate.RETRY


class BackupJobLost(VaporError):
    """libvirt holds a backup job of the VM without its record, so that nothing ends it: a person must.

    Tried with libvirt 9.0: libvirtd was killed while it began the job; the VM cannot even be started again then.
    """

    code, fate = "BACKUP-JOB-LOST", Fate.OPERATOR


class DomainNotFound(VaporError):
    """libvirt knows no VM of that UUID (we looked)."""

    code, fate = "VM-NOT-FOUND", Fate.OPERATOR


class CheckpointInconsistent(VaporError):
    """The bitmap behind a checkpoint is missing or in use: libvirt code 109 [facts/libvirt 1.7]."""

    code, fate = "BITMAP-LOST", Fate.RETRY


class NotReplicable(VaporError):
    """A disk or a setting of the VM cannot be replicated as it is; says the fix."""

    code, fate = "NOT-REPLICABLE", Fate.OPERATOR


class DiskShrunk(VaporError):
    """A disk is smaller than at the last point: refused, the operator decides."""

    code, fate = "DISK-SHRUNK", Fate.OPERATOR


class ScratchFull(VaporError):
    """The space for the backup job's scratch fell below its reserve; the job was ended."""

    code, fate = "SCRATCH-FULL", Fate.OPERATOR
    default_fix = "Free space where the scratch files live, or move the scratch directory"


class FreezeFailed(VaporError):
    """The guest agent could not freeze; the point becomes crash-consistent."""

    code, fate = "FREEZE-FAILED", Fate.RETRY


class StartFailed(VaporError):
    """The VM was defined but did not start."""

    code, fate = "START-FAILED", Fate.OPERATOR


class GuestMissing(VaporError):
    """Something the VM needs does not exist at the target (network, machine type, firmware)."""

    code, fate = "TARGET-LACKS", Fate.OPERATOR


# --- the mover and the replica store -------------------------------------------------------------
class TransferInterrupted(VaporError):
    """The transfer broke off; what the receiver holds durably is kept for the next attempt."""

    code, fate = "TRANSFER-INTERRUPTED", Fate.RETRY


class TransferCancelled(VaporError):
    """Cancelled on request."""

    code, fate = "TRANSFER-CANCELLED", Fate.RETRY


class FrameCorrupt(VaporError):
    """A frame's checksum does not match; nothing of it was written."""

    code, fate = "FRAME-CORRUPT", Fate.RETRY


class ProtocolError(VaporError):
    """The other end spoke out of turn."""

    code, fate = "PROTOCOL", Fate.BUG


class ReplicaFull(VaporError):
    """The replica root has less free space than this point needs plus its reserve."""

    code, fate = "REPLICA-FULL", Fate.OPERATOR
    default_fix = "Free space at the target, or shorten the retention"


class ManifestInvalid(VaporError):
    """Manifest missing or damaged: the replica is read-only until it is rebuilt; nothing is deleted."""

    code, fate = "MANIFEST-INVALID", Fate.OPERATOR
    default_fix = "Run `vapor-site rebuild VM` on the target; it rebuilds from point.json and deletes nothing"


class DigestMismatch(VaporError):
    """Data does not match its digest: silent corruption or a write behind our back."""

    code, fate = "DIGEST-MISMATCH", Fate.RETRY


class PointPinned(VaporError):
    """A drill, a run, a pin or a merge rule protects this point."""

    code, fate = "POINT-PINNED", Fate.OPERATOR


class ImageToolFailed(VaporError):
    """qemu-img, qemu-nbd or qemu-storage-daemon failed; ``details['stderr']`` has its words."""

    code, fate = "IMAGE-TOOL", Fate.RETRY


# --- secrets, database, ourselves ----------------------------------------------------------------
class KeyringMissing(VaporError):
    """No OS keyring: we refuse rather than write plain text."""

    code, fate = "KEYRING-MISSING", Fate.OPERATOR
    default_fix = "Install and start a keyring (gnome-keyring, KWallet or KeePassXC)"


class KeyringLocked(VaporError):
    """The keyring did not open in time, or its prompt was dismissed."""

    code, fate = "KEYRING-LOCKED", Fate.OPERATOR
    default_fix = "Unlock the keyring, then try again"


class DatabaseTrouble(VaporError):
    """The database does not open, is newer than this program, or is busy."""

    code, fate = "DATABASE", Fate.OPERATOR


class AlarmNotSent(VaporError):
    """A mail server or webhook did not take an alarm; it is kept and tried again."""

    code, fate = "ALARM-NOT-SENT", Fate.RETRY


class IllegalTransition(VaporError):
    """A state change that the table of legal transitions does not know."""

    code, fate = "ILLEGAL-TRANSITION", Fate.BUG


class OperationStopped(VaporError):
    """A person stopped it; what it had done stays."""

    code, fate = "OPERATION-STOPPED", Fate.OPERATOR


class Unexpected(VaporError):
    """An error that none of our classes fits, wrapped at the edge of a worker."""

    code, fate = "UNEXPECTED", Fate.BUG


def _tree(cls: type[VaporError]) -> dict[str, type[VaporError]]:
    found = {cls.code: cls}
    for sub in cls.__subclasses__():
        found.update(_tree(sub))
    return found


def from_wire(data: dict[str, Any]) -> VaporError:
    """The error that ``to_wire`` wrote; an unknown code becomes ``Unexpected`` and keeps its words."""
    cls = _tree(VaporError).get(str(data.get("code", "")), Unexpected)
    error = cls(str(data.get("what", "unknown error")), why=str(data.get("why", "")), fix=str(data.get("fix", "")))
    details = data.get("details")
    if isinstance(details, dict):  # assigned, not passed: a peer may call a detail "why"
        error.details = details
    return error
