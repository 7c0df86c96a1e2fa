"""The shell by keyboard: palette, shortcut sheet, About, panes, menus."""

from __future__ import annotations

import pytest
from PySide6.QtCore import Qt
from PySide6.QtGui import QAction
from PySide6.QtWidgets import QApplication, QMenu

from vapor_desktop.gui.command_palette import CommandPalette
from vapor_desktop.gui.palette_entries import keys_of, menu_actions, plain
from vapor_desktop.gui.shortcut_sheet import ShortcutSheet, groups


@pytest.fixture
def window(console):  # type: ignore[no-untyped-def]
    made = console.shown()
    made.activateWindow()
    console.until(lambda: QApplication.activeWindow() is made)
    return made


def palette(console, key=Qt.Key.Key_K, modifiers=Qt.KeyboardModifier.ControlModifier, on=None):  # type: ignore[no-untyped-def]
    window = console.window
    console.qtbot.keyClick(on or window, key, modifiers)
    assert isinstance(window.menus.dialog, CommandPalette)
    return window.menus.dialog


def titles(found) -> list[str]:  # type: ignore[no-untyped-def]
    return [entry.title for entry in found.found.entries]


def test_expectation_19_everything_by_keyboard_the_palette_runs_what_was_typed(console, window) -> None:  # type: ignore[no-untyped-def]
    found = palette(console)
    console.qtbot.keyClicks(found.edit, "web01")
    assert titles(found)[0] == "web01"
    console.qtbot.keyClick(found.edit, Qt.Key.Key_Return)
    assert window.pages.currentWidget() is window.detail
    assert window.detail.title.text().find("web01") >= 0

    found = palette(console, Qt.Key.Key_I, Qt.KeyboardModifier.ControlModifier | Qt.KeyboardModifier.AltModifier)
    console.qtbot.keyClicks(found.edit, "sites")
    console.qtbot.keyClick(found.edit, Qt.Key.Key_Return)
    assert window.pages.currentWidget() is window.sites


def test_the_palette_holds_every_action_vm_site_and_guide_page(console, window) -> None:  # type: ignore[no-untyped-def]
    found = palette(console)
    listed = {entry.title.removesuffix(" (on)") for entry in found._entries}
    for _path, action in menu_actions(window.menuBar().actions()):
        assert plain(action.text()) in listed or action is window.menus.palette_action
    assert {"web01", "db01", "site-a", "site-b"} <= listed
    assert {vm.name for vm in window.snapshot.unprotected} <= listed
    assert any(entry.kind == "User guide" for entry in found._entries)


def test_the_palette_shows_shortcuts_and_why_not(console, window) -> None:  # type: ignore[no-untyped-def]
    window.go(0)
    found = palette(console)
    by_title = {entry.title: entry for entry in found._entries}
    assert by_title["Refresh"].shortcut == "F5"
    assert by_title["Sync now"].why == "choose a virtual machine first"
    console.qtbot.keyClicks(found.edit, "sync now")
    assert found.chosen().title == "Sync now"
    assert found.hint.text() == "Not now: choose a virtual machine first."
    console.qtbot.keyClick(found.edit, Qt.Key.Key_Return)
    assert found.isVisible()  # what cannot be done does not close it
    assert console.asked("sync_now") == []
    index = found.view.currentIndex()
    assert index.data(Qt.ItemDataRole.AccessibleTextRole).startswith("Sync now, Protection — not now: choose")


def test_ctrl_k_works_in_the_filter_too(console, window) -> None:  # type: ignore[no-untyped-def]
    window.find_vm()
    console.qtbot.keyClicks(window.vms.filter_edit, "db")
    window.vms.filter_edit.setCursorPosition(0)
    palette(console, on=window.vms.filter_edit)
    assert window.vms.filter_edit.text() == "db"


def test_the_palette_opens_an_unprotected_vm_and_an_operation(console, window) -> None:  # type: ignore[no-untyped-def]
    name = window.snapshot.unprotected[0].name
    found = palette(console)
    console.qtbot.keyClicks(found.edit, f"{name} not protected")
    assert titles(found)[0] == name
    console.qtbot.keyClick(found.edit, Qt.Key.Key_Return)
    assert [row.name for row in window.vms.chosen()] == [name]


@pytest.mark.parametrize("key", [Qt.Key.Key_F1, Qt.Key.Key_Question])
def test_expectation_19_the_shortcut_sheet_is_made_of_the_real_actions(console, window, key) -> None:  # type: ignore[no-untyped-def]
    window.go(1)
    window.vms.table.setFocus()
    console.qtbot.keyClick(window.vms.table, key)
    sheet = window.menus.dialog
    assert isinstance(sheet, ShortcutSheet)
    text = sheet.text.toPlainText()
    for _path, action in menu_actions(window.menuBar().actions()):
        if keys_of(action):
            assert keys_of(action) in text
            assert plain(action.text()) in text
    assert "F10" in text
    sheet.filter.setText("pane")
    assert "Next pane" in sheet.text.toPlainText()
    assert "Refresh" not in sheet.text.toPlainText()
    sheet.filter.setText("nothing at all")
    assert "No shortcut is called so" in sheet.text.toPlainText()


