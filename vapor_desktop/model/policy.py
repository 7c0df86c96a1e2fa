"""The policy of a protection, and what it promises."""

from __future__ import annotations

from datetime import time
from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

RPO_MIN_S = 5
RPO_MAX_S = 24 * 3600
BANDWIDTH_MIN_BYTES_S = 65536
RPO_PRESETS_S = {"15 min": 900, "1 h": 3600, "12 h": 43200}


class Value(BaseModel):
    """Base of our immutable values that travel as JSON. Unknown fields are kept out, loudly."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class StartGuard(StrEnum):
    """What a host does with a VM after a reboot while its peer cannot be asked."""

    HOLD = "hold"
    START = "start"


class Quiesce(StrEnum):
    """Freeze the guest's file systems for the instant of a point?"""

    NEVER = "never"
    TRY = "try"  # freeze when the agent answers, else crash-consistent and labelled so


class Retention(Value):
    """Which points are kept: the newest N, then one an hour, then one a day."""

    newest: Annotated[int, Field(ge=1, le=24)] = 6
    hourly: Annotated[int, Field(ge=0, le=24)] = 6
    daily: Annotated[int, Field(ge=0, le=24)] = 3


class BandwidthWindow(Value):
    """From ``start`` to ``end`` (times of day, UTC; past midnight when ``end`` is not later) another limit holds."""

    start: time
    end: time
    bandwidth_bytes_s: Annotated[int, Field(ge=BANDWIDTH_MIN_BYTES_S)] | None = None  # None: no limit


class Policy(Value):
    """What the administrator promised for one VM."""

    rpo_target_s: Annotated[int, Field(ge=RPO_MIN_S, le=RPO_MAX_S)] = 900
    at_times: tuple[time, ...] = ()  # fixed times of day (UTC) instead of back-to-back deadlines
    retention: Retention = Retention()
    quiesce: Quiesce = Quiesce.TRY
    quiesce_every: Annotated[int, Field(ge=1)] = 1  # every Nth point is frozen
    bandwidth_bytes_s: Annotated[int, Field(ge=BANDWIDTH_MIN_BYTES_S)] | None = None
    bandwidth_windows: tuple[BandwidthWindow, ...] = ()  # the first that holds overrides the limit above
    streams: Annotated[int, Field(ge=1, le=8)] = 1
    priority: Annotated[int, Field(ge=0, le=9)] = 5
    start_guard: StartGuard = StartGuard.HOLD
    job_longest_s: Annotated[int, Field(ge=10)] = 1800
    scrub_days: Annotated[int, Field(ge=1)] = 7
    drill_days: Annotated[int, Field(ge=1, le=366)] | None = None  # a drill shall have passed within so many days
    drill_auto: bool = False  # and when none has, one begins by itself, and is judged by its checks

    @field_validator("at_times")
    @classmethod
    def _sorted_times(cls, value: tuple[time, ...]) -> tuple[time, ...]:
        return tuple(sorted(set(value)))


class Mappings(Value):
    """How the VM's surroundings are called at the target."""

    networks: dict[str, str] = {}  # source network or bridge name -> libvirt network at the target
    replica_root: str | None = None  # None: the site's default
