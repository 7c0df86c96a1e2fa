"""What the verbs do: ask where it must be asked, then run them as errands."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape

from PySide6.QtCore import QObject, Qt, Signal
from PySide6.QtWidgets import QDialog, QMessageBox, QWidget

from vapor_desktop.gui import after_failover, guide_window, take_over
from vapor_desktop.gui.context import Context
from vapor_desktop.gui.drill_sheet import DrillSheet
from vapor_desktop.gui.drill_verdict import StopDrillSheet
from vapor_desktop.gui.edit_dialog import EditDialog
from vapor_desktop.gui.error_box import show_error
from vapor_desktop.gui.failover_sheet import FailoverSheet
from vapor_desktop.gui.migrate_sheet import MigrateSheet
from vapor_desktop.gui.pair_wizard import PairWizard
from vapor_desktop.gui.protect_wizard import ProtectWizard
from vapor_desktop.gui.protection_columns import Row
from vapor_desktop.gui.reprotect_sheet import ReprotectSheet
from vapor_desktop.gui.seed_dialog import SeedDialog
from vapor_desktop.gui.sheet import Sheet, begins
from vapor_desktop.gui.typed_confirm import TypedConfirm
from vapor_desktop.model.errors import LeaseHeld, VaporError
from vapor_desktop.model.operations import Choice, Operation, OperationKind, OperationState
from vapor_desktop.model.view import ProtectionStatus, SiteStatus, Snapshot, Task
from vapor_desktop.model.wire import Progress, SeedState

Skipped = Sequence[tuple[Row, str]]
_DECISIONS = {
    "commit": after_failover.commit,
    "roll-back": after_failover.roll_back,
    "resolve": after_failover.resolve,
}
_TITLES = {"sync": "Sync", "pause": "Pause", "resume": "Resume"}


def _copied(state: SeedState) -> Progress:
    return Progress(
        done_bytes=state.done_bytes, total_bytes=state.total_bytes, rate_bytes_s=0.0, disk=state.disk, wire_bytes=0
    )


class Commands(QObject):
    """Opens dialogs and runs errands.

    Signals:
        opened: show the VM of this protection id.
        begun: the id of an operation that was begun here.
    """

    opened = Signal(str)
    begun = Signal(str)

    def __init__(self, context: Context, window: QWidget) -> None:
        super().__init__(window)
        self._context, self._window = context, window
        self._snapshot: Snapshot | None = None
        self.dialog: QDialog | QMessageBox | None = None  # the one opened last

    def take(self, snapshot: Snapshot) -> None:
        """What is known now."""
        self._snapshot = snapshot

    def do(self, verb: str, rows: Sequence[Row], skipped: Skipped) -> None:
        """A verb on rows; rows it does not apply to are skipped, and said."""
        if verb in _TITLES:
            if skipped:
                self._ask_mixed(verb, rows, skipped)
            else:
                self._run_each(verb, rows)
        elif verb == "protect":
            self.protect(rows)
        elif verb == "open" and rows:
            self.opened.emit(rows[0].key)
        elif verb == "unprotect" and rows:
            self.unprotect(rows[0])
        elif verb == "failover" and rows:
            self.failover(rows)
        elif verb in _DECISIONS and rows and rows[0].status is not None:
            self._open(_DECISIONS[verb](self._context, rows[0].status, self.begun.emit, self._window))
        elif verb == "migrate" and rows:
            self.migrate(rows[0])
        elif verb == "reprotect" and rows:
            self.reprotect(rows[0])
        elif verb == "drill" and rows:
            self.drill(rows[0])
        elif verb == "stop-drill" and rows:
            self.stop_drill(rows[0])
        elif verb == "edit" and rows:
            self._open(EditDialog(self._context, rows[0].key, rows[0].name, self._window))
        elif verb == "seed" and rows:
            self.seed(rows[0])

    def _run_each(self, verb: str, rows: Sequence[Row]) -> None:
        backend = self._context.backend
        work: dict[str, Callable[[str], None]] = {
            "sync": backend.sync_now,
            "pause": backend.pause,
            "resume": backend.resume,
        }
        for row in rows:
            self._context.errands.run(f"{_TITLES[verb]} {row.name}", partial(work[verb], row.key), subject=row.key)

    def _ask_mixed(self, verb: str, rows: Sequence[Row], skipped: Skipped) -> None:
        why = "".join(f"<li>{escape(reason)}</li>" for _row, reason in skipped[:10])
        more = f"<li>and {len(skipped) - 10} more</li>" if len(skipped) > 10 else ""
        text = f"{_TITLES[verb]} will run on {len(rows)}, and skips {len(skipped)}:<ul>{why}{more}</ul>"
        box = QMessageBox(QMessageBox.Icon.Question, _TITLES[verb], text, parent=self._window)
        box.addButton(QMessageBox.StandardButton.Cancel)
        go = box.addButton(f"&{_TITLES[verb]} {len(rows)}", QMessageBox.ButtonRole.AcceptRole)
        go.clicked.connect(lambda: self._run_each(verb, rows))
        self._open(box)

    # --- dialogs ----------------------------------------------------------------------------------------
    def pair(self) -> None:
        """The pairing wizard."""
        sites = [s.site for s in self._snapshot.sites] if self._snapshot else []
        self._open(PairWizard(self._context, sites, self._window))

    def protect(self, rows: Sequence[Row] = ()) -> None:
        """The protect wizard, with these VMs ticked."""
        sites = self._snapshot.sites if self._snapshot else ()
        if len(sites) < 2:
            text = "Protecting a VM needs two paired sites: where it runs, and where its recovery points are kept."
            box = QMessageBox(QMessageBox.Icon.Information, "Protect", text, parent=self._window)
            box.addButton(QMessageBox.StandardButton.Close)
            box.addButton("&Pair site…", QMessageBox.ButtonRole.AcceptRole).clicked.connect(self.pair)
            self._open(box)
            return
        pairs = self._snapshot.pairs if self._snapshot else ()
        chosen = [row.vm for row in rows if row.vm is not None]
        rows_now = self._snapshot.protections if self._snapshot else ()
        covered = frozenset(row.protection.vm_uuid for row in rows_now)
        self._open(ProtectWizard(self._context, sites, pairs, chosen, covered, self._window))

    def failover(self, rows: Sequence[Row]) -> None:
        """The failover sheet, of one VM or of several."""
        if len(rows) > 1:
            self._open(after_failover.several(self._context, rows, self._window))
            return
        row = rows[0]
        if row.status is None:
            return
        sheet = FailoverSheet(self._context, row.key, row.name, row.status.target_name, self._window)
        title = f"Fail over {row.name} to {row.status.target_name}"
        backend = self._context.backend

        def run() -> None:
            decided = partial(backend.failover, row.key, sheet.seq, sheet.why, sheet.source_way)
            self._context.errands.run(title, decided, subject=row.key)

        sheet.accepted.connect(run)
        self._open(sheet)

    def migrate(self, row: Row) -> None:
        """The migration sheet, then the operation."""
        if row.status is None:
            return
        sheet = MigrateSheet(self._context, row.name, row.status.source_name, row.status.target_name, self._window)
        title = f"Begin to migrate {row.name} to {row.status.target_name}"
        self._begin(sheet, OperationKind.MIGRATION, row, title, lambda: sheet.args)

    def reprotect(self, row: Row) -> None:
        """The reprotect sheet with its price, then the operation."""
        if row.status is None:
            return
        here, there = row.status.target_name, row.status.source_name
        sheet = ReprotectSheet(self._context, row.key, row.name, here, there, self._window)
        self._begin(sheet, OperationKind.REPROTECT, row, f"Begin to reprotect {row.name} to {there}", dict)

    def drill(self, row: Row) -> None:
        """The drill sheet, then the operation."""
        if row.status is None:
            return
        policy, backend = row.status.protection.policy, self._context.backend
        sheet = DrillSheet(self._context, row.key, row.name, row.status.target_name, policy, self._window)

        def schedule() -> None:
            if sheet.schedule is not None:
                days, auto = sheet.schedule
                change = partial(backend.schedule_drills, row.key, days, auto=auto)
                self._context.errands.run(f"Schedule drills of {row.name}", change, subject=row.key)

        sheet.accepted.connect(schedule)
        title = f"Begin a drill of {row.name} at {row.status.target_name}"
        self._begin(sheet, OperationKind.DRILL, row, title, lambda: sheet.args)

    def stop_drill(self, row: Row) -> None:
        """What it has shown, a verdict, then the operation."""
        if row.status is None:
            return

        def checked_now() -> bool:
            mine = (o for o in self._operations() if o.protection_id == row.key and o.kind is OperationKind.DRILL)
            return any(not o.ended for o in mine)

        uuid = row.status.protection.vm_uuid
        sheet = StopDrillSheet(self._context, row.key, uuid, row.name, self._window, checked_now)
        self._begin(sheet, OperationKind.STOP_DRILL, row, f"Stop the drill of {row.name}", lambda: sheet.args)

    def _operations(self) -> tuple[Operation, ...]:
        return self._snapshot.operations if self._snapshot else ()

    def _begin(
        self, sheet: Sheet, kind: OperationKind, row: Row, title: str, args: Callable[[], Mapping[str, object]]
    ) -> None:
        begins(self._context, sheet, kind, row.key, title, self.begun.emit, args)
        self._open(sheet)

    def answer(self, operation: Operation, choice: Choice) -> None:
        """What a waiting operation asked."""
        if operation.question is None:
            return
        backend, question_id = self._context.backend, operation.question.question_id
        title = f"Answer the {operation.kind.value} of {operation.vm_name}: {choice.text}"
        given = partial(backend.answer_question, operation.operation_id, question_id, choice.key)
        self._context.errands.run(title, given, subject=operation.protection_id)

    def undo(self, operation: Operation) -> None:
        """Ask once more, then take the operation back."""
        title, backend = f"Undo the {operation.kind.value} of {operation.vm_name}", self._context.backend
        text = "What it has done is taken back, step by step, the last step first. The VM goes back to where it was."
        if operation.state is OperationState.INTERRUPTED:
            text = "Another version of the program began it: it is closed as failed, and nothing is taken back."
        if operation.kind is OperationKind.PLAN:
            title = f"Stop the run of {operation.vm_name}"
            text = "No further VM is begun; nothing is taken back. Run the plan again to finish it."
        box = QMessageBox(QMessageBox.Icon.Question, title, f"<b>{escape(title)}?</b><br>{text}", parent=self._window)
        box.setDefaultButton(box.addButton("&Let it go on", QMessageBox.ButtonRole.RejectRole))
        undo = partial(backend.cancel_operation, operation.operation_id)
        go = box.addButton(
            "&Stop it" if operation.kind is OperationKind.PLAN else "&Undo it", QMessageBox.ButtonRole.AcceptRole
        )
        go.clicked.connect(lambda: self._context.errands.run(title, undo, subject=operation.protection_id))
        self._open(box)

    def seed(self, row: Row) -> None:
        """Which images, then the copying, which may take long."""
        if row.status is None:
            return
        dialog = SeedDialog(self._context, row.key, row.name, row.status.target_name, self._window)
        backend = self._context.backend

        def run() -> None:
            images, image_format = dialog.images, dialog.image_format

            def work(report: Callable[[Progress], None]) -> None:
                backend.seed(row.key, images, image_format, lambda state: report(_copied(state)))

            self._context.errands.run_long(f"Seed the first copy of {row.name}", work, subject=row.key)

        dialog.accepted.connect(run)
        self._open(dialog)

    def unprotect(self, row: Row) -> None:
        """Typed confirmation, then unprotect."""
        if row.status is None:
            return
        name, target, backend = escape(row.name), escape(row.status.target_name), self._context.backend
        text = (
            f"<h3>Stop protecting {name}</h3>No new recovery points are made. Its {row.status.point_count} "
            f"recovery points at {target} stay, unless you tick the box."
        )
        dialog = TypedConfirm(
            self._window,
            title=f"Unprotect {row.name}",
            text=text,
            name=row.name,
            button=f"Unprotect {row.name}",
            option=f"Also &delete its recovery points at {row.status.target_name}, for ever",
        )

        def run() -> None:
            delete = dialog.option.isChecked()
            self._context.errands.run(
                f"Unprotect {row.name}", lambda: backend.unprotect(row.key, delete_replica=delete), subject=row.key
            )

        dialog.accepted.connect(run)
        self._open(dialog)

    def remove_site(self, site: SiteStatus) -> None:
        """Typed confirmation, then forget the site."""
        name, backend = site.site.name, self._context.backend
        text = f"<h3>Forget {escape(name)}</h3>Its keys and its token are removed from this console. Replicas stay."
        title = f"Remove {name}"
        dialog = TypedConfirm(self._window, title=title, text=text, name=name, button=title)
        run = self._context.errands.run
        dialog.accepted.connect(lambda: run(title, lambda: backend.remove_site(site.site.site_id)))
        self._open(dialog)

    def adopt(self, site: SiteStatus) -> None:
        """Take over what the site's manifests describe: reversible, so no question."""
        backend = self._context.backend
        title = f"Adopt the replicas of {site.site.name}"
        self._context.errands.run(title, lambda: backend.adopt_replicas(site.site.site_id))

    def cancel(self, task: Task) -> None:
        """Ask the engine to cancel a task."""
        backend = self._context.backend
        self._context.errands.run(f"Cancel: {task.title}", lambda: backend.cancel(task.key))

    def show_failure(self, title: str, error: VaporError) -> None:
        """A verb did not work."""
        explain = partial(guide_window.explain, self._window, self._context.theme)
        box = self.dialog = show_error(self._window, title, error, explain)
        rows = self._snapshot.protections if self._snapshot else ()
        row = next((r for r in rows if r.protection.vm_uuid == error.details.get("vm_uuid")), None)
        if isinstance(error, LeaseHeld) and row is not None:
            held, found = error, row
            take_over.offer(box).clicked.connect(lambda: self._take_over(found, held))

    def _take_over(self, row: ProtectionStatus, error: LeaseHeld) -> None:
        name, backend = row.protection.vm_name, self._context.backend
        dialog = take_over.TakeOverDialog(self._window, name, error)

        def run() -> None:
            reason, holder = dialog.reason.text(), str(error.details.get("holder"))
            title = f"Take over the lease of {name}"
            work = partial(take_over.take_over, backend, row.key, holder, reason)
            self._context.errands.run(title, work, subject=row.key)

        dialog.accepted.connect(run)
        self._open(dialog)

    def _open(self, dialog: QDialog) -> None:
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        dialog.setModal(True)
        self.dialog = dialog
        dialog.open()
