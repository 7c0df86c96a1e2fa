"""The whole job as a person does it: an X server, a window manager, a keyring, notifications; a mouse and a keyboard.

Nothing of the console is called: it runs in a process of its own, is looked at through its accessibility tree and
touched through the X server. Pictures of each step go to ``$VAPOR_ALBUM`` or the test's folder.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "byhand"))

from person import Person

from vapor_desktop.lab import guests
from vapor_desktop.lab.keyring_session import KeyringSession
from vapor_desktop.lab.lab import Lab
from vapor_desktop.lab.processes import wait_until
from vapor_desktop.lab.stage import remove_guests

pytestmark = [pytest.mark.lab, pytest.mark.soak, pytest.mark.timeout(900)]
NAME = "desk"


@pytest.fixture
def person(lab: Lab, tmp_path: Path) -> Iterator[Person]:
    remove_guests(lab)
    guests.add(lab.sites["a"], guests.GuestSpec(NAME, rate=4, scratch=1), lab.cache)
    album = Path(os.environ.get("VAPOR_ALBUM", tmp_path / "album"))
    with KeyringSession(tmp_path), Person(tmp_path, album) as someone:
        someone.open_console()
        yield someone
    remove_guests(lab)


def test_from_pairing_to_reprotected_by_mouse_and_keyboard(person: Person, lab: Lab) -> None:
    person.picture("first-start")
    pair(person, lab)
    protect(person, lab)
    breach(person, lab)
    drill(person)
    migrate(person, lab)
    reprotect(person)
    report(person)


def status(person: Person, text: str, timeout_s: float = 60) -> None:
    """The VM's cell in the table says so."""
    person.see("table cell", text, timeout_s)


def choose(person: Person) -> None:
    """Its row, on the page of the virtual machines."""
    person.key("ctrl+2")
    person.click("table cell", rf"^(VM: )?{NAME}$")


