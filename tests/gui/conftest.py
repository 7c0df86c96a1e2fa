"""Off-screen unless a display is asked for; a theme and a memory for every window."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

import pytest
from fake_backend import FakeBackend, world
from PySide6.QtWidgets import QApplication
from pytestqt.qtbot import QtBot

from vapor_desktop.gui.bridge import Bridge
from vapor_desktop.gui.context import Context
from vapor_desktop.gui.errands import Errands
from vapor_desktop.gui.layout_store import Memory
from vapor_desktop.gui.main_window import MainWindow
from vapor_desktop.gui.theme import Scheme, Theme


@pytest.fixture(scope="session")
def only_theme(qapp: QApplication) -> Theme:
    """As in the program there is one: each new one would exchange the application's style under living widgets."""
    return Theme(qapp, Scheme.LIGHT)


@pytest.fixture
def theme(only_theme: Theme) -> Theme:
    if only_theme.scheme is not Scheme.LIGHT:
        only_theme.use(Scheme.LIGHT)
    return only_theme


@pytest.fixture
def memory(tmp_path: Path) -> Memory:
    return Memory(tmp_path / "window.json")


class Console:
    """A main window on a fake backend; ``settle`` waits for what the workers answer."""

    def __init__(self, qtbot: QtBot, theme: Theme, memory: Memory, backend: FakeBackend) -> None:
        self.qtbot, self.backend = qtbot, backend
        self.bridge = Bridge(backend, period_s=0.1)
        self.context = Context(self.bridge, Errands(self.bridge), theme, memory)
        self.window = MainWindow(self.context)
        qtbot.addWidget(self.window, before_close_func=lambda window: window.let_close())
        self.window.show()
        self.bridge.start()

    def until(self, condition: Callable[[], bool], timeout: int = 10_000) -> None:
        self.qtbot.waitUntil(condition, timeout=timeout)

    def shown(self) -> MainWindow:
        self.until(lambda: self.window.snapshot is not None)
        return self.window

    def asked(self, verb: str) -> list[tuple[Any, ...]]:
        return [call[1:] for call in self.backend.asked if call[0] == verb]


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend(world(datetime.now(UTC)))


@pytest.fixture
def console(qtbot: QtBot, theme: Theme, memory: Memory, backend: FakeBackend) -> Iterator[Console]:
    made = Console(qtbot, theme, memory, backend)
    yield made
    if backend.hang is not None:
        backend.hang.set()
    made.bridge.close(wait_s=5.0)
