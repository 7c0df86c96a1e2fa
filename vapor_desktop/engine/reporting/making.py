"""Asks the engine's face for what a report needs and builds it: the same for the window, vaporctl and a schedule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from vapor_desktop.engine.backend import Backend
from vapor_desktop.engine.reporting import inventory_report, rpo_report
from vapor_desktop.engine.reporting.compliance import LOOK_BACK, compliance
from vapor_desktop.engine.reporting.document import Report, Section
from vapor_desktop.model.errors import InvalidRequest, VaporError
from vapor_desktop.model.view import VmStatus


@dataclass(frozen=True, slots=True)
class Kind:
    """``ranged``: tells of a range of time, else of now."""

    key: str
    title: str
    ranged: bool
    build: Callable[[Backend, datetime, datetime], tuple[Section, ...]]


def make(backend: Backend, key: str, start: datetime, end: datetime, now: datetime, by: str) -> Report:
    """The report of that kind, for ``start`` to ``end`` (never later than ``now``). Raises InvalidRequest, …"""
    kind = KINDS[key]
    end = min(end, now)
    if kind.ranged and start >= end:
        raise InvalidRequest(
            "The range of time is empty",
            why=f"{start.isoformat()} is not before {end.isoformat()}",
            fix="Give a beginning in the past, and an end after it",
        )
    sections = kind.build(backend, start, end)
    first, last = (start, end) if kind.ranged else (None, None)
    return Report(key, kind.title, first, last, now, by, backend.about().versions, sections)


def _rpo(backend: Backend, start: datetime, end: datetime) -> tuple[Section, ...]:
    found = [
        (row, compliance(backend.rpo_samples(row.key, start - LOOK_BACK), start, end))
        for row in backend.snapshot().protections
    ]
    return rpo_report.sections(found)


def _inventory(backend: Backend, _start: datetime, _end: datetime) -> tuple[Section, ...]:
    seen = backend.snapshot()
    vms: dict[str, list[VmStatus]] = {}
    silent: dict[str, str] = {}
    for s in seen.sites:
        try:
            vms[s.site.name] = list(backend.vms(s.site.site_id))
        except VaporError as error:
            silent[s.site.name] = str(error)
    return inventory_report.sections(seen.protections, vms, silent)


KINDS = {
    k.key: k
    for k in (
        Kind("rpo", "RPO compliance", True, _rpo),
        Kind("inventory", "Protection inventory", False, _inventory),
    )
}
