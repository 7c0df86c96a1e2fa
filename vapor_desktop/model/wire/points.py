"""Single recovery points of a replica."""

from __future__ import annotations

from datetime import datetime

from vapor_desktop.model.policy import Value
from vapor_desktop.model.wire.leases import WriteGrant


class CurrentAsOf(Value):
    """POST /replicas/{vm}/current-as-of: the source was proven unchanged until then."""

    grant: WriteGrant
    seq: int
    at: datetime
    images: dict[str, str] | None = None  # stamps of a stopped VM's images at that moment; None: as they were


class PinRequest(Value):
    """POST /replicas/{vm}/points/{seq}/pins (and DELETE with the same body)."""

    grant: WriteGrant
    pin: str


class PointDomain(Value):
    """GET /replicas/{vm}/points/{seq}/domain: what a failover would define, to be judged before anything moves."""

    domain_xml: str
    disks: tuple[str, ...]
    nvram: bool


class MergeRequest(Value):
    """POST /replicas/{vm}/points/{seq}/drop: forget one point by merging the next one down."""

    grant: WriteGrant
