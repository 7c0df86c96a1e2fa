"""The tab *Runbook*: what to type at the target when no console is left. Best saved, or printed, before that day."""

from __future__ import annotations

from pathlib import Path

from PySide6.QtGui import QFontDatabase, QShowEvent
from PySide6.QtWidgets import QFileDialog, QHBoxLayout, QLabel, QPlainTextEdit, QPushButton, QVBoxLayout, QWidget

from vapor_desktop.gui import words
from vapor_desktop.gui.context import Context
from vapor_desktop.gui.error_box import sentence
from vapor_desktop.model.errors import InvalidRequest, VaporError
from vapor_desktop.model.wire import Runbook


class RunbookTab(QWidget):
    """Asks the target when it is opened, and on *Read again*."""

    def __init__(self, context: Context, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._context = context
        self._key: str | None = None
        self.runbook: Runbook | None = None
        self.text = QPlainTextEdit(self)
        self.text.setReadOnly(True)
        self.text.setAccessibleName("Runbook")
        self.text.setLineWrapMode(QPlainTextEdit.LineWrapMode.NoWrap)
        self.text.setFont(QFontDatabase.systemFont(QFontDatabase.SystemFont.FixedFont))
        self.state = QLabel("", self)
        self.state.setWordWrap(True)
        self.save, self.again = QPushButton("&Save as…", self), QPushButton("Read &again", self)
        self.save.setToolTip("Keep a copy where it can be read when neither console nor target answers")
        self.save.setEnabled(False)
        self.save.clicked.connect(self._ask_where)
        self.again.clicked.connect(self.refresh)
        row = QHBoxLayout()
        row.addWidget(self.state, 1)
        row.addWidget(self.again)
        row.addWidget(self.save)
        box = QVBoxLayout(self)
        box.setContentsMargins(4, 8, 4, 4)
        box.addWidget(self.text, 1)
        box.addLayout(row)

    def show_protection(self, key: str) -> None:
        """Whose runbook."""
        if key != self._key:
            self._key = key
            self._take(None)
            if self.isVisible():
                self.refresh()

    def refresh(self) -> None:
        """Ask the target."""
        key, backend = self._key, self._context.backend
        if key is None:
            return
        self.state.setText("Reading…")

        def told(found: Runbook) -> None:
            if key == self._key:
                self._take(found)

        def failed(error: VaporError) -> None:
            if key == self._key:
                self.state.setText(f"The runbook cannot be read. {sentence(error)}")

        self._context.bridge.ask(lambda: backend.runbook(key), self, told, failed)

    def save_to(self, path: Path) -> None:
        """Write the text there, on a worker: the place may be slow, or gone."""
        found = self.runbook
        if found is None:
            return
        self._context.errands.run(f"Save the runbook of {found.vm_name}", lambda: _write(path, found.text))

    def showEvent(self, event: QShowEvent) -> None:
        """Look at once."""
        super().showEvent(event)
        if self.runbook is None:
            self.refresh()

    def _take(self, found: Runbook | None) -> None:
        self.runbook = found
        self.text.setPlainText(found.text if found else "")
        self.save.setEnabled(found is not None)
        kept = f"Written {words.exact(found.written_at)}. The target keeps it at {found.path}" if found else ""
        self.state.setText(kept)

    def _ask_where(self) -> None:
        if self.runbook is None:
            return
        name = f"runbook-{self.runbook.vm_name}.txt"
        path, _filter = QFileDialog.getSaveFileName(self, "Save the runbook", name, "Text (*.txt)")
        if path:
            self.save_to(Path(path))


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise InvalidRequest(
            f"{path} cannot be written", why=error.strerror or str(error), fix="Choose another place"
        ) from error
