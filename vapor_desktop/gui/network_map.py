"""Network of the source → network of the target, one choice per row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PySide6.QtCore import QObject, Qt, Signal
from PySide6.QtWidgets import QComboBox, QHeaderView, QTableWidget, QTableWidgetItem

NONE = "choose…"


class NetworkMap(QObject):
    """Rows over a form's table.

    Signals:
        changed: another choice was made.
    """

    changed = Signal()

    def __init__(self, table: QTableWidget) -> None:
        super().__init__(table)
        self.table = table
        self.choices: dict[str, QComboBox] = {}
        table.setColumnCount(2)
        table.setHorizontalHeaderLabels(["Network at the source", "Network at the target"])
        table.verticalHeader().hide()
        table.setTabKeyNavigation(False)
        table.horizontalHeader().setSectionResizeMode(QHeaderView.ResizeMode.Stretch)
        table.horizontalHeader().setHighlightSections(False)
        table.horizontalHeader().setDefaultAlignment(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter)

    def clear(self) -> None:
        """No rows."""
        self.choices = {}
        self.table.setRowCount(0)

    def show_networks(self, needed: Sequence[str], there: Sequence[str], wanted: Mapping[str, str]) -> None:
        """``wanted``: what to choose where the target has it; the same name where nothing is said."""
        self.clear()
        self.table.setRowCount(len(needed))
        for row, name in enumerate(needed):
            item = QTableWidgetItem(name)
            item.setFlags(Qt.ItemFlag.ItemIsEnabled)
            self.table.setItem(row, 0, item)
            box = QComboBox(self.table)
            box.setAccessibleName(f"Network at the target for {name}")
            box.addItems([NONE, *there])
            there_called = wanted.get(name, name)
            box.setCurrentText(there_called if there_called in there else NONE)
            box.currentIndexChanged.connect(lambda _n: self.changed.emit())
            self.table.setCellWidget(row, 1, box)
            self.choices[name] = box
        self.table.setVisible(bool(needed))

    def mapping(self) -> dict[str, str]:
        """What was chosen."""
        return {name: box.currentText() for name, box in self.choices.items() if box.currentIndex() > 0}

    def complete(self) -> bool:
        """Every network has a counterpart."""
        return all(box.currentIndex() > 0 for box in self.choices.values())
