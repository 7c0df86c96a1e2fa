"""Which keys do what: read from the actions themselves, so that it cannot be wrong."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QDialog, QDialogButtonBox, QLineEdit, QTextBrowser, QVBoxLayout

from vapor_desktop.gui.palette_entries import keys_of, menu_actions, plain

if TYPE_CHECKING:
    from vapor_desktop.gui.main_window import MainWindow

# Keys that belong to widgets and to no action.
_WIDGETS = (
    ("Alt + underlined letter", "The menu, button or field with that letter"),
    ("Tab, Shift+Tab", "The next field, the one before"),
    ("Enter", "In a table: open the chosen one"),
    ("Shift or Ctrl + arrows, Space", "In the table of virtual machines: choose several"),
    ("Ctrl+C", "In the table of virtual machines: copy the chosen rows"),
    ("Alt+Left", "On a VM's page: back to the table"),
    ("Esc", "Clear the filter; close a sheet, changing nothing"),
    ("Menu, Shift+F10", "The context menu"),
)


def groups(window: MainWindow) -> list[tuple[str, list[tuple[str, str]]]]:
    """(heading, [(keys, what they do)]): one group a menu, then what is in no menu."""
    found: dict[str, list[tuple[str, str]]] = {}
    for path, action in menu_actions(window.menuBar().actions()):
        if keys_of(action):
            found.setdefault(path[0], []).append((keys_of(action), plain(action.text())))
    for action in window.actions():
        if keys_of(action) and not action.associatedObjects()[1:]:
            found.setdefault("Window", []).append((keys_of(action), plain(action.text())))
    return [*found.items(), ("Tables and fields", list(_WIDGETS))]


class ShortcutSheet(QDialog):
    """All shortcuts, with a filter."""

    def __init__(self, window: MainWindow) -> None:
        super().__init__(window)
        self.setWindowTitle("Keyboard shortcuts")
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self._groups, self._colours = groups(window), window.context.theme.colours
        self.filter = QLineEdit(self)
        self.filter.setPlaceholderText("Filter: a word or a key")
        self.filter.setAccessibleName("Filter shortcuts")
        self.filter.setClearButtonEnabled(True)
        self.text = QTextBrowser(self)
        self.text.setAccessibleName("Shortcuts")
        close = QDialogButtonBox(QDialogButtonBox.StandardButton.Close, self)
        close.rejected.connect(self.reject)
        box = QVBoxLayout(self)
        for widget in (self.filter, self.text, close):
            box.addWidget(widget)
        self.resize(560, 620)
        self.filter.textChanged.connect(self.show_matching)
        self.show_matching("")

    def show_matching(self, text: str) -> None:
        """The lines with that text."""
        wanted = text.casefold().strip()
        parts = []
        for heading, lines in self._groups:
            kept = [line for line in lines if wanted in f"{line[0]} {line[1]}".casefold()]
            if kept:
                rows = "".join(self._row(keys, what) for keys, what in kept)
                parts.append(f"<h3>{escape(heading)}</h3><table width='100%' cellspacing='0'>{rows}</table>")
        self.text.setHtml("".join(parts) or "<p>No shortcut is called so.</p>")

    def _row(self, keys: str, what: str) -> str:
        line = f"border-bottom: 1px solid {self._colours.line}; padding: 4px 0"
        left = f"<td width='44%' style='{line}'><b>{escape(keys)}</b></td>"
        return f"<tr>{left}<td style='{line}'>{escape(what)}</td></tr>"
