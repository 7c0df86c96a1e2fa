"""The sheet before a plan run: as what, what will happen step by step, what is not ready, and the button last."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QComboBox, QScrollArea, QWidget

from vapor_desktop.gui.context import Context
from vapor_desktop.gui.sheet import Sheet
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


class PlanRunSheet(Sheet):
    """Read ``mode`` and ``why`` after it was accepted."""

    def __init__(self, context: Context, status: PlanStatus, parent: QWidget) -> None:
        title = f"Run {status.plan.name}"
        super().__init__(context, title, title, "", parent, status.plan.name)
        self._status = status
        self.steps_read: tuple[StepRow, ...] = ()
        self.mode_box, scroll = QComboBox(self), QScrollArea(self)
        for mode, text in _MODES.items():
            self.mode_box.addItem(text, mode.value)
        self.mode_box.setAccessibleName("As what the plan is run")
        self.effects, self.ready, self.steps = self.rich(), self.rich(), self.rich("Reading the steps…")
        self.steps.setAlignment(Qt.AlignmentFlag.AlignTop)
        scroll.setWidgetResizable(True)
        scroll.setWidget(self.steps)
        for widget in (self.mode_box, self.effects, self.ready):
            self.box.addWidget(widget)
        self.box.addWidget(scroll, 1)
        self.add_form()
        self.add_buttons(660, 620)
        self.mode_box.setFocus()
        self.mode_box.currentIndexChanged.connect(lambda _n: self._read_steps())
        self._read_steps()

    @property
    def mode(self) -> PlanMode:
        """As what it is run."""
        return PlanMode(self.mode_box.currentData())

    def _read_steps(self) -> None:
        mode, backend, plan_id = self.mode, self._context.backend, self._status.plan.plan_id
        self.steps_read = ()
        self.effects.setText(_EFFECTS[mode])
        self.go.setText({"drill": "Drill", "migration": "Migrate all", "failover": "Fail all over"}[mode.value])
        self.ready.setText(self._readiness())
        self.name.setEnabled(mode is not PlanMode.DRILL)
        self.ask(lambda: backend.plan_steps(plan_id, mode), self._show, self.steps, "The steps cannot be read.")

    def _readiness(self) -> str:
        if self._status.ready:
            return "Every VM is ready."
        if self._status.ready is None:
            return self.coloured(Severity.WARNING, "Nobody has looked yet whether it is ready.")
        lines = "".join(f"<li>{escape(p.words)}</li>" for p in self._status.problems)
        told = self.coloured(Severity.WARNING, "It is not ready; you will be asked once more:")
        return f"{told}<ul>{lines}</ul>"

    def _show(self, steps: Sequence[StepRow]) -> None:
        self.steps_read = tuple(steps)
        lines = []
        for step in steps:
            indent = 28 if step.parent else 8
            lines.append(f"<p style='margin:1px 0 1px {indent}px'>{escape(step.title)}</p>")
        self.steps.setText("".join(lines))

    def missing(self) -> str:
        """The steps."""
        return "" if self.steps_read else "Waiting for the steps."
