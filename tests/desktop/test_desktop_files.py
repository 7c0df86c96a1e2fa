"""What a distribution's own tools say of the menu entry and the metainfo, and that both speak of this program."""

from __future__ import annotations

import configparser
import shutil
import subprocess
from pathlib import Path

from conftest import tool
from lxml import etree

from vapor_desktop import __version__
from vapor_desktop.gui.application import APP
from vapor_desktop.gui.data import data_path

FOLDER = Path(__file__).resolve().parent.parent.parent / "packaging" / "desktop"
ENTRY = FOLDER / f"{APP}.desktop"
[METAINFO] = FOLDER.glob("*.metainfo.xml")
SCHEME = "x-scheme-handler/vapor"


def entry() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(ENTRY)
    return parser


def test_the_menu_entry_is_valid() -> None:
    done = subprocess.run([tool("desktop-file-validate"), str(ENTRY)], capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_metainfo_is_valid() -> None:
    done = subprocess.run(
        [tool("appstreamcli"), "validate", "--no-net", str(METAINFO)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    # A name to start with, and no more than pedantry about what is missing (a home page: there is none yet).
    assert "W:" not in done.stdout, done.stdout
    assert "E:" not in done.stdout, done.stdout


def test_both_speak_of_this_program() -> None:
    main = entry()["Desktop Entry"]
    root = etree.parse(METAINFO).getroot()
    assert main["StartupWMClass"] == main["Icon"] == main["Exec"].split()[0] == APP
    assert root.findtext("launchable") == ENTRY.name
    assert root.find("releases/release").get("version") == __version__
    assert root.findtext("provides/binary") == APP
    assert root.findtext("project_license") == "Apache-2.0"
    assert (data_path("resources") / "icons" / f"{main['Icon']}.svg").is_file()


def test_links_find_the_program(tmp_path: Path) -> None:
    """The cache that xdg-open and the portals read."""
    applications = tmp_path / "applications"
    applications.mkdir()
    shutil.copy(ENTRY, applications)
    subprocess.run([tool("update-desktop-database"), str(applications)], check=True)
    assert f"{SCHEME}={ENTRY.name};" in (applications / "mimeinfo.cache").read_text()
    assert "%u" in entry()["Desktop Entry"]["Exec"]
    assert SCHEME in {e.text for e in etree.parse(METAINFO).iterfind("provides/mediatype")}


def test_its_actions_are_what_the_program_takes() -> None:
    parser = entry()
    names = [name for name in parser["Desktop Entry"]["Actions"].split(";") if name]
    assert [f"Desktop Action {name}" for name in names] == parser.sections()[1:]
    assert {parser[f"Desktop Action {name}"]["Exec"] for name in names} == {f"{APP} --tray"}
