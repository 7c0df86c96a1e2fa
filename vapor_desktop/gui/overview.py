"""The page *Overview*: numbers that are filters, what needs attention, the pair; or how to begin."""

from __future__ import annotations

from html import escape
from typing import Any

from PySide6.QtCore import Qt, Signal
from PySide6.QtGui import QShowEvent
from PySide6.QtWidgets import (
    QHBoxLayout,
    QLabel,
    QPushButton,
    QStackedWidget,
    QVBoxLayout,
    QWidget,
)

from vapor_desktop.gui import words
from vapor_desktop.gui.activity import severity_icon
from vapor_desktop.gui.context import Context
from vapor_desktop.gui.keyed_table import Field, RecordModel
from vapor_desktop.gui.protection_columns import COLUMNS, INDEX, Chip, Row, worst_first
from vapor_desktop.gui.record_table import RecordTable
from vapor_desktop.gui.welcome import Welcome
from vapor_desktop.model.states import Severity
from vapor_desktop.model.view import SiteStatus, Snapshot

_TILES = (
    (Chip.ALL, "Protected", Severity.OK),
    (Chip.ATTENTION, "Need attention", Severity.WARNING),
    (Chip.BREACHED, "RPO breached", Severity.CRITICAL),
    (Chip.RUNNING, "Running now", Severity.PROGRESS),
    (Chip.PAUSED, "Paused", Severity.WARNING),
    (Chip.UNPROTECTED, "Not protected", Severity.IDLE),
)


