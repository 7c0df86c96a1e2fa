"""What a site says of its own state, and the probes that it makes for a console."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from vapor_desktop.model.policy import Value


class DoctorCheck(Value):
    """One line of ``vapor-site doctor``."""

    name: str
    ok: bool
    found: str
    fix: str = ""


class Health(Value):
    """GET /health."""

    ok: bool
    libvirt: bool
    helper: bool
    guard_proven: bool
    checks: tuple[DoctorCheck, ...]


class StorageRoot(Value):
    """One replica root."""

    path: str
    total_bytes: int
    free_bytes: int
    reserve_bytes: int


class TcpProbe(Value):
    """POST /probes/tcp: does that port take a connection from this host?"""

    address: str
    port: Annotated[int, Field(ge=1, le=65535)]
    timeout_s: Annotated[float, Field(gt=0, le=10)] = 3.0


class TcpProbed(Value):
    """Its answer. ``why``: the system's word for what went wrong."""

    open: bool
    why: str = ""
