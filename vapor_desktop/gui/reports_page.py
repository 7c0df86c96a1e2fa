"""The page *Reports*: a kind, a range of time, the report as it will be on paper, and where to keep it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from html import escape
from pathlib import Path

from PySide6.QtCore import QDateTime, Qt
from PySide6.QtWidgets import (
    QComboBox,
    QDateTimeEdit,
    QFileDialog,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QTextBrowser,
    QVBoxLayout,
    QWidget,
)

from vapor_desktop.engine.reporting.document import Report
from vapor_desktop.engine.reporting.making import KINDS, author, make
from vapor_desktop.engine.reporting.rendering import as_csv, html
from vapor_desktop.gui.bridge import Call
from vapor_desktop.gui.context import Context
from vapor_desktop.gui.error_box import sentence
from vapor_desktop.gui.report_pdf import laid_out, write_pdf
from vapor_desktop.model.errors import VaporError

RANGES = {"Last 24 hours": 1, "Last 7 days": 7, "Last 30 days": 30, "Last year": 365}
_OWN = "From … to …"
_SAVES: dict[str, tuple[str, Callable[[Report, Path], None]]] = {
    "pdf": ("PDF", write_pdf),
    "html": ("HTML", lambda report, path: _write(path, html(report))),
    "csv": ("CSV", lambda report, path: _write(path, as_csv(report))),
}
_FIRST = (
    "Choose a report and a range of time; <i>Make report</i> shows it here. "
    "<code>vaporctl report</code> makes the same."
)


class ReportsPage(QWidget):
    """Nothing is made before it is asked for: some reports ask the sites."""

    def __init__(self, context: Context, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._context = context
        self._pending: Call | None = None
        self.report: Report | None = None
        self.kind, self.span = QComboBox(self), QComboBox(self)
        self.start, self.end = QDateTimeEdit(self), QDateTimeEdit(self)
        self.make = QPushButton("&Make report", self)
        self.saves = {key: QPushButton(f"Save {name}…", self) for key, (name, _save) in _SAVES.items()}
        self.told, self.text = QLabel(_FIRST, self), QTextBrowser(self)
        self._name()
        self._lay_out()
        self._connect()
        self._judge()

    # --- building -----------------------------------------------------------------------------------
    def _name(self) -> None:
        for kind in KINDS.values():
            self.kind.addItem(kind.title, kind.key)
        self.kind.setAccessibleName("Report")
        self.span.addItems([*RANGES, _OWN])
        self.span.setCurrentText("Last 30 days")
        self.span.setAccessibleName("Range of time")
        now = QDateTime.currentDateTime()
        for edit, name, at in ((self.start, "From", now.addDays(-30)), (self.end, "To", now)):
            edit.setAccessibleName(name)
            edit.setCalendarPopup(True)
            edit.setDisplayFormat("yyyy-MM-dd HH:mm")
            edit.setDateTime(at)
        self.text.setAccessibleName("The report")
        self.text.setOpenLinks(False)
        self.text.document().setDocumentMargin(20)
        self.told.setWordWrap(True)
        self.told.setTextFormat(Qt.TextFormat.RichText)

    def _lay_out(self) -> None:
        asked, kept = QHBoxLayout(), QHBoxLayout()
        for widget in (self.kind, self.span, self.start, self.end, self.make):
            asked.addWidget(widget)
        asked.addStretch(1)
        kept.addWidget(self.told, 1)
        for button in self.saves.values():
            kept.addWidget(button)
        box = QVBoxLayout(self)
        box.setContentsMargins(10, 8, 10, 6)
        box.addLayout(asked)
        box.addLayout(kept)
        box.addWidget(self.text, 1)

    def _connect(self) -> None:
        self.kind.currentIndexChanged.connect(self._judge)
        self.span.currentIndexChanged.connect(self._judge)
        self.make.clicked.connect(lambda _on=False: self.ask())
        for key, button in self.saves.items():
            button.clicked.connect(lambda _on=False, k=key: self._save(k))
        self._context.theme.changed.connect(self._draw)

    def _judge(self) -> None:
        """What can be chosen and pressed now."""
        ranged = KINDS[self.kind.currentData()].ranged
        own = ranged and self.span.currentText() == _OWN
        self.span.setVisible(ranged)
        self.start.setVisible(own)
        self.end.setVisible(own)
        self.make.setEnabled(self._pending is None)
        for button in self.saves.values():
            button.setEnabled(self.report is not None)

    # --- making -------------------------------------------------------------------------------------
    def reach(self, now: datetime) -> tuple[datetime, datetime]:
        """The chosen range, aware."""
        days = RANGES.get(self.span.currentText())
        if days is not None:
            return now - timedelta(days=days), now
        ends = (edit.dateTime().toSecsSinceEpoch() for edit in (self.start, self.end))
        start, end = (datetime.fromtimestamp(seconds, UTC) for seconds in ends)
        return start, end

    def ask(self) -> None:
        """Make it, off the GUI thread."""
        key, backend, now = str(self.kind.currentData()), self._context.backend, datetime.now(UTC)
        start, end = self.reach(now)
        self.told.setText("Reading the records…")
        self._pending = self._context.bridge.ask(
            lambda: make(backend, key, start, end, now, author()), self, self._show, self._failed
        )
        self._judge()

    def _show(self, report: Report) -> None:
        self._pending, self.report = None, report
        self.told.setText(f"<b>{escape(report.title)}</b>, made {report.made_at.astimezone():%H:%M:%S}")
        self._draw()
        self._judge()

    def _failed(self, error: VaporError) -> None:
        self._pending = None
        self.told.setText(f"The report cannot be made. {sentence(error)}")
        self._judge()

    def _draw(self) -> None:
        if self.report is None:
            return
        colours = self._context.theme.colours
        lines = f" h2 {{ color: {colours.link}; }} figcaption, dt {{ color: {colours.dim}; }}"
        document = laid_out(self.report, extra_style=lines)
        document.setParent(self.text)
        document.setDocumentMargin(20)
        self.text.setDocument(document)

    # --- keeping ------------------------------------------------------------------------------------
    def _save(self, key: str) -> None:
        name, _save = _SAVES[key]
        if self.report is None:
            return
        proposed = f"vapor-{self.report.kind}-{self.report.made_at.astimezone():%Y-%m-%d}.{key}"
        path, _kind = QFileDialog.getSaveFileName(self, f"Save {name}", proposed, f"{name} (*.{key})")
        if path:
            self.save(key, Path(path))

    def save(self, key: str, path: Path) -> None:
        """Write what is shown; says where, or why not."""
        if self.report is None:
            return
        try:
            _SAVES[key][1](self.report, path)
        except OSError as error:
            self.told.setText(f"<b>Not saved.</b> {escape(str(path))}: {escape(error.strerror or str(error))}.")
        else:
            self.told.setText(f"Saved: {escape(str(path))}")


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="")
