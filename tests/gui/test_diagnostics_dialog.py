"""Help > Save diagnostics…: told first, written then."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path


def test_it_tells_what_it_holds_before_it_writes(console, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    window = console.shown()
    console.context.memory.put("mail_password", "hunter2")
    window.menus.diagnostics.trigger()
    dialog = window.menus.dialog
    assert "Not in it: tokens, keys, passwords" in dialog.told.text()
    assert "state.json" in dialog.told.text()
    path = tmp_path / "bundle.zip"
    dialog.path.setText(str(path))
    assert not path.exists()
    dialog.save.click()
    console.until(lambda: dialog.outcome.text().startswith("Written: "))
    with zipfile.ZipFile(path) as made:
        texts = {name: made.read(name).decode() for name in made.namelist()}
    state = json.loads(texts["state.json"])
    assert [s["site"]["name"] for s in state["sites"]] == ["site-a", "site-b"]
    assert state["sites"][0]["reachable"] is True
    assert "web01" in {p["protection"]["vm_name"] for p in state["protections"]}
    assert "Qt" in json.loads(texts["settings.json"])["window"]
    assert not any("hunter2" in text for text in texts.values())


def test_a_place_that_cannot_be_written_is_said(console, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    window = console.shown()
    window.menus.diagnostics.trigger()
    dialog = window.menus.dialog
    dialog.path.setText(str(tmp_path / "no" / "such" / "folder.zip"))
    dialog.save.click()
    console.until(lambda: "cannot be written" in dialog.outcome.text())
    assert dialog.save.isEnabled()
