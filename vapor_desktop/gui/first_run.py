"""What the cards of the first run do."""

from __future__ import annotations

import subprocess
from html import escape
from typing import TYPE_CHECKING

from PySide6.QtCore import QObject, QTimer

from vapor_desktop.gui.engine_dialog import EngineDialog
from vapor_desktop.program_log import log_file

if TYPE_CHECKING:
    from vapor_desktop.gui.main_window import MainWindow


_WATCH_MS = 500


class FirstRun(QObject):
    """Pair, protect, connect, or start the demo."""

    def __init__(self, window: MainWindow) -> None:
        super().__init__(window)
        self._window = window
        self.log = log_file("demo.log")
        self._demo: subprocess.Popen[bytes] | None = None
        self._watch = QTimer(self)
        self._watch.timeout.connect(self._look)

    def take(self, card: str) -> None:
        """A card's button was pressed."""
        if card == "pair":
            self._window.commands.pair()
        elif card == "protect":
            self._window.commands.protect()
        elif card == "engine":
            dialog = EngineDialog(self._window)
            dialog.moved.connect(self._window.quit_asked)
            self._window.menus.open_dialog(dialog)
        elif card == "demo":
            self.start_demo()

    def start_demo(self) -> None:
        """Start it beside this console; it opens a console of its own."""
        welcome = self._window.overview.welcome
        offer = welcome.offer
        if not offer.command or self._watch.isActive():
            return
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with self.log.open("wb") as log:
                # A session of its own: it takes its two hosts down when it ends, and must not die with this window.
                self._demo = subprocess.Popen(
                    offer.command, cwd=offer.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    start_new_session=True,
                )  # fmt: skip
        except OSError as error:
            welcome.say_demo(escape(f"{offer.command[0]} could not be started: {error.strerror}"))
            return
        self._watch.start(_WATCH_MS)
        welcome.buttons["demo"].setEnabled(False)
        welcome.say_demo(
            "The demo is starting; the first time it takes some minutes. It opens a window of its own, with DEMO in "
            f"its title.<br><br><code>{escape(offer.how)}</code>"
        )

    def _look(self) -> None:
        code = None if self._demo is None else self._demo.poll()
        if code is None:
            return
        self._watch.stop()
        welcome = self._window.overview.welcome
        welcome.buttons["demo"].setEnabled(True)
        try:
            said = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        except OSError as error:
            said = [f"{self.log}: {error.strerror}"]
        last = "<br>".join(escape(line) for line in said[-3:])
        welcome.say_demo("The demo has ended." if code == 0 else f"The demo could not go on. It said last:<br>{last}")
