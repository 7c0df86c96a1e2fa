"""Reports in the window: asked for, made off the GUI thread, shown, and kept as PDF, HTML and CSV."""

from __future__ import annotations

import csv
import subprocess
from pathlib import Path

from PySide6.QtGui import QImage
from PySide6.QtWidgets import QPushButton

from vapor_desktop.engine.reporting.making import KINDS
from vapor_desktop.gui.main_window import PAGES
from vapor_desktop.gui.theme import Scheme


def opened(console):  # type: ignore[no-untyped-def]
    window = console.shown()
    window.go([key for key, _text in PAGES].index("reports"))
    assert window.pages.currentWidget() is window.reports
    return window.reports


def made(console, kind: str):  # type: ignore[no-untyped-def]
    page = opened(console)
    page.kind.setCurrentIndex(page.kind.findData(kind))
    page.make.click()
    console.until(lambda: page.report is not None and page.report.kind == kind)
    return page


def test_nothing_is_made_or_saved_before_it_is_asked_for(console) -> None:  # type: ignore[no-untyped-def]
    page = opened(console)
    assert page.kind.count() == len(KINDS)
    assert not any(button.isEnabled() for button in page.saves.values())
    assert console.asked("rpo_samples") == []
    page.kind.setCurrentIndex(page.kind.findData("inventory"))
    assert not page.span.isVisible(), "it tells of now"


def test_each_kind_is_made_and_shown(console) -> None:  # type: ignore[no-untyped-def]
    for kind in KINDS:
        page = made(console, kind)
        assert KINDS[kind].title in page.text.toPlainText()
        assert page.report.made_by in page.text.toPlainText()
    assert "MainThread" not in console.backend.threads


def test_expectation_28_kept_as_pdf_html_and_csv(console, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    page = made(console, "inventory")
    for key in page.saves:
        page.save(key, tmp_path / f"report.{key}")
        assert f"report.{key}" in page.told.text()
    words = subprocess.run(
        ["pdftotext", "-layout", str(tmp_path / "report.pdf"), "-"], capture_output=True, text=True, check=True
    ).stdout
    for name in ("Protection inventory", "db01", page.report.made_by, "UTC"):
        assert name in words, words
    assert "db01" in (tmp_path / "report.html").read_text()
    with (tmp_path / "report.csv").open(newline="") as file:
        assert any("db01" in row for row in csv.reader(file))


def test_where_it_cannot_be_written_is_said(console, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    page = made(console, "rpo")
    for key in page.saves:
        page.save(key, tmp_path / "no-such-folder" / f"report.{key}")
        assert page.told.text().startswith("<b>Not saved.</b>")
        assert "No such file" in page.told.text()


def test_an_empty_range_is_refused_with_its_reason(console) -> None:  # type: ignore[no-untyped-def]
    page = opened(console)
    page.span.setCurrentIndex(page.span.count() - 1)
    assert page.start.isVisible()
    page.start.setDateTime(page.end.dateTime().addDays(1))
    page.make.click()
    console.until(lambda: "cannot be made" in page.told.text())
    assert "range of time is empty" in page.told.text()
    assert page.make.isEnabled()


def test_it_is_readable_in_every_theme(console, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    page = made(console, "rpo")
    seen = set()
    for scheme in (Scheme.LIGHT, Scheme.DARK):
        console.window.context.theme.use(scheme)
        picture: QImage = page.text.grab().toImage()
        colours = {picture.pixelColor(x, y).lightness() for x in range(0, 400, 3) for y in range(0, 200, 3)}
        assert max(colours) - min(colours) > 100, "text against its ground"
        seen.add(picture.pixelColor(3, picture.height() - 4).lightness() > 128)
    assert seen == {True, False}
    assert isinstance(page.make, QPushButton)
