"""The first run: three cards, each saying what it needs and doing what it says."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fake_backend import site_status, world

from vapor_desktop.gui import demo_start
from vapor_desktop.gui.demo_start import Offer, offer
from vapor_desktop.gui.engine_dialog import EngineDialog, alive, trouble, wrong


@pytest.fixture
def welcome(console):  # type: ignore[no-untyped-def]
    console.backend.shot = world(datetime.now(UTC), sites=(), pairs=(), protections=(), unprotected=())
    window = console.shown()
    console.until(window.overview.welcome.isVisible)
    return window.overview.welcome


def test_expectation_25_three_cards_say_what_they_need(console, welcome) -> None:  # type: ignore[no-untyped-def]
    def seen() -> list[str]:
        return [key for key, button in welcome.buttons.items() if button.isVisible()]

    assert seen() == ["pair", "engine", "demo"]
    assert "vapor-site token new" in welcome.texts["pair"].text()
    assert "URL" in welcome.texts["engine"].text()
    for need in ("x86-64", "root", "memory", "packages"):
        assert need in welcome.texts["demo"].text()
    two = (site_status("site-a"), site_status("site-b"))
    console.backend.shot = world(datetime.now(UTC), sites=two, protections=(), unprotected=())
    console.until(lambda: seen() == ["protect", "engine", "demo"])


def test_expectation_25_the_demo_card_starts_the_checkouts_demo(console, welcome, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    script, told = tmp_path / "vapor", tmp_path / "told"
    script.write_text(f'#!/bin/sh\necho "$PWD $*" > {told}\necho no such machine >&2\nexit 3\n')
    script.chmod(0o755)
    assert welcome.offer.how.endswith("./vapor demo")  # the tests run in a checkout
    welcome.offer = offer(tmp_path, None, None, root=True)
    welcome.buttons["demo"].setEnabled(True)
    welcome.buttons["demo"].click()
    assert "window of its own" in welcome.texts["demo"].text()
    assert not welcome.buttons["demo"].isEnabled()  # not twice
    console.until(lambda: "The demo could not go on" in welcome.texts["demo"].text())
    assert told.read_text().split() == [str(tmp_path), "demo", "-y"]
    assert "no such machine" in welcome.texts["demo"].text()
    assert welcome.buttons["demo"].isEnabled()


def test_what_an_installation_can_do_about_a_demo() -> None:
    here = Path("/src/vapor desktop")
    assert offer(here, None, "/usr/bin/x-terminal-emulator", root=False) == Offer(
        ("/usr/bin/x-terminal-emulator", "-e", "/src/vapor desktop/vapor", "demo"),
        "cd '/src/vapor desktop' && ./vapor demo", here,
    )  # fmt: skip
    assert offer(here, None, "/usr/bin/gnome-terminal", root=False).command[1] == "--"
    assert offer(here, None, None, root=False).command == ()  # nowhere to ask for a password
    assert offer(None, "/usr/bin/vapor-lab", None, root=True).command == ("/usr/bin/vapor-lab", "demo")
    without = offer(None, None, "/usr/bin/xterm", root=True)
    assert without.command == ()
    assert "vapor-lab" in without.how
    folder = demo_start.checkout()
    assert folder is not None
    assert os.access(folder / "vapor", os.X_OK)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "Type"),
        ("http://db/vapor", "begins with"),
        ("postgresql+psycopg://vapor:pw@db/vapor", "password"),
        ("postgresql+psycopg://vapor@db/", "name of the database"),
        ("postgresql+psycopg://vapor@db/vapor", ""),
    ],
)
def test_what_is_wrong_with_a_url(url: str, says: str) -> None:
    found = wrong(url)
    assert says in found
    assert bool(says) == bool(found)


def test_connecting_looks_first_with_a_real_database(console, welcome, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    welcome.buttons["engine"].click()
    dialog = console.window.menus.dialog
    assert isinstance(dialog, EngineDialog)
    assert not dialog.look.isEnabled()
    dialog.url.setText("postgresql+psycopg://vapor:pw@db/vapor")
    assert "password" in dialog.told.text()
    broken = tmp_path / "broken.db"
    broken.write_bytes(b"no database" * 1000)
    dialog.url.setText(f"sqlite:///{broken}")
    dialog.look.click()
    console.until(lambda: dialog.look.isEnabled() and "Looking" not in dialog.told.text(), timeout=30_000)
    assert "database" in dialog.told.text()
    assert not dialog.go.isEnabled()
    dialog.url.setText(f"sqlite:///{tmp_path / 'fresh.db'}")
    assert not dialog.go.isEnabled()
    dialog.look.click()
    console.until(lambda: "no engine runs" in dialog.told.text(), timeout=30_000)
    assert dialog.go.isEnabled()
    dialog.url.setText(f"sqlite:///{tmp_path / 'other.db'}")
    assert not dialog.go.isEnabled()  # not looked at yet
    dialog.reject()


def test_what_vaporctl_said_in_words() -> None:
    told = alive('[{"kind": "service", "host": "db<1>", "protections": 3}]')
    assert told == "Alive there: service on db&lt;1&gt;, working for 3 VMs."
    error = '{"ok": false, "error": {"what": "The database refused", "why": "no route", "fix": ""}}'
    assert trouble(error) == "The database refused. no route"
    assert trouble("Traceback\nlast line") == "last line"
