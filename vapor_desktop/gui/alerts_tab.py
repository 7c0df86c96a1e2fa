"""The tab *Alerts*: what is open and what is over; acknowledge, snooze, open the VM."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QHBoxLayout, QLabel, QPushButton, QVBoxLayout, QWidget

from vapor_desktop.gui import words
from vapor_desktop.gui.icons import SEVERITY_ICONS, icon
from vapor_desktop.gui.keyed_table import Field, RecordModel
from vapor_desktop.gui.record_table import RecordTable
from vapor_desktop.gui.theme import Theme
from vapor_desktop.model.states import Severity
from vapor_desktop.model.view import Alert


class AlertsTab(QWidget):
    """Signals:
    acknowledge_asked, snooze_asked: the Alert.
    open_asked: a protection's id.
    """

    acknowledge_asked = Signal(object)
    snooze_asked = Signal(object)
    open_asked = Signal(str)

    def __init__(self, theme: Theme, parent: QWidget) -> None:
        super().__init__(parent)
        self._theme = theme
        self._known: Mapping[str, str] = {}
        self.model: RecordModel[Alert] = RecordModel(self._fields(), lambda a: f"{a.key}@{a.opened_at}", self)
        self.table = RecordTable(self.model, "Alerts", self)
        self.state = QLabel("Nothing has gone wrong yet.", self)
        self.acknowledge = QPushButton("Ac&knowledge", self)
        self.snooze = QPushButton("S&nooze 1 h", self)
        self.open = QPushButton("O&pen VM", self)
        self.acknowledge.setToolTip("No reminder any more; that it is over will still be told")
        self.snooze.setToolTip("Tell me again in an hour, if it still holds")
        buttons = QHBoxLayout()
        for button in (self.acknowledge, self.snooze, self.open):
            buttons.addWidget(button)
        buttons.addStretch(1)
        box = QVBoxLayout(self)
        box.setContentsMargins(0, 6, 0, 0)
        box.addWidget(self.state)
        box.addWidget(self.table, 1)
        box.addLayout(buttons)
        self.table.selectionModel().selectionChanged.connect(lambda _on, _off: self._judge())
        self.table.activated.connect(lambda _index: self._open())
        self.acknowledge.clicked.connect(lambda _on=False: self._ask(self.acknowledge_asked))
        self.snooze.clicked.connect(lambda _on=False: self._ask(self.snooze_asked))
        self.open.clicked.connect(lambda _on=False: self._open())
        self._judge()

    def _fields(self) -> list[Field[Alert]]:
        def look(alert: Alert, role: int) -> Any:
            if role != Qt.ItemDataRole.DecorationRole:
                return None
            severity = Severity.OK if alert.closed_at is not None else alert.severity
            colours = self._theme.colours
            return icon(SEVERITY_ICONS[severity], colours.severity[severity], knockout=colours.base)

        def closed(alert: Alert) -> str:
            return words.local(alert.closed_at, datetime.now(UTC)) if alert.closed_at else "still open"

        return [
            Field("Opened", lambda a: words.local(a.opened_at, datetime.now(UTC)), 130, look=look),
            Field("Closed", closed, 110),
            Field("Alert", lambda a: a.title, 280),
            Field("Known", self._known_as, 170),
            Field("What", lambda a: a.body, 400),
        ]

    def _known_as(self, alert: Alert) -> str:
        return self._known.get(alert.key, "") if alert.closed_at is None else ""

    def take(self, alerts: Iterable[Alert]) -> None:
        """Newest first."""
        rows = sorted(alerts, key=lambda a: a.opened_at, reverse=True)
        self.model.put(rows)
        self.state.setVisible(not rows)
        self._judge()

    def show_known(self, known: Mapping[str, str]) -> None:
        """Which alerts a person has acknowledged or snoozed: key -> words."""
        if dict(known) != dict(self._known):
            self._known = dict(known)
            column = next(n for n, field in enumerate(self.model.fields) if field.header == "Known")
            last = self.model.rowCount() - 1
            if last >= 0:
                self.model.dataChanged.emit(self.model.index(0, column), self.model.index(last, column))
        self._judge()

    def _chosen(self) -> Alert | None:
        return self.model.record(self.table.chosen_row())

    def _judge(self) -> None:
        alert = self._chosen()
        holds = alert is not None and alert.closed_at is None
        known = self._known.get(alert.key, "") if alert is not None else ""
        self.acknowledge.setEnabled(holds and known != "acknowledged")
        self.snooze.setEnabled(holds)
        self.open.setEnabled(alert is not None and alert.protection_id is not None)

    def _ask(self, signal: Any) -> None:
        alert = self._chosen()
        if alert is not None:
            signal.emit(alert)

    def _open(self) -> None:
        alert = self._chosen()
        if alert is not None and alert.protection_id is not None:
            self.open_asked.emit(alert.protection_id)
