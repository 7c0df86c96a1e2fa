"""The page *Plans*: which there are and whether each is ready; the last run of the chosen one, live; its report."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QHBoxLayout, QLabel, QPushButton, QSplitter, QTabWidget, QVBoxLayout, QWidget

from vapor_desktop.gui import words
from vapor_desktop.gui.activity import severity_icon
from vapor_desktop.gui.context import Context
from vapor_desktop.gui.icons import icon
from vapor_desktop.gui.keyed_table import Field, RecordModel
from vapor_desktop.gui.operations_tab import asks
from vapor_desktop.gui.plan_tree import PlanTree
from vapor_desktop.gui.question_box import QuestionBox
from vapor_desktop.gui.record_table import RecordTable
from vapor_desktop.model.errors import VaporError
from vapor_desktop.model.operations import Operation, OperationKind
from vapor_desktop.model.plan_report import ReportLine, report_of
from vapor_desktop.model.plans import PlanStatus
from vapor_desktop.model.states import Severity
from vapor_desktop.model.view import Snapshot

_LOOKS = {True: Severity.OK, False: Severity.WARNING, None: Severity.IDLE}
_READY = {True: "ready", False: "not ready", None: "not looked yet"}
_RESULTS = {"up": Severity.OK, "working": Severity.PROGRESS, "waiting": Severity.IDLE, "skipped": Severity.WARNING}
_NONE = "No recovery plan yet. A plan brings several VMs up in order, with checks and pauses between them."


class PlansPage(QWidget):
    """Signals:
    new_asked: make a plan.
    edit_asked, run_asked, delete_asked: the PlanStatus meant.
    stop_asked: the run (Operation) to stop.
    answer_asked: (Operation, Choice) that a button was pressed for.
    """

    new_asked = Signal()
    edit_asked = Signal(object)
    run_asked = Signal(object)
    delete_asked = Signal(object)
    stop_asked = Signal(object)
    answer_asked = Signal(object, object)

    def __init__(self, context: Context, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._context = context
        self._known: dict[str, Operation] = {}
        self._read = False
        self.model: RecordModel[PlanStatus] = RecordModel(self._fields(), lambda s: s.plan.plan_id, self)
        self.table = RecordTable(self.model, "Recovery plans", self)
        self.new, self.edit = QPushButton("&New plan…", self), QPushButton("&Edit…", self)
        self.run, self.delete = QPushButton("R&un…", self), QPushButton("&Delete…", self)
        self.stop = QPushButton("&Stop…", self)
        self.about, self.headline = QLabel(_NONE, self), QLabel(self)
        self.question = QuestionBox(context, self)
        self.tree = PlanTree(context.theme, self)
        self.report: RecordModel[ReportLine] = RecordModel(self._report_fields(), lambda line: line.vm_uuid, self)
        self.report_table = RecordTable(self.report, "Report of the plan run", self)
        self._lay_out()
        self._connect()
        self._restyle()
        self._show_chosen()

    def _lay_out(self) -> None:
        for label in (self.about, self.headline):
            label.setTextFormat(Qt.TextFormat.RichText)
            label.setWordWrap(True)
        buttons = QHBoxLayout()
        for button in (self.new, self.edit, self.run, self.delete):
            buttons.addWidget(button)
        buttons.addStretch(1)
        self.tabs = QTabWidget(self)
        self.tabs.addTab(self.tree, "Steps")
        self.tabs.addTab(self.report_table, "Report")
        top = QHBoxLayout()
        top.addWidget(self.headline, 1)
        top.addWidget(self.stop)
        below = QWidget(self)
        box = QVBoxLayout(below)
        box.setContentsMargins(0, 6, 0, 0)
        box.addWidget(self.about)
        box.addLayout(top)
        box.addWidget(self.question)
        box.addWidget(self.tabs, 1)
        split = QSplitter(Qt.Orientation.Vertical, self)
        split.setChildrenCollapsible(False)
        split.addWidget(self.table)
        split.addWidget(below)
        split.setStretchFactor(0, 1)
        split.setStretchFactor(1, 3)
        outer = QVBoxLayout(self)
        outer.setContentsMargins(10, 8, 10, 6)
        outer.addLayout(buttons)
        outer.addWidget(split, 1)

    def _connect(self) -> None:
        self.table.selectionModel().selectionChanged.connect(lambda _now, _before: self._show_chosen())
        self.new.clicked.connect(self.new_asked)
        for button, signal in (
            (self.edit, self.edit_asked),
            (self.run, self.run_asked),
            (self.delete, self.delete_asked),
        ):
            button.clicked.connect(lambda _on=False, s=signal: self._emit(s))
        self.stop.clicked.connect(self._ask_stop)
        self.question.answered.connect(self.answer_asked)
        self._context.theme.changed.connect(self._restyle)

    def _fields(self) -> list[Field[PlanStatus]]:
        def look(status: PlanStatus, role: int) -> Any:
            wanted = role == Qt.ItemDataRole.DecorationRole
            return severity_icon(self._context.theme, _LOOKS[status.ready]) if wanted else None

        def said(status: PlanStatus) -> str:
            return f"{status.plan.name}: {_READY[status.ready]}"

        return [
            Field("Plan", lambda s: s.plan.name, 200, said=said, look=look),
            Field("State", lambda s: _READY[s.ready], 110),
            Field("Tiers", lambda s: str(len(s.plan.tiers)), 60, right=True),
            Field("VMs", lambda s: str(sum(1 for _ in s.plan.vms())), 60, right=True),
            Field("Targets", lambda s: ", ".join(s.targets) or words.UNKNOWN, 130),
            Field("Last run", self._last_run, 230),
            Field("Why not", lambda s: "; ".join(p.words for p in s.problems), 200),
        ]

    def _report_fields(self) -> list[Field[ReportLine]]:
        def look(line: ReportLine, role: int) -> Any:
            wanted = role == Qt.ItemDataRole.DecorationRole
            return severity_icon(self._context.theme, _RESULTS.get(line.state, Severity.CRITICAL)) if wanted else None

        return [
            Field("VM", lambda r: r.vm, 150, look=look),
            Field("Result", lambda r: r.words, 130),
            Field("Up after", lambda r: words.UNKNOWN if r.seconds is None else f"{r.seconds:.1f} s", 80, right=True),
            Field("At the end", lambda r: r.now or words.UNKNOWN, 110),
            Field("At", lambda r: r.target or words.UNKNOWN, 100),
            Field("Checked", lambda r: ", ".join(r.checks), 170),
            Field("Note", lambda r: r.note, 200),
        ]

    # --- showing --------------------------------------------------------------------------------------
    def take(self, snapshot: Snapshot) -> None:
        """Show a snapshot; older operations are read once, for reports of runs before."""
        for operation in snapshot.operations:
            self._learn(operation)
        self.model.put(snapshot.plans)
        if self.chosen() is None and self.model.rowCount():
            self.table.selectRow(0)
        if self.isVisible() and not self._read:
            self._read = True
            self._context.bridge.ask(self._context.backend.operations, self, self._older, self._failed)
        self._show_chosen()

    def select(self, plan_id: str) -> bool:
        """Show that one; False when it is not known (yet)."""
        for row in range(self.model.rowCount()):
            found = self.model.record(row)
            if found is not None and found.plan.plan_id == plan_id:
                self.table.selectRow(row)
                return True
        return False

    def chosen(self) -> PlanStatus | None:
        """The selected plan."""
        return self.model.record(self.table.chosen_row())

    def _learn(self, operation: Operation) -> None:
        known = self._known.get(operation.operation_id)
        if known is None or operation.version >= known.version:
            self._known[operation.operation_id] = operation

    def _older(self, operations: Sequence[Operation]) -> None:
        for operation in operations:
            self._learn(operation)
        self._show_chosen()

    def _failed(self, error: VaporError) -> None:
        self._read = False
        self.headline.setText(f"The runs cannot be read: {escape(str(error))}")

    def _run_of(self, status: PlanStatus | None) -> Operation | None:
        if status is None:
            return None
        mine = [o for o in self._known.values() if o.kind is OperationKind.PLAN and o.vm_uuid == status.plan.plan_id]
        return max(mine, key=lambda o: o.started_at, default=None)

    def _last_run(self, status: PlanStatus) -> str:
        run = self._run_of(status)
        if run is None:
            return "never"
        return f"{words.local(run.started_at, datetime.now(UTC))} as {run.args.get('mode', '')}: {run.state.value}"

    def _show_chosen(self) -> None:
        status = self.chosen()
        run = self._run_of(status)
        running = run is not None and not run.ended
        for button in (self.edit, self.delete):
            button.setEnabled(status is not None and not running)
        self.run.setEnabled(status is not None and not running)
        self.stop.setVisible(running)
        self.stop.setEnabled(run is not None and running and not run.cancel_asked)
        self.about.setText(_about(status))
        self.headline.setText(_headline(run))
        self.question.show_question(self._asking(run))
        self.tree.show_run(run, self._known)
        self.report.put(report_of(run) if run is not None else ())

    def _asking(self, run: Operation | None) -> Operation | None:
        """The run, or one of its VMs' own operations, that waits for an answer."""
        if run is None:
            return None
        below = [self._known[s.operation_id] for s in run.steps if s.operation_id in self._known]
        return next((o for o in (run, *below) if asks(o)), None)

    # --- doing ----------------------------------------------------------------------------------------
    def _emit(self, signal: Any) -> None:
        status = self.chosen()
        if status is not None:
            signal.emit(status)

    def _ask_stop(self) -> None:
        run = self._run_of(self.chosen())
        if run is not None:
            self.stop_asked.emit(run)

    def _restyle(self) -> None:
        colour = self._context.theme.colours.text
        for button, name in (
            (self.new, "plan"),
            (self.edit, "edit"),
            (self.run, "resume"),
            (self.delete, "cross"),
        ):
            button.setIcon(icon(name, colour))


def _about(status: PlanStatus | None) -> str:
    if status is None:
        return _NONE
    name = f"<b>{escape(status.plan.name)}</b> (version {status.plan.version})"
    if status.ready is None:
        return f"{name}: nobody has looked yet whether it is ready."
    if status.ready:
        return f"{name} is ready: every VM has a point, and {escape(', '.join(status.targets))} has what they need."
    lines = "".join(f"<li>{escape(p.words)}. {escape(p.fix)}</li>" for p in status.problems)
    return f"{name} is not ready:<ul style='margin:2px 0 0 -18px'>{lines}</ul>"


def _headline(run: Operation | None) -> str:
    if run is None:
        return "It has not been run."
    why = f" {escape(str(run.error['what']))}." if run.error else ""
    mode = escape(str(run.args.get("mode", "")))
    return f"Run as <b>{mode}</b>, asked by {escape(run.asked_by)}: <b>{escape(run.state.value)}</b>.{why}"
