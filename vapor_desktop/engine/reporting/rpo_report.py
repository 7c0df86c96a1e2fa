"""The RPO compliance report: every VM over a range of time, and each breach. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from vapor_desktop.engine.reporting.compliance import Compliance
from vapor_desktop.engine.reporting.document import Column, Is, Section, share_text
from vapor_desktop.model.view import ProtectionStatus

VMS = (
    Column("vm", "VM"),
    Column("source", "Source"),
    Column("target", "Target"),
    Column("rpo_target_s", "RPO target now", Is.SECONDS),
    Column("within", "Within", Is.SHARE),
    Column("breached", "Breached", Is.SHARE),
    Column("unknown", "Unknown", Is.SHARE),
    Column("within_s", "Time within", Is.DURATION),
    Column("breached_s", "Time breached", Is.DURATION),
    Column("unknown_s", "Time unknown", Is.DURATION),
    Column("worst_rpo_s", "Worst RPO seen", Is.SECONDS),
    Column("breaches", "Breaches", Is.COUNT),
    Column("protected_since", "Protected since", Is.TIME),
)
BREACHES = (
    Column("vm", "VM"),
    Column("from", "From", Is.TIME),
    Column("to", "To", Is.TIME),
    Column("duration_s", "Duration", Is.DURATION),
    Column("worst_rpo_s", "Worst RPO seen", Is.SECONDS),
    Column("target_s", "Target then", Is.SECONDS),
    Column("note", "Note"),
)
HOW = (
    "Within, breached and unknown together are the whole range. Unknown is the time in which nobody looked (no "
    "engine ran), the RPO could not be told, or the VM was not protected yet: it is not counted as within.",
    "Samples older than 48 hours are kept as the worst of each 5 minutes, after 30 days of each hour. Such a stretch "
    "counts by its worst; with an unknown part in it, or looked at for less than a third of it, it is not within. "
    "VMs whose protection was removed are not listed.",
)
Found = Sequence[tuple[ProtectionStatus, Compliance]]


def sections(found: Found) -> tuple[Section, ...]:
    """All VMs together, one row each, and their breaches; the VM that fared worst first."""
    ordered = sorted(found, key=lambda f: (-f[1].breached, -f[1].unknown, f[0].protection.vm_name))
    breaches = sorted(
        ((row.protection.vm_name, b, c.start, c.end) for row, c in ordered for b in c.breaches),
        key=lambda b: (b[1].start, b[0]),
    )
    rows = tuple(
        (name, b.start, b.end, b.end - b.start, b.worst_s, b.target_s, _cut(b.start, b.end, start, end))
        for name, b, start, end in breaches
    )
    return (
        Section("All VMs together", (_together([c for _row, c in found]), *HOW)),
        Section("VMs", (), VMS, tuple(_row(row, c) for row, c in ordered), "No VM is protected"),
        Section("Breaches", (), BREACHES, rows, _no_breach([c for _row, c in found])),
    )


def _together(all_of: Sequence[Compliance]) -> str:
    length = sum((c.length for c in all_of), timedelta())
    if not length:
        return "No VM is protected: within —, breached —, unknown —."
    within, breached, unknown = (
        sum((getattr(c, word) for c in all_of), timedelta()) for word in ("within", "breached", "unknown")
    )
    return (
        f"Of {length / timedelta(minutes=1):.0f} VM-minutes: within target {share_text(within / length)}, "
        f"breached {share_text(breached / length)}, unknown {share_text(unknown / length)}."
    )


def _row(row: ProtectionStatus, c: Compliance) -> tuple[str | float | datetime | timedelta | int | None, ...]:
    p = row.protection
    nothing = c.unknown == c.length  # then even "no breach" is not known
    return (
        p.vm_name,
        row.source_name,
        row.target_name,
        float(p.policy.rpo_target_s),
        None if nothing else c.within / c.length,
        None if nothing else c.breached / c.length,
        c.unknown / c.length,
        None if nothing else c.within,
        None if nothing else c.breached,
        c.unknown,
        c.worst_s,
        None if nothing else len(c.breaches),
        p.created_at,
    )


def _cut(start: datetime, end: datetime, first: datetime, last: datetime) -> str:
    words = [
        *(["had begun before the range"] if start == first else []),
        *(["goes on at its end"] if end == last else []),
    ]
    return ", ".join(words)


def _no_breach(all_of: Sequence[Compliance]) -> str:
    if any(c.unknown for c in all_of) or not all_of:
        return "No breach was seen; of the unknown time nobody can tell"
    return "None"
