"""What comes from outside the window: a second start, a vapor:// link, a notification's button."""

from __future__ import annotations

import logging
import os

from PySide6.QtCore import QObject

from vapor_desktop.gui import routes
from vapor_desktop.gui.arguments import Arguments, Call
from vapor_desktop.gui.error_box import show_error
from vapor_desktop.gui.main_window import MainWindow
from vapor_desktop.gui.routes import Link
from vapor_desktop.model.errors import InvalidRequest, NotFound

log = logging.getLogger(__name__)


class Arrivals(QObject):
    """Follows links as soon as there is something to show."""

    def __init__(self, window: MainWindow) -> None:
        super().__init__(window)
        self._window = window
        self._waiting: Link | None = None
        window.context.bridge.snapshot.connect(self._look_again)

    def take_call(self, call: Call) -> None:
        """The console was started again."""
        use_token(call.token)
        self._window.raise_up()
        self.take(Arguments.of(call.argv))

    def take(self, arguments: Arguments) -> None:
        """Do what the arguments want of a window that is there."""
        if arguments.unknown:
            log.warning("not understood, and left out: %s", " ".join(arguments.unknown))
        if not arguments.link:
            return
        try:
            self._waiting = Link.parse(arguments.link)
        except InvalidRequest as error:
            show_error(self._window, "Link", error)
        else:
            self._look_again()

    def _look_again(self) -> None:
        link = self._waiting
        if link is None or self._window.snapshot is None:
            return
        self._waiting = None
        if not routes.follow(self._window, link) and link.kind != "operation":  # an old one is still being read
            missing = NotFound(
                f"There is no {link.kind} {link.subject} here",
                why="no site that is paired with this console has it",
                fix="The link may be of another console, or what it names is gone",
            )
            show_error(self._window, "Link", missing)


def use_token(token: str) -> None:
    """Without one, a Wayland compositor will not let the window come to the front."""
    if token:
        os.environ["XDG_ACTIVATION_TOKEN"] = token
