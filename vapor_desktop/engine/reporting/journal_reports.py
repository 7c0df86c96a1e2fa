"""What operations have left on record: drill certificates, zero-loss statements, failover records, the audit log.

Pure. Of an operation only its journal is believed; what it does not hold is unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime

from vapor_desktop.engine.operations.migration import FORCE, zero_loss_statement
from vapor_desktop.engine.ports import Event, PointRow
from vapor_desktop.engine.reporting.document import Cell, Column, Is, Picture, Section, duration_text
from vapor_desktop.model.operations import Operation, OperationKind, OperationState, StepState
from vapor_desktop.model.states import Severity

FACTS = (Column("what", "What"), Column("value", "Value"))
STEPS = (
    Column("step", "Step"),
    Column("state", "State"),
    Column("began", "Began", Is.TIME),
    Column("ended", "Ended", Is.TIME),
    Column("note", "What was found and done"),
)
CHECKS = (Column("check", "Check"), Column("state", "State"), Column("text", "What was seen"))
ACTS = (
    Column("began", "Began", Is.TIME),
    Column("ended", "Ended", Is.TIME),
    Column("kind", "Operation"),
    Column("vm", "VM"),
    Column("by", "Asked by"),
    Column("reason", "Reason"),
    Column("state", "State"),
    Column("error", "Error"),
)
EVENTS = (
    Column("at", "At", Is.TIME),
    Column("severity", "Severity"),
    Column("kind", "Kind"),
    Column("subject", "VM or site"),
    Column("text", "What happened"),
)
FAILOVERS = frozenset({OperationKind.FAILOVER, OperationKind.COMMIT, OperationKind.ROLLBACK, OperationKind.RESOLVE})
_STATEMENT_NEEDS = ("compared_bytes", "final_bytes", "seq")
_VERDICT = {True: "passed", False: "failed", None: "nobody judged it"}

# The picture that proves a point, or why there is none.
Proof = Callable[[Operation, int], Picture | str]
# The point that an operation went over to, as cached.
PointOf = Callable[[Operation], PointRow | None]
Fact = tuple[str, Cell]


def touched(operations: Iterable[Operation], start: datetime, end: datetime) -> tuple[Operation, ...]:
    """Those that were at work within the range, in order of time."""
    found = (o for o in operations if o.started_at < end and (o.ended_at is None or o.ended_at >= start))
    return tuple(sorted(found, key=lambda o: o.started_at))


# --- drills --------------------------------------------------------------------------------------------------
def drill_certificates(found: Sequence[Operation], known: Sequence[Operation], proof: Proof) -> tuple[Section, ...]:
    """One certificate per drill that ended. ``known``: all operations on record, for what a drill began with."""
    begun = {_drill_of(o): o for o in known if o.kind is OperationKind.DRILL and "drill_id" in o.result}
    ended = [o for o in found if o.state is OperationState.DONE and "passed" in o.result]
    parts = [s for o in ended for s in _certificate(o, begun.get(_drill_of(o)), proof)]
    others = [o for o in found if o.kind in {OperationKind.DRILL, OperationKind.STOP_DRILL} and o not in ended]
    rest = Section("Drill operations without a verdict", (), ACTS, tuple(map(_act, others)), "None")
    return (*(parts or [Section("Drills", ("No drill ended in this range of time.",))]), rest)


def _drill_of(o: Operation) -> tuple[str, str]:
    """The VMs of one plan share a drill."""
    return str(o.result.get("drill_id")), o.vm_uuid


def _certificate(o: Operation, began: Operation | None, proof: Proof) -> tuple[Section, ...]:
    r = o.result
    seq = r.get("proven_seq")
    tried = seq if seq is not None else began.result.get("seq") if began else None
    facts: list[Fact] = [
        ("Verdict", _VERDICT.get(r.get("passed"))),
        ("Recovery point tried", tried),
        ("Recovery point proven by it", seq if seq is not None else "none"),
        ("Drill began", _moment(r.get("began_at"))),
        *_who(o),
        ("First sign of life after", _seconds(r.get("boot_s"))),
        ("Usable after", _seconds(r["usable_s"]) or "not usable by its checks" if "usable_s" in r else None),
        ("Worst RPO before", _seconds(r.get("rpo_before_s"))),
        ("Worst RPO during", _seconds(r.get("rpo_during_s"))),
        ("RPO target", _seconds(r.get("rpo_target_s"))),
        ("Left on the host", ", ".join(r["left"]) or "nothing, and it was looked" if "left" in r else None),
    ]
    proven = began is not None and any(s.name == "isolation" and s.state is StepState.DONE for s in began.steps)
    looks = tuple(map(str, r.get("isolation") or ()))
    told = "Before the copy was started it was proven that nothing leaves its bubble:" if proven and looks else ""
    picture = proof(o, int(seq)) if seq is not None else "no recovery point was proven"
    pictures = (picture,) if isinstance(picture, Picture) else ()
    checks = tuple((str(c["title"]), str(c["state"]), str(c.get("text") or "")) for c in r.get("checks") or ())
    return (
        Section(f"Drill of {o.vm_name}", (), FACTS, tuple(facts)),
        Section(
            f"Isolation, drill of {o.vm_name}",
            (told or "The proof of isolation is not on record here; what was looked at:", *(looks or ("—",))),
        ),
        Section(
            f"Checks, drill of {o.vm_name}",
            () if pictures else (f"Picture: — ({picture}).",),
            CHECKS,
            checks,
            "No checks are on record",
            pictures,
        ),
    )


# --- migrations and failovers -----------------------------------------------------------------------------------
def zero_loss_statements(found: Sequence[Operation]) -> tuple[Section, ...]:
    """One per planned migration; one that did not finish makes no statement."""
    moves = [o for o in found if o.kind is OperationKind.MIGRATION]
    if not moves:
        return (Section("Planned migrations", ("No planned migration was at work in this range of time.",)),)
    return tuple(s for o in moves for s in _statement(o))


def _statement(o: Operation) -> tuple[Section, ...]:
    r = o.result
    whole = o.state is OperationState.DONE and all(k in r for k in _STATEMENT_NEEDS)
    text = [f"No statement: {o.state.value}. {_error(o)}".strip()]
    if whole:
        text = [zero_loss_statement(dict.fromkeys(("pre-sync", "final-sync", "reread", "resume"), r)) + "."]
        if o.answers.get("shut-down") == FORCE.key:
            text.append("It was switched off as by a power cut: what its guest had not written to its disks is lost.")
    facts: tuple[Fact, ...] = (
        *_who(o),
        ("Shut down by", str(r["how"]) if "how" in r else None),
        ("Running at the target", _moment(r.get("running_at"))),
        ("Downtime", _seconds(r.get("downtime_s"))),
        ("Last recovery point", r.get("seq")),
        ("Epoch at the target", r.get("run_epoch")),
    )
    return (Section(f"Migration of {o.vm_name}", tuple(text), FACTS, facts), _steps(o))


def failover_records(found: Sequence[Operation], point_of: PointOf) -> tuple[Section, ...]:
    """Each failover, commit, roll-back and resolved split brain, step by step."""
    acts = [o for o in found if o.kind in FAILOVERS]
    if not acts:
        return (Section("Failovers", ("No failover was at work in this range of time.",)),)
    return tuple(s for o in acts for s in _failover(o, point_of))


def _failover(o: Operation, point_of: PointOf) -> tuple[Section, ...]:
    r, facts = o.result, list(_who(o))
    if o.kind is OperationKind.FAILOVER:
        point = point_of(o)
        facts += [
            ("Recovery point", r.get("seq")),
            ("Its data is as of", point.current_as_of if point else None),
            ("Its consistency", point.consistency if point else None),
            ("Running after", _seconds(r.get("running_after_s"))),
            ("Source", str(r["source"]) if "source" in r else None),
            ("Epoch", r.get("epoch")),
        ]
    notes = tuple(map(str, r.get("notes") or ()))
    title = f"{o.kind.value.capitalize()}: {o.vm_name}"
    return (Section(title, notes, FACTS, tuple(facts)), _steps(o))


# --- the audit log ---------------------------------------------------------------------------------------------
def audit(
    found: Sequence[Operation], events: Iterable[Event], names: Mapping[str, str], start: datetime, end: datetime
) -> tuple[Section, ...]:
    """Who asked for what, and everything that was written down. ``names``: protection or site -> its name."""
    told = sorted((e for e in events if start <= e.at < end), key=lambda e: e.at)
    rows = tuple(
        (
            e.at,
            Severity(e.severity).name.lower(),
            e.kind,
            names.get(e.protection_id or e.site_id or "", e.protection_id or e.site_id or ""),
            e.text,
        )
        for e in told
    )
    return (
        Section("Operations", (), ACTS, tuple(map(_act, found)), "None"),
        Section("Events", (), EVENTS, rows, "None"),
    )


def _act(o: Operation) -> tuple[Cell, ...]:
    return (o.started_at, o.ended_at, o.kind.value, o.vm_name, o.asked_by, o.reason, o.state.value, _error(o))


def _who(o: Operation) -> tuple[Fact, ...]:
    answers = "; ".join(f"{question}: {choice}" for question, choice in sorted(o.answers.items()))
    return (
        ("Operation", f"{o.kind.value}, {o.operation_id}"),
        ("VM", f"{o.vm_name} ({o.vm_uuid})"),
        ("Asked by", o.asked_by),
        ("Reason", o.reason),
        ("Operation began", o.started_at),
        ("Operation ended", o.ended_at),
        ("State", o.state.value),
        *([("Answers given", answers)] if answers else []),
        *([("Error", _error(o))] if o.error else []),
    )


def _steps(o: Operation) -> Section:
    rows = tuple((s.title, s.state.value, s.started_at, s.ended_at, s.note) for s in o.steps)
    return Section(f"Steps, {o.kind.value} of {o.vm_name}", (), STEPS, rows, "No steps are on record")


def _error(o: Operation) -> str:
    if not o.error:
        return ""
    words = (o.error.get(k) for k in ("what", "why"))
    text = ": ".join(str(w) for w in words if w)
    return f"{text} [{o.error.get('code')}]"


def _seconds(value: object) -> str | None:
    return duration_text(float(value)) if isinstance(value, (int, float)) else None


def _moment(value: object) -> datetime | None:
    return datetime.fromisoformat(value) if isinstance(value, str) else None
