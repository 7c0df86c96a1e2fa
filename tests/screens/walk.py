"""Through every page, tab and sheet of an open console, one picture each."""

from __future__ import annotations

from collections.abc import Iterator

from desk import Desk
from PySide6.QtGui import QPixmap
from PySide6.QtWidgets import QDialog, QLabel, QTabWidget, QWidget, QWizard

from vapor_desktop.gui.guide_window import GuideWindow, open_guide
from vapor_desktop.gui.main_window import DETAIL, PAGES

# Sheets by the verb that opens them; of a VM in the state that the story left it in.
SHEETS = (("edit", "web"), ("drill", "web"), ("migrate", "web"), ("failover", "web"), ("unprotect", "web"))
DRAW_S = 0.7  # charts and live values, once nothing is being read any more
READ_S = 30


def walk(desk: Desk) -> Iterator[tuple[str, QPixmap]]:
    """(name, picture) of each screen. The console is left on its first page, without a dialog."""
    for n, (key, _text) in enumerate(PAGES):
        desk.window.go(n)
        yield key, _seen(desk, desk.window)
    yield from _detail(desk)
    for verb, name in SHEETS:
        desk.choose(name)
        desk.window.verbs[verb].trigger()
        yield from _dialog(desk, f"sheet-{verb}")
    yield from _wizards(desk)
    menus = desk.window.menus
    openers = (
        menus.open_palette,
        menus.open_shortcuts,
        menus.open_settings,
        menus.open_diagnostics,
        menus.open_about,
    )
    for name, opened in zip(("palette", "shortcuts", "settings", "diagnostics", "about"), openers, strict=True):
        opened()
        assert menus.dialog is not None
        yield name, _seen(desk, menus.dialog)
        menus.dialog.reject()
    guide = open_guide(desk.window, desk.context.theme, "emergency")
    yield "guide", _seen(desk, guide)
    for window in desk.window.findChildren(GuideWindow):
        window.close()
    desk.window.go(0)


def _detail(desk: Desk) -> Iterator[tuple[str, QPixmap]]:
    desk.choose("web")
    desk.window.verbs["open"].trigger()
    desk.until(lambda: desk.window.pages.currentIndex() == DETAIL, "the VM's page")
    [tabs] = desk.window.detail.findChildren(QTabWidget)
    for n in range(tabs.count()):
        tabs.setCurrentIndex(n)
        name = tabs.tabText(n).replace("&", "").lower().replace(" ", "-")
        yield f"vm-{name}", _seen(desk, desk.window)


def _wizards(desk: Desk) -> Iterator[tuple[str, QPixmap]]:
    desk.window.go(1)
    desk.window.verbs["protect"].trigger()
    yield from _dialog(desk, "wizard-protect")
    desk.window.commands.pair()
    yield from _dialog(desk, "wizard-pair")


def _dialog(desk: Desk, name: str) -> Iterator[tuple[str, QPixmap]]:
    dialog = desk.window.commands.dialog
    assert isinstance(dialog, QDialog | QWizard), f"{name} opened nothing: {desk.told()}"
    yield name, _seen(desk, dialog)
    dialog.reject()


def _seen(desk: Desk, widget: QWidget) -> QPixmap:
    desk.until(lambda: not _reading(widget), f"the data of {widget.windowTitle() or widget.objectName()}", READ_S)
    desk.live(DRAW_S)
    return widget.grab()


def _reading(widget: QWidget) -> list[str]:
    """What the screen says that it still reads."""
    labels = (label for label in widget.findChildren(QLabel) if label.isVisibleTo(widget))
    return [label.text() for label in labels if label.text().rstrip().endswith("…")]
