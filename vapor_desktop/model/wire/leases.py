"""Leases of VMs, and the grant that every writing verb carries."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import Field

from vapor_desktop.model.manifest import Epoch
from vapor_desktop.model.policy import Value


class LeaseRequest(Value):
    """POST /leases/{vm}. ``takeover_reason`` takes it from a living holder, logged."""

    holder: str
    holder_name: str
    purpose: str
    ttl_s: Annotated[float, Field(gt=0, le=3600)] = 60.0
    takeover_reason: str | None = None
    takeover_from: str | None = None  # only from that holder: another one has come meanwhile otherwise


class Lease(Value):
    """A grant to do things with one VM on one site. Fencing numbers rise and never return."""

    vm_uuid: str
    holder: str
    holder_name: str
    purpose: str
    fence: int
    expires_at: datetime
    since: datetime | None = None  # when this holder got it; None from an older site


class WriteGrant(Value):
    """What every writing verb carries; the site refuses anything else."""

    fence: int
    epoch: Epoch
    source_site: str
    parent_seq: int | None
