"""The failover sheet: everything that must be known before the button, and the button last."""

from __future__ import annotations

from datetime import UTC, datetime
from html import escape

from PySide6.QtWidgets import QComboBox, QHeaderView, QTableWidget, QTableWidgetItem, QWidget

from vapor_desktop.gui import words
from vapor_desktop.gui.context import Context
from vapor_desktop.gui.record_table import look_like_rows
from vapor_desktop.gui.sheet import Sheet
from vapor_desktop.model.states import Severity
from vapor_desktop.model.view import FailoverPoint, FailoverPreview

_HEADERS = ("Point", "Taken", "Data age", "Consistency", "Proven", "Digests", "Note")


_WAYS = (
    ("leave", "Leave it as it is"),
    ("shut down", "Keep it from starting there, and shut it down"),
    ("force off", "Keep it from starting there, and cut its power"),
)


class FailoverSheet(Sheet):
    """Asks the engine for a preview, then for a decision. Read ``seq`` and ``why`` after it was accepted."""

    def __init__(self, context: Context, protection_id: str, vm_name: str, target: str, parent: QWidget) -> None:
        headline, button = f"Start {vm_name} at {target}, from a recovery point", f"Fail over {vm_name} to {target}"
        super().__init__(context, f"Fail over {vm_name}", headline, button, parent, vm_name)
        self.preview: FailoverPreview | None = None
        self.source = self.rich("Trying to reach the source, and reading the recovery points…")
        self.points, self.loss, self.effects = QTableWidget(self), self.rich(), self.rich()
        self.points.setAccessibleName("Recovery points")
        self.points.setColumnCount(len(_HEADERS))
        self.points.setHorizontalHeaderLabels(list(_HEADERS))
        self.points.setMinimumHeight(130)
        look_like_rows(self.points, 9)
        self.points.horizontalHeader().setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        self.points.horizontalHeader().setStretchLastSection(True)
        self.fence = QComboBox(self)
        for key, text in _WAYS:
            self.fence.addItem(text, key)
        self.fence.setAccessibleName("What to do with the VM at its source")
        self.fence.setEnabled(False)
        self.box.addWidget(self.source)
        self.add_group("Recovery point", self.points, self.loss)
        self.add_group("What will happen", self.effects)
        self.add_form(("At the &source:", self.fence))
        self.add_buttons(720, 660)
        self.points.itemSelectionChanged.connect(self._chosen)
        backend = context.backend
        self.ask(
            lambda: backend.failover_preview(protection_id),
            self._show,
            self.source,
            "The failover cannot be prepared.",
        )

    @property
    def seq(self) -> int | None:
        """The chosen point."""
        point = self._point()
        return point.seq if point else None

    @property
    def source_way(self) -> str:
        """What to do with a source that answers."""
        return str(self.fence.currentData())

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
        self.effects.setText(self.told(preview.effects, preview.blockers))

    def _source_text(self, preview: FailoverPreview) -> str:
        now, name = datetime.now(UTC), escape(preview.source_name)
        seen = words.ago(preview.source_last_seen_at, now) if preview.source_last_seen_at else "never"
        if preview.source_reachable:
            answers = self.coloured(Severity.WARNING, f"The source {preview.source_name} answers.")
            text = f"{answers} Shut it down there first, or migrate it."
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
        self.judge()

    def missing(self) -> str:
        """The preview, nothing in the way, and a point."""
        if self.preview is None:
            return "Waiting for the preview."
        if self.preview.blockers:
            return "It is not possible now, see above."
        return "Choose a recovery point." if self._point() is None else ""

    def judge(self) -> None:
        """The button is red as soon as it works."""
        super().judge()
        colours = self._context.theme.colours
        red = f"background: {colours.severity[Severity.CRITICAL]}; color: {colours.base}; font-weight: bold;"
        self.go.setStyleSheet(f"{red} padding: 5px 14px;" if self.go.isEnabled() else "")
