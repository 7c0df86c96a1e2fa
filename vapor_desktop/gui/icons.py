"""Our own SVG icons, recoloured to the palette in force (theme icons do not exist on bare X11)."""

from __future__ import annotations

from functools import cache

from PySide6.QtCore import QByteArray, QRectF, QSize, Qt
from PySide6.QtGui import QColor, QIcon, QPainter, QPixmap
from PySide6.QtSvg import QSvgRenderer

from vapor_desktop.gui.data import data_path
from vapor_desktop.model.states import Severity

SEVERITY_ICONS = {
    Severity.IDLE: "sev-idle",
    Severity.OK: "sev-ok",
    Severity.PROGRESS: "sev-progress",
    Severity.WARNING: "sev-warning",
    Severity.CRITICAL: "sev-critical",
}
SEVERITY_WORDS = {
    Severity.IDLE: "not protected",
    Severity.OK: "OK",
    Severity.PROGRESS: "in progress",
    Severity.WARNING: "warning",
    Severity.CRITICAL: "critical",
}
_SIZES = (16, 22, 32, 64)
# On a selected row every icon is white: its shape speaks.
_ON_HIGHLIGHT, _HIGHLIGHT = "#FFFFFF", "#0B65A6"


@cache
def _source(name: str) -> str:
    return (data_path("resources") / "icons" / f"{name}.svg").read_text(encoding="utf-8")


def pixmap(name: str, colour: QColor | str, edge: int, knockout: QColor | str = "#FFFFFF") -> QPixmap:
    """The icon at edge x edge pixels. ``knockout`` colours what is cut out of a filled shape."""
    svg = _source(name).replace("currentColor", QColor(colour).name())
    svg = svg.replace("#knockout", QColor(knockout).name())
    image = QPixmap(QSize(edge, edge))
    image.fill(Qt.GlobalColor.transparent)
    painter = QPainter(image)
    QSvgRenderer(QByteArray(svg.encode())).render(painter, QRectF(0, 0, edge, edge))
    painter.end()
    return image


@cache
def _icon(name: str, colour: str, disabled: str, knockout: str) -> QIcon:
    icon = QIcon()
    for edge in _SIZES:
        icon.addPixmap(pixmap(name, colour, edge, knockout), QIcon.Mode.Normal)
        icon.addPixmap(pixmap(name, disabled, edge, knockout), QIcon.Mode.Disabled)
        icon.addPixmap(pixmap(name, _ON_HIGHLIGHT, edge, _HIGHLIGHT), QIcon.Mode.Selected)
    return icon


def icon(name: str, colour: QColor | str, *, disabled: QColor | str = "#8A9097", knockout: str = "#FFFFFF") -> QIcon:
    """The icon in a colour; drawn once per colour."""
    return _icon(name, QColor(colour).name(), QColor(disabled).name(), knockout)
