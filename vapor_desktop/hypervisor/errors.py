"""From libvirt's errors to ours: by code, never by message text."""

from __future__ import annotations

from typing import Any

import libvirt

from vapor_desktop.model.errors import (
    CheckpointInconsistent,
    DomainBusy,
    DomainNotFound,
    HypervisorFailed,
    HypervisorUnreachable,
    NotAllowed,
    VaporError,
)

# Not in every release's binding: numbers are libvirt's ABI [include/libvirt/virterror.h].
NO_DOMAIN = 42
OPERATION_INVALID = 55
OPERATION_TIMEOUT = 68
AGENT_UNRESPONSIVE = 86
NO_DOMAIN_CHECKPOINT = 103
NO_DOMAIN_BACKUP = 104
CHECKPOINT_INCONSISTENT = 109

_DENIED = {
    libvirt.VIR_ERR_AUTH_FAILED,
    libvirt.VIR_ERR_AUTH_CANCELLED,
    libvirt.VIR_ERR_AUTH_UNAVAILABLE,
    libvirt.VIR_ERR_ACCESS_DENIED,
    libvirt.VIR_ERR_OPERATION_DENIED,
}


def code_of(error: libvirt.libvirtError) -> int:
    """libvirt's error number; 0 when the error carries none."""
    code = error.get_error_code()
    return int(code) if code is not None else 0


def translate(error: libvirt.libvirtError, what: str, *, alive: bool) -> VaporError:
    """The error as one of ours.

    ``what``: one sentence without a full stop naming what failed. ``alive``: whether the connection
    still lives; a call that failed on a dead connection says nothing about the VM.
    """
    code, why = code_of(error), " ".join(str(error).split())
    details: dict[str, Any] = {"libvirt_code": code}
    if code in _DENIED:
        fix = "The account needs to be in the group libvirt on that host (`vapor-site doctor`)"
        return NotAllowed(what, why=why, fix=fix, **details)
    if not alive:
        return HypervisorUnreachable(what, why=why, **details)
    if code == NO_DOMAIN:
        return DomainNotFound(what, why=why, **details)
    if code == OPERATION_TIMEOUT:
        fix = "Another job holds the VM; it is tried again by itself"
        return DomainBusy(what, why=why, fix=fix, **details)
    if code == CHECKPOINT_INCONSISTENT:
        fix = "The next cycle compares the disks instead of sending a delta"
        return CheckpointInconsistent(what, why=why, fix=fix, **details)
    return HypervisorFailed(what, why=why, **details)
