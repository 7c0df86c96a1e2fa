"""What comes from outside the window: links, a second start; and what a window comes back to."""

from __future__ import annotations

import os
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from conftest import Console
from fake_backend import FakeBackend, world
from PySide6.QtCore import QObject, QRect
from PySide6.QtWidgets import QMessageBox

from vapor_desktop.gui.arguments import Arguments, Call
from vapor_desktop.gui.arrivals import Arrivals
from vapor_desktop.gui.layout_store import Memory
from vapor_desktop.gui.routes import Link
from vapor_desktop.gui.session import TrayStart, reachable
from vapor_desktop.gui.single_instance import SingleInstance, hand_over
from vapor_desktop.gui.theme import Theme
from vapor_desktop.model.errors import InvalidRequest

UUID = "6f1f5f0e-0d5a-4c6c-9f0b-0f5b1f6a7b8c"


def test_a_link_names_a_place_and_nothing_else() -> None:
    assert Link.parse(f"vapor://vm/{UUID}") == Link("vm", UUID)
    assert Link.parse(" vapor://operation/op-1/ ") == Link("operation", "op-1")
    assert str(Link("site", "id-site-a")) == "vapor://site/id-site-a"
    for bad in (
        f"http://vm/{UUID}", "vapor://vm/", "vapor://rm/x", "vapor:vm", "vapor://vm/a/b", "vapor://vm/../x",
        f"vapor://vm/{UUID}?failover=1", "vapor://vm/a%20b", "vapor://vm/" + "a" * 200, "",
    ):  # fmt: skip
        with pytest.raises(InvalidRequest, match="no link into"):
            Link.parse(bad)


def test_arguments_and_their_way_to_the_first_console() -> None:
    argv = ("--tray", f"vapor://vm/{UUID}", "--what")
    assert Arguments.of(argv) == Arguments(tray=True, link=f"vapor://vm/{UUID}", unknown=("--what",))
    assert Arguments.of(("--new-instance", "--demo")) == Arguments(new_instance=True)
    assert Call.parse(Call(argv, "token").line()) == Call(argv, "token")
    for broken in (b"raise\n", b"{}\n", b'{"argv": 3, "token": ""}\n', b'{"argv": [1], "token": ""}\n', b"\xff\n"):
        assert Call.parse(broken) == Call()


