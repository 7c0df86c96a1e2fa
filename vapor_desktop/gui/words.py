"""Values in words: the only place that formats. Unknown (None) is a dash, never 0."""

from __future__ import annotations

import re
from datetime import UTC, datetime

UNKNOWN = "—"


def duration(seconds: float | None) -> str:
    """``12 s``, ``3 min 10 s``, ``42 min``, ``3 h 5 min``, ``2 d 4 h``."""
    if seconds is None:
        return UNKNOWN
    s = max(0, round(seconds))
    if s < 60:
        return f"{s} s"
    if s < 600:
        return f"{s // 60} min {s % 60} s" if s % 60 else f"{s // 60} min"
    if s < 3600:
        return f"{s // 60} min"
    if s < 86400:
        h, m = divmod(s // 60, 60)
        return f"{h} h {m} min" if m else f"{h} h"
    d, h = divmod(s // 3600, 24)
    return f"{d} d {h} h" if h else f"{d} d"


def size(count: float | None) -> str:
    """Bytes in IEC units: ``512 B``, ``1.5 KiB``, ``212 MiB``."""
    if count is None:
        return UNKNOWN
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024 or unit == "TiB":
            return f"{value:.1f} {unit}" if value < 10 and unit != "B" else f"{value:.0f} {unit}"
        value /= 1024
    raise AssertionError("unreachable")


def rate(bytes_per_s: float | None) -> str:
    """``12 MiB/s``."""
    return UNKNOWN if bytes_per_s is None else f"{size(bytes_per_s)}/s"


def ago(when: datetime | None, now: datetime) -> str:
    """``3 min 10 s ago``; a moment in the future is called so."""
    if when is None:
        return UNKNOWN
    s = (now - when).total_seconds()
    return f"{duration(s)} ago" if s >= -1 else f"in {duration(-s)}"


def until(when: datetime | None, now: datetime) -> str:
    """``in 40 s``, or ``due`` when the moment has come."""
    if when is None:
        return UNKNOWN
    s = (when - now).total_seconds()
    return f"in {duration(s)}" if s >= 0.5 else "due"


def local(when: datetime | None, now: datetime) -> str:
    """Local time, with the date when it is not today's."""
    if when is None:
        return UNKNOWN
    here, today = when.astimezone(), now.astimezone().date()
    return here.strftime("%H:%M:%S") if here.date() == today else here.strftime("%d %b %H:%M")


def exact(when: datetime | None) -> str:
    """Local and UTC, for tooltips."""
    if when is None:
        return "unknown"
    here = when.astimezone()
    utc = f"{when.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    return f"{here:%Y-%m-%d %H:%M:%S %Z} ({utc})" if here.utcoffset() else utc


def natural(text: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key: ``web2`` before ``web10``, without regard to case."""
    parts = re.split(r"(\d+)", text.casefold())
    return tuple((0, int(p), "") if p.isdigit() else (1, 0, p) for p in parts if p)


def capital(text: str) -> str:
    """First letter large, the rest as it is."""
    return text[:1].upper() + text[1:]
