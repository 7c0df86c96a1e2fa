"""The options of a policy, the same for ``protect`` and ``edit``: what is not given stays as it is."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from datetime import time
from typing import Any

import click
from pydantic import ValidationError

from vapor_desktop.model.errors import InvalidRequest
from vapor_desktop.model.policy import BandwidthWindow, Policy, Quiesce, Retention, StartGuard
from vapor_desktop.model.times import times_of_day

_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600}


class Duration(click.ParamType):  # type: ignore[type-arg]  # generic only in the stub
    """``10s``, ``15min``, ``1h`` or plain seconds."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Seconds."""
        text = str(value).strip().lower()
        for unit in sorted(_UNITS, key=len, reverse=True):
            if text.endswith(unit) and text[: -len(unit)].strip().isdigit():
                return int(text[: -len(unit)]) * _UNITS[unit]
        if text.isdigit():
            return int(text)
        return self.fail(f"“{value}” is not a duration; write 30s, 15min or 1h", param, ctx)


class Rate(click.ParamType):  # type: ignore[type-arg]  # generic only in the stub
    """``none``, plain bytes per second, or with a suffix: ``512K``, ``20M``, ``1G`` (binary)."""

    name = "rate"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Bytes per second; 0 for none."""
        text = str(value).strip().upper()
        if text == "NONE":
            return 0
        factor = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:], 1)
        digits = text[:-1] if factor > 1 else text
        if not digits.isdigit():
            return self.fail(f"“{value}” is not a rate; write none, 500000, 512K or 20M", param, ctx)
        return int(digits) * factor


class Window(click.ParamType):  # type: ignore[type-arg]  # generic only in the stub
    """``HH:MM-HH:MM=RATE``."""

    name = "window"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> BandwidthWindow:
        """The window."""
        if isinstance(value, BandwidthWindow):
            return value
        hours, sep, rate = str(value).partition("=")
        start, dash, end = hours.partition("-")
        try:
            if not sep or not dash:
                raise ValueError("no “-” or no “=”")
            limit = Rate().convert(rate, param, ctx) or None
            return BandwidthWindow(
                start=time.fromisoformat(start), end=time.fromisoformat(end), bandwidth_bytes_s=limit
            )
        except ValueError as error:
            return self.fail(f"“{value}” is not HH:MM-HH:MM=RATE ({_reason(error)})", param, ctx)


@dataclass(frozen=True, slots=True)
class PolicyOptions:
    """What was given; None and () where nothing was."""

    rpo: int | None
    at: tuple[str, ...]
    continuous: bool
    keep: tuple[int, int, int] | None
    bandwidth: int | None
    windows: tuple[BandwidthWindow, ...]
    no_windows: bool
    quiesce: str | None
    start_guard: str | None
    streams: int | None
    priority: int | None
    maps: tuple[str, ...]
    unmaps: tuple[str, ...]

    def policy(self, base: Policy) -> Policy:
        """``base`` with what was given. Raises InvalidRequest naming the field that is out of range."""
        wanted: dict[str, Any] = base.model_dump()
        if self.rpo is not None:
            wanted["rpo_target_s"] = self.rpo
        if self.at or self.continuous:
            wanted["at_times"] = () if self.continuous else times_of_day(" ".join(self.at))
        try:
            if self.keep is not None:
                newest, hourly, daily = self.keep
                wanted["retention"] = Retention(newest=newest, hourly=hourly, daily=daily)
            if self.bandwidth is not None:
                wanted["bandwidth_bytes_s"] = self.bandwidth or None
            if self.windows or self.no_windows:
                wanted["bandwidth_windows"] = () if self.no_windows else self.windows
            if self.quiesce is not None:
                wanted["quiesce"] = Quiesce(self.quiesce)
            if self.start_guard is not None:
                wanted["start_guard"] = StartGuard(self.start_guard)
            if self.streams is not None:
                wanted["streams"] = self.streams
            if self.priority is not None:
                wanted["priority"] = self.priority
            return Policy.model_validate(wanted)
        except ValidationError as error:
            raise InvalidRequest("These settings are not possible", why=_reason(error)) from error

    def networks(self, base: dict[str, str]) -> dict[str, str]:
        """The mapping with what was given."""
        found = {name: there for name, there in base.items() if name not in self.unmaps}
        for pair in self.maps:
            left, sep, right = pair.partition("=")
            if not sep or not left or not right:
                raise click.BadParameter(f"“{pair}” is not SOURCE=TARGET", param_hint="--map")
            found[left] = right
        return found


def _reason(error: ValueError) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    return str(error)


_OPTIONS = (
    click.option("--rpo", type=Duration(), default=None, help="RPO target, 5s to 24h  [new protections: 15min]."),
    click.option(
        "--at", multiple=True, metavar="HH:MM", help="Cycles at fixed times of day (UTC) instead; repeatable."
    ),
    click.option("--continuous", is_flag=True, help="No fixed times of day (any more): cycles by the RPO target."),
    click.option(
        "--keep",
        "--retention",
        "keep",
        nargs=3,
        type=int,
        default=None,
        metavar="N H D",
        help="Points kept: newest, hourly, daily  [6 6 3].",
    ),
    click.option("--limit", "--bandwidth", "bandwidth", type=Rate(), default=None, help="512K, 20M, … or none."),
    click.option(
        "--window",
        "windows",
        type=Window(),
        multiple=True,
        metavar="HH:MM-HH:MM=RATE",
        help="Another limit between these times (UTC); repeatable, the first that holds counts.",
    ),
    click.option("--no-windows", is_flag=True, help="No bandwidth windows (any more)."),
    click.option(
        "--quiesce", type=click.Choice([q.value for q in Quiesce]), default=None, help="Freeze file systems?  [try]"
    ),
    click.option(
        "--start-guard",
        type=click.Choice([g.value for g in StartGuard]),
        default=None,
        help="After the host booted and while the other site cannot be asked: hold it, or start it (split-brain "
        "risk)  [hold].",
    ),
    click.option(
        "--streams", type=click.IntRange(1, 8), default=None, help="Parallel streams, for a long, fast link  [1]."
    ),
    click.option(
        "--priority",
        type=click.IntRange(0, 9),
        default=None,
        help="Of cycles due at once the higher is first  [5].",
    ),
    click.option("--map", "maps", multiple=True, metavar="SOURCE=TARGET", help="Network mapping; repeatable."),
    click.option("--unmap", "unmaps", multiple=True, metavar="SOURCE", help="Take a network mapping away."),
)
_NAMES = (
    "rpo",
    "at",
    "continuous",
    "keep",
    "bandwidth",
    "windows",
    "no_windows",
    "quiesce",
    "start_guard",
    "streams",
    "priority",
    "maps",
    "unmaps",
)


def policy_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command these options, as one argument ``asked``."""

    @functools.wraps(command)
    def gathered(*args: Any, **kwargs: Any) -> Any:
        return command(*args, asked=PolicyOptions(**{name: kwargs.pop(name) for name in _NAMES}), **kwargs)

    wrapped: Callable[..., Any] = gathered
    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped
