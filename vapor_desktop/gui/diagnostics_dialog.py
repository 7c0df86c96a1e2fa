"""Save diagnostics: what the bundle holds is told first, then it is written."""

from __future__ import annotations

from datetime import UTC, datetime
from html import escape
from pathlib import Path

from PySide6.QtCore import Qt
from PySide6.QtWidgets import (
    QDialog,
    QDialogButtonBox,
    QFileDialog,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from vapor_desktop.engine import diagnostics
from vapor_desktop.gui.about_dialog import own_versions
from vapor_desktop.gui.context import Context
from vapor_desktop.gui.error_box import sentence
from vapor_desktop.model.errors import VaporError
from vapor_desktop.program_log import CONSOLE, ENGINE, log_file


class DiagnosticsDialog(QDialog):
    """Path and *Save*; the work runs beside the window."""

    def __init__(self, context: Context, parent: QWidget) -> None:
        super().__init__(parent)
        self._context = context
        self.setWindowTitle("Save diagnostics")
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        rows = "".join(
            f"<tr><td style='padding: 2px 14px 2px 0'><code>{escape(name)}</code></td><td>{escape(told)}</td></tr>"
            for name, told in diagnostics.CONTENTS
        )
        self.told = QLabel(
            "<h3>One zip for whoever helps you</h3><p>It is written here and sent nowhere. It holds:</p>"
            f"<table>{rows}</table><p>{escape(diagnostics.LEFT_OUT)}</p>",
            self,
        )
        self.told.setWordWrap(True)
        self.path = QLineEdit(
            str(Path.home() / f"vapor-diagnostics-{datetime.now().astimezone():%Y%m%d-%H%M}.zip"), self
        )
        self.path.setAccessibleName("File")
        browse = QPushButton("&Browse…", self)
        browse.clicked.connect(self._browse)
        where = QHBoxLayout()
        where.addWidget(self.path, 1)
        where.addWidget(browse)
        self.outcome = QLabel(self)
        self.outcome.setWordWrap(True)
        self.outcome.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        buttons = QDialogButtonBox(QDialogButtonBox.StandardButton.Close, self)
        self.save = buttons.addButton("&Save", QDialogButtonBox.ButtonRole.ActionRole)
        self.save.setDefault(True)
        self.save.clicked.connect(self._save)
        buttons.rejected.connect(self.reject)
        box = QVBoxLayout(self)
        box.setContentsMargins(18, 12, 18, 12)
        box.addWidget(self.told)
        box.addLayout(where)
        box.addWidget(self.outcome)
        box.addWidget(buttons)
        self.resize(640, 420)

    def _browse(self) -> None:
        found, _kind = QFileDialog.getSaveFileName(self, "Save diagnostics", self.path.text(), "Zip (*.zip)")
        if found:
            self.path.setText(found)

    def _save(self) -> None:
        path = Path(self.path.text().strip()).expanduser()
        context, now = self._context, datetime.now(UTC)
        logs = {name: log_file(name) for name in (CONSOLE, ENGINE)}
        settings = {**context.memory.all(), "window": dict(own_versions())}
        self.save.setEnabled(False)
        self.outcome.setText("Collecting…")

        def work() -> Path:
            diagnostics.write(path, diagnostics.collect(context.backend, now, settings, logs))
            return path

        context.bridge.ask(work, self, self._done, self._failed)

    def _done(self, path: Path) -> None:
        self.save.setEnabled(True)
        self.outcome.setText(f"Written: {escape(str(path))}")

    def _failed(self, error: VaporError) -> None:
        self.save.setEnabled(True)
        self.outcome.setText(sentence(error))
