"""Asks the engine's face for what a report needs and builds it: the same for the window, vaporctl and a schedule."""

from __future__ import annotations

import getpass
import socket
from base64 import b64decode
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from vapor_desktop.engine.backend import Backend
from vapor_desktop.engine.ports import PointRow
from vapor_desktop.engine.reporting import inventory_report, journal_reports, rpo_report
from vapor_desktop.engine.reporting.compliance import LOOK_BACK, compliance
from vapor_desktop.engine.reporting.document import Picture, Report, Section, utc_text
from vapor_desktop.model.errors import Fate, InvalidRequest, VaporError
from vapor_desktop.model.operations import Operation
from vapor_desktop.model.view import VmStatus

# More than an engine carries out in the years that operations are kept.
MOST_OPERATIONS, MOST_EVENTS = 20_000, 200_000
# Between a site's clock and the one that operations are timed by.
CLOCKS = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Kind:
    """``ranged``: tells of a range of time, else of now."""

    key: str
    title: str
    ranged: bool
    build: Callable[[Backend, datetime, datetime], tuple[Section, ...]]


def author() -> str:
    """Who makes it, where: "anna@desk"."""
    return f"{getpass.getuser()}@{socket.gethostname()}"


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


def _drills(backend: Backend, start: datetime, end: datetime) -> tuple[Section, ...]:
    known = backend.operations(limit=MOST_OPERATIONS)
    silent: dict[str, str] = {}

    def proof(o: Operation, seq: int) -> Picture | str:
        if o.protection_id in silent:
            return silent[o.protection_id]
        try:
            found = backend.point_proof(o.protection_id, seq)
        except VaporError as error:
            if error.fate is Fate.RETRY:  # a dark site is not asked for each drill anew
                silent[o.protection_id] = str(error)
            return str(error)
        if o.ended_at is not None and found.at > o.ended_at + CLOCKS:
            return "a later drill of the same recovery point has put its own in its place"
        return Picture(b64decode(found.png), f"Screen of {o.vm_name}, recovery point {seq}, {utc_text(found.at)}")

    return journal_reports.drill_certificates(journal_reports.touched(known, start, end), known, proof)


def _migrations(backend: Backend, start: datetime, end: datetime) -> tuple[Section, ...]:
    return journal_reports.zero_loss_statements(_touched(backend, start, end))


def _failovers(backend: Backend, start: datetime, end: datetime) -> tuple[Section, ...]:
    def point_of(o: Operation) -> PointRow | None:
        """Not one of the same number that was made after it, in the other direction."""
        of_number = (p for p in backend.points(o.protection_id) if p.seq == o.result.get("seq"))
        return next((p for p in of_number if p.taken_at <= o.started_at + CLOCKS), None)

    return journal_reports.failover_records(_touched(backend, start, end), point_of)


def _audit(backend: Backend, start: datetime, end: datetime) -> tuple[Section, ...]:
    seen = backend.snapshot()
    names = {r.key: r.protection.vm_name for r in seen.protections} | {
        s.site.site_id: s.site.name for s in seen.sites
    }
    events = backend.events(limit=MOST_EVENTS)
    return journal_reports.audit(_touched(backend, start, end), events, names, start, end)


def _touched(backend: Backend, start: datetime, end: datetime) -> tuple[Operation, ...]:
    return journal_reports.touched(backend.operations(limit=MOST_OPERATIONS), start, end)


KINDS = {
    k.key: k
    for k in (
        Kind("rpo", "RPO compliance", True, _rpo),
        Kind("inventory", "Protection inventory", False, _inventory),
        Kind("drills", "Drill certificates", True, _drills),
        Kind("migrations", "Migrations: what was compared, and that nothing was lost", True, _migrations),
        Kind("failovers", "Failover record", True, _failovers),
        Kind("audit", "Audit log", True, _audit),
    )
}
