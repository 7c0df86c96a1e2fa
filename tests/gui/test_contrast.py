"""Colours that can be read: WCAG contrast of every palette, severities told apart by more than colour."""

from __future__ import annotations

import pytest
from PySide6.QtGui import QColor

from vapor_desktop.gui.icons import SEVERITY_ICONS, SEVERITY_WORDS
from vapor_desktop.gui.theme import CONTRAST, DARK, LIGHT, Colours
from vapor_desktop.model.states import Severity


def luminance(name: str) -> float:
    def linear(c: float) -> float:
        return c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4

    r, g, b, _a = QColor(name).getRgbF()
    return 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b)


def ratio(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(
    ("colours", "least"), [(LIGHT, 4.5), (DARK, 4.5), (CONTRAST, 7.0)], ids=["light", "dark", "contrast"]
)
def test_expectation_21_every_colour_is_readable_on_its_ground(colours: Colours, least: float) -> None:
    found = {}
    for ground in ("base", "alternate", "window"):
        for ink in ("text", "dim", "link"):
            found[f"{ink} on {ground}"] = ratio(getattr(colours, ink), getattr(colours, ground))
    for severity, colour in colours.severity.items():
        found[f"{severity.name} on base"] = ratio(colour, colours.base)
    for banner in (colours.banner_warning, colours.banner_critical, colours.banner_info):
        found[f"text on banner {banner}"] = ratio(colours.text, banner)
    found["highlighted"] = ratio(colours.highlighted_text, colours.highlight)
    assert {name: round(value, 2) for name, value in found.items() if value < least} == {}


def test_expectation_21_each_severity_has_a_shape_and_a_word_of_its_own() -> None:
    assert len(set(SEVERITY_ICONS.values())) == len(set(SEVERITY_WORDS.values())) == len(Severity)
