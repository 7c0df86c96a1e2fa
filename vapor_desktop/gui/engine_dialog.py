"""Connect to a running engine: by the database in which consoles and engines meet."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from html import escape
from pathlib import Path
from urllib.parse import urlsplit

from PySide6.QtCore import QProcess, QProcessEnvironment, Qt, Signal
from PySide6.QtWidgets import QDialog, QDialogButtonBox, QLabel, QLineEdit, QVBoxLayout, QWidget

from vapor_desktop.gui.autostart import program

_TEXT = (
    "<h3>Connect to a running engine</h3>"
    "<p>Consoles and engines meet in one database. Give the URL of the one that your engine uses. "
    "A password does not belong into it: put that into <code>~/.pgpass</code>.</p>"
)


def wrong(url: str) -> str:
    """What is wrong with a database's URL; "" when it may be tried."""
    parts = urlsplit(url)
    if not url:
        return "Type the URL."
    if parts.scheme not in ("postgresql+psycopg", "sqlite"):
        return "It begins with postgresql+psycopg:// (or sqlite:/// for a file)."
    if parts.password is not None:
        return "Leave the password out: others could read it. ~/.pgpass keeps it."
    if parts.scheme == "postgresql+psycopg" and not parts.path.strip("/"):
        return "The name of the database is missing at its end."
    return ""


class EngineDialog(QDialog):
    """Looks first (with ``vaporctl``, in a process of its own), then opens a console there.

    Signals:
        moved: a console was opened on the other database; this one is not needed any more.
    """

    moved = Signal()

    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent)
        self.setWindowTitle("Connect to engine")
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self._checked = ""
        text = QLabel(_TEXT, self)
        text.setWordWrap(True)
        self.url = QLineEdit(self)
        self.url.setPlaceholderText("postgresql+psycopg://vapor@db.example/vapor")
        self.url.setAccessibleName("URL of the database")
        self.told = QLabel(self)
        self.told.setWordWrap(True)
        self.told.setTextFormat(Qt.TextFormat.RichText)
        buttons = QDialogButtonBox(QDialogButtonBox.StandardButton.Cancel, self)
        self.look = buttons.addButton("&Look who is there", QDialogButtonBox.ButtonRole.ActionRole)
        self.go = buttons.addButton("&Open a console there", QDialogButtonBox.ButtonRole.ActionRole)
        self.look.clicked.connect(self._look)
        self.go.clicked.connect(self._go)
        buttons.rejected.connect(self.reject)
        box = QVBoxLayout(self)
        for widget in (text, self.url, self.told, buttons):
            box.addWidget(widget)
        self.resize(560, 260)
        self._process = QProcess(self)
        self._process.finished.connect(self._looked)
        self._process.errorOccurred.connect(self._not_started)
        self.url.textChanged.connect(lambda _text: self._judge())
        self._judge()

    def _judge(self) -> None:
        url = self.url.text().strip()
        why = wrong(url)
        self.look.setEnabled(not why and self._process.state() == QProcess.ProcessState.NotRunning)
        self.go.setEnabled(not why and url == self._checked)
        if url != self._checked:
            self.told.setText(escape(why))

    def _look(self) -> None:
        self._process.setProcessEnvironment(_environment(self.url.text().strip()))
        self.told.setText("Looking…")
        self._process.start(sys.executable, ["-m", "vapor_desktop.cli.main", "--json", "engines"])
        self.look.setEnabled(False)
        self.go.setEnabled(False)

    def _not_started(self, _error: QProcess.ProcessError) -> None:
        self._judge()
        self.told.setText(escape(self._process.errorString()))

    def _looked(self, code: int, _status: QProcess.ExitStatus) -> None:
        output = bytes(self._process.readAllStandardOutput().data()).decode("utf-8", "replace")
        errors = bytes(self._process.readAllStandardError().data()).decode("utf-8", "replace")
        if code == 0:
            self._checked = self._process.processEnvironment().value("VAPOR_DATABASE_URL")
        self._judge()
        self.told.setText(alive(output) if code == 0 else trouble(output or errors))

    def _go(self) -> None:
        command = [*program(), "--new-instance"]
        try:
            subprocess.Popen(command, env={**os.environ, "VAPOR_DATABASE_URL": self._checked}, start_new_session=True)
        except OSError as error:
            self.told.setText(escape(f"{Path(command[0]).name} could not be started: {error.strerror}"))
            return
        self.accept()
        self.moved.emit()


def alive(output: str) -> str:
    """What ``vaporctl --json engines`` has said, for people."""
    engines = json.loads(output)
    if not engines:
        return "The database is there, but <b>no engine runs</b> on it: a console there would be the engine."
    lines = [f"{e['kind']} on {e['host']}, working for {e['protections']} VMs" for e in engines]
    return "Alive there: " + escape("; ".join(lines)) + "."


def trouble(output: str) -> str:
    """Why it could not look."""
    try:
        error = json.loads(output)["error"]
    except (ValueError, KeyError, TypeError):
        return escape(output.strip().rpartition("\n")[2] or "It failed, and said nothing.")
    return escape(". ".join(str(error[key]) for key in ("what", "why", "fix") if error.get(key)))


def _environment(url: str) -> QProcessEnvironment:
    made = QProcessEnvironment.systemEnvironment()
    made.insert("VAPOR_DATABASE_URL", url)
    return made
