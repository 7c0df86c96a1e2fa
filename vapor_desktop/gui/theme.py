"""Fusion with our own palettes, and the colours of severity.

``styleHints().setColorScheme`` does nothing on bare X11, so a switch that works everywhere sets the
palette itself. Colours keep 4.5:1 contrast and stay apart for the colour-blind; none is used alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from PySide6.QtCore import QObject, Qt, Signal
from PySide6.QtGui import QColor, QPalette
from PySide6.QtWidgets import QApplication

from vapor_desktop.gui.data import data_path
from vapor_desktop.model.states import Severity


class Scheme(StrEnum):
    """What the user asked for."""

    SYSTEM = "system"
    LIGHT = "light"
    DARK = "dark"
    CONTRAST = "contrast"


SCHEME_WORDS = {
    Scheme.SYSTEM: "&System",
    Scheme.LIGHT: "&Light",
    Scheme.DARK: "&Dark",
    Scheme.CONTRAST: "&High contrast",
}


@dataclass(frozen=True, slots=True)
class Colours:
    """One palette, as names of colours."""

    window: str
    base: str
    alternate: str
    button: str
    text: str
    dim: str
    line: str
    link: str
    highlight: str
    highlighted_text: str
    severity: dict[Severity, str]
    banner_warning: str
    banner_critical: str
    banner_info: str


LIGHT = Colours(
    window="#F3F4F6",
    base="#FFFFFF",
    alternate="#F8F9FB",
    button="#FAFBFC",
    text="#16191D",
    dim="#5B626B",
    line="#CDD2D8",
    link="#005A9C",
    highlight="#0B65A6",
    highlighted_text="#FFFFFF",
    severity={
        Severity.IDLE: "#6B6F76",
        Severity.OK: "#0072B2",
        Severity.PROGRESS: "#000000",
        Severity.WARNING: "#B35C00",
        Severity.CRITICAL: "#A50026",
    },
    banner_warning="#FFF3D6",
    banner_critical="#FFE1E1",
    banner_info="#E3F0FA",
)
DARK = Colours(
    window="#33383D",
    base="#1F2327",
    alternate="#25292E",
    button="#454B52",
    text="#EDEFF1",
    dim="#A9B0B7",
    line="#565D65",
    link="#7CC4F2",
    highlight="#1F6FA8",
    highlighted_text="#FFFFFF",
    severity={
        Severity.IDLE: "#8A9097",
        Severity.OK: "#56B4E9",
        Severity.PROGRESS: "#FFFFFF",
        Severity.WARNING: "#F0C000",
        Severity.CRITICAL: "#FF5A4F",
    },
    banner_warning="#4A3D0C",
    banner_critical="#532023",
    banner_info="#1D3B50",
)


CONTRAST = Colours(
    window="#000000",
    base="#000000",
    alternate="#101010",
    button="#303030",
    text="#FFFFFF",
    dim="#BDBDBD",
    line="#FFFFFF",
    link="#9FD8FF",
    highlight="#0A4FB0",
    highlighted_text="#FFFFFF",
    severity={
        Severity.IDLE: "#C8C8C8",
        Severity.OK: "#6FC8FF",
        Severity.PROGRESS: "#FFFFFF",
        Severity.WARNING: "#FFD60A",
        Severity.CRITICAL: "#FF7A70",
    },
    banner_warning="#000000",
    banner_critical="#000000",
    banner_info="#000000",
)


def chip_style(c: Colours) -> str:
    """Style sheet of buttons named "chip": round, and plainly on or off."""
    return (
        f"QPushButton#chip {{ border: 1px solid {c.line}; border-radius: 11px; padding: 3px 11px;"
        f" background: {c.base}; color: {c.text}; }}"
        f"QPushButton#chip:checked {{ background: {c.highlight}; color: {c.highlighted_text};"
        f" border-color: {c.highlight}; }}"
        f"QPushButton#chip:focus {{ border: 2px solid {c.highlight}; }}"
    )


def _indicators(c: Colours) -> str:
    """Fusion outlines tick boxes and radio buttons darker than the window: empty ones are not seen on dark ground."""
    tick = (data_path("resources") / "icons" / "tick-dark.svg").as_posix()
    boxes = ("QCheckBox::indicator", "QTableView::indicator", "QMenu::indicator:non-exclusive")
    rules = [
        f"{box} {{ width: 13px; height: 13px; border: 1px solid {c.dim}; border-radius: 2px; background: {c.base}; }}"
        f"{box}:checked {{ image: url({tick}); }} {box}:disabled {{ border-color: {c.line}; }}"
        for box in boxes
    ]
    dot = f"qradialgradient(cx:0.5, cy:0.5, radius:0.5, fx:0.5, fy:0.5, stop:0.5 {c.text}, stop:0.6 {c.base})"
    rules.append(
        f"QRadioButton::indicator {{ width: 12px; height: 12px; border: 1px solid {c.dim}; border-radius: 7px;"
        f" background: {c.base}; }} QRadioButton::indicator:checked {{ background: {dot}; }}"
    )
    return "".join(rules)


def _outlines(c: Colours) -> str:
    """Fusion draws edges darker than the window, and nothing is darker than black."""
    rules = [f"{field} {{ border: 1px solid {c.line}; }}" for field in ("QLineEdit", "QAbstractItemView")]
    rules.append(f"QLineEdit:focus {{ border: 2px solid {c.severity[Severity.WARNING]}; }}")
    rules.append(
        f"QPushButton {{ border: 1px solid {c.line}; border-radius: 3px; padding: 4px 12px; background: {c.base}; }}"
        f"QPushButton:focus, QPushButton:default {{ border: 2px solid {c.severity[Severity.WARNING]}; }}"
        f"QPushButton:pressed, QPushButton:checked {{ background: {c.highlight}; }}"
        f"QPushButton:disabled {{ color: {c.dim}; border: 1px dashed {c.dim}; }}"
        f"QMenu {{ border: 1px solid {c.line}; }} QToolTip {{ border: 1px solid {c.line}; }}"
    )
    return "".join(rules)


def _palette(c: Colours) -> QPalette:
    palette = QPalette()
    role = QPalette.ColorRole
    for which, name in {
        role.Window: c.window,
        role.WindowText: c.text,
        role.Base: c.base,
        role.AlternateBase: c.alternate,
        role.ToolTipBase: c.base,
        role.ToolTipText: c.text,
        role.Text: c.text,
        role.Button: c.button,
        role.ButtonText: c.text,
        role.BrightText: c.severity[Severity.CRITICAL],
        role.Link: c.link,
        role.Highlight: c.highlight,
        role.HighlightedText: c.highlighted_text,
        role.PlaceholderText: c.dim,
        role.Mid: c.line,
        role.Midlight: c.line,
        role.Dark: c.line,
        role.Light: c.base,
        role.Accent: c.highlight,
    }.items():
        palette.setColor(which, QColor(name))
    for which in (role.Text, role.WindowText, role.ButtonText):
        palette.setColor(QPalette.ColorGroup.Disabled, which, QColor(c.dim))
    palette.setColor(QPalette.ColorGroup.Disabled, role.Highlight, QColor(c.line))
    return palette


class Theme(QObject):
    """The palette in force.

    Signals:
        changed: after the palette was replaced; icons and charts are drawn anew.
    """

    changed = Signal()

    def __init__(self, app: QApplication, scheme: Scheme = Scheme.SYSTEM) -> None:
        super().__init__(app)
        self._app = app
        self.scheme = scheme
        self.colours = LIGHT
        app.setStyle("Fusion")
        app.styleHints().colorSchemeChanged.connect(self._system_changed)
        self.use(scheme)

    @property
    def dark(self) -> bool:
        """Whether the ground is dark."""
        return self.colours is not LIGHT

    def use(self, scheme: Scheme) -> None:
        """Switch, now."""
        self.scheme = scheme
        system_dark = self._app.styleHints().colorScheme() is Qt.ColorScheme.Dark
        dark = scheme is Scheme.DARK or (scheme is Scheme.SYSTEM and system_dark)
        self.colours = CONTRAST if scheme is Scheme.CONTRAST else DARK if dark else LIGHT
        self._app.setPalette(_palette(self.colours))
        edges = _outlines(self.colours) if self.colours is CONTRAST else ""
        self._app.setStyleSheet(_indicators(self.colours) + edges if self.dark else "")
        self.changed.emit()

    def severity(self, severity: Severity) -> QColor:
        """The colour of a severity."""
        return QColor(self.colours.severity[severity])

    def _system_changed(self) -> None:
        if self.scheme is Scheme.SYSTEM:
            self.use(self.scheme)
