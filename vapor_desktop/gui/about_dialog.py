"""About: versions, and the licences of what is used."""

from __future__ import annotations

import PySide6
from PySide6.QtCore import Qt, qVersion
from PySide6.QtWidgets import (
    QApplication,
    QDialog,
    QDialogButtonBox,
    QHeaderView,
    QLabel,
    QTableWidget,
    QTableWidgetItem,
    QTabWidget,
    QVBoxLayout,
    QWidget,
)

from vapor_desktop import __version__
from vapor_desktop.gui.context import Context
from vapor_desktop.gui.error_box import sentence
from vapor_desktop.gui.icons import pixmap
from vapor_desktop.gui.record_table import look_like_rows
from vapor_desktop.model.about import About
from vapor_desktop.model.errors import VaporError

_TEXT = (
    f"<h2>Vapor Desktop {__version__}</h2>"
    "<p>Asynchronous site-to-site replication and disaster recovery of KVM/libvirt virtual machines.</p>"
    "<p>Licensed under the Apache License 2.0.</p>"
)


def own_versions() -> tuple[tuple[str, str], ...]:
    """What only the window knows."""
    return (("Qt", str(qVersion())), ("PySide6", PySide6.__version__))


class AboutDialog(QDialog):
    """Asks the engine for the rest; the versions can be copied."""

    def __init__(self, context: Context, parent: QWidget) -> None:
        super().__init__(parent)
        self.setWindowTitle("About Vapor Desktop")
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.about: About | None = None
        mark, text = QLabel(self), QLabel(_TEXT, self)
        mark.setPixmap(pixmap("vapor-desktop", "#56B4E9", 64))
        text.setWordWrap(True)
        self.versions = _table(("What", "Version"), "Versions", self)
        self.licences = _table(("Component", "Version", "Licence"), "Licences of components", self)
        self.tabs = QTabWidget(self)
        self.tabs.addTab(self.versions, "&Versions")
        self.tabs.addTab(self.licences, "&Licences")
        self.trouble = QLabel(self)
        self.trouble.setWordWrap(True)
        self.trouble.hide()
        buttons = QDialogButtonBox(QDialogButtonBox.StandardButton.Close, self)
        self.copy = buttons.addButton("&Copy versions", QDialogButtonBox.ButtonRole.ActionRole)
        self.copy.setEnabled(False)
        self.copy.clicked.connect(self._copy)
        buttons.rejected.connect(self.reject)
        box = QVBoxLayout(self)
        for widget in (mark, text, self.tabs, self.trouble, buttons):
            box.addWidget(widget)
        self.resize(600, 560)
        context.bridge.ask(context.backend.about, self, self._show, self._failed)

    def _show(self, about: About) -> None:
        self.about = about
        _fill(self.versions, [about.versions[0], *own_versions(), *about.versions[1:]])
        _fill(self.licences, [(c.name, c.version, c.licence or "not named") for c in about.components])
        self.copy.setEnabled(True)

    def _failed(self, error: VaporError) -> None:
        _fill(self.versions, [("Vapor Desktop", __version__), *own_versions()])
        self.trouble.setText(sentence(error))
        self.trouble.show()

    def _copy(self) -> None:
        if self.about is not None:
            own = [f"{what}: {which}" for what, which in own_versions()]
            QApplication.clipboard().setText("\n".join([*self.about.lines(), *own]))


def _table(headers: tuple[str, ...], name: str, parent: QWidget) -> QTableWidget:
    table = QTableWidget(0, len(headers), parent)
    table.setAccessibleName(name)
    table.setHorizontalHeaderLabels(headers)
    look_like_rows(table, 8)
    table.horizontalHeader().setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
    table.horizontalHeader().setStretchLastSection(True)
    return table


def _fill(table: QTableWidget, rows: list[tuple[str, ...]]) -> None:
    table.setRowCount(len(rows))
    for at, row in enumerate(rows):
        for column, text in enumerate(row):
            table.setItem(at, column, QTableWidgetItem(text))
