"""Bandwidth windows in a table: from, to (UTC), and the limit that holds between them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import time

from PySide6.QtCore import QObject, Qt, QTime, Signal
from PySide6.QtWidgets import (
    QAbstractItemView,
    QDoubleSpinBox,
    QHeaderView,
    QPushButton,
    QTableWidget,
    QTableWidgetItem,
    QTimeEdit,
    QWidget,
)

from vapor_desktop.gui.rate_edit import RateEdit
from vapor_desktop.model.policy import BandwidthWindow

_ROWS_SEEN = 3


class WindowTable(QObject):
    """Rows of widgets over a form's table.

    Signals:
        changed: a row was added, changed or removed.
    """

    changed = Signal()

    def __init__(self, table: QTableWidget, add: QPushButton, drop: QPushButton) -> None:
        super().__init__(table)
        self.table, self.add, self.drop = table, add, drop
        self._rates: list[RateEdit] = []
        table.setColumnCount(3)
        table.setHorizontalHeaderLabels(["From", "To", "At most"])
        table.verticalHeader().hide()
        table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        table.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        table.setTabKeyNavigation(False)
        table.setShowGrid(False)
        table.horizontalHeader().setSectionResizeMode(QHeaderView.ResizeMode.Stretch)
        table.horizontalHeader().setHighlightSections(False)
        table.horizontalHeader().setDefaultAlignment(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter)
        row_height = table.fontMetrics().height() + 14
        table.verticalHeader().setDefaultSectionSize(row_height)
        table.setFixedHeight(row_height * _ROWS_SEEN + table.horizontalHeader().sizeHint().height() + 4)
        table.currentCellChanged.connect(self._judge)
        add.clicked.connect(self._add)
        drop.clicked.connect(self._drop)
        self._judge()

    def windows(self) -> tuple[BandwidthWindow, ...]:
        """In their order: of two that overlap the first holds."""
        found = []
        for row, rate in enumerate(self._rates):
            start, end = (self._time(row, column).time() for column in (0, 1))
            found.append(
                BandwidthWindow(
                    start=time(start.hour(), start.minute(), start.second()),
                    end=time(end.hour(), end.minute(), end.second()),
                    bandwidth_bytes_s=rate.rate(),
                )
            )
        return tuple(found)

    def set_windows(self, windows: Sequence[BandwidthWindow]) -> None:
        """Show these."""
        self.table.setRowCount(0)
        self._rates = []
        for window in windows:
            self._append(window)
        self._judge()

    def _time(self, row: int, column: int) -> QTimeEdit:
        box = self.table.cellWidget(row, column)
        if not isinstance(box, QTimeEdit):
            raise LookupError(f"no time in row {row}, column {column}")
        return box

    def _append(self, window: BandwidthWindow) -> None:
        row = self.table.rowCount()
        self.table.insertRow(row)
        for column, (name, at) in enumerate((("start", window.start), ("end", window.end))):
            edit = QTimeEdit(QTime(at.hour, at.minute, at.second), self.table)
            edit.setDisplayFormat("HH:mm:ss" if at.second else "HH:mm")
            edit.setAccessibleName(f"{name.capitalize()} of window {row + 1}, UTC")
            edit.timeChanged.connect(lambda _t: self.changed.emit())
            self._put(row, column, edit)
        box = QDoubleSpinBox(self.table)
        box.setAccessibleName(f"Limit of window {row + 1} in MiB per second")
        rate = RateEdit(box)
        rate.set_rate(window.bandwidth_bytes_s)
        box.valueChanged.connect(lambda _v: self.changed.emit())
        self._rates.append(rate)
        self._put(row, 2, box)

    def _put(self, row: int, column: int, widget: QWidget) -> None:
        self.table.setItem(row, column, QTableWidgetItem(""))
        self.table.setCellWidget(row, column, widget)

    def _add(self) -> None:
        self._append(BandwidthWindow(start=time(8), end=time(18), bandwidth_bytes_s=10 << 20))
        self.table.setCurrentCell(self.table.rowCount() - 1, 0)
        self._time(self.table.rowCount() - 1, 0).setFocus()
        self.changed.emit()

    def _drop(self) -> None:
        row = self.table.currentRow()
        if row >= 0:
            del self._rates[row]
            self.table.removeRow(row)
            self._judge()
            self.changed.emit()

    def _judge(self, *_cell: int) -> None:
        self.drop.setEnabled(self.table.currentRow() >= 0)
