"""An emulated TPM's state."""

from __future__ import annotations

from vapor_desktop.model.policy import Value


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
