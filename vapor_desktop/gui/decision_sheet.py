"""A sheet for a decision that has a price: what is known, what one can choose, what that will do, the button last."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from html import escape

from PySide6.QtCore import Qt
from PySide6.QtWidgets import (
    QCheckBox,
    QComboBox,
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


@dataclass(frozen=True, slots=True)
class Decision:
    """What is asked. ``choices``: (key, text), the first is the default; ``effects``: by the chosen key."""

    facts: tuple[str, ...]
    choices: tuple[tuple[str, str], ...]
    effects: Callable[[str], tuple[str, ...]]
    blockers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Wording:
    """What the sheet says. ``typed``: what must be typed; ``force``: an unticked box; "" for neither."""

    title: str
    headline: str
    choice: str
    button: str
    typed: str = ""
    force: str = ""


class DecisionSheet(QDialog):
    """``load`` runs off the GUI thread. Read ``chosen``, ``forced`` and ``why`` after it was accepted."""

    def __init__(self, context: Context, wording: Wording, load: Callable[[], Decision], parent: QWidget) -> None:
        super().__init__(parent)
        self._context, self._wording = context, wording
        self.decision: Decision | None = None
        self.setWindowTitle(wording.title)
        self.headline = QLabel(f"<h3>{escape(wording.headline)}</h3>", self)
        self.facts, self.effects, self.hint = QLabel("Asking…", self), QLabel(self), QLabel(self)
        for label in (self.headline, self.facts, self.effects, self.hint):
            label.setTextFormat(Qt.TextFormat.RichText)
            label.setWordWrap(True)
        self.choice, self.force = QComboBox(self), QCheckBox(wording.force, self)
        self.choice.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToContents)  # it is filled later
        self.reason, self.name = QLineEdit(self), QLineEdit(self)
        self.go, self.cancel = QPushButton(wording.button, self), QPushButton("Cancel", self)
        self._lay_out()
        self.choice.currentIndexChanged.connect(self._judge)
        self.name.textChanged.connect(self._judge)
        self.reason.textChanged.connect(self._judge)
        self.go.clicked.connect(self.accept)
        self.cancel.clicked.connect(self.reject)
        self.reason.setFocus()
        self._judge()
        context.bridge.ask(load, self, self._show, self._failed)

    @property
    def chosen(self) -> str:
        """The key of the choice."""
        return str(self.choice.currentData() or "")

    @property
    def forced(self) -> bool:
        """Was the box ticked?"""
        return self.force.isChecked()

    @property
    def why(self) -> str:
        """The typed reason."""
        return self.reason.text().strip()

    def _lay_out(self) -> None:
        self.reason.setPlaceholderText("Kept in the history and at the sites")
        self.reason.setAccessibleName("Reason")
        self.name.setAccessibleName("Type to confirm")
        self.choice.setAccessibleName(self._wording.choice or "Choice")
        self.force.setVisible(bool(self._wording.force))
        self.go.setAutoDefault(False)
        self.cancel.setDefault(True)
        group = QGroupBox("What will happen", self)
        QVBoxLayout(group).addWidget(self.effects)
        form = QFormLayout()
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.ExpandingFieldsGrow)
        if self._wording.choice:
            form.addRow(f"{self._wording.choice}:", self.choice)
        self.choice.setVisible(bool(self._wording.choice))
        form.addRow("&Reason:", self.reason)
        if self._wording.typed:
            form.addRow(f"&Type <b>{escape(self._wording.typed)}</b> to confirm:", self.name)
        self.name.setVisible(bool(self._wording.typed))
        buttons = QHBoxLayout()
        buttons.addStretch(1)
        buttons.addWidget(self.cancel)
        buttons.addWidget(self.go)
        box = QVBoxLayout(self)
        box.setContentsMargins(20, 14, 20, 14)
        box.setSpacing(10)
        for part in (self.headline, self.facts, group):
            box.addWidget(part)
        box.addStretch(1)
        box.addLayout(form)
        box.addWidget(self.force)
        box.addWidget(self.hint)
        box.addLayout(buttons)
        self.resize(660, 460)

    def _failed(self, error: VaporError) -> None:
        self.facts.setText(f"It cannot be prepared. {sentence(error)}")

    def _show(self, decision: Decision) -> None:
        self.decision = decision
        self.facts.setText("<br>".join(escape(line) for line in decision.facts))
        for key, text in decision.choices:
            self.choice.addItem(text, key)
        self._judge()

    def _judge(self) -> None:
        missing = ""
        decision = self.decision
        if decision is None:
            missing = "Waiting for an answer."
        else:
            crit = self._context.theme.colours.severity[Severity.CRITICAL]
            lines = [f"<li>{escape(text)}</li>" for text in decision.effects(self.chosen)]
            lines += [
                f"<li style='color:{crit}'><b>Not possible: {escape(text)}</b></li>" for text in decision.blockers
            ]
            self.effects.setText(f"<ul style='margin-left:-22px'>{''.join(lines)}</ul>")
            if decision.blockers:
                missing = "It is not possible now, see above."
            elif self._wording.choice and not self.chosen:
                missing = "There is nothing to choose."
            elif not self.why:
                missing = "Give a reason."
            elif self._wording.typed and self.name.text() != self._wording.typed:
                missing = f"Type “{escape(self._wording.typed)}” exactly as it is."
        self.hint.setText(missing)
        self.go.setEnabled(not missing)
