"""The protect wizard's first pages: which VMs, to which site, on which networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from PySide6.QtCore import QSignalBlocker, Qt
from PySide6.QtWidgets import (
    QAbstractItemView,
    QComboBox,
    QHeaderView,
    QLabel,
    QLineEdit,
    QTableWidget,
    QTableWidgetItem,
)

from vapor_desktop.gui import words
from vapor_desktop.gui.bridge import Call
from vapor_desktop.gui.context import Context
from vapor_desktop.gui.error_box import sentence
from vapor_desktop.gui.forms import child
from vapor_desktop.gui.network_map import NetworkMap
from vapor_desktop.gui.pair_wizard import FormPage
from vapor_desktop.model.errors import VaporError
from vapor_desktop.model.view import SiteStatus, VmStatus

KINDS = {"delta": "by delta", "compare": "by full compare", "excluded": "left out", "refused": "refused"}
_TICKED = Qt.CheckState.Checked


def disks_text(vm: VmStatus) -> str:
    """``vda 20 GiB by delta; vdb 1 TiB by full compare``."""
    return "; ".join(f"{d.target} {words.size(d.size_bytes)} {KINDS.get(d.kind, d.kind)}" for d in vm.disks)


def why_text(vm: VmStatus) -> str:
    """Why it cannot be protected, or what is limited; with the fix."""
    notes = [] if vm.protectable else [vm.reason]
    for disk in vm.disks:
        if disk.kind != "delta" and disk.reason and disk.reason not in vm.reason:
            notes.append(f"{disk.target}: {disk.reason}. {disk.fix}".strip())
    return "  ".join(note for note in notes if note)


class VmsPage(FormPage):
    """VMs of one site; those that cannot be protected say why."""

    def __init__(
        self, context: Context, sites: Sequence[SiteStatus], chosen: Sequence[VmStatus], covered: frozenset[str]
    ) -> None:
        super().__init__("protect_vms", "Which virtual machines?")
        self._context = context
        self._covered = covered
        self._ticked = {vm.vm_uuid for vm in chosen}
        self._vms: list[VmStatus] = []
        self._source = child(self.form, QComboBox, "source")
        self.table, self.state = child(self.form, QTableWidget, "vms"), child(self.form, QLabel, "state")
        self._count, find = child(self.form, QLabel, "count"), child(self.form, QLineEdit, "find")
        self.state.setTextFormat(Qt.TextFormat.RichText)
        for site in sites:
            self._source.addItem(site.site.name, site.site.site_id)
        if chosen:
            self._source.setCurrentIndex(max(0, self._source.findData(chosen[0].site_id)))
        self._prepare()
        self._source.currentIndexChanged.connect(self._read)
        find.textChanged.connect(self._filter)
        self.table.itemChanged.connect(self._tick)
        self._read()

    def _prepare(self) -> None:
        self.table.setColumnCount(4)
        self.table.setHorizontalHeaderLabels(["VM", "State", "Disks", "Note"])
        self.table.verticalHeader().hide()
        self.table.setWordWrap(True)
        self.table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.table.setTabKeyNavigation(False)
        header = self.table.horizontalHeader()
        header.setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        header.setStretchLastSection(True)
        header.setDefaultAlignment(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter)
        self.table.setShowGrid(False)
        header.setMinimumSectionSize(90)

    def source(self) -> str:
        """The source site's id."""
        return str(self._source.currentData() or "")

    def chosen(self) -> list[VmStatus]:
        """The ticked VMs."""
        return [vm for vm in self._vms if vm.vm_uuid in self._ticked and vm.protectable]

    def isComplete(self) -> bool:
        """At least one is ticked."""
        return bool(self.chosen())

    def _read(self) -> None:
        self._vms = []
        self.table.setRowCount(0)
        self.state.setText("Reading the virtual machines…")
        self.state.show()
        source, backend = self.source(), self._context.backend
        self._context.bridge.ask(lambda: (source, backend.vms(source)), self, self._show, self._failed)

    def _failed(self, error: VaporError) -> None:
        self.state.setText(sentence(error))

    def _show(self, answer: tuple[str, Sequence[VmStatus]]) -> None:
        source, vms = answer
        if source != self.source():
            return
        judged = [self._judge(vm) for vm in vms]
        self._vms = sorted(judged, key=lambda vm: (not vm.protectable, words.natural(vm.name)))
        self.table.blockSignals(True)
        self.table.setRowCount(len(self._vms))
        for row, vm in enumerate(self._vms):
            self._fill(row, vm)
        self.table.blockSignals(False)
        self.table.resizeRowsToContents()
        self.state.setText("No virtual machine there is without protection.")
        self.state.setVisible(not self._vms)
        self._tell()

    def _judge(self, vm: VmStatus) -> VmStatus:
        if vm.vm_uuid not in self._covered:
            return vm
        return replace(vm, protectable=False, reason="It is protected already")

    def _fill(self, row: int, vm: VmStatus) -> None:
        name = QTableWidgetItem(vm.name)
        name.setData(Qt.ItemDataRole.UserRole, vm.vm_uuid)
        flags = Qt.ItemFlag.ItemIsSelectable
        if vm.protectable:
            flags |= Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsUserCheckable
        name.setFlags(flags)
        on = vm.protectable and vm.vm_uuid in self._ticked
        name.setCheckState(_TICKED if on else Qt.CheckState.Unchecked)
        self.table.setItem(row, 0, name)
        for column, text in enumerate((vm.state, disks_text(vm), why_text(vm)), start=1):
            item = QTableWidgetItem(text)
            item.setToolTip(text)
            item.setFlags(Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsSelectable)
            self.table.setItem(row, column, item)

    def _tick(self, item: QTableWidgetItem) -> None:
        if item.column() == 0:
            change = self._ticked.add if item.checkState() == _TICKED else self._ticked.discard
            change(item.data(Qt.ItemDataRole.UserRole))
            self._tell()

    def _filter(self, text: str) -> None:
        for row, vm in enumerate(self._vms):
            self.table.setRowHidden(row, text.casefold() not in vm.name.casefold())

    def _tell(self) -> None:
        able = sum(vm.protectable for vm in self._vms)
        self._count.setText(f"{len(self.chosen())} of {able} chosen; {len(self._vms) - able} cannot be protected.")
        self.completeChanged.emit()


