"""The console on a real desktop's terms: X server, session bus, notification server, tray."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import Session, private_session, running, tool
from recorder import Desktop

pytestmark = pytest.mark.desktop
DRIVER = Path(__file__).with_name("console_driver.py")
WAIT_S = 40


@pytest.fixture(scope="session")
def display() -> Iterator[str]:
    """An X server of the tests' own."""
    read, write = os.pipe()
    command = [tool("Xvfb"), "-displayfd", str(write), "-screen", "0", "1400x900x24", "-nolisten", "tcp"]
    with running(command, pass_fds=(write,), stderr=subprocess.DEVNULL):
        os.close(write)
        with os.fdopen(read) as answer:
            yield f":{answer.readline().strip()}"


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    with private_session(tmp_path / "home") as made:
        yield made


class Console:
    """A console process: what it told last, and a way to tell it something."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.states: list[dict[str, Any]] = []
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def tell(self, command: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()

    def until(self, condition: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        if self.states and condition(self.states[-1]):
            return self.states[-1]
        end = time.monotonic() + WAIT_S
        while True:
            try:
                line = self._lines.get(timeout=max(0.01, end - time.monotonic()))
            except queue.Empty:
                pytest.fail(f"{what}: never; told {self.states[-3:]}")
            if line is None:
                pytest.fail(f"{what}: the console ended; told {self.states[-3:]}")
            self.states.append(json.loads(line))
            if condition(self.states[-1]):
                return self.states[-1]

    def wait(self) -> int:
        return self._process.wait(WAIT_S)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None


@contextmanager
def console(session: Session, display: str, *args: str, log: Path | None = None) -> Iterator[Console]:
    env = {**session.env, "DISPLAY": display, "QT_QPA_PLATFORM": "xcb", "PYTHONPATH": os.pathsep.join(sys.path)}
    errors = log.open("w") if log else None
    try:
        command = [sys.executable, str(DRIVER), *args]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors}
        with running(command, env=env, **pipes) as process:
            yield Console(process)
    finally:
        if errors:
            errors.close()


@contextmanager
def desktop(session: Session, **what: Any) -> Iterator[Desktop]:
    made = Desktop(session.env["DBUS_SESSION_BUS_ADDRESS"], **what)
    try:
        yield made
    finally:
        made.close()


def test_expectation_18_breach_is_told_once_and_open_raises_the_right_vm(session: Session, display: str) -> None:
    """Without any tray, as on plain GNOME."""
    with desktop(session, notifications=True, tray=False) as shell, console(session, display) as window:
        window.until(lambda s: s.get("page") == "Overview", "started")
        window.tell("breach db01")
        shell.wait(lambda: len(shell.shown) == 1, "the breach")
        first = shell.shown[0]
        assert first.title == "RPO breached: db01"
        assert first.body.endswith("&lt;12 min&gt; old; the target is 5 min.")  # the server has body-markup
        assert (first.hints["urgency"], first.signatures["urgency"]) == (2, "y")
        assert first.hints["desktop-entry"] == "vapor-desktop"
        assert first.actions[0::2] == ["default", "open", "acknowledge", "snooze"]
        shell.press(first.id, "open", token="a-token")
        window.until(lambda s: s.get("vm") == "p-db01", "the VM's page")
        window.tell("recover db01")
        shell.wait(lambda: len(shell.shown) == 2, "the recovery")
        second = shell.shown[1]
        assert second.title == "Recovered: RPO breached: db01"
        assert second.replaces == first.id
        assert second.hints["urgency"] == 1
        window.tell("breach web02")
        shell.wait(lambda: len(shell.shown) == 3, "the next breach")
        shell.press(shell.shown[2].id, "default")
        window.until(lambda s: s.get("vm") == "p-web02", "the second VM's page")
        assert [n.title for n in shell.shown].count("RPO breached: db01") == 1


def test_a_server_without_actions_or_markup(session: Session, display: str) -> None:
    modest = desktop(session, notifications=True, tray=False, capabilities=("body",))
    with modest as shell, console(session, display) as window:
        window.until(lambda s: s.get("page") == "Overview", "started")
        window.tell("breach db01")
        shell.wait(lambda: bool(shell.shown), "the breach")
    assert shell.shown[0].actions == []
    assert "<12 min>" in shell.shown[0].body


def test_a_restarted_server_gets_the_next_notice(session: Session, display: str) -> None:
    with console(session, display) as window:
        window.until(lambda s: s.get("page") == "Overview", "started")
        with desktop(session, notifications=True, tray=False) as first:
            window.tell("breach db01")
            first.wait(lambda: bool(first.shown), "the breach")
        with desktop(session, notifications=True, tray=False) as second:
            window.tell("recover db01")
            second.wait(lambda: bool(second.shown), "the recovery")
            assert second.shown[0].title.startswith("Recovered")


def test_no_session_bus_stops_nothing_and_is_logged(session: Session, display: str, tmp_path: Path) -> None:
    env = {**session.env, "DBUS_SESSION_BUS_ADDRESS": f"unix:path={tmp_path}/nobody"}
    log = tmp_path / "log"
    with console(Session(env, session.home), display, log=log) as window:
        window.until(lambda s: s.get("page") == "Overview", "started")
        window.tell("breach db01")
        end = time.monotonic() + WAIT_S
        pause = threading.Event()
        while "could not be shown" not in log.read_text():
            assert time.monotonic() < end, log.read_text()
            pause.wait(0.1)
        assert window.alive
        window.tell("close")
        assert window.wait() == 0


def test_tray_menu_tooltip_and_click(session: Session, display: str) -> None:
    with desktop(session, notifications=True, tray=True) as shell, console(session, display) as window:
        shell.wait(lambda: bool(shell.items), "the tray item")
        window.until(lambda s: s.get("page") == "Overview", "started")
        service, item, menu = shell.items[0], "org.kde.StatusNotifierItem", "com.canonical.dbusmenu"
        end = time.monotonic() + WAIT_S
        while "beyond" not in str(tip := shell.call(service, "/StatusNotifierItem", item, "get_tool_tip")):
            assert time.monotonic() < end, tip
        assert "1 VM beyond the RPO target (worst 12 min)" in str(tip)
        layout = shell.call(service, "/MenuBar", menu, "call_get_layout", 0, -1, [])
        lines = {child[1].get("label", "").replace("_", ""): child[0] for child in layout[1][2]}
        assert "1 VM beyond the RPO target (worst 12 min)" in lines
        assert {"Open", "Notifications", "Quit console"} <= set(lines)
        worst = next(label for label in lines if label.startswith("db01"))
        assert worst == "db01: RPO breached, 12 min"
        event = (lines[worst], "clicked", _zero(), 0)
        shell.call(service, "/MenuBar", menu, "call_event", *event)
        window.until(lambda s: s.get("vm") == "p-db01", "the VM's page")


def _zero() -> Any:
    from dbus_fast import Variant

    return Variant("i", 0)


def test_with_a_tray_closing_goes_there_and_says_so_once(session: Session, display: str) -> None:
    with desktop(session, notifications=True, tray=True) as shell, console(session, display) as window:
        shell.wait(lambda: bool(shell.items), "the tray item")
        window.until(lambda s: s.get("visible") is True, "started")
        item = "org.kde.StatusNotifierItem"
        for _ in range(3):
            window.tell("close")
            window.until(lambda s: s.get("visible") is False, "hidden")
            shell.call(shell.items[0], "/StatusNotifierItem", item, "call_activate", 0, 0)
            window.until(lambda s: s.get("visible") is True, "shown again")
        assert [n.title for n in shell.shown] == ["The console is in the tray"]


def test_without_a_tray_closing_ends_it(session: Session, display: str) -> None:
    with desktop(session, notifications=True, tray=False), console(session, display) as window:
        window.until(lambda s: s.get("visible") is True, "started")
        window.tell("close")
        assert window.wait() == 0


def test_closing_a_console_that_hosts_the_engine_says_that_replication_stops(session: Session, display: str) -> None:
    with desktop(session, notifications=True, tray=False), console(session, display, "--engine") as window:
        window.until(lambda s: s.get("visible") is True, "started")
        window.tell("close")
        window.until(lambda s: "Stop replication?" in str(s.get("dialogs")), "the question")
        window.tell("press Cancel")
        window.until(lambda s: s.get("dialogs") == [], "the question gone")
        assert window.alive
        window.tell("close")
        window.until(lambda s: "Stop replication?" in str(s.get("dialogs")), "the question again")
        window.tell("press Stop replication and quit")
        window.until(lambda s: s.get("engine") == "stopped", "the engine stopped")
        assert window.wait() == 0


def test_a_second_start_raises_the_first(session: Session, display: str) -> None:
    with desktop(session, notifications=True, tray=True) as shell, console(session, display) as first:
        shell.wait(lambda: bool(shell.items), "the tray item")
        first.until(lambda s: s.get("visible") is True, "started")
        first.tell("close")
        first.until(lambda s: s.get("visible") is False, "in the tray")
        with console(session, display) as second:
            assert second.wait() == 0
        first.until(lambda s: s.get("visible") is True, "raised")


def test_demo_says_demo(session: Session, display: str) -> None:
    with console(session, display, "--demo") as window:
        state = window.until(lambda s: s.get("visible") is True, "started")
        assert state["title"] == "Vapor Desktop — DEMO"