def pair(person: Person, lab: Lab) -> None:
    a, b = lab.sites["a"], lab.sites["b"]
    person.key("alt+f")
    person.click("menu item", "Pair site")
    for which, site in (("first", a), ("second", b)):
        person.fill(f"URL of the {which} site", site.api_url)
        person.fill(f"Token of the {which} site", site.token_new())
    person.picture("pair-address")
    person.click("push button", "^Next")
    printed = {s.exec(["vapor-site", "fingerprint"], user="vapor").stdout.strip() for s in (a, b)}
    person.until(lambda: len(person.look("check box", "same fingerprint")) == 2, "both certificates", 60)
    spoken = person.look("label", "^Certificate fingerprint .")
    shown = {re.sub(r"\s", "", f["name"].removeprefix("Certificate fingerprint")) for f in spoken}
    assert shown == printed
    for box in person.look("check box", "same fingerprint"):
        x, y, _width, height = box["box"]
        person.click_at(x + 10, y + height // 2)
    person.picture("pair-identity")
    person.click("push button", "^Pair$")
    person.see("label", "are paired", 90)
    person.picture("paired")
    person.click("push button", "^Finish")


def protect(person: Person, lab: Lab) -> None:
    wait_until(lambda: "VAPOR-DIARY " in lab.sites["a"].serial(NAME), "the guest's boot", timeout_s=90, every_s=0.5)
    person.key("ctrl+p")
    person.tick(f"^{NAME}$")
    person.click("push button", "^Next")
    # A box inside a table's cell is not in Qt's accessibility tree: where its row and its column meet.
    row = person.see("table cell", f"^{lab.sites['a'].network}$")["box"]
    column = person.see("table column header", "^Network at the target$")["box"]
    person.click_at(column[0] + column[2] // 2, row[1] + row[3] // 2)
    person.type(lab.sites["b"].network)
    person.key("Return")
    person.picture("protect-networks")
    person.click("push button", "^Next")
    person.fill("RPO target value", "10")
    person.click("combo box", "^minutes$")  # on X11 Qt names a box by what is chosen
    person.key("s", "Return")
    person.picture("protect-policy")
    person.click("push button", "^Next")
    person.click("push button", "^Next", 60)
    person.picture("protect-summary")
    person.click("push button", "^Protect$")
    person.key("ctrl+2")
    status(person, "Protected", 90)
    person.picture("protected")


def breach(person: Person, lab: Lab) -> None:
    lab.cut_link()
    try:
        status(person, "RPO breached|breached", 60)
        wait_until(lambda: windows(person, "Dunst"), "the notification", timeout_s=60, every_s=0.3)
        person.picture("notified")
        person.key("ctrl+1")
        x, y, width, height = windows(person, "Dunst")[0]
        person.click_at(x + width // 2, y + min(20, height // 2))
        person.see("page tab", "RPO", 15)
        person.picture("notification-clicked")
    finally:
        lab.mend_link()
    person.key("ctrl+2")
    status(person, "^(Status: )?(Protected|Syncing)$", 120)


def windows(person: Person, name: str) -> list[tuple[int, int, int, int]]:
    """Places of the mapped windows of that class."""
    words = ["xdotool", "search", "--onlyvisible", "--class", name]
    ids = subprocess.run(words, env=person.env, capture_output=True, text=True, check=False).stdout.split()
    found = []
    for number in ids:
        words = ["xdotool", "getwindowgeometry", "--shell", number]
        told = subprocess.run(words, env=person.env, capture_output=True, text=True, check=False).stdout
        at = dict(line.split("=", 1) for line in told.splitlines() if "=" in line)
        if {"X", "Y", "WIDTH", "HEIGHT"} <= set(at):
            found.append((int(at["X"]), int(at["Y"]), int(at["WIDTH"]), int(at["HEIGHT"])))
    return found


def drill(person: Person) -> None:
    choose(person)
    person.key("alt+r")
    person.click("menu item", "^Drill")
    person.picture("drill-sheet")
    person.click("push button", "^Start the drill")
    person.key("ctrl+2")
    status(person, "drill running", 120)
    choose(person)
    person.key("alt+r")
    person.click("menu item", "^Stop drill", 120)
    person.click("radio button", "^It passed", 60)
    person.fill("Note", "it came up")
    person.picture("drill-verdict")
    person.click("push button", "^Stop the drill")
    person.key("ctrl+2")
    person.until(lambda: not person.look("table cell", "drill running"), "the drill's end", 90)
    person.picture("drilled")


def migrate(person: Person, lab: Lab) -> None:
    choose(person)
    person.key("alt+r")
    person.click("menu item", "^Migrate")
    person.fill("Reason", "maintenance of the first host")
    person.fill("Type the name to confirm", NAME)
    person.picture("migrate-sheet")
    person.click("push button", "^Migrate desk to", 60)
    person.key("ctrl+2")
    status(person, "[Mm]igrating", 60)
    person.picture("migrating")
    status(person, "[Ff]ailed over|[Nn]ot protected", 240)
    assert lab.sites["b"].virsh("domstate", NAME) == "running"
    assert lab.sites["a"].virsh("domstate", NAME) == "shut off"
    person.picture("migrated")


def reprotect(person: Person) -> None:
    choose(person)
    person.key("alt+r")
    person.click("menu item", "^Reprotect")
    person.fill("Reason", "protected again, the other way")
    person.picture("reprotect-sheet")
    person.click("push button", "^Reprotect desk to", 60)
    person.key("ctrl+2")
    status(person, "site-b → site-a", 180)
    status(person, "^(Status: )?Protected$", 180)
    person.picture("reprotected")


def report(person: Person) -> None:
    """The RPO of the last day, on paper: the breach above is in it."""
    person.key("ctrl+6")
    person.click("combo box", "^Last 30 days$")
    person.key("Home", "Return")
    person.click("push button", "^Make report$")
    person.click("push button", "^Save PDF", 60)
    person.see("dialog|file chooser", "^Save PDF")
    path = person.home / "rpo.pdf"
    person.key("ctrl+a")
    person.type(str(path))
    person.key("Return")
    person.see("label", "Saved: ", 60)
    person.picture("reported")
    words = subprocess.run(
        ["pdftotext", "-layout", str(path), "-"], capture_output=True, text=True, check=True
    ).stdout
    assert "RPO compliance" in words
    assert NAME in words
