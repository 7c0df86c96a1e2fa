"""An error shown to a person: what, why, what to do, a code, and *Copy details*. Never a traceback."""

from __future__ import annotations

from collections.abc import Callable
from html import escape

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QApplication, QMessageBox, QWidget

from vapor_desktop.model.errors import VaporError


def sentence(error: VaporError) -> str:
    """What and why, as rich text, and the fix on its own line."""
    text = f"<b>{escape(error.what)}.</b>"
    if error.why:
        text += f"<br>{escape(error.why[:1].upper() + error.why[1:])}."
    if error.fix:
        text += f"<br><br>{escape(error.fix)}."
    return text.replace("..", ".")


def details(title: str, error: VaporError) -> str:
    """Plain text for a ticket."""
    facts = "\n".join(f"{key}: {value}" for key, value in error.details.items())
    return f"{title}\n{error}\ncode: {error.code}\n{facts}".rstrip()


def show_error(
    parent: QWidget, title: str, error: VaporError, explain: Callable[[str], object] | None = None
) -> QMessageBox:
    """A window of its own, not modal: the rest goes on. ``explain`` opens what a code means."""
    box = QMessageBox(QMessageBox.Icon.Warning, title, sentence(error), QMessageBox.StandardButton.Close, parent)
    box.setTextFormat(Qt.TextFormat.RichText)
    box.setInformativeText(f"Code {error.code}")
    copy = box.addButton("&Copy details", QMessageBox.ButtonRole.ActionRole)
    copy.clicked.disconnect()
    copy.clicked.connect(lambda: QApplication.clipboard().setText(details(title, error)))
    if explain is not None:
        more = box.addButton("&What this means", QMessageBox.ButtonRole.HelpRole)
        more.clicked.disconnect()
        more.clicked.connect(lambda: explain(error.code))
    box.setModal(False)
    box.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
    box.show()
    return box
