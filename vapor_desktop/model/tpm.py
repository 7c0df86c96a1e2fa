"""A VM's TPM at the other site: whether its state can come along, and what to say when it cannot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vapor_desktop.model.wire import TpmState, TpmSupport

NOT_FULLY = "not fully protected"


@dataclass(frozen=True, slots=True)
class TpmPlan:
    """What a start at the target does about the VM's TPM. ``note``: what a person has to know, "" = all is well."""

    device: bool  # False: the VM starts without one
    place: bool  # the point's state is put in place before it starts
    note: str = ""


def plan_tpm(obstacle: str, support: TpmSupport) -> TpmPlan:
    """Of a VM with a TPM. ``obstacle``: what its definition says against it (``DomainFacts.tpm_obstacle``)."""
    if not support.emulates:
        return TpmPlan(False, False, f"It starts without its TPM: {support.why}. What is sealed in it stays shut")
    why = obstacle or support.why
    if why:
        return TpmPlan(
            True, False, f"The state of its TPM was not put in place: {why}. What is sealed in it stays shut"
        )
    return TpmPlan(True, True)


def tpm_warning(obstacle: str, source: TpmState | None, target: TpmSupport) -> str:
    """The sentence for a VM whose TPM would not survive a failover; "" when it would.

    ``source``: what was read there, None when nothing was tried because of ``obstacle``.
    """
    why = obstacle or (source.why if source is not None else "") or target.why
    return f"{NOT_FULLY}: its TPM would not be the same after a failover: {why}" if why else ""


def tpm_fix(obstacle: str, source: TpmState | None, target: TpmSupport) -> str:
    """What to do about it."""
    if obstacle:
        return "Keep the recovery keys of what is sealed in it (BitLocker, LUKS) at hand"
    return (source.fix if source is not None else "") or target.fix


def obstacle_of(kind: str, encrypted: bool, source: Mapping[str, str] | None) -> str:
    """What a definition's ``<tpm><backend>`` says against bringing the state along; "" = nothing.

    ``kind``: the backend's type. ``source``: the attributes of its ``<source>`` (libvirt 10.10 and later).
    """
    if kind == "passthrough":
        return "it is the source host's own TPM, which cannot be copied"
    if kind != "emulator":
        return f"it is a TPM of type {kind}, whose state libvirt does not keep"
    if encrypted:
        return "its state is encrypted with a secret that only the source's libvirt has"
    if source is not None:
        return f"its state is kept at {source.get('path') or 'a place of its own'}, not where libvirt keeps it"
    return ""