class TargetPage(FormPage):
    """The target and what its networks are called."""

    def __init__(
        self, context: Context, sites: Sequence[SiteStatus], pairs: tuple[tuple[str, str, str], ...], vms: VmsPage
    ) -> None:
        super().__init__("protect_target", "Where to?")
        self._context, self._sites, self._vms = context, {s.site.site_id: s for s in sites}, vms
        self._peers = {frozenset(pair[:2]): pair[2] for pair in pairs}
        self._target, self._room = child(self.form, QComboBox, "target"), child(self.form, QLabel, "room")
        self.table, self.state = child(self.form, QTableWidget, "networks"), child(self.form, QLabel, "state")
        self.networks = NetworkMap(self.table)
        self._mapped: dict[str, str] = {}  # what was chosen; a new answer of the target must not undo it
        self._asked: Call | None = None
        self._source = ""
        self.networks.changed.connect(self.completeChanged)
        self._target.currentIndexChanged.connect(self._read)

    def target(self) -> str:
        """The target site's id."""
        return str(self._target.currentData() or "")

    def mapping(self) -> dict[str, str]:
        """Source network → target network, where one was chosen."""
        return self.networks.mapping()

    def initializePage(self) -> None:
        """Targets are the sites that are paired with the source."""
        source = self._vms.source()
        if source != self._source or not self._target.count():
            self._source = source
            blocker = QSignalBlocker(self._target)  # it is read once, below
            self._target.clear()
            for site_id, status in self._sites.items():
                route = self._peers.get(frozenset((source, site_id)))
                if site_id != source and route:
                    self._target.addItem(f"{status.site.name} ({route})", site_id)
            if not self._target.count():
                self._room.setText("This site is not paired with another one. Pair it first.")
            blocker.unblock()
        self._read()

    def isComplete(self) -> bool:
        """A target is chosen and every network has a counterpart."""
        return bool(self.target()) and self.networks.complete()

    def _read(self) -> None:
        self._mapped.update(self.mapping())
        self.networks.clear()
        if self._asked is not None:
            self._asked.abandon()
        target, backend = self.target(), self._context.backend
        if not target:
            self.completeChanged.emit()
            return
        status = self._sites[target]
        self._room.setText(f"{words.size(status.free_bytes)} free of {words.size(status.total_bytes)} there.")
        self.state.setText("Reading the target's networks…")
        self._asked = self._context.bridge.ask(
            lambda: backend.site_networks(target),
            self,
            self._show,
            lambda error: self.state.setText(sentence(error)),
        )

    def _show(self, there: Sequence[str]) -> None:
        needed = sorted({network for vm in self._vms.chosen() for network in vm.networks})
        self.networks.show_networks(needed, there, self._mapped)
        self.state.setText("" if needed else "The chosen virtual machines use no network.")
        self.completeChanged.emit()
