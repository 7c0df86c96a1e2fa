"""Cells that are more than text: the RPO bar against its target, and progress."""

from __future__ import annotations

from PySide6.QtCore import QModelIndex, QPersistentModelIndex, QRect, QRectF, Qt
from PySide6.QtGui import QBrush, QColor, QPainter, QPalette
from PySide6.QtWidgets import QApplication, QStyle, QStyledItemDelegate, QStyleOptionViewItem, QWidget

from vapor_desktop.gui.protection_columns import Row
from vapor_desktop.gui.protection_model import ROW_ROLE
from vapor_desktop.gui.theme import Theme
from vapor_desktop.model.states import RpoHealth, Severity

_HEALTH = {
    RpoHealth.WITHIN: Severity.OK,
    RpoHealth.AT_RISK: Severity.WARNING,
    RpoHealth.BREACHED: Severity.CRITICAL,
    RpoHealth.NO_POINT: Severity.IDLE,
    RpoHealth.UNKNOWN: Severity.IDLE,
}
Index = QModelIndex | QPersistentModelIndex


class BarDelegate(QStyledItemDelegate):
    """Text with a thin bar below it. Subclasses say what the bar means."""

    def __init__(self, theme: Theme, parent: QWidget) -> None:
        super().__init__(parent)
        self._theme = theme

    def bar(self, row: Row) -> tuple[float | None, QColor] | None:
        """(filled share or None for unknown, colour); None: no bar at all."""
        raise NotImplementedError

    def paint(self, painter: QPainter, option: QStyleOptionViewItem, index: Index) -> None:
        """Background and text as the style draws them, then the bar."""
        row = index.data(ROW_ROLE)
        bar = self.bar(row) if isinstance(row, Row) else None
        self.initStyleOption(option, index)
        text, option.text = option.text, ""
        style = option.widget.style() if option.widget else QApplication.style()
        style.drawControl(QStyle.ControlElement.CE_ItemViewItem, option, painter, option.widget)
        area = option.rect.adjusted(6, 0, -6, 0)
        selected = bool(option.state & QStyle.StateFlag.State_Selected)
        role = QPalette.ColorRole.HighlightedText if selected else QPalette.ColorRole.Text
        painter.save()
        painter.setFont(option.font)
        painter.setPen(option.palette.color(role))
        place = area.adjusted(0, 0, 0, -5) if bar else area
        elided = option.fontMetrics.elidedText(text, Qt.TextElideMode.ElideRight, place.width())
        painter.drawText(place, Qt.AlignmentFlag.AlignVCenter | Qt.AlignmentFlag.AlignLeft, elided)
        if bar is not None:
            self._draw_bar(painter, area, bar, selected)
        painter.restore()

    def _draw_bar(self, painter: QPainter, area: QRect, bar: tuple[float | None, QColor], selected: bool) -> None:
        share, colour = bar
        track = QRectF(area.left(), area.bottom() - 5, area.width(), 4)
        painter.setPen(Qt.PenStyle.NoPen)
        colour = QColor(self._theme.colours.highlighted_text) if selected else colour
        faint = QColor(colour)
        faint.setAlphaF(0.22)
        if share is None:
            painter.setBrush(QBrush(colour, Qt.BrushStyle.BDiagPattern))
            painter.drawRect(track)
            return
        painter.setBrush(faint)
        painter.drawRoundedRect(track, 2, 2)
        painter.setBrush(colour)
        painter.drawRoundedRect(QRectF(track.left(), track.top(), track.width() * min(1.0, share), 4), 2, 2)


class RpoDelegate(BarDelegate):
    """RPO now as a share of its target; hatched when unknown."""

    def bar(self, row: Row) -> tuple[float | None, QColor] | None:
        """Full is the target."""
        if row.status is None or row.status.rpo_health is RpoHealth.NO_POINT:
            return None
        return row.ratio, self._theme.severity(_HEALTH[row.status.rpo_health])


class ProgressDelegate(BarDelegate):
    """The running cycle's share of its bytes."""

    def bar(self, row: Row) -> tuple[float | None, QColor] | None:
        """Only while a cycle runs."""
        if row.status is None or row.status.cycle_started_at is None or row.share is None:
            return None
        return row.share, QColor(self._theme.colours.highlight)
