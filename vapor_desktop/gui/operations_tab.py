"""Durable operations, live: which there are, the steps of the selected one, what it asks, and the way back."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QFrame, QHBoxLayout, QLabel, QPushButton, QSplitter, QVBoxLayout, QWidget

from vapor_desktop.gui import words
from vapor_desktop.gui.context import Context
from vapor_desktop.gui.icons import SEVERITY_ICONS, icon
from vapor_desktop.gui.keyed_table import Field, RecordModel
from vapor_desktop.gui.record_table import RecordTable
from vapor_desktop.model.errors import VaporError
from vapor_desktop.model.operations import Operation, OperationState, StepRow, StepState, may_cancel
from vapor_desktop.model.states import Severity
from vapor_desktop.model.view import Banner, Snapshot

READ_EVERY_S = 10
_OPERATION_LOOKS = {
    OperationState.RUNNING: Severity.PROGRESS,
    OperationState.UNDOING: Severity.PROGRESS,
    OperationState.WAITING: Severity.WARNING,
    OperationState.INTERRUPTED: Severity.WARNING,
    OperationState.DONE: Severity.OK,
    OperationState.UNDONE: Severity.IDLE,
    OperationState.FAILED: Severity.CRITICAL,
}
STEP_LOOKS = {
    StepState.PENDING: Severity.IDLE,
    StepState.RUNNING: Severity.PROGRESS,
    StepState.DONE: Severity.OK,
    StepState.FAILED: Severity.CRITICAL,
    StepState.UNDONE: Severity.IDLE,
}


def asks(operation: Operation) -> bool:
    """Does it wait for an answer that nobody gave yet?"""
    return operation.question is not None and operation.question.question_id not in operation.answers


def may_undo(operation: Operation) -> bool:
    """Can it be taken back, and did nobody ask for that yet?"""
    return may_cancel(operation) and not operation.cancel_asked and operation.state is not OperationState.UNDOING


def question_banners(snapshot: Snapshot) -> list[Banner]:
    """One standing condition for each question that waits."""
    return [
        Banner(
            f"operation:{o.operation_id}",
            Severity.WARNING,
            f"{o.vm_name}: {o.kind.value} asks: {o.question.text}",
            "open-operation",
            o.operation_id,
        )
        for o in snapshot.operations
        if o.question is not None and asks(o)
    ]


def _took(step: StepRow) -> str:
    if step.started_at is None:
        return ""
    end = step.ended_at or datetime.now(UTC)
    return words.duration((end - step.started_at).total_seconds())


class OperationsTab(QWidget):
    """Signals:
    answer_asked: (Operation, Choice) that a button was pressed for.
    undo_asked: the Operation to take back.
    """

    answer_asked = Signal(object, object)
    undo_asked = Signal(object)

    def __init__(self, context: Context, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._context = context
        self._read_at: datetime | None = None
        self._known: dict[str, Operation] = {}
        self._drawn: tuple[str, str] | None = None  # operation and question whose buttons are there
        self.choices: list[QPushButton] = []
        self.model: RecordModel[Operation] = RecordModel(self._fields(), lambda o: o.operation_id, self)
        self.steps: RecordModel[StepRow] = RecordModel(self._step_fields(), lambda s: s.name, self)
        self.table = RecordTable(self.model, "Operations", self)
        self.steps_table = RecordTable(self.steps, "Steps of the operation", self)
        self.headline = QLabel("Choose an operation to see its steps.", self)
        self.asked, self.question = QFrame(self), QLabel(self)
        self.undo = QPushButton("&Undo…", self)
        self._lay_out()
        self.table.selectionModel().selectionChanged.connect(self._chosen_other)
        self.undo.clicked.connect(self._ask_undo)
        context.errands.failed.connect(lambda _title, _error: self._allow())
        context.theme.changed.connect(self._restyle)
        self._restyle()
        self._show_chosen()

    def _lay_out(self) -> None:
        for label in (self.headline, self.question):
            label.setTextFormat(Qt.TextFormat.RichText)
            label.setWordWrap(True)
        self.asked.setObjectName("question")
        inside = QVBoxLayout(self.asked)
        inside.addWidget(self.question)
        self._buttons = QHBoxLayout()
        inside.addLayout(self._buttons)
        top = QHBoxLayout()
        top.addWidget(self.headline, 1)
        top.addWidget(self.undo)
        below = QWidget(self)
        box = QVBoxLayout(below)
        box.setContentsMargins(0, 6, 0, 0)
        box.addLayout(top)
        box.addWidget(self.asked)
        box.addWidget(self.steps_table, 1)
        split = QSplitter(Qt.Orientation.Vertical, self)
        split.setChildrenCollapsible(False)
        split.addWidget(self.table)
        split.addWidget(below)
        split.setStretchFactor(0, 1)
        split.setStretchFactor(1, 2)
        outer = QVBoxLayout(self)
        outer.setContentsMargins(4, 8, 4, 4)
        outer.addWidget(split)

    def _mark(self, severity: Severity, role: int) -> Any:
        if role != Qt.ItemDataRole.DecorationRole:
            return None
        colours = self._context.theme.colours
        return icon(SEVERITY_ICONS[severity], colours.severity[severity], knockout=colours.base)

    def _fields(self) -> list[Field[Operation]]:
        def look(o: Operation, role: int) -> Any:
            return self._mark(_OPERATION_LOOKS[o.state], role)

        return [
            Field("Operation", lambda o: words.capital(o.kind.value), 190, look=look),
            Field("VM", lambda o: o.vm_name, 140),
            Field("State", lambda o: o.state.value, 180),
            Field(
                "Started",
                lambda o: words.local(o.started_at, datetime.now(UTC)),
                130,
                said=lambda o: f"started {words.exact(o.started_at)}",
            ),
            Field("Asked by", lambda o: o.asked_by, 130),
            Field("Reason", lambda o: o.reason, 120),
        ]

    def _step_fields(self) -> list[Field[StepRow]]:
        def look(s: StepRow, role: int) -> Any:
            return self._mark(STEP_LOOKS[s.state], role)

        return [
            Field("Step", lambda s: s.title, 350, look=look),
            Field("State", lambda s: s.state.value, 90),
            Field("Took", _took, 80, right=True),
            Field("Undo", lambda s: "no undo after this" if s.no_return else "", 140),
            Field("Note", lambda s: s.note, 120),
        ]

    # --- showing ----------------------------------------------------------------------------------
    def take(self, snapshot: Snapshot) -> None:
        """The living ones with each snapshot; the older ones are read now and then while this is seen."""
        self._put(snapshot.operations)
        old = self._read_at is None or (snapshot.at - self._read_at).total_seconds() >= READ_EVERY_S
        if self.isVisible() and old:
            self._read_at = snapshot.at
            self._context.bridge.ask(self._context.backend.operations, self, self._put, self._failed)

    def select(self, operation_id: str) -> bool:
        """Show that one; False when it is not known (yet)."""
        for row in range(self.model.rowCount()):
            found = self.model.record(row)
            if found is not None and found.operation_id == operation_id:
                self.table.selectRow(row)
                return True
        return False

    def _put(self, operations: Sequence[Operation]) -> None:
        for operation in operations:
            known = self._known.get(operation.operation_id)
            if known is None or operation.version >= known.version:  # a slow answer may be older than a snapshot
                self._known[operation.operation_id] = operation
        self.model.put(sorted(self._known.values(), key=lambda o: o.started_at, reverse=True))
        if self._chosen() is None and self.model.rowCount():
            self.table.selectRow(0)
        self._show_chosen()

    def _failed(self, error: VaporError) -> None:
        self.headline.setText(f"The operations cannot be read: {escape(str(error))}")

    def _chosen(self) -> Operation | None:
        return self.model.record(self.table.chosen_row())

    def _chosen_other(self, _now: object, _before: object) -> None:
        self._show_chosen()

    def _show_chosen(self) -> None:
        operation = self._chosen()
        self.undo.setEnabled(operation is not None and may_undo(operation))
        self.undo.setToolTip(_undo_tip(operation))
        self.steps.put(operation.steps if operation else ())
        self._show_question(operation)
        if operation is None:
            if self.model.rowCount() == 0:
                self.headline.setText("No operation yet. “Migrate…” and “Fail over…” begin one.")
            return
        for row, step in enumerate(operation.steps):
            if step.state is StepState.RUNNING:  # its time goes on without a change of the record
                self.steps.dataChanged.emit(self.steps.index(row, 2), self.steps.index(row, 2))
        why = f"<br>{escape(str(operation.error['what']))}." if operation.error else ""
        kind = escape(words.capital(operation.kind.value))
        self.headline.setText(f"<b>{kind} of {escape(operation.vm_name)}</b>: {escape(operation.state.value)}{why}")

    def _show_question(self, operation: Operation | None) -> None:
        question = operation.question if operation is not None and asks(operation) else None
        self.asked.setVisible(question is not None)
        wanted = (operation.operation_id, question.question_id) if operation and question else None
        if wanted == self._drawn:
            return
        self._drawn = wanted
        while (item := self._buttons.takeAt(0)) is not None:
            if (widget := item.widget()) is not None:
                widget.hide()
                widget.deleteLater()
        self.choices = []
        if operation is None or question is None:
            return
        self.question.setText(f"<b>It asks:</b> {escape(question.text)}")
        for choice in question.choices:
            button = QPushButton(choice.text.replace("&", "&&"), self.asked)
            button.setAutoDefault(False)
            button.clicked.connect(lambda _on=False, o=operation, c=choice: self._answer(o, c))
            self._buttons.addWidget(button)
            self.choices.append(button)
        self._buttons.addStretch(1)

    # --- doing ------------------------------------------------------------------------------------
    def _answer(self, operation: Operation, choice: object) -> None:
        for button in self.choices:
            button.setEnabled(False)
        self.answer_asked.emit(operation, choice)

    def _allow(self) -> None:
        for button in self.choices:
            button.setEnabled(True)

    def _ask_undo(self) -> None:
        operation = self._chosen()
        if operation is not None:
            self.undo_asked.emit(operation)

    def _restyle(self) -> None:
        colours = self._context.theme.colours
        self.asked.setStyleSheet(
            f"#question {{ background: {colours.banner_warning}; border: 1px solid {colours.line}; }}"
        )


def _undo_tip(operation: Operation | None) -> str:
    if operation is None:
        return "Choose an operation first"
    if operation.ended:
        return "It has ended"
    if operation.past_return:
        return "It is past its point of no return"
    return "Take back what it has done" if may_undo(operation) else "It is being undone already"
