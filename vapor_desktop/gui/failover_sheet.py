"""The failover sheet: everything that must be known before the button, and the button last."""

from __future__ import annotations

from datetime import UTC, datetime
from html import escape

from PySide6.QtCore import Qt
from PySide6.QtWidgets import (
    QAbstractItemView,
    QComboBox,
    QDialog,
    QFormLayout,
    QHeaderView,
    QLabel,
    QLineEdit,
    QPushButton,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from vapor_desktop.gui import words
from vapor_desktop.gui.context import Context
from vapor_desktop.gui.error_box import sentence
from vapor_desktop.gui.forms import child, load_form
from vapor_desktop.model.errors import VaporError
from vapor_desktop.model.states import Severity
from vapor_desktop.model.view import FailoverPoint, FailoverPreview

_HEADERS = ("Point", "Taken", "Data age", "Consistency", "Proven", "Digests", "Note")


class FailoverSheet(QDialog):
    """Asks the engine for a preview, then for a decision. Read ``seq`` and ``why`` after it was accepted."""

    def __init__(self, context: Context, protection_id: str, vm_name: str, target: str, parent: QWidget) -> None:
        super().__init__(parent)
        self._context, self._vm_name, self._target = context, vm_name, target
        self.preview: FailoverPreview | None = None
        self.setWindowTitle(f"Fail over {vm_name}")
        form = load_form("failover_sheet", self)
        box = QVBoxLayout(self)
        box.addWidget(form)
        self.headline, self.source = child(form, QLabel, "headline"), child(form, QLabel, "source")
        self.points, self.loss = child(form, QTableWidget, "points"), child(form, QLabel, "loss")
        self.effects, self._hint = child(form, QLabel, "effects"), child(form, QLabel, "why")
        self.name, self.reason = child(form, QLineEdit, "name"), child(form, QLineEdit, "reason")
        self.go, self.cancel = child(form, QPushButton, "go"), child(form, QPushButton, "cancel")
        label = child(form, QLabel, "lname")
        label.setText(f"&Type <b>{escape(vm_name)}</b> to confirm:")
        label.setBuddy(self.name)
        self.go.setText(f"Fail over {vm_name} to {target}")
        self.headline.setText(f"<h3>Start {escape(vm_name)} at {escape(target)}, from a recovery point</h3>")
        self.source.setText("Trying to reach the source, and reading the recovery points…")
        self.fence = QComboBox(self)
        self.fence.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToContents)  # it is filled later
        for key, text in (
            ("leave", "Leave it as it is"),
            ("shut down", "Keep it from starting there, and shut it down"),
            ("force off", "Keep it from starting there, and cut its power"),
        ):
            self.fence.addItem(text, key)
        self.fence.setAccessibleName("What to do with the VM at its source")
        self.fence.setEnabled(False)
        rows = child(form, QFormLayout, "confirm")
        rows.insertRow(0, "At the &source:", self.fence)
        self._prepare_table()
        self.name.textChanged.connect(self._judge)
        self.reason.textChanged.connect(self._judge)
        self.points.itemSelectionChanged.connect(self._chosen)
        self.go.clicked.connect(self.accept)
        self.cancel.clicked.connect(self.reject)
        self.cancel.setDefault(True)
        self.reason.setFocus()
        self._judge()
        ask = context.bridge.ask
        ask(lambda: context.backend.failover_preview(protection_id), self, self._show, self._failed)

    @property
    def seq(self) -> int | None:
        """The chosen point."""
        point = self._point()
        return point.seq if point else None

    @property
    def source_way(self) -> str:
        """What to do with a source that answers."""
        return str(self.fence.currentData())

    @property
    def why(self) -> str:
        """The typed reason."""
        return self.reason.text().strip()

    def _prepare_table(self) -> None:
        table = self.points
        table.setColumnCount(len(_HEADERS))
        table.setHorizontalHeaderLabels(list(_HEADERS))
        table.verticalHeader().hide()
        table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        table.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        table.setTabKeyNavigation(False)
        table.setMinimumHeight(130)
        table.setShowGrid(False)
        table.verticalHeader().setDefaultSectionSize(table.fontMetrics().height() + 9)
        table.horizontalHeader().setDefaultAlignment(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter)
        table.horizontalHeader().setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        table.horizontalHeader().setStretchLastSection(True)

    def _failed(self, error: VaporError) -> None:
        self.source.setText(f"The failover cannot be prepared. {sentence(error)}")
        self._judge()

    def _show(self, preview: FailoverPreview) -> None:
        self.preview = preview
        self.source.setText(self._source_text(preview))
        self.fence.setEnabled(preview.may_fence)
        self.fence.setToolTip("" if preview.may_fence else "The source does not answer: it is fenced when it returns")
        self.points.setRowCount(len(preview.points))
        for row, point in enumerate(preview.points):
            for column, text in enumerate(self._cells(point)):
                self.points.setItem(row, column, QTableWidgetItem(f"{text}   "))
        if preview.points:
            self.points.selectRow(0)
        crit = self._context.theme.colours.severity[Severity.CRITICAL]
        lines = [f"<li>{escape(text)}</li>" for text in preview.effects]
        lines += [f"<li style='color:{crit}'><b>Not possible: {escape(text)}</b></li>" for text in preview.blockers]
        self.effects.setText(f"<ul style='margin-left:-22px'>{''.join(lines)}</ul>")
        self._judge()

    def _source_text(self, preview: FailoverPreview) -> str:
        now, name = datetime.now(UTC), escape(preview.source_name)
        seen = words.ago(preview.source_last_seen_at, now) if preview.source_last_seen_at else "never"
        if preview.source_reachable:
            warn = self._context.theme.colours.severity[Severity.WARNING]
            text = f"<b style='color:{warn}'>The source {name} answers.</b> Shut it down there first, or migrate it."
        elif preview.source_reachable is False:
            text = f"The source <b>{name}</b> does not answer; last seen {seen}."
        else:
            text = f"Whether the source <b>{name}</b> lives is unknown; last seen {seen}."
        tried = "".join(f"<br>&nbsp;&nbsp;tried {escape(line)}" for line in preview.tried)
        facts = "".join(f"<br>{escape(line)}" for line in preview.facts())
        return text + tried + facts

    @staticmethod
    def _cells(point: FailoverPoint) -> tuple[str, ...]:
        now = datetime.now(UTC)
        proven = words.local(point.proven_at, now) if point.proven_at else "never"
        checked = "no mismatch found" if point.verified else "MISMATCH"
        taken = words.local(point.taken_at, now)
        age = words.duration(point.age_s)
        return (f"#{point.seq}", taken, age, point.consistency, proven, checked, point.note)

    def _point(self) -> FailoverPoint | None:
        row = self.points.currentRow()
        if self.preview is None or not 0 <= row < len(self.preview.points):
            return None
        return self.preview.points[row]

    def _chosen(self) -> None:
        point = self._point()
        if point is None:
            self.loss.setText("")
        elif point.age_s is None:
            self.loss.setText("<b>How old this data is, is unknown.</b> Everything written since then is lost.")
        else:
            age = escape(words.duration(point.age_s))
            at = escape(words.exact(point.current_as_of))
            self.loss.setText(f"<b>The data is {age} old.</b> Everything written after {at} is lost.")
        self._judge()

    def _judge(self) -> None:
        blockers = self.preview.blockers if self.preview else ()
        missing = ""
        if self.preview is None:
            missing = "Waiting for the preview."
        elif blockers:
            missing = "It is not possible now, see above."
        elif self._point() is None:
            missing = "Choose a recovery point."
        elif not self.why:
            missing = "Give a reason."
        elif self.name.text() != self._vm_name:
            missing = "Type the VM's name exactly as it is."
        self._hint.setText(missing)
        self.go.setEnabled(not missing)
        colours = self._context.theme.colours
        red = f"background: {colours.severity[Severity.CRITICAL]}; color: {colours.base}; font-weight: bold;"
        self.go.setStyleSheet("" if missing else f"{red} padding: 5px 14px;")
