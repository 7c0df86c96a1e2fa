"""The verbs: one QAction each, the same in menu bar, tool bar and context menu; disabled ones say why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PySide6.QtCore import QObject, Signal
from PySide6.QtGui import QAction, QKeySequence

from vapor_desktop.gui.icons import icon
from vapor_desktop.gui.protection_columns import Row
from vapor_desktop.gui.theme import Theme
from vapor_desktop.model.states import DrillState, Phase

Reason = Callable[[Row], str]
_GONE_OVER = {
    Phase.FAILED_OVER,
    Phase.PROVISIONAL,
    Phase.FAILING_OVER,
    Phase.SPLIT_BRAIN_RISK,
    Phase.SPLIT_BRAIN,
}


def _protected(row: Row) -> str:
    return "" if row.status else f"{row.name} is not protected"


def no_sync(row: Row) -> str:
    """Why a cycle cannot be asked for; "" when it can."""
    if row.status is None:
        return _protected(row)
    if row.status.protection.phase in _GONE_OVER:
        return f"{row.name} runs at {row.status.target_name}; there is nothing to send"
    if row.status.cycle_started_at is not None:
        return f"a cycle of {row.name} is running"
    return f"{row.name} is paused" if row.status.protection.paused else ""


def no_pause(row: Row) -> str:
    """Why it cannot be paused."""
    if row.status is None:
        return _protected(row)
    if row.status.protection.phase in _GONE_OVER:
        return f"{row.name} has failed over"
    return f"{row.name} is paused already" if row.status.protection.paused else ""


def no_resume(row: Row) -> str:
    """Why it cannot be resumed."""
    if row.status is None:
        return _protected(row)
    return "" if row.status.protection.paused else f"{row.name} is not paused"


def no_failover(row: Row) -> str:
    """Why it cannot be failed over."""
    if row.status is None:
        return _protected(row)
    if row.status.protection.phase in _GONE_OVER:
        return f"{row.name} has failed over already"
    return "" if row.status.point_count else f"{row.name} has no recovery point yet"


def no_migrate(row: Row) -> str:
    """Why it cannot be migrated."""
    if row.status is None:
        return _protected(row)
    phase = row.status.protection.phase
    if phase in _GONE_OVER:
        return f"{row.name} has failed over"
    if phase is Phase.SOURCE_UNREACHABLE:
        return f"{row.status.source_name} does not answer; without it there is only failing over"
    if phase in {Phase.MIGRATING, Phase.REPROTECTING, Phase.SPLIT_BRAIN_RISK, Phase.SPLIT_BRAIN}:
        return f"{row.name} is in the phase {phase.value}"
    return "" if row.status.point_count else f"{row.name} has no recovery point yet"


def no_reprotect(row: Row) -> str:
    """Why it cannot be protected the other way."""
    if row.status is None:
        return _protected(row)
    protection = row.status.protection
    if protection.phase is Phase.PROVISIONAL or protection.commit_ask_at is not None:
        return f"the failover of {row.name} is provisional: commit it, or roll it back, first"
    if protection.phase is Phase.SPLIT_BRAIN:
        return f"{row.name} is in two places: resolve that first"
    over = protection.phase in {Phase.FAILED_OVER, Phase.SPLIT_BRAIN_RISK}
    return "" if over else f"{row.name} has not gone over to {row.status.target_name}"


def no_commit(row: Row) -> str:
    """Why there is nothing to commit."""
    if row.status is None:
        return _protected(row)
    p = row.status.protection
    open_failover = p.phase is Phase.PROVISIONAL or (
        p.phase is Phase.SPLIT_BRAIN_RISK and p.commit_ask_at is not None
    )
    return "" if open_failover else f"{row.name} runs on no provisional failover"


def no_resolve(row: Row) -> str:
    """Why there is nothing to resolve."""
    if row.status is None:
        return _protected(row)
    split = row.status.protection.phase in {Phase.SPLIT_BRAIN, Phase.SPLIT_BRAIN_RISK}
    return "" if split else f"{row.name} is at one site only"


def no_drill(row: Row) -> str:
    """Why no drill can begin."""
    if row.status is None:
        return _protected(row)
    if row.status.protection.drill is not DrillState.NONE:
        return f"a drill of {row.name} is there already ({row.status.protection.drill.value})"
    return "" if row.status.point_count else f"{row.name} has no recovery point yet"


def no_stop_drill(row: Row) -> str:
    """Why there is no drill to stop."""
    if row.status is None:
        return _protected(row)
    return f"there is no drill of {row.name}" if row.status.protection.drill is DrillState.NONE else ""


def no_seed(row: Row) -> str:
    """Why its first copy cannot be seeded. (Which disks can, the dialog tells.)"""
    if row.status is None:
        return _protected(row)
    return f"{row.name} runs at {row.status.target_name}" if row.status.protection.phase in _GONE_OVER else ""


def no_protect(row: Row) -> str:
    """Why it cannot be protected."""
    if row.status is not None:
        return f"{row.name} is protected already"
    return "" if row.vm is None or row.vm.protectable else f"{row.name}: {row.vm.reason}"


@dataclass(frozen=True, slots=True)
class _Spec:
    key: str
    text: str
    icon: str
    tip: str
    reason: Reason
    shortcut: str = ""
    single: bool = False
    empty: bool = False  # also without a selection


_SPECS = (
    _Spec("open", "Det&ails", "vm", "Open the VM's page", _protected, single=True),
    _Spec("protect", "&Protect…", "protect", "Protect virtual machines", no_protect, "Ctrl+P", empty=True),
    _Spec("edit", "&Edit protection…", "edit", "Change its policy and networks", _protected, "Ctrl+E", single=True),
    _Spec("seed", "Seed f&irst copy…", "seed", "Begin from images at the target", no_seed, single=True),
    _Spec("sync", "&Sync now", "sync", "Make a recovery point now", no_sync, "Ctrl+Y"),
    _Spec("pause", "Pa&use", "pause", "Stop replicating until resumed", no_pause),
    _Spec("resume", "&Resume", "resume", "Replicate again", no_resume),
    _Spec("unprotect", "U&nprotect…", "unprotect", "Stop protecting", _protected, "Del", single=True),
    _Spec(
        "migrate", "&Migrate…", "migrate", "Move the VM to the other site, losing nothing", no_migrate, single=True
    ),
    _Spec("failover", "&Fail over…", "failover", "Start the VMs at the other site", no_failover),
    _Spec("commit", "&Commit…", "check", "Let the failover stand", no_commit, single=True),
    _Spec("roll-back", "Ro&ll back…", "back", "Start the VM from another point", no_commit, single=True),
    _Spec("resolve", "Resol&ve…", "eye", "A split brain: choose whose VM goes on", no_resolve, single=True),
    _Spec("reprotect", "Repr&otect…", "reprotect", "Protect it to the site it came from", no_reprotect, single=True),
    _Spec(
        "drill",
        "&Drill…",
        "drill",
        "Rehearse at the other site, in a closed network",
        no_drill,
        single=True,
    ),
    _Spec(
        "stop-drill",
        "S&top drill…",
        "drill-stop",
        "Judge it, and remove all of it",
        no_stop_drill,
        single=True,
    ),
)


class Verbs(QObject):
    """All verbs on protections.

    Signals:
        asked: (verb key, rows it applies to, [(row, reason)] of the rows it skips).
    """

    asked = Signal(str, object, object)

    def __init__(self, theme: Theme, parent: QObject) -> None:
        super().__init__(parent)
        self._theme = theme
        self._rows: list[Row] = []
        self.actions: dict[str, QAction] = {spec.key: self._make(spec) for spec in _SPECS}
        theme.changed.connect(self._colour)
        self._colour()
        self.use([])

    def __getitem__(self, key: str) -> QAction:
        return self.actions[key]

    def _make(self, spec: _Spec) -> QAction:
        action = QAction(spec.text, self)
        action.setIconText(spec.text.replace("&", ""))  # else Qt drops the dots on tool buttons
        if spec.shortcut:
            action.setShortcut(QKeySequence(spec.shortcut))
        action.triggered.connect(lambda: self._ask(spec))
        return action

    def _colour(self) -> None:
        for spec in _SPECS:
            self.actions[spec.key].setIcon(
                icon(spec.icon, self._theme.colours.text, disabled=self._theme.colours.dim)
            )

    def use(self, rows: Sequence[Row]) -> None:
        """The selection the verbs speak of."""
        self._rows = list(rows)
        for spec in _SPECS:
            why = self._why_not(spec)
            self.actions[spec.key].setEnabled(not why)
            self.actions[spec.key].setProperty("why", why)  # the command palette tells it
            keys = f" ({spec.shortcut})" if spec.shortcut else ""
            tip = f"{spec.tip}{keys}" if not why else f"{spec.tip} — not now: {why}"
            self.actions[spec.key].setToolTip(tip)
            self.actions[spec.key].setStatusTip(tip)

    def _why_not(self, spec: _Spec) -> str:
        if spec.empty and not any(spec.reason(row) == "" for row in self._rows):
            return ""  # the wizard lets one choose
        if not self._rows:
            return "choose a virtual machine first"
        if spec.single and len(self._rows) > 1:
            return "choose one virtual machine only"
        reasons = [spec.reason(row) for row in self._rows]
        return "" if "" in reasons else reasons[0]

    def _ask(self, spec: _Spec) -> None:
        judged = [(row, spec.reason(row)) for row in self._rows]
        good = [row for row, why in judged if not why]
        self.asked.emit(spec.key, good, [(row, why) for row, why in judged if why])