def test_no_shortcut_means_two_things(console, window) -> None:  # type: ignore[no-untyped-def]
    actions = {action for _path, action in menu_actions(window.menuBar().actions())} | set(window.actions())
    keys = [s.toString() for action in actions for s in action.shortcuts()]
    assert sorted(keys) == sorted(set(keys))
    assert next(heading for heading, _lines in groups(window)) == "File"


def test_question_mark_is_a_letter_while_one_types(console, window) -> None:  # type: ignore[no-untyped-def]
    window.find_vm()
    console.qtbot.keyClick(window.vms.filter_edit, Qt.Key.Key_Question)
    assert window.vms.filter_edit.text() == "?"
    assert window.menus.dialog is None


def test_expectation_19_f6_goes_round_the_panes_and_back_to_where_one_was(console, window) -> None:  # type: ignore[no-untyped-def]
    def pane() -> str:
        focus = QApplication.focusWidget()
        panes = {
            "navigation": window.navigation,
            "page": window.pages,
            "panel": window.panel,
            "banners": window.banners,
        }
        return next(n for n, p in panes.items() if p is focus or p.isAncestorOf(focus))

    window.go(1)
    window.vms.table.setFocus()
    rounds = []
    for _ in range(8):
        rounds.append(pane())
        console.qtbot.keyClick(QApplication.focusWidget(), Qt.Key.Key_F6)
        if pane() == "page":
            break
    assert set(rounds) >= {"page", "panel", "navigation"}
    assert window.vms.table.hasFocus()
    console.qtbot.keyClick(window.vms.table, Qt.Key.Key_F6, Qt.KeyboardModifier.ShiftModifier)
    assert pane() == rounds[-1]


def test_expectation_19_f10_opens_the_menu_bar(console, window) -> None:  # type: ignore[no-untyped-def]
    console.qtbot.keyClick(window.navigation, Qt.Key.Key_F10)
    assert window.menuBar().activeAction().text() == "&File"
    popup = QApplication.activePopupWidget()
    if popup is not None:
        popup.close()


def _clashes(actions: list[QAction]) -> list[str]:
    seen: dict[str, str] = {}
    found = []
    for action in actions:
        text = action.text().replace("&&", "")
        if "&" in text:
            letter = text[text.index("&") + 1].casefold()
            if letter in seen:
                found.append(f"{letter}: {seen[letter]} / {text}")
            seen[letter] = text
    return found


def test_expectation_19_mnemonics_are_unique_in_every_menu(console, window) -> None:  # type: ignore[no-untyped-def]
    menus = [window.menuBar(), *window.menuBar().findChildren(QMenu), window.vms.context_menu()]
    assert {menu.title() if isinstance(menu, QMenu) else "bar": _clashes(menu.actions()) for menu in menus} == {
        (menu.title() if isinstance(menu, QMenu) else "bar"): [] for menu in menus
    }
    for menu in menus:  # and every entry has one
        assert [a.text() for a in menu.actions() if a.text() and "&" not in a.text()] == []


def test_expectation_7_every_context_verb_is_in_the_menu_bar_with_its_text_and_state(console, window) -> None:  # type: ignore[no-untyped-def]
    window.go(1)
    for vm in ("p-web01", "p-db01"):
        window.vms.table.select(vm)
        bar = {a.text(): a for _path, a in menu_actions(window.menuBar().actions())}
        told = [a for a in window.vms.context_menu().actions() if not a.isSeparator()]
        assert len(told) > 8
        for action in told:
            twin = bar[action.text()]
            assert (twin.isEnabled(), twin.shortcut()) == (action.isEnabled(), action.shortcut())
            if not action.isEnabled():
                assert "not now:" in action.statusTip()
                assert "not now:" in action.toolTip()


def test_about_names_versions_and_licences(console, window) -> None:  # type: ignore[no-untyped-def]
    window.menus.about.trigger()
    about = window.menus.dialog
    console.until(lambda: about.about is not None)

    def rows(table) -> list[tuple[str, ...]]:  # type: ignore[no-untyped-def]
        return [tuple(table.item(r, c).text() for c in range(table.columnCount())) for r in range(table.rowCount())]

    versions = dict(rows(about.versions))
    assert {"Vapor Desktop", "Qt", "PySide6", "libvirt client", "Database"} <= set(versions)
    assert ("lxml", "6.0", "BSD-3-Clause") in rows(about.licences)
    assert ("nameless", "1", "not named") in rows(about.licences)
    about.copy.click()
    assert "Database: SQLite 3.40.1, schema 7" in QApplication.clipboard().text()
    about.reject()


def test_high_contrast_at_run_time(console, window) -> None:  # type: ignore[no-untyped-def]
    from vapor_desktop.gui.theme import CONTRAST, Scheme

    window.open_vm("p-db01")
    window.menus.themes[Scheme.CONTRAST].trigger()
    theme = console.context.theme
    assert theme.colours is CONTRAST
    assert console.context.memory.get("theme") == "contrast"
    assert window.detail.rpo.graph.backgroundBrush().color().name() == "#000000"
    assert window.menus.themes[Scheme.CONTRAST].isChecked()
