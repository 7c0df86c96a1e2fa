"""The console as a citizen of the desktop: one of it, links into it, its tray, and desktops that have none."""

from __future__ import annotations

import json
import threading
import time

import pytest
from conftest import Session
from test_console import console, desktop, display, session  # noqa: F401

pytestmark = pytest.mark.desktop


def test_expectation_11_a_second_start_hands_its_link_to_the_first(session: Session, display: str) -> None:  # noqa: F811
    with desktop(session, notifications=True, tray=False), console(session, display) as first:
        first.until(lambda s: s.get("page") == "Overview", "started")
        with console(session, display, "vapor://vm/p-db01") as second:
            assert second.wait() == 0
        first.until(lambda s: s.get("vm") == "p-db01" and s.get("visible") is True, "the VM's page")
        with console(session, display, "vapor://site/id-site-b") as third:
            assert third.wait() == 0
        first.until(lambda s: s.get("page") == "SitesPage", "the page of the sites")
        with console(session, display, "--new-instance", "vapor://vm/p-web01") as own:
            own.until(lambda s: s.get("vm") == "p-web01", "a window of its own")
            assert first.alive


def test_expectation_10_the_first_close_says_so_once_with_quit(session: Session, display: str) -> None:  # noqa: F811
    with desktop(session, notifications=True, tray=True) as shell, console(session, display) as window:
        shell.wait(lambda: bool(shell.items), "the tray item")
        window.until(lambda s: s.get("visible") is True, "started")
        item = "org.kde.StatusNotifierItem"
        for _ in range(2):
            window.tell("close")
            window.until(lambda s: s.get("visible") is False, "hidden")
            shell.call(shell.items[0], "/StatusNotifierItem", item, "call_activate", 0, 0)
            window.until(lambda s: s.get("visible") is True, "shown again")
        window.tell("close")
        window.until(lambda s: s.get("visible") is False, "hidden")
        (told,) = shell.shown
        assert told.title == "The console is in the tray"
        assert told.body == "Replication runs in the service."
        assert told.actions == ["default", "Open", "open", "Open", "quit", "Quit console"]
        shell.press(told.id, "quit")
        assert window.wait() == 0


def test_expectation_9_without_a_tray_closing_ends_it_and_says_so_once(session: Session, display: str) -> None:  # noqa: F811
    with desktop(session, notifications=True, tray=False) as shell:
        for _ in range(2):
            with console(session, display) as window:
                window.until(lambda s: s.get("visible") is True, "started")
                window.tell("close")
                assert window.wait() == 0
        (told,) = shell.shown
        assert told.title == "The console has ended"
        assert "Replication goes on in the service." in told.body


def test_close_to_tray_can_be_switched_off(session: Session, display: str) -> None:  # noqa: F811
    memory = session.home / "config" / "vapor-desktop" / "window.json"
    memory.parent.mkdir(parents=True)
    memory.write_text(json.dumps({"close_to_tray": False}))
    with desktop(session, notifications=True, tray=True) as shell, console(session, display) as window:
        shell.wait(lambda: bool(shell.items), "the tray item")
        window.until(lambda s: s.get("visible") is True, "started")
        window.tell("close")
        assert window.wait() == 0
        assert shell.shown == []


def test_started_for_the_tray_it_stays_hidden_there(session: Session, display: str) -> None:  # noqa: F811
    with desktop(session, notifications=True, tray=True) as shell, console(session, display, "--tray") as window:
        shell.wait(lambda: bool(shell.items), "the tray item")
        assert window.until(lambda s: "page" in s, "running")["visible"] is False
        shell.call(shell.items[0], "/StatusNotifierItem", "org.kde.StatusNotifierItem", "call_activate", 0, 0)
        window.until(lambda s: s.get("visible") is True, "shown by a click")


@pytest.mark.parametrize("hosting", [False, True])
def test_started_for_a_tray_that_is_not_there(session: Session, display: str, hosting: bool) -> None:  # noqa: F811
    """The service does the work: no console is needed. It hosts the engine: it must be seen."""
    args = ["--tray", "--impatient", *(["--engine"] if hosting else [])]
    with desktop(session, notifications=True, tray=False), console(session, display, *args) as window:
        if hosting:
            window.until(lambda s: s.get("visible") is True, "minimised, in the task bar")
        else:
            assert window.wait() == 0


def test_acknowledged_and_snoozed_alerts_are_told_no_more(session: Session, display: str) -> None:  # noqa: F811
    memory = session.home / "config" / "vapor-desktop" / "window.json"
    with desktop(session, notifications=True, tray=True) as shell, console(session, display) as window:
        shell.wait(lambda: bool(shell.items), "the tray item")
        window.until(lambda s: s.get("page") == "Overview", "started")
        window.tell("breach db01")
        window.tell("breach web01")
        shell.wait(lambda: len(shell.shown) == 2, "two breaches")
        by_title = {n.title.rpartition(" ")[2]: n.id for n in shell.shown}
        shell.press(by_title["db01"], "acknowledge")
        shell.press(by_title["web01"], "snooze")

        def kept() -> bool:
            told = json.loads(memory.read_text()).get("alerts_told", {})
            return bool(told["rpo:p-db01"]["acknowledged"] and told["rpo:p-web01"]["snoozed_until"])

        deadline, pause = time.monotonic() + 20, threading.Event()
        while not kept():
            assert time.monotonic() < deadline, memory.read_text()
            pause.wait(0.05)
        assert len(shell.shown) == 2


def test_expectation_17_many_breaches_are_one_notice_that_opens_what_needs_attention(
    session: Session,  # noqa: F811
    display: str,  # noqa: F811
) -> None:
    with desktop(session, notifications=True, tray=False) as shell, console(session, display) as window:
        window.until(lambda s: s.get("page") == "Overview", "started")
        for name in ("db01", "web01", "web02", "files", "mail"):
            window.tell(f"breach {name}")
        shell.wait(lambda: any("alerts within a minute" in n.title for n in shell.shown), "one for all")
        group = shell.shown[-1]
        assert len([n for n in shell.shown if n.title.startswith("RPO breached")]) <= 3
        shell.press(group.id, "open")
        window.until(lambda s: s.get("page") == "VmsPage", "what needs attention")
