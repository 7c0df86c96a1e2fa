"""The main window's menus and tool bar: every verb is in a menu, with one text and one state everywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from PySide6.QtCore import QEvent, QObject, Qt, Signal
from PySide6.QtGui import QAction, QActionGroup, QKeyEvent, QKeySequence
from PySide6.QtWidgets import QDialog, QLineEdit, QMenu, QToolBar, QWidget

from vapor_desktop.gui.about_dialog import AboutDialog
from vapor_desktop.gui.command_palette import CommandPalette
from vapor_desktop.gui.diagnostics_dialog import DiagnosticsDialog
from vapor_desktop.gui.guide_window import open_guide
from vapor_desktop.gui.icons import icon
from vapor_desktop.gui.palette_entries import entries
from vapor_desktop.gui.panes import Panes
from vapor_desktop.gui.settings_dialog import SettingsDialog
from vapor_desktop.gui.shortcut_sheet import ShortcutSheet
from vapor_desktop.gui.theme import SCHEME_WORDS, Scheme

if TYPE_CHECKING:
    from vapor_desktop.gui.main_window import MainWindow

_PROTECTION = ("open", "protect", "edit", "seed", "sync", "pause", "resume", "unprotect")
_RECOVERY = ("migrate", "failover", "commit", "roll-back", "resolve", "reprotect")
_DRILLS = ("drill", "stop-drill")
_TOOLS = (("protect", "sync", "pause", "resume"), ("migrate", "failover", "reprotect"))
_PALETTE_KEYS = ("Ctrl+K", "Ctrl+Alt+I")


class Menus(QObject):
    """Builds the menus, and opens what belongs to no page: palette, shortcuts, settings, About, the guide.

    Signals:
        setting_changed: its key.
        test_asked: show a notification now.
    """

    setting_changed = Signal(str)
    test_asked = Signal()

    def __init__(self, window: MainWindow, pages: Sequence[tuple[str, str]]) -> None:
        super().__init__(window)
        self._window, self._context = window, window.context
        self.dialog: QDialog | None = None  # the one opened last
        self._make_actions()
        self._build(pages)
        self._build_tool_bar()
        self._build_panes()
        for edit in window.findChildren(QLineEdit):
            edit.installEventFilter(self)

    # --- actions ----------------------------------------------------------------------------------------
    def _make_actions(self) -> None:
        w, make = self._window, self.action
        self.pair = make("&Pair site…", w.commands.pair, tip="Pair two sites")
        self.refresh = make("R&efresh", self._context.bridge.refresh, "F5", tip="Read the state now")
        self.find = make("&Find", w.find_vm, "Ctrl+F", tip="Go to the filter")
        self.quit = make("&Quit", w.quit_asked.emit, "Ctrl+Q", tip="End the console")
        self.close = make("&Close window", w.close, "Ctrl+W", tip="Close this window")
        self.palette_action = make(
            "Command &palette…", self.open_palette, *_PALETTE_KEYS, tip="Find any verb, VM, site, plan or page"
        )
        self.settings = make("&Settings…", self.open_settings, "Ctrl+,", tip="Colours, notifications, tray, defaults")
        self.guide = make("&User guide", self._open_guide, tip="How to protect, rehearse, move and recover")
        self.shortcuts = make("&Keyboard shortcuts", self.open_shortcuts, "F1", "?", tip="Which keys do what")
        self.diagnostics = make(
            "Save &diagnostics…", self.open_diagnostics, tip="Versions, state and logs in one file; no secrets"
        )
        self.about = make("&About Vapor Desktop", self.open_about, tip="Versions and licences")
        self.next_pane = make("&Next pane", lambda: self.panes.step(1), "F6", tip="Focus the next part of the window")
        self.previous_pane = make(
            "Previo&us pane", lambda: self.panes.step(-1), "Shift+F6", tip="Focus the part before"
        )
        self.menu_key = make("Open the menu", self._open_first_menu, "F10", tip="Go to the menu bar")
        w.addAction(self.menu_key)  # in no menu: one is in the menu bar by then

    def action(self, text: str, slot: Callable[[], object], *shortcuts: str, tip: str = "") -> QAction:
        """An action of the window."""
        action = QAction(text, self._window)
        action.setShortcuts([QKeySequence(keys) for keys in shortcuts])
        action.setStatusTip(tip)
        action.triggered.connect(lambda _on=False: slot())
        return action

    # --- menus ------------------------------------------------------------------------------------------
    def _build(self, pages: Sequence[tuple[str, str]]) -> None:
        w, bar = self._window, self._window.menuBar()
        bar.setAccessibleName("Menu bar")
        self.file = bar.addMenu("&File")
        self.file.addActions([self.pair, self.close, self.quit])
        self.edit = bar.addMenu("&Edit")
        self.edit.addActions([w.vms.copy_action, self.find, self.palette_action])
        self.edit.addSeparator()
        self.edit.addAction(self.settings)
        self._build_view(pages)
        protection = bar.addMenu("&Protection")
        protection.addActions([w.verbs[key] for key in _PROTECTION])
        recovery = bar.addMenu("&Recovery")
        recovery.addActions([w.verbs[key] for key in _RECOVERY])
        recovery.addSeparator()
        recovery.addActions([w.verbs[key] for key in _DRILLS])
        self.help = bar.addMenu("&Help")
        self.help.addActions([self.guide, self.shortcuts, self.diagnostics])
        self.help.addSeparator()
        self.help.addAction(self.about)

    def _build_view(self, pages: Sequence[tuple[str, str]]) -> None:
        w = self._window
        view = w.menuBar().addMenu("&View")
        for n, (_key, text) in enumerate(pages):
            told = f"Show {text.replace('&', '')}"
            view.addAction(self.action(text, partial(w.go, n), f"Ctrl+{n + 1}", tip=told))
        view.addSeparator()
        view.addAction(self.refresh)
        view.addActions([self.next_pane, self.previous_pane])
        panel = w.panel.toggleViewAction()
        panel.setText("Activity pane&l")
        view.addAction(panel)
        view.addMenu(self._theme_menu(view))
        view.addAction(self.action("Reset &columns", w.vms.table.reset_columns, tip="Columns as on the first day"))
        self.view = view

    def _theme_menu(self, parent: QWidget) -> QMenu:
        menu = QMenu("&Theme", parent)
        group = QActionGroup(self)
        self.themes: dict[Scheme, QAction] = {}
        for scheme in Scheme:
            action = self.action(SCHEME_WORDS[scheme], partial(self._use_scheme, scheme), tip="The colours of all")
            action.setCheckable(True)
            self.themes[scheme] = group.addAction(action)
            menu.addAction(action)
        self._context.theme.changed.connect(self._tick_theme)
        self._tick_theme()
        return menu

    def _tick_theme(self) -> None:
        self.themes[self._context.theme.scheme].setChecked(True)

    def _use_scheme(self, scheme: Scheme) -> None:
        self._context.memory.put("theme", scheme.value)
        self._context.theme.use(scheme)

    def _build_tool_bar(self) -> None:
        w = self._window
        tools = QToolBar("Main", w)
        tools.setObjectName("tools")
        tools.setMovable(False)
        tools.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        tools.setContextMenuPolicy(Qt.ContextMenuPolicy.PreventContextMenu)
        tools.setIconSize(tools.iconSize().scaled(18, 18, Qt.AspectRatioMode.IgnoreAspectRatio))
        first, last = _TOOLS
        tools.addActions([w.verbs[key] for key in first])
        gap = QWidget(tools)
        gap.setMinimumWidth(60)
        tools.addWidget(gap)
        tools.addSeparator()
        tools.addActions([w.verbs[key] for key in last])
        self.tools = tools
        w.addToolBar(tools)

    def _build_panes(self) -> None:
        w = self._window
        self.panes = Panes(
            [lambda: w.navigation, lambda: w.banners, w.pages.currentWidget, lambda: w.panel], self._window
        )

    def recolour(self) -> None:
        """Icons in the palette in force."""
        text = self._context.theme.colours.text
        pictures = {
            self.pair: "pair", self.refresh: "refresh", self.find: "search", self.quit: "quit",
            self._window.vms.copy_action: "copy", self.palette_action: "search", self.settings: "settings",
        }  # fmt: skip
        for action, name in pictures.items():
            action.setIcon(icon(name, text))

    # --- what they open ---------------------------------------------------------------------------------
    def open_palette(self) -> None:
        """The command palette, over the window's upper part."""
        palette = CommandPalette(self._context.theme, entries(self._window), self._window)
        self.open_dialog(palette)
        place = self._window.geometry()
        palette.move(place.center().x() - palette.width() // 2, place.top() + place.height() // 8)

    def open_shortcuts(self) -> None:
        """The sheet of all shortcuts."""
        self.open_dialog(ShortcutSheet(self._window))

    def open_settings(self, sought: str = "") -> SettingsDialog:
        """The settings, those that answer ``sought`` first."""
        dialog = SettingsDialog(self._context, self._window, self._window.snapshot, sought)
        dialog.changed.connect(self.setting_changed)
        dialog.test_asked.connect(self.test_asked)
        self.open_dialog(dialog)
        return dialog

    def open_about(self) -> None:
        """Versions and licences."""
        self.open_dialog(AboutDialog(self._context, self._window))

    def open_diagnostics(self) -> None:
        """What the bundle holds, and where to put it."""
        self.open_dialog(DiagnosticsDialog(self._context, self._window))

    def _open_guide(self) -> None:
        open_guide(self._window, self._context.theme)

    def open_dialog(self, dialog: QDialog) -> None:
        """Show it over the window; ``dialog`` names it while it is there."""
        self.dialog = dialog
        dialog.destroyed.connect(partial(self._gone, dialog))
        dialog.open()

    def _gone(self, dialog: QDialog, _gone: object = None) -> None:
        if self.dialog is dialog:
            self.dialog = None

    def _open_first_menu(self) -> None:
        bar = self._window.menuBar()
        bar.setFocus(Qt.FocusReason.MenuBarFocusReason)
        bar.setActiveAction(bar.actions()[0])

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """Ctrl+K opens the palette from a field too, which would else delete to the end of the line."""
        if event.type() == QEvent.Type.ShortcutOverride and isinstance(event, QKeyEvent):
            keys = QKeySequence(event.keyCombination()).toString(QKeySequence.SequenceFormat.PortableText)
            if keys in _PALETTE_KEYS:
                event.ignore()
                return True
        return super().eventFilter(watched, event)
