"""The window on a fake backend: pages, verbs, sheets, errors, keyboard."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from fake_backend import site_status, status, world
from PySide6.QtCore import Qt
from PySide6.QtGui import QAccessible, QAction
from PySide6.QtWidgets import QAbstractButton, QComboBox, QLineEdit, QMessageBox, QTableView, QWidget

from vapor_desktop.gui.main_window import MainWindow
from vapor_desktop.gui.protection_columns import Chip
from vapor_desktop.gui.theme import Scheme
from vapor_desktop.gui.words import UNKNOWN
from vapor_desktop.model.errors import KeyringLocked, LeaseHeld
from vapor_desktop.model.states import Phase, Severity
from vapor_desktop.model.view import Banner, Task


def test_paints_and_says_so_before_anything_is_known(console) -> None:  # type: ignore[no-untyped-def]
    console.bridge.close()
    window = MainWindow(console.context)
    console.qtbot.addWidget(window, before_close_func=lambda w: w.let_close())
    window.show()
    window.go(1)
    assert "Reading" in window.vms.empty.text()
    assert window.status_line.worst_text.text() == "Reading…"


def test_table_is_live_and_keeps_the_selection(console) -> None:  # type: ignore[no-untyped-def]
    window = console.shown()
    window.go(1)
    window.vms.table.select("p-web01")
    rows = tuple(replace(r, point_count=99) for r in console.backend.shot.protections)
    console.backend.shot = replace(console.backend.shot, protections=rows)
    console.until(lambda: window.vms.model.get("p-web01").status.point_count == 99)
    assert [row.key for row in window.vms.chosen()] == ["p-web01"]


def test_overview_numbers_are_filters(console) -> None:  # type: ignore[no-untyped-def]
    window = console.shown()
    assert window.overview.number(Chip.ALL) == "6"
    assert window.overview.number(Chip.BREACHED) == "1"
    assert window.overview.number(Chip.UNPROTECTED) == "2"
    window.overview.chip_asked.emit(Chip.BREACHED)
    assert [window.vms.model.row(n).name for n in range(window.vms.model.rowCount())] == ["db01"]


def test_empty_filtered_and_loading_look_different(console) -> None:  # type: ignore[no-untyped-def]
    window = console.shown()
    window.go(1)
    window.vms.filter_edit.setText("no such thing")
    assert "No row matches" in window.vms.empty.text()
    console.qtbot.keyClick(window.vms.filter_edit, Qt.Key.Key_Escape)
    assert window.vms.model.rowCount() == 6
    console.backend.shot = world(datetime.now(UTC), protections=(), unprotected=())
    console.until(lambda: "No virtual machine is protected yet" in window.vms.empty.text())


def test_verbs_run_and_show_a_task_at_once(console) -> None:  # type: ignore[no-untyped-def]
    window = console.shown()
    window.go(1)
    window.vms.table.select("p-web01")
    window.verbs["sync"].trigger()
    assert window.panel.model.record(0).title == "Sync web01"
    console.until(lambda: console.asked("sync_now") == [("p-web01",)])
    console.until(lambda: window.panel.model.record(0).outcome == "done")


def test_a_refused_verb_says_why_with_code_and_fix(console) -> None:  # type: ignore[no-untyped-def]
    window = console.shown()
    console.backend.fail["pause"] = LeaseHeld("Another console holds web01", fix="Wait, or ask anna")
    window.go(1)
    window.vms.table.select("p-web01")
    window.verbs["pause"].trigger()
    console.until(lambda: isinstance(window.commands.dialog, QMessageBox))
    box = window.commands.dialog
    assert "Another console holds web01" in box.text()
    assert "Wait, or ask anna" in box.text()
    assert "LEASE-HELD" in box.informativeText()
    assert not box.isModal()
    box.close()


def test_disabled_verbs_tell_why(console) -> None:  # type: ignore[no-untyped-def]
    window = console.shown()
    window.go(1)
    window.vms.table.select("p-build")
    assert window.verbs["resume"].isEnabled()
    assert not window.verbs["pause"].isEnabled()
    assert "build is paused already" in window.verbs["pause"].toolTip()
    window.vms.table.select("p-mail")
    assert "a cycle of mail is running" in window.verbs["sync"].toolTip()


def test_mixed_selection_is_told_before(console) -> None:  # type: ignore[no-untyped-def]
    window = console.shown()
    window.go(1)
    window.vms.table.selectAll()
    window.verbs["pause"].trigger()
    box = window.commands.dialog
    assert "will run on 5, and skips 1" in box.text()
    assert "build is paused already" in box.text()
    go = next(b for b in box.buttons() if b.text() == "&Pause 5")
    go.click()
    console.until(lambda: len(console.asked("pause")) == 5)
    assert ("p-build",) not in console.asked("pause")


def test_context_menu_holds_the_very_same_actions(console) -> None:  # type: ignore[no-untyped-def]
    window = console.shown()
    bar = {action for menu in window.menuBar().findChildren(QWidget) for action in menu.actions()}
    for action in window.vms.context_menu().actions():
        assert action.isSeparator() or action in bar, action.text()


def test_enter_opens_the_detail_and_back_returns(console) -> None:  # type: ignore[no-untyped-def]
    window = console.shown()
    window.go(1)
    window.vms.table.select("p-db01")
    console.qtbot.keyClick(window.vms.table, Qt.Key.Key_Return)
    assert window.pages.currentWidget() is window.detail
    text = window.detail.sentence.text()
    assert text.startswith("Protected. The newest recovery point is 12 min old; the target is 5 min: breached.")
    assert "The link broke off" in text
    window.detail.back.click()
    assert window.pages.currentWidget() is window.vms


def test_detail_of_an_unknown_rpo_says_unknown(console) -> None:  # type: ignore[no-untyped-def]
    window = console.shown()
    window.open_vm("p-files")
    assert "is unknown; the target is 5 min" in window.detail.sentence.text()


def test_pin_and_unpin(console) -> None:  # type: ignore[no-untyped-def]
    window = console.shown()
    window.open_vm("p-web01")
    window.detail.tabs.setCurrentIndex(1)
    console.until(lambda: window.detail.points.rowCount() == 10)
    assert window.detail.points.record(0).seq == 41
    window.detail.points_table.selectRow(0)
    assert window.detail.pin.isEnabled()
    window.detail.do_pin("p-web01", 41, "before upgrade")
    window.detail.points_table.selectRow(2)
    assert not window.detail.pin.isEnabled()
    window.detail.unpin.click()
    console.until(lambda: console.asked("unpin") == [("p-web01", 39)])
    assert console.asked("pin") == [("p-web01", 41, "before upgrade")]


def sheet_of(console, key: str = "p-db01"):  # type: ignore[no-untyped-def]
    window = console.shown()
    window.open_vm(key)
    window.verbs["failover"].trigger()
    sheet = window.commands.dialog
    console.until(lambda: sheet.preview is not None)
    return sheet


def test_failover_needs_the_exact_name_and_a_reason(console) -> None:  # type: ignore[no-untyped-def]
    sheet = sheet_of(console)
    assert sheet.go.text() == "Fail over db01 to site-b"
    assert sheet.cancel.isDefault()
    assert not sheet.go.isDefault()
    assert not sheet.go.isEnabled()
    sheet.name.setText("db01")
    assert not sheet.go.isEnabled(), "no reason yet"
    sheet.reason.setText("site-a lost power")
    for wrong in ("DB01", "db0", "db01 ", ""):
        sheet.name.setText(wrong)
        assert not sheet.go.isEnabled(), wrong
    sheet.name.setText("db01")
    assert sheet.go.isEnabled()
    sheet.points.selectRow(1)
    assert "The data is 12 min old." in sheet.loss.text()
    sheet.go.click()
    console.until(lambda: console.asked("failover") == [("p-db01", 40, "site-a lost power", "leave")])


def test_failover_states_source_and_effects(console) -> None:  # type: ignore[no-untyped-def]
    sheet = sheet_of(console)
    assert "does not answer; last seen" in sheet.source.text()
    assert "timed out after 3 s" in sheet.source.text()
    assert "The data is 7 min 12 s old." in sheet.loss.text()
    assert "Replication from site-a stops" in sheet.effects.text()
    console.qtbot.keyClick(sheet, Qt.Key.Key_Escape)
    assert not sheet.isVisible()
    assert console.asked("failover") == []


def test_failover_with_a_blocker_or_unknown_age(console, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    whole = console.backend.failover_preview

    def blocked(key: str):  # type: ignore[no-untyped-def]
        preview = whole(key)
        points = (replace(preview.points[0], age_s=None),)
        return replace(preview, points=points, blockers=("site-b has no network lan0",), source_reachable=None)

    monkeypatch.setattr(console.backend, "failover_preview", blocked)
    sheet = sheet_of(console)
    sheet.reason.setText("test")
    sheet.name.setText("db01")
    assert not sheet.go.isEnabled()
    assert "no network lan0" in sheet.effects.text()
    assert "is unknown" in sheet.loss.text()
    assert "unknown; last seen" in sheet.source.text()
    sheet.reject()


def test_a_failed_over_vm_offers_no_second_failover(console) -> None:  # type: ignore[no-untyped-def]
    over = status("gone", None, phase=Phase.FAILED_OVER, status_text="failed over")
    console.backend.shot = world(datetime.now(UTC), protections=(over,))
    window = console.shown()
    console.until(lambda: window.vms.model.get("p-gone") is not None)
    window.open_vm("p-gone")
    assert not window.verbs["failover"].isEnabled()
    assert "runs at site-b and is not protected" in window.detail.sentence.text()


def test_unprotect_is_typed_and_keeps_points_by_default(console) -> None:  # type: ignore[no-untyped-def]
    window = console.shown()
    window.open_vm("p-db01")
    window.verbs["unprotect"].trigger()
    dialog = window.commands.dialog
    assert not dialog.option.isChecked()
    assert not dialog.go.isEnabled()
    dialog.name.setText("db01")
    dialog.go.click()
    console.until(lambda: console.asked("unprotect") == [("p-db01", False)])


def test_cancel_shows_cancelling(console) -> None:  # type: ignore[no-untyped-def]
    task = Task("t1", "Cycle of mail", "p-mail", datetime.now(UTC), None, None, None)
    console.backend.shot = replace(console.backend.shot, tasks=(task,))
    window = console.shown()
    console.until(lambda: window.panel.model.rowCount() == 1)
    window.panel.table.selectRow(0)
    window.panel._cancel.click()
    console.until(lambda: console.asked("cancel") == [("t1",)])
    row = next(n for n in range(window.panel.model.rowCount()) if window.panel.model.record(n).key == "t1")
    assert window.panel.model.index(row, 1).data() == "cancelling…"


def test_banners_and_the_locked_keyring(console) -> None:  # type: ignore[no-untyped-def]
    banner = Banner("x", Severity.CRITICAL, "db01 is behind", "open-vm", "p-db01")
    console.backend.shot = replace(console.backend.shot, banners=(banner,))
    window = console.shown()
    console.until(lambda: window.banners.texts() == ["db01 is behind"])
    window.banners.acted.emit(banner)
    assert window.pages.currentWidget() is window.detail
    console.backend.fail["snapshot"] = KeyringLocked("The keyring is locked")
    console.until(lambda: any("keyring is locked" in text for text in window.banners.texts()))
    del console.backend.fail["snapshot"]
    console.until(lambda: window.banners.texts() == ["db01 is behind"])


def test_old_data_is_said_and_engine_none(console) -> None:  # type: ignore[no-untyped-def]
    old = datetime.now(UTC) - timedelta(minutes=3)
    console.backend.shot = world(old, engine="none", sites=(site_status("site-a", reachable=None),))
    window = console.shown()
    console.until(lambda: "3 min" in window.status_line.age.text())
    assert "nothing is replicated" in window.status_line.engine.text()
    window.go(2)
    assert window.sites.model.index(0, 1).data() == "not tried yet"


def test_a_start_guard_that_was_not_proven_is_off(console) -> None:  # type: ignore[no-untyped-def]
    sites = tuple(
        site_status(f"site-{name}", guard_proven=word) for name, word in zip("abc", (True, False, None), strict=True)
    )
    console.backend.shot = world(datetime.now(UTC), sites=sites)
    window = console.shown()
    window.go(2)
    model, table = window.sites.model, window.sites.table
    titles = [model.headerData(n, Qt.Orientation.Horizontal) for n in range(model.columnCount())]
    column = titles.index("Start guard")
    console.until(lambda: model.rowCount() == 3)
    shown = {model.index(n, 0).data(): model.index(n, column).data() for n in range(3)}
    assert shown == {"site-a": "proven", "site-b": "off", "site-c": UNKNOWN}
    for name, told in (("site-a", False), ("site-b", True)):
        table.selectRow(next(n for n in range(3) if table.model().index(n, 0).data() == name))
        assert ("guard install" in window.sites.about.text()) is told


def test_first_run_shows_cards(console) -> None:  # type: ignore[no-untyped-def]
    console.backend.shot = world(datetime.now(UTC), sites=(), pairs=(), protections=(), unprotected=())
    window = console.shown()
    console.until(lambda: window.overview._stack.currentIndex() == 1)
    window.overview.welcome.buttons["pair"].click()
    assert window.commands.dialog.windowTitle() == "Pair site"
    window.commands.dialog.reject()


def test_every_control_has_a_name(console) -> None:  # type: ignore[no-untyped-def]
    window = console.shown()
    window.open_vm("p-web01")
    nameless = []
    for widget in window.findChildren(QWidget):
        if not isinstance(widget, QAbstractButton | QLineEdit | QComboBox | QTableView):
            continue
        # Qt's own parts of its own widgets.
        inner = widget.metaObject().className() in ("QTableCornerButton", "QLineEditIconButton")
        if inner or widget.objectName().startswith("qt_"):
            continue
        found = QAccessible.queryAccessibleInterface(widget)
        if found is not None and not found.text(QAccessible.Text.Name).strip():
            nameless.append(f"{widget.metaObject().className()} {widget.objectName()} in {widget.parent()}")
    assert nameless == []


def test_mnemonics_of_the_menu_bar_are_unique(console) -> None:  # type: ignore[no-untyped-def]
    def letters(actions: list[QAction]) -> list[str]:
        texts = [a.text() for a in actions if "&" in a.text()]
        return [text[text.index("&") + 1].lower() for text in texts]

    bar = letters(console.window.menuBar().actions())
    assert len(bar) == len(set(bar)) == 6
    for action in console.window.menuBar().actions():
        inside = letters(action.menu().actions())
        assert len(inside) == len(set(inside)), action.text()


def test_theme_switches_at_run_time(console) -> None:  # type: ignore[no-untyped-def]
    window = console.shown()
    window.open_vm("p-db01")
    theme = console.context.theme
    theme.use(Scheme.LIGHT)
    light = window.grab().toImage()
    theme.use(Scheme.DARK)
    dark = window.grab().toImage()
    spot = (light.width() // 2, light.height() // 2)
    assert light.pixelColor(*spot).lightness() > 180
    assert dark.pixelColor(*spot).lightness() < 90
    assert window.detail.rpo.graph.backgroundBrush().color().name() == theme.colours.base.lower()
