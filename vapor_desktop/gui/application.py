"""The console's entry: ``run``. Only ``app.py`` calls it."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from PySide6.QtWidgets import QApplication

from vapor_desktop.engine.backend import Backend
from vapor_desktop.gui.arguments import Arguments
from vapor_desktop.gui.arrivals import Arrivals
from vapor_desktop.gui.bridge import Bridge
from vapor_desktop.gui.context import Context
from vapor_desktop.gui.engine_thread import EngineThread
from vapor_desktop.gui.errands import Errands
from vapor_desktop.gui.error_box import show_error
from vapor_desktop.gui.icons import icon
from vapor_desktop.gui.layout_store import Memory
from vapor_desktop.gui.main_window import MainWindow
from vapor_desktop.gui.notify import Notifier
from vapor_desktop.gui.places import config_file, runtime_folder
from vapor_desktop.gui.session import TrayStart
from vapor_desktop.gui.shell import Shell
from vapor_desktop.gui.single_instance import SingleInstance, hand_over
from vapor_desktop.gui.theme import Scheme, Theme
from vapor_desktop.model.errors import Unexpected
from vapor_desktop.program_log import APP

log = logging.getLogger(__name__)
TITLE = "Vapor Desktop"


def run(
    backend: Backend,
    run_engine: Callable[[], None] | None,
    stop_engine: Callable[[], None] | None,
    *,
    demo: bool = False,
    argv: Sequence[str] = (),
) -> int:
    """Show the console until the user ends it; returns the exit code.

    run_engine: blocks as long as the engine lives; it is called in a QThread. None: this console only looks.
    stop_engine: makes ``run_engine`` return; safe to call from any thread.
    argv: ``--new-instance`` starts a second console beside one that runs; ``--tray`` starts without a window;
    ``vapor://KIND/ID`` opens that place, in the console that runs if one does.
    """
    app = QApplication.instance()
    if not isinstance(app, QApplication):
        app = QApplication([APP])
    app.setApplicationName(APP)
    app.setApplicationDisplayName(TITLE)
    app.setDesktopFileName(APP)
    arguments = Arguments.of(argv)
    app.setQuitOnLastWindowClosed(False)
    one = SingleInstance(_socket(demo=demo))
    if not arguments.new_instance and not one.claim(argv):
        log.info("another console runs; it was asked to show itself")
        return 0
    memory = Memory(config_file(demo=demo))
    theme = Theme(app, _scheme(memory))
    app.setWindowIcon(icon("vapor-desktop", "#56B4E9"))
    bridge = Bridge(backend)
    context = Context(bridge, Errands(bridge), theme, memory)
    window = MainWindow(context, demo=demo)
    engine = EngineThread(run_engine, stop_engine) if run_engine and stop_engine else None
    notifier = Notifier(TITLE, APP)
    shell = Shell(context, window, notifier, engine)
    shell.over.connect(app.quit)
    arrivals = Arrivals(window)
    one.called.connect(arrivals.take_call)
    _catch_errors(window)
    _catch_signals(shell)
    if arguments.tray:
        TrayStart(shell.tray.available, shell.stay_out, shell)
    else:
        window.show()
    arrivals.take(arguments)
    bridge.start()
    if engine is not None:
        engine.start()
    code = app.exec()
    one.close()
    notifier.close()
    bridge.close()
    if engine is not None and not engine.wait(1000):
        # A QThread that still runs must not be destroyed: end the process as it is. Its leases lapse by themselves.
        logging.shutdown()
        os._exit(code or 1)
    return code


def handed_over(argv: Sequence[str], *, demo: bool = False) -> bool:
    """Whether a console runs that has taken these arguments: then nothing is left to do."""
    return not Arguments.of(argv).new_instance and hand_over(_socket(demo=demo), argv)


def _socket(*, demo: bool) -> Path:
    return runtime_folder() / ("console-demo.sock" if demo else "console.sock")


def _scheme(memory: Memory) -> Scheme:
    saved = memory.get("theme", Scheme.SYSTEM.value)
    return Scheme(saved) if saved in set(Scheme) else Scheme.SYSTEM


def _catch_errors(window: MainWindow) -> None:
    """An exception in a slot goes to ``sys.excepthook``: log it, show it, go on."""

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        log.critical("an error that nobody caught", exc_info=(kind, error, trace))
        if isinstance(error, Exception):
            unexpected = Unexpected("Something went wrong that should not", why=f"{kind.__name__}: {error}")
            show_error(window, "Error", unexpected)

    sys.excepthook = hook


def _catch_signals(shell: Shell) -> None:
    """SIGTERM and Ctrl+C end the console in order. The window's clock lets Python notice within a second."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: shell.quit())
