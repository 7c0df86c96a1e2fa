"""Tasks (panel at the bottom, on every page) and the page *Activity*: alerts and events."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from PySide6.QtCore import Qt, Signal
from PySide6.QtGui import QColor
from PySide6.QtWidgets import QDockWidget, QHBoxLayout, QLabel, QPushButton, QTabWidget, QVBoxLayout, QWidget

from vapor_desktop.engine.ports import Event
from vapor_desktop.gui import words
from vapor_desktop.gui.alerts_tab import AlertsTab
from vapor_desktop.gui.context import Context
from vapor_desktop.gui.icons import SEVERITY_ICONS, SEVERITY_WORDS, icon
from vapor_desktop.gui.keyed_table import Field, RecordModel
from vapor_desktop.gui.operations_tab import OperationsTab
from vapor_desktop.gui.record_table import RecordTable
from vapor_desktop.gui.theme import Theme
from vapor_desktop.model.errors import VaporError
from vapor_desktop.model.states import Severity
from vapor_desktop.model.view import Snapshot, Task

_OUTCOMES = {
    None: Severity.PROGRESS,
    "done": Severity.OK,
    "failed": Severity.CRITICAL,
    "cancelled": Severity.IDLE,
}
EVENTS_EVERY_S = 10
_LEVELS = {int(severity) for severity in Severity}


def severity_icon(theme: Theme, severity: Severity) -> Any:
    """Shape and colour of a severity in the palette in force."""
    return icon(SEVERITY_ICONS[severity], theme.colours.severity[severity], knockout=theme.colours.base)


def _outcome_text(task: Task) -> str:
    if task.outcome is None:
        p = task.progress
        if p is None or p.total_bytes <= 0:
            return "running"
        left = max(0, p.total_bytes - p.done_bytes)
        eta = words.duration(left / p.rate_bytes_s) if p.rate_bytes_s > 0 else words.UNKNOWN
        return f"{100 * p.done_bytes // p.total_bytes} % · {words.rate(p.rate_bytes_s)} · {eta}"
    return task.outcome


def _elapsed(task: Task) -> str:
    end = task.finished_at or datetime.now(UTC)
    return words.duration((end - task.started_at).total_seconds())


class ActivityPanel(QDockWidget):
    """Running and lately finished tasks, each running one with *Cancel*.

    Signals:
        cancel_asked: the Task.
    """

    cancel_asked = Signal(object)

    def __init__(self, theme: Theme, parent: QWidget) -> None:
        super().__init__("Activity", parent)
        self.setObjectName("activity")
        self.setFeatures(QDockWidget.DockWidgetFeature.DockWidgetClosable)
        self.setAllowedAreas(Qt.DockWidgetArea.BottomDockWidgetArea)
        self._theme = theme
        self._cancelling: set[str] = set()
        self.model: RecordModel[Task] = RecordModel(self._fields(), lambda task: task.key, self)
        self.table = RecordTable(self.model, "Tasks", self)
        self._cancel = QPushButton("&Cancel task", self)
        self._cancel.setEnabled(False)
        self._cancel.clicked.connect(self._ask_cancel)
        self.table.selectionModel().selectionChanged.connect(self._enable)
        bottom = QHBoxLayout()
        self.nothing = QLabel("Nothing is running.", self)
        bottom.addWidget(self.nothing, 1)
        bottom.addWidget(self._cancel)
        body = QWidget(self)
        box = QVBoxLayout(body)
        box.setContentsMargins(10, 2, 10, 6)
        box.addWidget(self.table)
        box.addLayout(bottom)
        self.setWidget(body)

    def _fields(self) -> list[Field[Task]]:
        def look(task: Task, role: int) -> Any:
            if role == Qt.ItemDataRole.DecorationRole:
                return severity_icon(self._theme, _OUTCOMES.get(task.outcome, Severity.IDLE))
            return None

        return [
            Field("Task", lambda task: task.title, 330, look=look),
            Field("State", self._state, 210),
            Field("Elapsed", _elapsed, 80, right=True),
            Field("Details", lambda task: task.detail, 300),
        ]

    def _state(self, task: Task) -> str:
        if task.outcome is None and task.key in self._cancelling:
            return "cancelling…"
        return _outcome_text(task)

    def show_tasks(self, tasks: tuple[Task, ...]) -> None:
        """Running first, then the newest."""
        ordered = sorted(tasks, key=lambda t: (t.outcome is not None, -(t.finished_at or t.started_at).timestamp()))
        self._cancelling &= {task.key for task in tasks if task.outcome is None}
        self.model.put(ordered)
        running = [n for n, task in enumerate(ordered) if task.outcome is None]
        for n in running:
            self.model.dataChanged.emit(self.model.index(n, 1), self.model.index(n, 2))
        words_ = {0: "Nothing is running.", 1: "1 task is running."}
        self.nothing.setText(words_.get(len(running), f"{len(running)} tasks are running."))
        self._enable()

    def _chosen(self) -> Task | None:
        return self.model.record(self.table.chosen_row())

    def _enable(self) -> None:
        task = self._chosen()
        running = task is not None and task.outcome is None and not task.key.startswith("console-")
        self._cancel.setEnabled(running and task is not None and task.key not in self._cancelling)

    def _ask_cancel(self) -> None:
        task = self._chosen()
        if task is not None:
            self._cancelling.add(task.key)
            self._enable()
            self.cancel_asked.emit(task)


class ActivityPage(QWidget):
    """Operations, alerts and what happened, newest first."""

    def __init__(self, context: Context, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._context = context
        self._asked_at: datetime | None = None
        self.alerts = AlertsTab(context.theme, self)
        self.events: RecordModel[Event] = RecordModel(
            event_fields(context.theme), lambda e: f"{e.at}|{e.kind}|{e.text}", self
        )
        self.state = QLabel("Reading…", self)
        self.state.setWordWrap(True)
        self.operations = OperationsTab(context, self)
        self.tabs = tabs = QTabWidget(self)
        tabs.setDocumentMode(True)
        tabs.addTab(RecordTable(self.events, "Events", self), "&Events")
        tabs.addTab(self.alerts, "&Alerts")
        tabs.addTab(self.operations, "&Operations")
        tabs.currentChanged.connect(lambda _n: self._judge_state())
        box = QVBoxLayout(self)
        box.setContentsMargins(10, 8, 10, 6)
        box.addWidget(self.state)
        box.addWidget(tabs, 1)

    def take(self, snapshot: Snapshot) -> None:
        """Alerts from the snapshot; events are asked for now and then while the page is seen."""
        self.operations.take(snapshot)
        self.alerts.take(snapshot.alerts)
        old = self._asked_at is None or (snapshot.at - self._asked_at).total_seconds() >= EVENTS_EVERY_S
        if self.isVisible() and old:
            self._asked_at = snapshot.at
            self._context.bridge.ask(self._context.backend.events, self, self._show, self._failed)

    def show_operation(self, operation_id: str) -> bool:
        """The tab of operations with that one chosen; False when it is not known yet."""
        self.tabs.setCurrentWidget(self.operations)
        return self.operations.select(operation_id)

    def _judge_state(self) -> None:
        self.state.setVisible(bool(self.state.text()) and self.tabs.currentIndex() == 0)

    def _show(self, events: Any) -> None:
        self.state.setText("" if events else "Nothing has happened yet.")
        self._judge_state()
        self.events.put(events)

    def _failed(self, error: VaporError) -> None:
        self.state.setText(f"The events cannot be read: {error}")
        self._judge_state()


def _known(event: Event) -> Severity:
    return Severity(event.severity) if event.severity in _LEVELS else Severity.IDLE


def event_fields(theme: Theme) -> list[Field[Event]]:
    """The columns of an event list."""

    def look(event: Event, role: int) -> Any:
        known = _known(event)
        if role == Qt.ItemDataRole.DecorationRole:
            return severity_icon(theme, known)
        if role == Qt.ItemDataRole.ForegroundRole and known is Severity.CRITICAL:
            return QColor(theme.colours.severity[known])
        return None

    def said(event: Event) -> str:
        known = _known(event)
        return f"{SEVERITY_WORDS[known]}, {words.exact(event.at)}"

    return [
        Field("When", lambda e: words.local(e.at, datetime.now(UTC)), 130, said=said, look=look),
        Field("Kind", lambda e: e.kind, 110),
        Field("What", lambda e: e.text, 500),
    ]
