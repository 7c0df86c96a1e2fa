"""Settings: in force at once, searchable, each with its key; starting with the session."""

from __future__ import annotations

from datetime import UTC, datetime, time
from pathlib import Path

import pytest
from PySide6.QtCore import QTime
from PySide6.QtWidgets import QLabel

from vapor_desktop.gui.autostart import Autostart, quoted
from vapor_desktop.gui.layout_store import Memory
from vapor_desktop.gui.preferences import SETTINGS, Preferences, within
from vapor_desktop.gui.theme import CONTRAST, DARK


@pytest.fixture
def dialog(console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    window = console.shown()
    window.menus.settings.trigger()
    return window.menus.dialog


def visible_text(dialog) -> str:  # type: ignore[no-untyped-def]
    return "\n".join(label.text() for label in dialog.findChildren(QLabel) if label.isVisible())


def test_every_setting_shows_its_key_and_has_a_control(dialog) -> None:  # type: ignore[no-untyped-def]
    text = visible_text(dialog)
    for setting in SETTINGS:
        assert setting.title in text
        assert setting.kind == "autostart" or f"<code>{setting.key}</code>" in text
        assert dialog.controls[setting.key].accessibleName() == setting.title
    assert str(dialog.autostart.path) in text
    assert "window.json" in text
    assert "VAPOR_DATABASE_URL" in text


def test_expectation_22_the_theme_changes_at_run_time_charts_included(console, dialog) -> None:  # type: ignore[no-untyped-def]
    window, box = console.window, dialog.controls["theme"]
    window.open_vm("p-db01")
    for value, colours in (("dark", DARK), ("contrast", CONTRAST)):
        box.setCurrentIndex(box.findData(value))
        assert console.context.theme.colours is colours
        assert window.detail.rpo.graph.backgroundBrush().color().name() == colours.base.lower()
        assert Memory(console.context.memory._path).get("theme") == value  # on disk already
        assert window.menus.themes[console.context.theme.scheme].isChecked()


def test_search_hides_what_does_not_answer(dialog) -> None:  # type: ignore[no-untyped-def]
    dialog.search.setText("quiet")
    assert dialog.controls["quiet_from"].isVisible()
    assert not dialog.controls["theme"].isVisible()
    assert not dialog._headings["Appearance"].isVisible()
    dialog.search.setText("close_to_tray")
    assert dialog.controls["close_to_tray"].isVisible()
    dialog.search.setText("no such thing")
    assert dialog.nothing.isVisible()


def test_the_palette_opens_a_setting(console) -> None:  # type: ignore[no-untyped-def]
    window = console.shown()
    window.menus.open_palette()
    palette = window.menus.dialog
    palette.edit.setText("quiet until")
    assert palette.chosen().kind == "Setting › Notifications"
    palette.run_chosen()
    dialog = window.menus.dialog
    assert dialog.controls["quiet_to"].isVisible()
    assert not dialog.controls["theme"].isVisible()


def test_what_depends_on_a_switch_is_grey_without_it(dialog) -> None:  # type: ignore[no-untyped-def]
    assert not dialog.controls["quiet_from"].isEnabled()
    dialog.controls["quiet_hours"].setChecked(True)
    assert dialog.controls["quiet_from"].isEnabled()
    dialog.controls["notifications"].setChecked(False)
    assert not dialog.controls["quiet_from"].isEnabled()
    assert not dialog.controls["notify_warning"].isEnabled()
    dialog.controls["quiet_from"].setTime(QTime(20, 30))
    assert dialog.preferences.get("quiet_from") == "20:30"


def test_autostart_is_a_file_of_the_session(dialog) -> None:  # type: ignore[no-untyped-def]
    switch, path = dialog.controls["autostart"], dialog.autostart.path
    assert path.parent.name == "autostart"
    assert not switch.isChecked()
    switch.setChecked(True)
    lines = path.read_text().splitlines()
    assert lines[0] == "[Desktop Entry]"
    assert next(line for line in lines if line.startswith("Exec=")).endswith(" --tray")
    assert dialog.autostart.on()
    path.write_text(path.read_text() + "Hidden=true\n")  # how a desktop's own switch turns it off
    assert not Autostart(path.stem, "Vapor Desktop").on()
    switch.setChecked(False)
    assert not path.exists()


def test_autostart_that_cannot_be_written_says_so(dialog) -> None:  # type: ignore[no-untyped-def]
    folder = dialog.autostart.path.parent
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.write_text("not a folder")
    dialog.controls["autostart"].setChecked(True)
    assert not dialog.controls["autostart"].isChecked()


def test_the_protect_wizard_begins_with_the_default(console, dialog) -> None:  # type: ignore[no-untyped-def]
    dialog.controls["default_rpo_s"].set_seconds(120)
    dialog.reject()
    window = console.window
    window.commands.protect()
    assert window.commands.dialog.request().rpo_target_s == 120
    window.commands.dialog.reject()


def test_arguments_in_an_exec_line() -> None:
    assert quoted("/usr/bin/vapor-desktop") == "/usr/bin/vapor-desktop"
    assert quoted("/home/me/my programs/v") == '"/home/me/my programs/v"'
    assert quoted("/a$b%c") == '"/a\\\\$b%%c"'


def test_quiet_hours_over_midnight_and_in_local_time(memory: Memory) -> None:
    night = (time(22), time(7))
    assert [within(time(h), *night) for h in (21, 22, 2, 7)] == [False, True, True, False]
    assert [within(time(h), time(12), time(14)) for h in (11, 12, 14)] == [False, True, False]
    assert not within(time(9), time(9), time(9))
    preferences = Preferences(memory)
    now = datetime(2026, 11, 20, 10, 0, tzinfo=UTC)
    assert not preferences.quiet(now)
    local = now.astimezone()
    memory.put("quiet_hours", True)
    memory.put("quiet_from", f"{local.hour:02}:00")
    memory.put("quiet_to", f"{(local.hour + 1) % 24:02}:00")
    assert preferences.quiet(now)


def test_a_damaged_value_counts_as_its_default(memory: Memory) -> None:
    memory.put("remind_hours", "soon")
    memory.put("quiet_from", "25:99")
    memory.put("quiet_hours", True)
    preferences = Preferences(memory)
    assert preferences.get("remind_hours") == 4
    assert isinstance(preferences.quiet(datetime.now(UTC)), bool)
