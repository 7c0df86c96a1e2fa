"""The page *Virtual machines*: filter, chips, table."""

from __future__ import annotations

from PySide6.QtCore import QSignalBlocker, Qt, Signal
from PySide6.QtGui import QAction, QKeyEvent
from PySide6.QtWidgets import QButtonGroup, QHBoxLayout, QLabel, QLineEdit, QMenu, QPushButton, QVBoxLayout, QWidget

from vapor_desktop.gui.context import Context
from vapor_desktop.gui.icons import icon
from vapor_desktop.gui.protection_columns import Chip, Row
from vapor_desktop.gui.protection_looks import Looks
from vapor_desktop.gui.protection_model import ProtectionModel
from vapor_desktop.gui.protection_table import ProtectionTable
from vapor_desktop.gui.theme import chip_style
from vapor_desktop.gui.verbs import Verbs
from vapor_desktop.model.view import Snapshot


class FilterEdit(QLineEdit):
    """Esc clears."""

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Esc clears, the rest is as usual."""
        if event.key() == Qt.Key.Key_Escape and self.text():
            self.clear()
        else:
            super().keyPressEvent(event)


class VmsPage(QWidget):
    """Signals:
    opened: the Row to show in detail.
    """

    opened = Signal(object)

    def __init__(self, context: Context, verbs: Verbs, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._verbs, self._theme = verbs, context.theme
        self._chip = Chip.ALL
        self._have_snapshot = False
        self.model = ProtectionModel(Looks(context.theme), self)
        self.table = ProtectionTable(self.model, context.theme, context.memory, self)
        self.copy_action = QAction("&Copy rows", self)
        self.copy_action.setStatusTip("Copy the selected rows as a table")
        self.copy_action.triggered.connect(lambda _on=False: self.table.copy())
        self.filter_edit = FilterEdit(self)
        self.chips: dict[Chip, QPushButton] = {}
        self.count = QLabel(self)
        self.count.setAccessibleName("Rows shown")
        self.empty = QLabel(self)
        self.empty.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self.empty.setWordWrap(True)
        self._lay_out()
        self._connect(context)
        self._say_empty(0, 0)

    def _lay_out(self) -> None:
        self.filter_edit.setPlaceholderText("Filter (Ctrl+F)")
        self.filter_edit.setAccessibleName("Filter virtual machines")
        self.filter_edit.setClearButtonEnabled(True)
        self.filter_edit.setMaximumWidth(300)
        bar = QHBoxLayout()
        bar.setSpacing(6)
        bar.addWidget(self.filter_edit, 2)
        group = QButtonGroup(self)
        for chip in Chip:
            button = QPushButton(chip.value, self)
            button.setCheckable(True)
            button.setChecked(chip is Chip.ALL)
            button.setObjectName("chip")
            button.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
            button.clicked.connect(lambda _on, chip=chip: self.choose(chip))
            group.addButton(button)
            bar.addWidget(button)
            self.chips[chip] = button
        bar.addStretch(1)
        bar.addWidget(self.count)
        self._columns = QPushButton("&Columns", self)
        self._columns.setToolTip("Choose columns")
        bar.addWidget(self._columns)
        box = QVBoxLayout(self)
        box.setContentsMargins(10, 8, 10, 6)
        box.addLayout(bar)
        box.addWidget(self.table, 1)
        box.addWidget(self.empty, 1)

    def _connect(self, context: Context) -> None:
        self.filter_edit.textChanged.connect(self._filter)
        self.model.counted.connect(self._counted)
        self.table.opened.connect(self.opened)
        self.table.selectionModel().selectionChanged.connect(self.tell_verbs)
        self.table.setContextMenuPolicy(Qt.ContextMenuPolicy.CustomContextMenu)
        self.table.customContextMenuRequested.connect(lambda at: self.table.menu_at(self.context_menu(), at))
        self._columns.clicked.connect(self._choose_columns)
        context.theme.changed.connect(self._restyle)
        self._restyle()

    def take(self, snapshot: Snapshot) -> None:
        """Show a snapshot."""
        self._have_snapshot = True
        self.model.update_from(snapshot)
        self.tell_verbs()

    def choose(self, chip: Chip) -> None:
        """Show only the rows of one chip."""
        self._chip = chip
        with QSignalBlocker(self.chips[chip]):
            self.chips[chip].setChecked(True)
        self._filter()

    def context_menu(self) -> QMenu:
        """The verbs, the very same actions."""
        menu = QMenu(self)
        menu.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        for key in ("open", "protect", "edit", "seed", "sync", "pause", "resume", "unprotect"):
            menu.addAction(self._verbs[key])
        menu.addAction(self.copy_action)
        menu.addSeparator()
        menu.addActions([self._verbs["migrate"], self._verbs["failover"], self._verbs["reprotect"]])
        menu.addActions([self._verbs["drill"], self._verbs["stop-drill"]])
        return menu

    def tell_verbs(self) -> None:
        """The verbs speak of what is selected here."""
        if self.isVisible():
            self._verbs.use(self.table.chosen())

    def chosen(self) -> list[Row]:
        """The selected rows."""
        return self.table.chosen()

    def _filter(self) -> None:
        self.model.filter(self.filter_edit.text(), self._chip)

    def _choose_columns(self) -> None:
        at = self._columns.rect().bottomLeft()
        self.table.column_menu().popup(self._columns.mapToGlobal(at))

    def _counted(self, shown: int, under: int, counts: dict[Chip, int]) -> None:
        self.count.setText(f"{shown} of {under}")
        for chip, button in self.chips.items():
            text = f"{chip.value} ({counts[chip]})" if chip is not Chip.ALL else chip.value
            if button.text() != text:
                button.setText(text)
        self._say_empty(shown, under)

    def _say_empty(self, shown: int, under: int) -> None:
        text = "Reading the state of your virtual machines…"
        if self._have_snapshot:
            text = "No virtual machine is protected yet.\nProtect one with Ctrl+P."
            if under:
                text = "No row matches the filter. Esc clears it."
            elif self._chip is not Chip.ALL:
                text = f"No virtual machine under “{self._chip.value}”."
        self.empty.setText(text)
        self.empty.setVisible(not shown)
        self.table.setVisible(bool(shown))

    def _restyle(self) -> None:
        colours = self._theme.colours
        self._columns.setIcon(icon("columns", colours.text))
        self.setStyleSheet(chip_style(colours))
        self.model.looks_changed()