def test_expectation_11_a_second_start_hands_over_its_arguments_and_its_token(qtbot, tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    socket = tmp_path / "run" / "console.sock"
    assert not hand_over(socket, ())
    first = SingleInstance(socket)
    assert first.claim()
    calls: list[Call] = []
    first.called.connect(calls.append)
    monkeypatch.setenv("XDG_ACTIVATION_TOKEN", "from-the-launcher")
    monkeypatch.setattr("vapor_desktop.gui.single_instance.ANSWER_MS", 200)
    assert not SingleInstance(socket).claim([f"vapor://vm/{UUID}"])
    qtbot.waitUntil(lambda: bool(calls), timeout=5000)
    assert calls == [Call((f"vapor://vm/{UUID}",), "from-the-launcher")]
    first.close()
    third = SingleInstance(socket)
    assert third.claim()
    third.close()


def test_a_dead_consoles_socket_keeps_nobody_out(qtbot, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    socket = tmp_path / "console.sock"
    socket.write_text("left over")
    made = SingleInstance(socket)
    assert made.claim()
    made.close()


@pytest.fixture
def arrivals(console) -> Arrivals:  # type: ignore[no-untyped-def]
    return Arrivals(console.window)


def boxes(window) -> list[QMessageBox]:  # type: ignore[no-untyped-def]
    return [box for box in window.findChildren(QMessageBox) if box.isVisible()]


def test_a_link_opens_the_right_page_in_the_running_window(console, arrivals, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.delenv("XDG_ACTIVATION_TOKEN", raising=False)
    window = console.shown()
    vm = next(p.protection.vm_uuid for p in window.snapshot.protections if p.protection.vm_name == "db01")
    window.hide()
    arrivals.take_call(Call((f"vapor://vm/{vm}",), "token-1"))
    assert window.isVisible()
    assert window.pages.currentWidget() is window.detail
    assert window.detail.key == "p-db01"
    assert os.environ.pop("XDG_ACTIVATION_TOKEN") == "token-1"
    arrivals.take(Arguments(link="vapor://site/id-site-b"))
    assert window.pages.currentWidget() is window.sites
    assert window.sites.chosen().site.name == "site-b"
    loose = window.snapshot.unprotected[0]
    arrivals.take(Arguments(link=f"vapor://vm/{loose.vm_uuid}"))
    assert [row.name for row in window.vms.chosen()] == [loose.name]
    arrivals.take(Arguments(link="vapor://operation/op-of-long-ago"))
    assert window.pages.currentWidget() is window.activity
    assert boxes(window) == []


def test_a_link_waits_for_the_first_snapshot(backend, request) -> None:  # type: ignore[no-untyped-def]
    backend.hang = threading.Event()
    console = request.getfixturevalue("console")
    arrivals = request.getfixturevalue("arrivals")
    arrivals.take(Arguments(link="vapor://vm/p-web01"))
    assert console.window.snapshot is None
    backend.hang.set()
    console.until(lambda: console.window.detail.key == "p-web01")


def test_a_bad_link_and_an_unknown_vm_are_said(console, arrivals) -> None:  # type: ignore[no-untyped-def]
    window = console.shown()
    arrivals.take(Arguments(link="vapor://delete/everything"))
    (box,) = boxes(window)
    assert "no link into Vapor Desktop" in box.text()
    box.close()
    arrivals.take(Arguments(link=f"vapor://vm/{UUID}"))
    assert any(f"There is no vm {UUID} here" in box.text() for box in boxes(window))


def test_the_window_opens_where_it_was_left(qtbot, theme: Theme, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    def started() -> Console:
        return Console(qtbot, theme, Memory(tmp_path / "window.json"), FakeBackend(world(datetime.now(UTC))))

    first = started()
    first.shown().open_vm("p-db01")
    first.window.close()  # who decides is the shell; what is shown is kept at once
    first.bridge.close(wait_s=5)
    second = started()
    second.until(lambda: second.window.detail.key == "p-db01")
    assert second.window.pages.currentWidget() is second.window.detail
    second.window.go_to("sites")
    second.window.close()
    second.bridge.close(wait_s=5)
    third = started()
    assert third.shown().pages.currentWidget() is third.window.sites
    third.context.memory.put("restore_session", False)
    third.window.close()
    third.bridge.close(wait_s=5)
    fourth = started()
    assert fourth.window.pages.currentWidget() is fourth.window.overview
    fourth.bridge.close(wait_s=5)


def test_a_place_is_good_only_on_a_screen_that_is_there() -> None:
    screens = [QRect(0, 0, 1920, 1080)]
    assert reachable(QRect(100, 100, 800, 600), screens)
    assert reachable(QRect(1700, 900, 800, 600), screens)  # enough of its title to take hold of
    assert not reachable(QRect(2000, 100, 800, 600), screens)  # of a screen that was unplugged
    assert not reachable(QRect(1900, 100, 800, 600), screens)
    assert not reachable(QRect(100, -500, 800, 600), screens)


def test_a_tray_that_comes_late_is_waited_for(qtbot) -> None:  # type: ignore[no-untyped-def]
    there: list[bool] = []
    absent: list[str] = []
    owner = QObject()
    late = TrayStart(lambda: bool(there), lambda: absent.append("late"), owner, wait_ms=60_000)
    never = TrayStart(lambda: False, lambda: absent.append("never"), owner, wait_ms=500)
    there.append(True)
    qtbot.waitUntil(lambda: not late._timer.isActive() and not never._timer.isActive(), timeout=5000)
    assert absent == ["never"]
