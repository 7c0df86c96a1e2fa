"""The guide in the window: an error's button opens what its code means; links and *Back* work."""

from __future__ import annotations

from PySide6.QtCore import QUrl
from PySide6.QtWidgets import QMessageBox, QWidget
from pytestqt.qtbot import QtBot

from vapor_desktop.gui import guide_window
from vapor_desktop.gui.error_box import show_error
from vapor_desktop.gui.guide_window import GuideWindow
from vapor_desktop.gui.theme import Theme
from vapor_desktop.guide.pages import NAMES, pages
from vapor_desktop.model.errors import LeaseHeld


def test_an_errors_button_opens_what_its_code_means(qtbot: QtBot, theme: Theme) -> None:
    parent = QWidget()
    qtbot.addWidget(parent)
    box = show_error(
        parent, "Pair", LeaseHeld("Somebody is at work"), lambda code: guide_window.explain(parent, theme, code)
    )
    more = next(b for b in box.buttons() if b.text() == "&What this means")
    assert box.buttonRole(more) is QMessageBox.ButtonRole.HelpRole
    more.click()
    window = parent.findChild(GuideWindow)
    assert window is not None
    qtbot.waitExposed(window)
    assert window.contents.currentRow() == NAMES.index("errors")

    def top_of(text: str) -> int:
        """Pixels below the window's upper edge."""
        return window.text.cursorRect(window.text.document().find(text)).top()

    qtbot.waitUntil(lambda: -5 <= top_of("LEASE-HELD") < 60, timeout=3000)
    more.click()
    assert parent.findChildren(GuideWindow) == [window]


def test_pages_links_and_back(qtbot: QtBot, theme: Theme) -> None:
    window = GuideWindow(theme)
    qtbot.addWidget(window)
    for row, wanted in enumerate(pages()):
        window.contents.setCurrentRow(row)
        assert window.text.toPlainText().startswith(wanted.title)
    window.show_page("emergency")
    window.text.anchorClicked.emit(QUrl("break-glass"))
    assert window.text.toPlainText().startswith("Break glass")
    window.back.trigger()
    assert window.text.toPlainText().startswith("In an emergency")


def test_finding_goes_round(qtbot: QtBot, theme: Theme) -> None:
    window = GuideWindow(theme)
    qtbot.addWidget(window)
    window.show_page("errors")
    window.find_edit.setText("captive portal")
    first = window.text.textCursor().position()
    assert window.text.textCursor().selectedText() == "captive portal"
    window.find_edit.returnPressed.emit()
    assert window.text.textCursor().position() == first
    window.find_edit.setText("nothing like this is there")
    assert not window.text.textCursor().hasSelection()
