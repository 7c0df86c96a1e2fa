"""The sheet before a plan run: as what, what will happen step by step, what is not ready, and the button last."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from PySide6.QtCore import Qt
from PySide6.QtWidgets import (
    QComboBox,
    QDialog,
    QFormLayout,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QPushButton,
    QScrollArea,
    QVBoxLayout,
    QWidget,
)

from vapor_desktop.gui.context import Context
from vapor_desktop.gui.error_box import sentence
from vapor_desktop.model.errors import VaporError
from vapor_desktop.model.operations import StepRow
from vapor_desktop.model.plans import PlanMode, PlanStatus
from vapor_desktop.model.states import Severity

_MODES = {
    PlanMode.FAILOVER: "Emergency failover: the sources are lost",
    PlanMode.MIGRATION: "Planned migration: nothing is lost",
    PlanMode.DRILL: "Drill: in an isolated network, the VMs go on",
}
_EFFECTS = {
    PlanMode.FAILOVER: "Each VM starts at its target from its newest recovery point and belongs to it from then on. "
    "What was written after that point is not there. A VM that still runs at its source would run twice.",
    PlanMode.MIGRATION: "Each VM is synced, shut down at its source and started at its target. It does not serve "
    "between the two. Until it runs at its target it can be undone, VM by VM.",
    PlanMode.DRILL: "Copies of the VMs start from recovery points in a network of their own. "
    "Nothing that runs is touched.",
}


class PlanRunSheet(QDialog):
    """Read ``mode`` and ``why`` after it was accepted."""

    def __init__(self, context: Context, status: PlanStatus, parent: QWidget) -> None:
        super().__init__(parent)
        self._context, self._status = context, status
        self.steps_read: tuple[StepRow, ...] = ()
        name = status.plan.name
        self.setWindowTitle(f"Run {name}")
        self.headline = QLabel(f"<h3>Run {escape(name)}</h3>", self)
        self.mode_box = QComboBox(self)
        self.mode_box.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToContents)  # it is filled later
        self.effects, self.ready = QLabel(self), QLabel(self)
        self.steps, self.hint = QLabel("Reading the steps…", self), QLabel(self)
        for label in (self.headline, self.effects, self.ready, self.steps, self.hint):
            label.setTextFormat(Qt.TextFormat.RichText)
            label.setWordWrap(True)
        self.reason, self.name = QLineEdit(self), QLineEdit(self)
        self.go, self.cancel = QPushButton(self), QPushButton("Cancel", self)
        self._lay_out()
        self.mode_box.currentIndexChanged.connect(lambda _n: self._read_steps())
        self.name.textChanged.connect(self._judge)
        self.reason.textChanged.connect(self._judge)
        self.go.clicked.connect(self.accept)
        self.cancel.clicked.connect(self.reject)
        self._read_steps()

    @property
    def mode(self) -> PlanMode:
        """As what it is run."""
        return PlanMode(self.mode_box.currentData())

    @property
    def why(self) -> str:
        """The typed reason."""
        return self.reason.text().strip()

    def _lay_out(self) -> None:
        for mode, text in _MODES.items():
            self.mode_box.addItem(text, mode.value)
        self.mode_box.setAccessibleName("As what the plan is run")
        self.reason.setPlaceholderText("Kept in the history and at the sites")
        self.reason.setAccessibleName("Reason")
        self.name.setAccessibleName("Type the plan's name to confirm")
        self.cancel.setDefault(True)
        self.go.setAutoDefault(False)
        form = QFormLayout()
        form.addRow("&Reason:", self.reason)
        form.addRow(f"&Type {self._status.plan.name.replace('&', '&&')} to confirm:", self.name)
        buttons = QHBoxLayout()
        buttons.addStretch(1)
        buttons.addWidget(self.go)
        buttons.addWidget(self.cancel)
        scroll = QScrollArea(self)
        scroll.setWidgetResizable(True)
        scroll.setWidget(self.steps)
        self.steps.setAlignment(Qt.AlignmentFlag.AlignTop)
        box = QVBoxLayout(self)
        box.setContentsMargins(20, 14, 20, 14)
        box.setSpacing(10)
        for widget in (self.headline, self.mode_box, self.effects, self.ready):
            box.addWidget(widget)
        box.addWidget(scroll, 1)
        box.addLayout(form)
        box.addWidget(self.hint)
        box.addLayout(buttons)
        self.resize(660, 620)

    def _read_steps(self) -> None:
        mode, backend, plan_id = self.mode, self._context.backend, self._status.plan.plan_id
        self.steps_read = ()
        self.effects.setText(_EFFECTS[mode])
        self.go.setText({"drill": "Drill", "migration": "Migrate all", "failover": "Fail all over"}[mode.value])
        self.ready.setText(self._readiness())
        self._context.bridge.ask(lambda: backend.plan_steps(plan_id, mode), self, self._show, self._failed)
        self._judge()

    def _readiness(self) -> str:
        colour = self._context.theme.colours.severity[Severity.WARNING]
        if self._status.ready:
            return "Every VM is ready."
        if self._status.ready is None:
            return f"<b style='color:{colour}'>Nobody has looked yet whether it is ready.</b>"
        lines = "".join(f"<li>{escape(p.words)}</li>" for p in self._status.problems)
        return f"<b style='color:{colour}'>It is not ready; you will be asked once more:</b><ul>{lines}</ul>"

    def _failed(self, error: VaporError) -> None:
        self.steps.setText(f"The steps cannot be read. {sentence(error)}")

    def _show(self, steps: Sequence[StepRow]) -> None:
        self.steps_read = tuple(steps)
        lines = []
        for step in steps:
            indent = 28 if step.parent else 8
            lines.append(f"<p style='margin:1px 0 1px {indent}px'>{escape(step.title)}</p>")
        self.steps.setText("".join(lines))
        self._judge()

    def _judge(self) -> None:
        self.name.setEnabled(self.mode is not PlanMode.DRILL)
        missing = ""
        if not self.steps_read:
            missing = "Waiting for the steps."
        elif not self.why:
            missing = "Give a reason."
        elif self.mode is not PlanMode.DRILL and self.name.text() != self._status.plan.name:
            missing = "Type the plan's name exactly as it is."
        self.hint.setText(missing)
        self.go.setEnabled(not missing)
