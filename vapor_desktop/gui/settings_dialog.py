"""Settings: searchable, in force at once, each with its key."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

from PySide6.QtCore import Qt, QTime, QUrl, Signal
from PySide6.QtGui import QDesktopServices, QGuiApplication
from PySide6.QtWidgets import (
    QCheckBox,
    QComboBox,
    QDialog,
    QDialogButtonBox,
    QFrame,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QPushButton,
    QScrollArea,
    QSpinBox,
    QTimeEdit,
    QVBoxLayout,
    QWidget,
)

from vapor_desktop.gui.autostart import Autostart
from vapor_desktop.gui.context import Context
from vapor_desktop.gui.error_box import show_error
from vapor_desktop.gui.places import places
from vapor_desktop.gui.preferences import DATA, ENGINE, NOTIFICATIONS, SECTIONS, SETTINGS, Preferences, Setting
from vapor_desktop.gui.rpo_edit import RpoEdit
from vapor_desktop.gui.theme import Scheme
from vapor_desktop.model.errors import VaporError
from vapor_desktop.model.view import Snapshot

_ENGINES = {
    "here": "The engine runs in this window. Replication stops when the console ends.",
    "service": "A background service is the engine. This window shows it and tells it what to do.",
    "none": "No engine runs: nothing is replicated. Start vapor-engine, or end this console and start it again.",
}


class SettingsDialog(QDialog):
    """Signals:
    changed: the key of what was changed.
    test_asked: show a notification now.
    """

    changed = Signal(str)
    test_asked = Signal()

    def __init__(self, context: Context, parent: QWidget, snapshot: Snapshot | None, sought: str = "") -> None:
        super().__init__(parent)
        self.setWindowTitle("Settings")
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self._theme = context.theme
        self.preferences = Preferences(context.memory)
        self.autostart = Autostart(QGuiApplication.desktopFileName() or "vapor-desktop", "Vapor Desktop")
        self.controls: dict[str, QWidget] = {}
        self._rows: list[tuple[QWidget, str, str]] = []  # row, section, what it is found by
        self._headings: dict[str, QLabel] = {}
        self._page = QWidget(self)
        self._box = QVBoxLayout(self._page)
        self._box.setContentsMargins(16, 8, 16, 12)
        self._box.setSpacing(4)
        self.search = QLineEdit(self)
        self.search.setPlaceholderText("Search settings")
        self.search.setAccessibleName("Search settings")
        self.search.setClearButtonEnabled(True)
        self.nothing = QLabel("No setting is called so.", self)
        self.test_told = QLabel(self)
        self.test_told.setWordWrap(True)
        for section in SECTIONS:
            self._add_section(section, snapshot)
        self._box.addWidget(self.nothing)
        self._box.addStretch(1)
        self._lay_out()
        self.search.textChanged.connect(self.show_matching)
        self.search.setText(sought)
        self.show_matching(sought)
        self._enable()

    def _lay_out(self) -> None:
        area = QScrollArea(self)
        area.setWidget(self._page)
        area.setWidgetResizable(True)
        area.setFrameShape(QFrame.Shape.NoFrame)
        buttons = QDialogButtonBox(QDialogButtonBox.StandardButton.Close, self)
        buttons.rejected.connect(self.reject)
        box = QVBoxLayout(self)
        for widget in (self.search, area, buttons):
            box.addWidget(widget)
        self.resize(680, 620)

    # --- building ---------------------------------------------------------------------------------------
    def _add_section(self, section: str, snapshot: Snapshot | None) -> None:
        heading = QLabel(f"<h3>{escape(section)}</h3>", self._page)
        self._headings[section] = heading
        self._box.addWidget(heading)
        for setting in (s for s in SETTINGS if s.section == section):
            self._add_setting(setting)
        if section == NOTIFICATIONS:
            self._add_test()
        if section == ENGINE:
            where = "Not known yet." if snapshot is None else _ENGINES.get(snapshot.engine, snapshot.engine)
            alive = "; ".join(f"{e.kind} on {e.host}, process {e.pid}" for e in snapshot.engines) if snapshot else ""
            self._add_fact(section, "Engine", where + (f" Alive: {alive}." if alive else ""), "")
            told = "This console and every engine meet in one database. To join another engine, point both at it."
            self._add_fact(section, "Which database", told, "VAPOR_DATABASE_URL (environment)")
        if section == DATA:
            for title, path, key in places():
                self._add_place(title, path, key)

    def _row(self, section: str, title: str, key: str, told: str, control: QWidget | None) -> None:
        row = QWidget(self._page)
        words = QVBoxLayout()
        words.setSpacing(0)
        label = QLabel(title, row)
        label.setWordWrap(True)
        words.addWidget(label)
        small = " · ".join(part for part in (escape(told), f"<code>{escape(key)}</code>" if key else "") if part)
        if small:
            under = QLabel(f"<small>{small}</small>", row)
            under.setWordWrap(True)
            under.setStyleSheet(f"color: {self._theme.colours.dim}")
            words.addWidget(under)
        across = QHBoxLayout(row)
        across.setContentsMargins(8, 5, 0, 5)
        across.addLayout(words, 1)
        if control is not None:
            across.addWidget(control)
            label.setBuddy(control)
        self._box.addWidget(row)
        self._rows.append((row, section, f"{title} {section} {key} {told}".casefold()))

    def _add_setting(self, setting: Setting) -> None:
        control = _MAKERS[setting.kind](self, setting)
        control.setAccessibleName(setting.title)
        control.setAccessibleDescription(setting.told)
        self.controls[setting.key] = control
        key = str(self.autostart.path) if setting.kind == "autostart" else setting.key
        self._row(setting.section, setting.title, key, setting.told, control)

    def _add_test(self) -> None:
        self.test = QPushButton("Show a &test notification", self._page)
        self.test.clicked.connect(self._ask_test)
        self._row(NOTIFICATIONS, "Does the desktop show them?", "", "", self.test)
        self._box.addWidget(self.test_told)

    def _add_fact(self, section: str, title: str, text: str, key: str) -> None:
        self._row(section, title, key, text, None)

    def _add_place(self, title: str, path: Path, key: str) -> None:
        show = QPushButton("Open folder", self._page)
        show.setAccessibleName(f"Open the folder of: {title}")
        show.setEnabled(path.parent.is_dir())
        show.clicked.connect(lambda: QDesktopServices.openUrl(QUrl.fromLocalFile(str(path.parent))))
        self._row(DATA, title, key, str(path), show)

    # --- controls ---------------------------------------------------------------------------------------
    def make_switch(self, setting: Setting) -> QWidget:
        """On or off."""
        box = QCheckBox(self._page)
        box.setChecked(bool(self.preferences.get(setting.key)))
        box.toggled.connect(lambda on: self._put(setting.key, on))
        return box

    def make_autostart(self, setting: Setting) -> QWidget:
        """On or off, in a file of the session."""
        box = QCheckBox(self._page)
        box.setChecked(self.autostart.on())
        box.toggled.connect(lambda on: self._turn_autostart(box, on))
        return box

    def make_choice(self, setting: Setting) -> QWidget:
        """One of several."""
        box = QComboBox(self._page)
        for value, text in setting.choices:
            box.addItem(text, value)
        box.setCurrentIndex(max(0, box.findData(self.preferences.get(setting.key))))
        box.currentIndexChanged.connect(lambda _n: self._put(setting.key, box.currentData()))
        return box

    def make_time(self, setting: Setting) -> QWidget:
        """A time of day."""
        edit = QTimeEdit(QTime.fromString(self.preferences.get(setting.key), "HH:mm"), self._page)
        edit.setDisplayFormat("HH:mm")
        edit.timeChanged.connect(lambda t: self._put(setting.key, t.toString("HH:mm")))
        return edit

    def make_hours(self, setting: Setting) -> QWidget:
        """Hours; 0 is never."""
        box = QSpinBox(self._page)
        box.setRange(0, 48)
        box.setSuffix(" h")
        box.setSpecialValueText("never")
        box.setValue(self.preferences.get(setting.key))
        box.valueChanged.connect(lambda n: self._put(setting.key, n))
        return box

    def make_rpo(self, setting: Setting) -> QWidget:
        """An RPO target."""
        edit = RpoEdit(self._page)
        edit.set_seconds(self.preferences.get(setting.key))
        edit.changed.connect(lambda seconds: self._put(setting.key, seconds))
        return edit

    # --- doing ------------------------------------------------------------------------------------------
    def show_matching(self, text: str) -> None:
        """Only what answers the search."""
        wanted = text.casefold().split()
        shown: set[str] = set()
        for row, section, sought in self._rows:
            fits = all(word in sought for word in wanted)
            row.setVisible(fits)
            if fits:
                shown.add(section)
        for section, heading in self._headings.items():
            heading.setVisible(section in shown)
        self.test_told.setVisible(bool(self.test_told.text()) and NOTIFICATIONS in shown)
        self.nothing.setVisible(not shown)

    def say_test(self, text: str) -> None:
        """How the test notification went."""
        self.test_told.setText(text)
        self.test_told.show()

    def _ask_test(self) -> None:
        self.say_test("Asking the desktop…")
        self.test_asked.emit()

    def _put(self, key: str, value: Any) -> None:
        self.preferences.put(key, value)
        if key == "theme":
            self._theme.use(Scheme(value))
        self._enable()
        self.changed.emit(key)

    def _turn_autostart(self, box: QCheckBox, on: bool) -> None:
        try:
            self.autostart.turn(on)
        except VaporError as error:
            show_error(self, "Settings", error)
        box.blockSignals(True)
        box.setChecked(self.autostart.on())
        box.blockSignals(False)
        self.changed.emit("autostart")

    def _enable(self) -> None:
        for setting in SETTINGS:
            if setting.needs:
                on = bool(self.preferences.get(setting.needs))
                above = next(s for s in SETTINGS if s.key == setting.needs).needs
                self.controls[setting.key].setEnabled(on and (not above or bool(self.preferences.get(above))))


_MAKERS: dict[str, Callable[[SettingsDialog, Setting], QWidget]] = {
    "switch": SettingsDialog.make_switch,
    "autostart": SettingsDialog.make_autostart,
    "choice": SettingsDialog.make_choice,
    "time": SettingsDialog.make_time,
    "hours": SettingsDialog.make_hours,
    "rpo": SettingsDialog.make_rpo,
}