class Overview(QWidget):
    """Signals:
    chip_asked: show the table under this Chip.
    opened: show this Row in detail.
    card_asked: "pair", "protect", "engine" or "demo".
    """

    chip_asked = Signal(object)
    opened = Signal(object)
    card_asked = Signal(str)

    def __init__(self, context: Context, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._theme = context.theme
        self._latest: Snapshot | None = None
        self._numbers: dict[Chip, QPushButton] = {}
        self._severities: dict[Chip, Severity] = {}
        self.attention: RecordModel[Row] = RecordModel(self._fields(), lambda row: row.key, self)
        self._stack = QStackedWidget(self)
        self._loading = QLabel("Reading the state of your sites…", self)
        self._loading.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self.welcome = Welcome(context.theme, self)
        self.welcome.asked.connect(self.card_asked)
        for page in (self._loading, self.welcome, self._board()):
            self._stack.addWidget(page)
        box = QVBoxLayout(self)
        box.setContentsMargins(14, 12, 14, 8)
        box.addWidget(self._stack)
        context.theme.changed.connect(self._restyle)
        self._restyle()

    def _fields(self) -> list[Field[Row]]:
        def look(row: Row, role: int) -> Any:
            return severity_icon(self._theme, row.severity) if role == Qt.ItemDataRole.DecorationRole else None

        def cell(key: str, header: str, width: int, *, pictured: bool = False) -> Field[Row]:
            column = COLUMNS[INDEX[key]]
            return Field(header, column.show, width, said=column.spoken, look=look if pictured else None)

        return [
            cell("name", "VM", 170, pictured=True),
            cell("status", "Status", 210),
            cell("rpo_now", "RPO now", 100),
            cell("rpo_target", "Target", 80),
            cell("error", "Last error", 300),
        ]

    def _board(self) -> QWidget:
        page = QWidget(self)
        box = QVBoxLayout(page)
        box.setContentsMargins(0, 0, 0, 0)
        tiles = QHBoxLayout()
        for chip, text, severity in _TILES:
            tile = QPushButton(page)
            tile.setObjectName("tile")
            tile.setMinimumHeight(74)
            tile.clicked.connect(lambda _on, chip=chip: self.chip_asked.emit(chip))
            tile.setToolTip(f"Show these ({text.lower()})")
            lines = QVBoxLayout(tile)
            number, name = QLabel(words.UNKNOWN, tile), QLabel(text, tile)
            number.setObjectName("number")
            for label in (number, name):
                label.setAttribute(Qt.WidgetAttribute.WA_TransparentForMouseEvents)
                label.setAlignment(Qt.AlignmentFlag.AlignCenter)
                lines.addWidget(label)
            tiles.addWidget(tile, 1)
            self._numbers[chip], self._severities[chip] = tile, severity
        box.addLayout(tiles)
        self._calm = QLabel(page)
        box.addSpacing(6)
        box.addWidget(QLabel("<b>Needs attention</b>", page))
        box.addWidget(self._calm)
        self.table = RecordTable(self.attention, "Virtual machines that need attention", page)
        self.table.doubleClicked.connect(lambda index: self._open(index.row()))
        self.table.activated.connect(lambda index: self._open(index.row()))
        box.addWidget(self.table, 100)
        box.addWidget(QLabel("<b>Sites</b>", page))
        self._sites = QLabel(page)
        self._sites.setWordWrap(True)
        self._sites.setTextFormat(Qt.TextFormat.RichText)
        box.addWidget(self._sites)
        box.addStretch(1)  # takes the room while there is no table
        return page

    def take(self, snapshot: Snapshot) -> None:
        """Show a snapshot: now if the page is seen, else when it is."""
        self._latest = snapshot
        if self.isVisible():
            self._show(snapshot)

    def showEvent(self, event: QShowEvent) -> None:
        """Catch up."""
        super().showEvent(event)
        if self._latest is not None:
            self._show(self._latest)

    def _show(self, snapshot: Snapshot) -> None:
        self._stack.setCurrentIndex(2 if snapshot.protections or snapshot.unprotected else 1)
        self.welcome.take(snapshot)
        rows = [Row.of_protection(p, snapshot.at) for p in snapshot.protections]
        every = rows + [Row.of_vm(v, snapshot.at) for v in snapshot.unprotected]
        for chip, text, _severity in _TILES:
            count = sum(map(chip.takes, every))
            self._set_number(chip, text, count)
        worst = sorted((row for row in rows if row.severity >= Severity.WARNING), key=worst_first)
        self.attention.put(worst[:100])
        self._calm.setText("Nothing: every protected VM is within its target." if rows else "Nothing is protected.")
        self._calm.setVisible(not worst)
        self.table.setVisible(bool(worst))
        self._sites.setText("<br>".join(self._site_line(site, snapshot) for site in snapshot.sites) or "none")

    def number(self, chip: Chip) -> str:
        """What a tile shows."""
        label = self._numbers[chip].findChild(QLabel, "number")
        return label.text() if isinstance(label, QLabel) else ""

    def _set_number(self, chip: Chip, text: str, count: int) -> None:
        tile = self._numbers[chip]
        label = tile.findChild(QLabel, "number")
        if isinstance(label, QLabel):
            label.setText(str(count))
            severity = self._severities[chip] if count else Severity.IDLE
            label.setStyleSheet(
                f"color: {self._theme.colours.severity[severity]}; font-size: 22pt; font-weight: 600;"
            )
        tile.setAccessibleName(f"{text}: {count}")

    @staticmethod
    def _site_line(site: SiteStatus, snapshot: Snapshot) -> str:
        if site.reachable is None:
            state = "not tried yet"
        elif site.reachable:
            state = f"reachable, {words.size(site.free_bytes)} free"
        else:
            state = f"unreachable; last seen {words.ago(site.last_seen_at, snapshot.at)}"
        return f"<b>{escape(site.site.name)}</b> — {escape(state)}"

    def _open(self, at: int) -> None:
        row = self.attention.record(at)
        if row is not None:
            self.opened.emit(row)

    def _restyle(self) -> None:
        c = self._theme.colours
        self.setStyleSheet(
            f"#tile, #card {{ background: {c.base}; border: 1px solid {c.line}; border-radius: 8px; }}"
            f"#tile:hover {{ border-color: {c.highlight}; }} #tile:focus {{ border: 2px solid {c.highlight}; }}"
        )
