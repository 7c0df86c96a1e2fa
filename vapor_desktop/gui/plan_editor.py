"""The editor of a recovery plan: tiers and their order on the left, the chosen tier or VM on the right."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape

from PySide6.QtCore import Qt
from PySide6.QtWidgets import (
    QComboBox,
    QDialog,
    QDoubleSpinBox,
    QFormLayout,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QPushButton,
    QSpinBox,
    QStackedWidget,
    QTreeWidget,
    QTreeWidgetItem,
    QVBoxLayout,
    QWidget,
)

from vapor_desktop.gui.context import Context
from vapor_desktop.gui.error_box import sentence
from vapor_desktop.gui.plan_draft import Draft, Place
from vapor_desktop.gui.plan_vm_form import PlanVmForm
from vapor_desktop.model.errors import InvalidRequest, VaporError
from vapor_desktop.model.plans import Plan, PlanVm
from vapor_desktop.model.states import Severity
from vapor_desktop.model.view import ProtectionStatus

_PLACE = Qt.ItemDataRole.UserRole


class PlanEditor(QDialog):
    """Saves through the backend and closes; a refusal is told and nothing is lost."""

    def __init__(
        self, context: Context, rows: Sequence[ProtectionStatus], plan: Plan | None, parent: QWidget
    ) -> None:
        super().__init__(parent)
        self._context, self._plan = context, plan
        self._rows = {r.protection.vm_uuid: r for r in rows}
        self.draft = Draft(plan.tiers if plan is not None else ())
        self._place: Place | None = None
        self._busy = False
        self.setWindowTitle(f"Edit {plan.name}" if plan else "New recovery plan")
        self.name, self.parallel = QLineEdit(plan.name if plan else "", self), QSpinBox(self)
        self.tree = QTreeWidget(self)
        self.add_box = QComboBox(self)
        self.add_box.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToContents)  # it is filled later
        self.add_vm, self.add_tier = QPushButton("&Add VM", self), QPushButton("Add &tier", self)
        self.up, self.down = QPushButton("Move &up", self), QPushButton("Move do&wn", self)
        self.remove = QPushButton("Remo&ve", self)
        self.tier_name, self.pause = QLineEdit(self), QLineEdit(self)
        self.tier_delay = QDoubleSpinBox(self)
        self.vm_form = PlanVmForm(context, self)
        self.right = QStackedWidget(self)
        self.state = QLabel(self)
        self.save, self.cancel = QPushButton("&Save", self), QPushButton("Cancel", self)
        self._lay_out()
        self._connect()
        self._draw()
        self._choose((0, None) if self.draft.tiers else None)

    def _lay_out(self) -> None:
        self.name.setAccessibleName("Name of the plan")
        self.name.setPlaceholderText("for example Shop")
        self.parallel.setRange(1, 16)
        self.parallel.setValue(self._plan.parallel if self._plan else 4)
        self.parallel.setAccessibleName("VMs at a time")
        self.parallel.setMaximumWidth(90)
        self.tree.setHeaderHidden(True)
        self.tree.setAccessibleName("Tiers and their VMs, in order")
        self.add_box.setAccessibleName("VM to add")
        self.tier_delay.setRange(0, 86400)
        self.tier_delay.setDecimals(0)
        self.tier_delay.setSuffix(" s")
        self.tier_delay.setAccessibleName("Delay after the tier")
        self.tier_name.setAccessibleName("Name of the tier")
        self.pause.setAccessibleName("What a person is asked before the tier")
        self.pause.setPlaceholderText("empty: no pause; else what a person is asked, e.g. Is the DNS moved?")
        self.state.setTextFormat(Qt.TextFormat.RichText)
        self.state.setWordWrap(True)
        self.save.setDefault(True)
        self.cancel.setAutoDefault(False)
        head = QFormLayout()
        head.addRow("&Name:", self.name)
        head.addRow("VMs at a ti&me:", self.parallel)
        grid = QGridLayout()
        for n, widget in enumerate((self.add_box, self.add_vm, self.add_tier, self.up, self.down, self.remove)):
            grid.addWidget(widget, n // 2, n % 2)
        left = QVBoxLayout()
        left.addWidget(self.tree, 1)
        left.addLayout(grid)
        tier = QWidget(self)
        form = QFormLayout(tier)
        form.addRow("Name of the &tier:", self.tier_name)
        form.addRow("&Pause before it:", self.pause)
        form.addRow("&Delay after it:", self.tier_delay)
        for page in (QLabel("Add a VM, or choose a tier or a VM.", self), tier, self.vm_form):
            self.right.addWidget(page)
        middle = QHBoxLayout()
        middle.addLayout(left, 1)
        middle.addWidget(self.right, 1)
        buttons = QHBoxLayout()
        buttons.addWidget(self.state, 1)
        buttons.addWidget(self.save)
        buttons.addWidget(self.cancel)
        box = QVBoxLayout(self)
        box.setContentsMargins(16, 12, 16, 12)
        box.addLayout(head)
        box.addLayout(middle, 1)
        box.addLayout(buttons)
        self.resize(900, 620)

    def _connect(self) -> None:
        self.tree.currentItemChanged.connect(self._chosen)
        self.add_vm.clicked.connect(self._add_vm)
        self.add_tier.clicked.connect(lambda: self._moved(self.draft.add_tier()))
        self.up.clicked.connect(lambda: self._move(-1))
        self.down.clicked.connect(lambda: self._move(1))
        self.remove.clicked.connect(self._remove)
        for line in (self.tier_name, self.pause):
            line.textEdited.connect(lambda _t: self._tier_typed())
        self.tier_delay.valueChanged.connect(lambda _v: self._tier_typed())
        self.vm_form.changed.connect(self._vm_typed)
        self.name.textChanged.connect(lambda _t: self._judge())
        self.save.clicked.connect(self._save)
        self.cancel.clicked.connect(self.reject)

    # --- the tree -----------------------------------------------------------------------------------
    def _draw(self) -> None:
        """Anew; the chosen place stays chosen."""
        self.tree.blockSignals(True)
        self.tree.clear()
        for n, tier in enumerate(self.draft.tiers):
            item = QTreeWidgetItem([f"Tier {n + 1}" + (f": {tier.name}" if tier.name else "")])
            item.setData(0, _PLACE, (n, None))
            self.tree.addTopLevelItem(item)
            for m, vm in enumerate(tier.vms):
                below = QTreeWidgetItem([vm.name + ("" if vm.vm_uuid in self._rows else " (not protected)")])
                below.setData(0, _PLACE, (n, m))
                item.addChild(below)
            item.setExpanded(True)
        used = {vm.vm_uuid for tier in self.draft.tiers for vm in tier.vms}
        self.add_box.clear()
        for uuid, row in sorted(self._rows.items(), key=lambda pair: pair[1].protection.vm_name):
            if uuid not in used:
                self.add_box.addItem(row.protection.vm_name, uuid)
        self.add_vm.setEnabled(self.add_box.count() > 0)
        self._mark(self._place)
        self.tree.blockSignals(False)
        self._judge()

    def _mark(self, place: Place | None) -> None:
        if place is None:
            return
        tier = self.tree.topLevelItem(place[0])
        item = tier if tier is None or place[1] is None else tier.child(place[1])
        if item is not None:
            self.tree.setCurrentItem(item)

    def _chosen(self, now: QTreeWidgetItem | None, _before: object) -> None:
        if now is not None:
            place = now.data(0, _PLACE)
            self._choose((place[0], place[1]))

    def _choose(self, place: Place | None) -> None:
        self._place = place
        for button in (self.up, self.down, self.remove):
            button.setEnabled(place is not None)
        if place is None:
            self.right.setCurrentIndex(0)
        elif place[1] is None:
            tier = self.draft.tiers[place[0]]
            self.tier_delay.blockSignals(True)
            self.tier_name.setText(tier.name)
            self.pause.setText(tier.pause)
            self.tier_delay.setValue(tier.delay_s)
            self.tier_delay.blockSignals(False)
            self.right.setCurrentIndex(1)
        else:
            vm = self.draft.tiers[place[0]].vms[place[1]]
            row = self._rows.get(vm.vm_uuid)
            self.right.setCurrentIndex(2 if row is not None else 0)
            if row is not None:
                self.vm_form.show_vm(vm, row.key)

    def _moved(self, place: Place | None) -> None:
        self._place = place
        self._draw()
        self._choose(place)

    def _add_vm(self) -> None:
        uuid = self.add_box.currentData()
        row = self._rows.get(str(uuid))
        if row is not None:
            at = self._place[0] if self._place is not None else len(self.draft.tiers) - 1
            self._moved(self.draft.add_vm(at, PlanVm(vm_uuid=str(uuid), name=row.protection.vm_name)))

    def _move(self, by: int) -> None:
        if self._place is not None:
            self._moved(self.draft.move(self._place, by))

    def _remove(self) -> None:
        if self._place is not None:
            self._moved(self.draft.remove(self._place))

    # --- typing -------------------------------------------------------------------------------------
    def _tier_typed(self) -> None:
        if self._place is None or self._place[1] is not None:
            return
        changes = {
            "name": self.tier_name.text().strip(),
            "pause": self.pause.text().strip(),
            "delay_s": self.tier_delay.value(),
        }
        self.draft.change_tier(self._place[0], changes)
        item = self.tree.topLevelItem(self._place[0])
        if item is not None:
            name = str(changes["name"])
            item.setText(0, f"Tier {self._place[0] + 1}" + (f": {name}" if name else ""))
        self._judge()

    def _vm_typed(self) -> None:
        if self._place is None or self._place[1] is None:
            return
        try:
            self.draft.change_vm(self._place[0], self._place[1], self.vm_form.vm())
            self.draft.trouble = ""
        except InvalidRequest as error:
            self.draft.trouble = error.what
        self._judge()

    # --- deciding -----------------------------------------------------------------------------------
    def plan(self) -> Plan:
        """As the editor has it. Raises InvalidRequest naming what does not fit."""
        known = self._plan
        plan_id, version = (known.plan_id, known.version) if known else ("", 0)
        shutdown_s = known.shutdown_s if known else 120.0
        return self.draft.plan(
            self.name.text().strip(), plan_id, version, self.parallel.value(), shutdown_s, datetime.now(UTC)
        )

    def _judge(self) -> None:
        if self._busy:
            return
        try:
            self.plan()
            self.state.setText("It is kept at each site where its VMs are recovered.")
            self.save.setEnabled(True)
        except InvalidRequest as error:
            self._say(error.what)
            self.save.setEnabled(False)

    def _save(self) -> None:
        plan, backend = self.plan(), self._context.backend
        self._busy = True
        self.save.setEnabled(False)
        self.state.setText("Writing it at its targets…")
        self._context.bridge.ask(lambda: backend.save_plan(plan), self, self._saved, self._refused)

    def _saved(self, _plan: Plan) -> None:
        self._context.bridge.refresh()
        self.accept()

    def _refused(self, error: VaporError) -> None:
        self._busy = False
        self.save.setEnabled(True)
        self.state.setText(f"Nothing was changed. {sentence(error)}")

    def _say(self, text: str) -> None:
        colour = self._context.theme.colours.severity[Severity.WARNING]
        self.state.setText(f"<span style='color:{colour}'>{escape(text)}.</span>")
