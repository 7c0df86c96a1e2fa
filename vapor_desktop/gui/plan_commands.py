"""What the Plans page's buttons do: dialogs first, then errands."""

from __future__ import annotations

from functools import partial
from html import escape

from PySide6.QtCore import QObject, Qt
from PySide6.QtWidgets import QDialog, QMessageBox, QWidget

from vapor_desktop.gui.context import Context
from vapor_desktop.gui.plan_editor import PlanEditor
from vapor_desktop.gui.plan_run_sheet import PlanRunSheet
from vapor_desktop.gui.typed_confirm import TypedConfirm
from vapor_desktop.model.operations import Operation
from vapor_desktop.model.plans import PlanStatus
from vapor_desktop.model.view import Snapshot


class PlanCommands(QObject):
    """``dialog``: the one opened last."""

    def __init__(self, context: Context, window: QWidget) -> None:
        super().__init__(window)
        self._context, self._window = context, window
        self._snapshot: Snapshot | None = None
        self.dialog: QDialog | QMessageBox | None = None

    def take(self, snapshot: Snapshot) -> None:
        """What is known now."""
        self._snapshot = snapshot

    def new(self) -> None:
        """The editor, empty."""
        self._edit(None)

    def edit(self, status: PlanStatus) -> None:
        """The editor on that plan."""
        self._edit(status)

    def _edit(self, status: PlanStatus | None) -> None:
        rows = self._snapshot.protections if self._snapshot else ()
        if not rows:
            text = "A recovery plan is made of protected VMs, and none is protected yet."
            self._open(QMessageBox(QMessageBox.Icon.Information, "Recovery plan", text, parent=self._window))
            return
        self._open(PlanEditor(self._context, rows, status.plan if status else None, self._window))

    def run(self, status: PlanStatus) -> None:
        """The sheet, then the run."""
        sheet = PlanRunSheet(self._context, status, self._window)
        backend, plan = self._context.backend, status.plan

        def begin() -> None:
            work = partial(backend.run_plan, plan.plan_id, sheet.mode, sheet.why)
            self._context.errands.run(f"Begin to run {plan.name} as {sheet.mode.value}", work)

        sheet.accepted.connect(begin)
        self._open(sheet)

    def delete(self, status: PlanStatus) -> None:
        """Typed confirmation, then delete."""
        plan, backend = status.plan, self._context.backend
        text = f"<h3>Delete {escape(plan.name)}</h3>The plan goes, at every site that keeps it. No VM is touched."
        title = f"Delete {plan.name}"
        dialog = TypedConfirm(self._window, title=title, text=text, name=plan.name, button=title)
        work = partial(backend.delete_plan, plan.plan_id, plan.version)
        dialog.accepted.connect(lambda: self._context.errands.run(title, work))
        self._open(dialog)

    def stop(self, run: Operation) -> None:
        """Ask once more, then stop the run."""
        title, backend = f"Stop the run of {run.vm_name}", self._context.backend
        text = (
            "No further VM is begun. What runs at its target goes on running, and a VM's own operation that is under "
            "way goes on by itself. Run the plan again to finish it: what is up is seen as done."
        )
        box = QMessageBox(QMessageBox.Icon.Question, title, f"<b>{escape(title)}?</b><br>{text}", parent=self._window)
        box.setDefaultButton(box.addButton("&Let it go on", QMessageBox.ButtonRole.RejectRole))
        stop = partial(backend.cancel_operation, run.operation_id)
        box.addButton("&Stop it", QMessageBox.ButtonRole.AcceptRole).clicked.connect(
            lambda: self._context.errands.run(title, stop)
        )
        self._open(box)

    def _open(self, dialog: QDialog) -> None:
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        dialog.setModal(True)
        self.dialog = dialog
        dialog.open()
