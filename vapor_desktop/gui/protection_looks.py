"""Colours, icons, fonts and tooltips of the protection table, following the theme."""

from __future__ import annotations

from typing import Any

from PySide6.QtCore import Qt
from PySide6.QtGui import QColor, QFont

from vapor_desktop.gui import words
from vapor_desktop.gui.icons import SEVERITY_ICONS, icon
from vapor_desktop.gui.protection_columns import Column, Row
from vapor_desktop.gui.theme import Theme
from vapor_desktop.model.states import RpoHealth, Severity

_LOUD = {"sev", "status", "rpo_now"}


class Looks:
    """How a cell looks; the model says what it is."""

    def __init__(self, theme: Theme) -> None:
        self._theme = theme

    def of(self, row: Row, column: Column, role: int) -> Any:
        """The value of one of Qt's look roles, or None."""
        if role == Qt.ItemDataRole.DecorationRole:
            return self.severity_icon(row) if column.key == "sev" else None
        if role == Qt.ItemDataRole.ToolTipRole:
            return self._tooltip(row, column)
        if role == Qt.ItemDataRole.ForegroundRole:
            return self._colour(row, column)
        if role == Qt.ItemDataRole.FontRole:
            return self._font(row, column)
        return None

    def severity_icon(self, row: Row) -> Any:
        """Shape and colour; an unknown RPO has a shape of its own."""
        colours = self._theme.colours
        name = SEVERITY_ICONS[row.severity]
        unknown = row.status is not None and row.status.rpo_health is RpoHealth.UNKNOWN
        if unknown and row.severity is Severity.WARNING:
            name = "sev-unknown"
        return icon(name, colours.severity[row.severity], knockout=colours.base)

    def _colour(self, row: Row, column: Column) -> QColor | None:
        if column.show(row) == words.UNKNOWN or row.status is None:
            return QColor(self._theme.colours.dim)
        if column.key not in _LOUD or row.severity < Severity.WARNING:
            return None
        if column.key == "rpo_now" and row.status.rpo_health in (RpoHealth.WITHIN, RpoHealth.UNKNOWN):
            return None
        return self._theme.severity(row.severity)

    @staticmethod
    def _font(row: Row, column: Column) -> QFont | None:
        if column.key not in ("name", "status") or row.severity < Severity.WARNING:
            return None
        font = QFont()
        font.setWeight(QFont.Weight.Bold if row.severity is Severity.CRITICAL else QFont.Weight.DemiBold)
        return font

    @staticmethod
    def _tooltip(row: Row, column: Column) -> str | None:
        status = row.status
        if status is None:
            return row.vm.reason if row.vm and row.vm.reason else "Not protected"
        if column.key == "last_point":
            return f"Taken {words.exact(status.last_point_taken_at)}"
        if column.key == "name":
            return f"{row.name}\nUUID {status.protection.vm_uuid}"
        if column.key in ("sev", "status", "error"):
            lines = [
                words.capital(status.status_text),
                status.protection.last_error or "",
                *status.protection.warnings,
            ]
            return "\n".join(line for line in lines if line)
        return column.spoken(row)
