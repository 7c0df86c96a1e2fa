"""The decisions of and after a failover, as sheets: several at once, commit, roll back, resolve."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from PySide6.QtWidgets import QWidget

from vapor_desktop.engine.operations.fencing import FORCE_OFF, LEAVE, SHUT_DOWN
from vapor_desktop.engine.operations.provisional import roll_back_effects
from vapor_desktop.engine.operations.resolve import SOURCE, TARGET, resolve_effects
from vapor_desktop.gui import words
from vapor_desktop.gui.context import Context
from vapor_desktop.gui.decision_sheet import Decision, DecisionSheet, Wording
from vapor_desktop.gui.protection_columns import Row
from vapor_desktop.gui.sheet import Begun, begins
from vapor_desktop.model.operations import OperationKind
from vapor_desktop.model.view import ProtectionStatus

CUT_POWER = "Cut its power at once, without asking the guest"
WAYS = (
    (LEAVE, "Leave it as it is"),
    (SHUT_DOWN, "Keep it from starting, and shut it down there"),
    (FORCE_OFF, "Keep it from starting, and cut its power there"),
)


def several(context: Context, rows: Sequence[Row], parent: QWidget) -> DecisionSheet:
    """Fail over several VMs with one confirmation; each has its own result."""
    backend = context.backend

    def load() -> Decision:
        previews = [backend.failover_preview(row.key) for row in rows]
        facts = tuple(f"{p.vm_name} → {p.target_name}: {line}" for p in previews for line in (*p.tried, *p.facts()))
        effects = tuple(dict.fromkeys(line for p in previews for line in p.effects))
        blockers = tuple(f"{p.vm_name}: {line}" for p in previews for line in p.blockers)
        ways = WAYS if any(p.may_fence for p in previews) else WAYS[:1]
        return Decision(facts, ways, lambda _way: effects, blockers)

    count = len(rows)
    wording = Wording(
        f"Fail over {count} virtual machines",
        f"Start {count} virtual machines at their targets, each from its newest recovery point",
        "A &source that answers",
        f"Fail over {count} virtual machines",
        f"fail over {count}",
    )
    sheet = DecisionSheet(context, wording, load, parent)

    def run() -> None:
        for row in rows:
            decided = partial(backend.failover, row.key, None, sheet.why, sheet.chosen or LEAVE)
            context.errands.run(f"Fail over {row.name}", decided, subject=row.key)

    sheet.accepted.connect(run)
    return sheet


def commit(context: Context, status: ProtectionStatus, begun: Begun, parent: QWidget) -> DecisionSheet:
    """Let the failover stand."""
    backend, key, name = context.backend, status.key, status.protection.vm_name

    def load() -> Decision:
        kept = backend.kept_runs(key)
        facts = tuple(f"Kept: {k.name}, {words.size(k.bytes)} on point {k.seq}" for k in kept)
        effects = (
            f"“{name}” stays at {status.target_name} as it runs now; nothing is started or stopped.",
            "It cannot be rolled back any more; it can be reprotected and migrated home.",
        )
        return Decision(facts, (), lambda _c: effects)

    wording = Wording(f"Commit {name}", f"Let the failover of {name} stand", "", f"Commit {name}")
    sheet = DecisionSheet(context, wording, load, parent)
    _begins(context, sheet, status, OperationKind.COMMIT, dict, begun)
    return sheet


def roll_back(context: Context, status: ProtectionStatus, begun: Begun, parent: QWidget) -> DecisionSheet:
    """Start it from another point."""
    backend, key, name = context.backend, status.key, status.protection.vm_name

    def load() -> Decision:
        points = sorted(backend.points(key), key=lambda p: -p.seq)
        on = next((p.seq for p in points if f"run:{status.protection.epoch_number}" in p.pins), None)
        choices = tuple(
            (
                str(p.seq),
                f"Point {p.seq}, {words.exact(p.taken_at)}, {p.consistency}{', it runs on this' * (p.seq == on)}",
            )
            for p in points
        )

        def effects(seq: str) -> tuple[str, ...]:
            return roll_back_effects(status.protection, status.target_name, int(seq)) if seq else ()

        ran = f"It runs from point {on} now." if on is not None else "The point that it runs from is not known."
        return Decision((ran,), tuple(sorted(choices, key=lambda c: c[0] == str(on))), effects)

    wording = Wording(
        f"Roll back {name}",
        f"Start {name} at {status.target_name} from another point",
        "&Point",
        f"Roll back {name}",
        name,
        CUT_POWER,
    )
    sheet = DecisionSheet(context, wording, load, parent)
    _begins(context, sheet, status, OperationKind.ROLLBACK, lambda: {"seq": int(sheet.chosen)}, begun)
    return sheet


def resolve(context: Context, status: ProtectionStatus, begun: Begun, parent: QWidget) -> DecisionSheet:
    """Choose whose goes on."""
    backend, key, name = context.backend, status.key, status.protection.vm_name

    def load() -> Decision:
        found = backend.both_sides(key)
        ends = ((TARGET, found.target), (SOURCE, found.source))
        choices = tuple((end, f"What {side.site_name} has") for end, side in ends)
        return Decision(found.lines(), choices, lambda end: resolve_effects(found, end) if end else ())

    wording = Wording(
        f"Resolve {name}",
        f"{name} is at two sites: whose goes on?",
        "&Keep running",
        f"Resolve {name}",
        name,
        CUT_POWER,
    )
    sheet = DecisionSheet(context, wording, load, parent)
    _begins(context, sheet, status, OperationKind.RESOLVE, lambda: {"winner": sheet.chosen}, begun)
    return sheet


def let_go(context: Context, status: ProtectionStatus, parent: QWidget) -> DecisionSheet:
    """Delete what a run that is over has written."""
    backend, key, name = context.backend, status.key, status.protection.vm_name

    def load() -> Decision:
        kept = backend.kept_runs(key)
        choices = tuple((str(k.epoch), f"{k.name}: {words.size(k.bytes)} on point {k.seq}") for k in kept)

        def effects(epoch: str) -> tuple[str, ...]:
            gone = f"What “{name}” wrote at {status.target_name} in the run of epoch {epoch} is deleted, for ever."
            return (gone, "Recovery points and what runs now are not touched.") if epoch else ()

        found = "Kept until you let it go:" if kept else f"Nothing is kept of “{name}” at {status.target_name}."
        return Decision((found,), choices, effects)

    wording = Wording(
        f"Let go a kept run of {name}", "Delete what a run that is over has written", "&Run", "Let it go", name
    )
    sheet = DecisionSheet(context, wording, load, parent)

    def run() -> None:
        gone = partial(backend.let_go, key, int(sheet.chosen), sheet.why)
        context.errands.run(f"Let go the run of epoch {sheet.chosen} of {name}", gone, subject=key)

    sheet.accepted.connect(run)
    return sheet


def _begins(
    context: Context,
    sheet: DecisionSheet,
    status: ProtectionStatus,
    kind: OperationKind,
    args: Callable[[], Mapping[str, object]],
    begun: Begun,
) -> None:
    title = f"Begin: {kind.value} of {status.protection.vm_name}"
    begins(context, sheet, kind, status.key, title, begun, lambda: {**args(), "force": sheet.forced})
