"""The table widget: column chooser, copy, keyboard."""

from __future__ import annotations

from PySide6.QtCore import QPoint, Qt, QTimer, Signal
from PySide6.QtGui import QKeyEvent, QKeySequence
from PySide6.QtWidgets import QAbstractItemView, QApplication, QHeaderView, QMenu, QTableView, QWidget

from vapor_desktop.gui.delegates import ProgressDelegate, RpoDelegate
from vapor_desktop.gui.layout_store import Memory, apply_columns, capture_columns
from vapor_desktop.gui.protection_columns import COLUMNS, INDEX, Row
from vapor_desktop.gui.protection_model import ProtectionModel
from vapor_desktop.gui.record_table import look_like_rows
from vapor_desktop.gui.theme import Theme

_MEMORY_KEY = "protection_columns"
SAVE_AFTER_MS = 400


class ProtectionTable(QTableView):
    """Signals:
    opened: the Row that was double-clicked or entered.
    """

    opened = Signal(object)

    def __init__(self, model: ProtectionModel, theme: Theme, memory: Memory, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._rows, self._memory = model, memory
        self.setAccessibleName("Protected virtual machines")
        self.setModel(model)
        look_like_rows(self, 16)
        self.setSelectionMode(QAbstractItemView.SelectionMode.ExtendedSelection)
        self.setAlternatingRowColors(True)
        self.setWordWrap(False)
        self.setVerticalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        self.setHorizontalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        self.verticalHeader().setSectionResizeMode(QHeaderView.ResizeMode.Fixed)
        self.setItemDelegateForColumn(INDEX["rpo_now"], RpoDelegate(theme, self))
        self.setItemDelegateForColumn(INDEX["progress"], ProgressDelegate(theme, self))
        self._saver = QTimer(self)
        self._saver.setSingleShot(True)
        self._saver.setInterval(SAVE_AFTER_MS)
        self._saver.timeout.connect(self.remember)
        self._prepare_header()
        self.doubleClicked.connect(lambda index: self._open(index.row()))

    def _prepare_header(self) -> None:
        header = self.horizontalHeader()
        header.setSectionsMovable(True)
        header.setMinimumSectionSize(28)
        header.setContextMenuPolicy(Qt.ContextMenuPolicy.CustomContextMenu)
        header.customContextMenuRequested.connect(lambda at: self.column_menu().popup(header.mapToGlobal(at)))
        apply_columns(header, self._memory.get(_MEMORY_KEY, {}))
        self.setSortingEnabled(True)
        header.setSortIndicatorShown(True)
        for moved in (header.sectionMoved, header.sectionResized, header.sortIndicatorChanged):
            moved.connect(self._saver.start)  # a drag is many small changes

    def remember(self) -> None:
        """Save columns and sort."""
        self._memory.put(_MEMORY_KEY, capture_columns(self.horizontalHeader()))

    def reset_columns(self) -> None:
        """Columns as on the first day."""
        apply_columns(self.horizontalHeader(), {})
        self.remember()

    def column_menu(self) -> QMenu:
        """The column chooser."""
        menu = QMenu("Columns", self)
        menu.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        header = self.horizontalHeader()
        for n, column in enumerate(COLUMNS):
            if column.header:
                action = menu.addAction(column.header)
                action.setCheckable(True)
                action.setChecked(not header.isSectionHidden(n))
                action.toggled.connect(lambda on, n=n: self._show_column(n, on))
        menu.addSeparator()
        menu.addAction("&Reset columns").triggered.connect(self.reset_columns)
        return menu

    def _show_column(self, column: int, on: bool) -> None:
        self.horizontalHeader().setSectionHidden(column, not on)
        if on and self.columnWidth(column) < COLUMNS[column].width // 2:
            self.setColumnWidth(column, COLUMNS[column].width)
        self.remember()

    def chosen(self) -> list[Row]:
        """The selected rows, top to bottom."""
        places = sorted(index.row() for index in self.selectionModel().selectedRows())
        return [row for at in places if (row := self._rows.row(at)) is not None]

    def select(self, key: str) -> None:
        """Select one row and bring it into view."""
        index = self._rows.find(key)
        if index.isValid():
            self.selectRow(index.row())
            self.scrollTo(index)

    def copy(self) -> None:
        """Selected rows (else all), visible columns, as tab-separated text."""
        header = self.horizontalHeader()
        columns = sorted((n for n in range(len(COLUMNS)) if not header.isSectionHidden(n)), key=header.visualIndex)
        rows = sorted(i.row() for i in self.selectionModel().selectedRows()) or range(self._rows.rowCount())
        QApplication.clipboard().setText(self._rows.tsv(list(rows), columns))

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Enter opens, Ctrl+C copies."""
        if event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter) and self.currentIndex().isValid():
            self._open(self.currentIndex().row())
        elif event.matches(QKeySequence.StandardKey.Copy):
            self.copy()
        else:
            super().keyPressEvent(event)

    def _open(self, at: int) -> None:
        row = self._rows.row(at)
        if row is not None:
            self.opened.emit(row)

    def menu_at(self, menu: QMenu, at: QPoint) -> None:
        """Pop a context menu up at a place of the viewport."""
        menu.popup(self.viewport().mapToGlobal(at))
