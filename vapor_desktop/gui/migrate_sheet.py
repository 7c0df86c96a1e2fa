"""The migration sheet: every step that will be taken, where the way back ends, and the button last."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from PySide6.QtWidgets import QCheckBox, QSpinBox, QWidget

from vapor_desktop.gui.context import Context
from vapor_desktop.gui.sheet import Sheet
from vapor_desktop.model.operations import OperationKind, StepRow
from vapor_desktop.model.states import Severity

SHUTDOWN_S = 120
SHUTDOWN_MAX_S = 86400


class MigrateSheet(Sheet):
    """Asks the engine for the steps, then for a decision. Read ``args`` and ``why`` after it was accepted."""

    def __init__(self, context: Context, vm_name: str, source: str, target: str, parent: QWidget) -> None:
        headline, button = f"Move {vm_name} from {source} to {target}", f"Migrate {vm_name} to {target}"
        super().__init__(context, f"Migrate {vm_name}", headline, button, parent, vm_name)
        self.plan: tuple[StepRow, ...] = ()
        self.steps, self.deadline = self.rich("Reading the steps…"), QSpinBox(self)
        about = self.rich(
            f"Planned, and nothing is lost: <b>{escape(vm_name)}</b> is synced while it runs, shut down at "
            f"{escape(source)}, and started at {escape(target)}. It does not serve between the two."
        )
        self.deadline.setRange(1, SHUTDOWN_MAX_S)
        self.deadline.setValue(SHUTDOWN_S)
        self.deadline.setSuffix(" s")
        self.deadline.setAccessibleName("Seconds the guest may take to shut down")
        self.deadline.setToolTip("When it takes longer you are asked; it is never switched off by a timer")
        self.deadline.setMaximumWidth(120)
        self.reread = QCheckBox("Read all disks &again once it is off, and compare them", self)
        self.reread.setToolTip("Makes the downtime longer; by how much is asked before the guest is shut down")
        self.box.addWidget(about)
        self.add_group("What will happen", self.steps)
        self.box.addWidget(self.reread)
        self.box.addStretch(1)
        self.add_form(("&Shutdown deadline:", self.deadline))
        self.add_buttons(640, 480)
        self.reread.toggled.connect(self._ask_steps)
        self._ask_steps()

    @property
    def args(self) -> dict[str, object]:
        """The operation's arguments."""
        chosen: dict[str, object] = {"shutdown_s": float(self.deadline.value())}
        return chosen | {"reread": True} if self.reread.isChecked() else chosen

    def _ask_steps(self) -> None:
        backend, args = self._context.backend, self.args
        self.plan = ()
        self.ask(
            lambda: backend.operation_steps(OperationKind.MIGRATION, args),
            self._show,
            self.steps,
            "The steps cannot be read.",
        )

    def _show(self, plan: Sequence[StepRow]) -> None:
        self.plan = tuple(plan)
        mark = f" {self.coloured(Severity.WARNING, '— no undo after this')}"
        lines = [f"<li>{escape(step.title)}{mark if step.no_return else ''}</li>" for step in plan]
        self.steps.setText(f"<ol style='margin-left:-16px'>{''.join(lines)}</ol>")

    def missing(self) -> str:
        """The steps."""
        return "" if self.plan else "Waiting for the steps."
