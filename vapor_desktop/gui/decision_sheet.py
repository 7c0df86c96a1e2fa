"""A sheet for a decision that has a price: what is known, what one can choose, what that will do, the button last."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from html import escape

from PySide6.QtWidgets import QCheckBox, QComboBox, QWidget

from vapor_desktop.gui.context import Context
from vapor_desktop.gui.sheet import Sheet


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


class DecisionSheet(Sheet):
    """``load`` runs off the GUI thread. Read ``chosen``, ``forced`` and ``why`` after it was accepted."""

    def __init__(self, context: Context, wording: Wording, load: Callable[[], Decision], parent: QWidget) -> None:
        super().__init__(context, wording.title, wording.headline, wording.button, parent, wording.typed)
        self._wording = wording
        self.decision: Decision | None = None
        self.facts, self.effects = self.rich("Asking…"), self.rich()
        self.choice, self.force = QComboBox(self), QCheckBox(wording.force, self)
        self.choice.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToContents)  # it is filled later
        self.choice.setAccessibleName(wording.choice or "Choice")
        self.choice.setVisible(bool(wording.choice))
        self.force.setVisible(bool(wording.force))
        self.box.addWidget(self.facts)
        self.add_group("What will happen", self.effects)
        self.box.addStretch(1)
        self.add_form(*([(f"{wording.choice}:", self.choice)] if wording.choice else []))
        self.box.addWidget(self.force)
        self.add_buttons(660, 460)
        self.choice.currentIndexChanged.connect(self.judge)
        self.ask(load, self._show, self.facts, "It cannot be prepared.")

    @property
    def chosen(self) -> str:
        """The key of the choice."""
        return str(self.choice.currentData() or "")

    @property
    def forced(self) -> bool:
        """Was the box ticked?"""
        return self.force.isChecked()

    def _show(self, decision: Decision) -> None:
        self.decision = decision
        self.facts.setText("<br>".join(escape(line) for line in decision.facts))
        for key, text in decision.choices:
            self.choice.addItem(text, key)

    def judge(self) -> None:
        """Each choice has its own effects."""
        if self.decision is not None:
            self.effects.setText(self.told(self.decision.effects(self.chosen), self.decision.blockers))
        super().judge()

    def missing(self) -> str:
        """An answer, and something to choose."""
        if self.decision is None:
            return "Waiting for an answer."
        if self.decision.blockers:
            return "It is not possible now, see above."
        return "There is nothing to choose." if self._wording.choice and not self.chosen else ""
