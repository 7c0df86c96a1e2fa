"""The reprotect sheet: the price first and why, then what will happen, then the button."""

from __future__ import annotations

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
    QVBoxLayout,
    QWidget,
)

from vapor_desktop.gui.context import Context
from vapor_desktop.gui.error_box import sentence
from vapor_desktop.model.errors import VaporError
from vapor_desktop.model.states import Severity
from vapor_desktop.model.view import ReprotectPreview


class ReprotectSheet(QDialog):
    """Asks both sites for the price, then for a decision. Read ``why`` after it was accepted."""

    def __init__(self, context: Context, key: str, vm_name: str, here: str, there: str, parent: QWidget) -> None:
        super().__init__(parent)
        self._context, self._vm_name = context, vm_name
        self.preview: ReprotectPreview | None = None
        self.setWindowTitle(f"Reprotect {vm_name}")
        self.headline = QLabel(
            f"<h3>Protect {escape(vm_name)} the other way: from {escape(here)} to {escape(there)}</h3>", self
        )
        self.price, self.effects, self.hint = QLabel("Asking both sites…", self), QLabel(self), QLabel(self)
        for label in (self.headline, self.price, self.effects, self.hint):
            label.setTextFormat(Qt.TextFormat.RichText)
            label.setWordWrap(True)
        self.reason = QLineEdit(self)
        self.go, self.cancel = QPushButton(f"Reprotect {vm_name} to {there}", self), QPushButton("Cancel", self)
        self._lay_out()
        self.reason.textChanged.connect(self._judge)
        self.go.clicked.connect(self.accept)
        self.cancel.clicked.connect(self.reject)
        self.reason.setFocus()
        self._judge()
        backend = context.backend
        context.bridge.ask(lambda: backend.reprotect_preview(key), self, self._show, self._failed)

    @property
    def why(self) -> str:
        """The typed reason."""
        return self.reason.text().strip()

    def _lay_out(self) -> None:
        self.reason.setPlaceholderText("Kept in the history and at the sites")
        self.reason.setAccessibleName("Reason")
        self.price.setAccessibleName("What it costs, and why")
        self.go.setAutoDefault(False)
        self.cancel.setDefault(True)
        cost, group = QGroupBox("What it costs", self), QGroupBox("What will happen", self)
        QVBoxLayout(cost).addWidget(self.price)
        QVBoxLayout(group).addWidget(self.effects)
        form = QFormLayout()
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.ExpandingFieldsGrow)
        form.addRow("&Reason:", self.reason)
        buttons = QHBoxLayout()
        buttons.addStretch(1)
        buttons.addWidget(self.cancel)
        buttons.addWidget(self.go)
        box = QVBoxLayout(self)
        box.setContentsMargins(20, 14, 20, 14)
        box.setSpacing(10)
        box.addWidget(self.headline)
        box.addWidget(cost)
        box.addWidget(group)
        box.addStretch(1)
        box.addLayout(form)
        box.addWidget(self.hint)
        box.addLayout(buttons)
        self.resize(640, 460)

    def _failed(self, error: VaporError) -> None:
        self.price.setText(f"The price cannot be told. {escape(sentence(error))}")

    def _show(self, preview: ReprotectPreview) -> None:
        self.preview = preview
        if preview.blockers:
            colour = self._context.theme.colours.severity[Severity.CRITICAL]
            lines = "".join(f"<li style='color:{colour}'>{escape(text)}</li>" for text in preview.blockers)
            self.price.setText(f"It cannot be done now:<ul>{lines}</ul>")
        else:
            self.price.setText(f"<b>{escape(preview.price)}</b><br>{escape(preview.why)}")
        self.effects.setText("<ul>" + "".join(f"<li>{escape(text)}</li>" for text in preview.effects) + "</ul>")
        self._judge()

    def _judge(self) -> None:
        missing = ""
        if self.preview is None:
            missing = "Waiting for the price."
        elif self.preview.blockers:
            missing = "Mend what is in the way first."
        elif not self.why:
            missing = "Give a reason."
        self.hint.setText(missing)
        self.go.setEnabled(not missing)
