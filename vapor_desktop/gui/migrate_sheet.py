"""The migration sheet: every step that will be taken, where the way back ends, and the button last."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from PySide6.QtCore import Qt
from PySide6.QtWidgets import (
    QDialog,
    QFormLayout,
    QGroupBox,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QPushButton,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)

from vapor_desktop.gui.context import Context
from vapor_desktop.gui.error_box import sentence
from vapor_desktop.model.errors import VaporError
from vapor_desktop.model.operations import OperationKind, StepRow
from vapor_desktop.model.states import Severity

SHUTDOWN_S = 120
SHUTDOWN_MAX_S = 86400


class MigrateSheet(QDialog):
    """Asks the engine for the steps, then for a decision. Read ``shutdown_s`` and ``why`` after it was accepted."""

    def __init__(self, context: Context, vm_name: str, source: str, target: str, parent: QWidget) -> None:
        super().__init__(parent)
        self._context, self._vm_name = context, vm_name
        self.plan: tuple[StepRow, ...] = ()
        self.setWindowTitle(f"Migrate {vm_name}")
        self.headline = QLabel(f"<h3>Move {escape(vm_name)} from {escape(source)} to {escape(target)}</h3>", self)
        self.about = QLabel(
            f"Planned, and nothing is lost: <b>{escape(vm_name)}</b> is synced while it runs, shut down at "
            f"{escape(source)}, and started at {escape(target)}. It does not serve between the two.",
            self,
        )
        self.steps, self.hint = QLabel("Reading the steps…", self), QLabel(self)
        for label in (self.headline, self.about, self.steps, self.hint):
            label.setTextFormat(Qt.TextFormat.RichText)
            label.setWordWrap(True)
        self.deadline, self.reason, self.name = QSpinBox(self), QLineEdit(self), QLineEdit(self)
        self.go, self.cancel = QPushButton(f"Migrate {vm_name} to {target}", self), QPushButton("Cancel", self)
        self._lay_out()
        self.name.textChanged.connect(self._judge)
        self.reason.textChanged.connect(self._judge)
        self.go.clicked.connect(self.accept)
        self.cancel.clicked.connect(self.reject)
        self.reason.setFocus()
        self._judge()
        backend = context.backend
        context.bridge.ask(lambda: backend.operation_steps(OperationKind.MIGRATION), self, self._show, self._failed)

    @property
    def shutdown_s(self) -> float:
        """How long the guest may take to shut down."""
        return float(self.deadline.value())

    @property
    def why(self) -> str:
        """The typed reason."""
        return self.reason.text().strip()

    def _lay_out(self) -> None:
        self.deadline.setRange(1, SHUTDOWN_MAX_S)
        self.deadline.setValue(SHUTDOWN_S)
        self.deadline.setSuffix(" s")
        self.deadline.setAccessibleName("Seconds the guest may take to shut down")
        self.deadline.setToolTip("When it takes longer you are asked; it is never switched off by a timer")
        self.deadline.setMaximumWidth(120)
        self.reason.setPlaceholderText("Kept in the history and at the sites")
        self.reason.setAccessibleName("Reason")
        self.name.setAccessibleName("Type the VM's name to confirm")
        self.go.setAutoDefault(False)
        self.cancel.setDefault(True)
        group = QGroupBox("What will happen", self)
        QVBoxLayout(group).addWidget(self.steps)
        form = QFormLayout()
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.ExpandingFieldsGrow)
        form.addRow("&Shutdown deadline:", self.deadline)
        form.addRow("&Reason:", self.reason)
        form.addRow(f"&Type <b>{escape(self._vm_name)}</b> to confirm:", self.name)
        buttons = QHBoxLayout()
        buttons.addStretch(1)
        buttons.addWidget(self.cancel)
        buttons.addWidget(self.go)
        box = QVBoxLayout(self)
        box.setContentsMargins(20, 14, 20, 14)
        box.setSpacing(10)
        box.addWidget(self.headline)
        box.addWidget(self.about)
        box.addWidget(group)
        box.addStretch(1)
        box.addLayout(form)
        box.addWidget(self.hint)
        box.addLayout(buttons)
        self.resize(640, 480)

    def _failed(self, error: VaporError) -> None:
        self.steps.setText(f"The steps cannot be read. {sentence(error)}")

    def _show(self, plan: Sequence[StepRow]) -> None:
        self.plan = tuple(plan)
        colour = self._context.theme.colours.severity[Severity.WARNING]
        lines = []
        for step in plan:
            mark = f" <b style='color:{colour}'>— no undo after this</b>" if step.no_return else ""
            lines.append(f"<li>{escape(step.title)}{mark}</li>")
        self.steps.setText(f"<ol style='margin-left:-16px'>{''.join(lines)}</ol>")
        self._judge()

    def _judge(self) -> None:
        missing = ""
        if not self.plan:
            missing = "Waiting for the steps."
        elif not self.why:
            missing = "Give a reason."
        elif self.name.text() != self._vm_name:
            missing = "Type the VM's name exactly as it is."
        self.hint.setText(missing)
        self.go.setEnabled(not missing)
