"""Nothing is cut off with large fonts: as on a desktop scaled to 150 and 200 %."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from PySide6.QtWidgets import QAbstractButton, QApplication, QCheckBox, QPushButton, QWidget


@pytest.fixture(params=[1.0, 1.5, 2.0], ids=["100", "150", "200"])
def large_font(request: pytest.FixtureRequest, qapp: QApplication) -> Iterator[float]:
    before = qapp.font()
    font = qapp.font()
    font.setPointSizeF(before.pointSizeF() * request.param)
    qapp.setFont(font)
    yield request.param
    qapp.setFont(before)


def cut(widget: QWidget) -> list[str]:
    """Buttons too narrow or too low for their words."""
    found = []
    for button in widget.findChildren(QAbstractButton):
        if not button.isVisible() or not button.text() or not isinstance(button, QPushButton | QCheckBox):
            continue
        text = button.fontMetrics().size(0, button.text().replace("&", ""))
        if button.width() < text.width() or button.height() < text.height():
            found.append(f"{button.text()}: {button.width()}x{button.height()} for {text.width()}x{text.height()}")
    return found


def test_expectation_22_no_button_is_cut(large_font, console) -> None:  # type: ignore[no-untyped-def]
    window = console.shown()
    for key in ("overview", "sites", "activity", "plans", "vms"):
        window.go_to(key)
        assert cut(window) == [], key
    menus = window.menus
    for opens in (menus.open_settings, menus.open_about, menus.open_shortcuts, menus.open_diagnostics):
        opens()
        dialog = menus.dialog
        assert cut(dialog) == [], dialog.windowTitle()
        dialog.reject()


def test_expectation_22_the_names_of_the_pages_are_whole(large_font, console) -> None:  # type: ignore[no-untyped-def]
    window = console.shown()
    navigation = window.navigation
    for n in range(navigation.count()):
        rect = navigation.visualItemRect(navigation.item(n))
        text = navigation.fontMetrics().size(0, navigation.item(n).text())
        room = rect.width() - navigation.iconSize().width() - 16
        assert text.width() <= room, navigation.item(n).text()
        assert text.height() <= rect.height()
