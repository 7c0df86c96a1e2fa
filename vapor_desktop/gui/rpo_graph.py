"""The RPO saw-tooth: line, dashed target with its label, breaches hatched, the unknown hatched and named."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyqtgraph as pg
from PySide6.QtCore import QPointF, QRectF, Qt, Signal
from PySide6.QtGui import QBrush, QColor, QPainter, QTransform
from PySide6.QtWidgets import QWidget

from vapor_desktop.gui import words
from vapor_desktop.gui.rpo_series import Series, Span
from vapor_desktop.gui.theme import Theme
from vapor_desktop.model.states import Severity

_STEPS = (1, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800)


class DurationAxis(pg.AxisItem):  # type: ignore[misc]
    """Ticks at round durations, in words."""

    def tickSpacing(self, minVal: float, maxVal: float, size: float) -> list[tuple[float, float]]:  # noqa: N803
        """About one tick every 50 pixels."""
        wanted = max(1.0, (maxVal - minVal) / max(2.0, size / 50))
        step = next((s for s in _STEPS if s >= wanted), float(np.ceil(wanted / 604800) * 604800))
        return [(step, 0)]

    def tickStrings(self, values: list[float], scale: float, spacing: float) -> list[str]:
        """Durations."""
        return [words.duration(value) if value >= 0 else "" for value in values]


class HatchItem(pg.GraphicsObject):  # type: ignore[misc]
    """Vertical bands, hatched in device pixels whatever the zoom, with a word in those wide enough."""

    def __init__(self, pattern: Qt.BrushStyle, word: str) -> None:
        super().__init__()
        self._spans: tuple[Span, ...] = ()
        self._pattern, self._word = pattern, word
        self._colour = QColor("black")

    def show_spans(self, spans: tuple[Span, ...], colour: QColor) -> None:
        """Replace the bands."""
        self.prepareGeometryChange()
        self._spans, self._colour = spans, colour
        self.update()

    def boundingRect(self) -> QRectF:
        """The view: bands reach from its bottom to its top."""
        rect = self.viewRect()
        return QRectF(rect) if rect is not None else QRectF()

    def viewTransformChanged(self) -> None:
        """The view moved."""
        super().viewTransformChanged()  # forgets the cached view rectangle
        self.prepareGeometryChange()
        self.update()

    def paint(self, painter: QPainter, *_args: Any) -> None:
        """Map each band to device pixels and draw it there."""
        view, to_device = self.boundingRect(), painter.worldTransform()
        tint = QColor(self._colour)
        tint.setAlphaF(0.13)
        painter.save()
        painter.setWorldTransform(QTransform())
        for start, end in self._spans:
            if end < view.left() or start > view.right():
                continue
            a = to_device.map(QPointF(max(start, view.left()), view.top()))
            b = to_device.map(QPointF(min(end, view.right()), view.bottom()))
            band = QRectF(a, b).normalized()
            band.setWidth(max(band.width(), 1.0))
            painter.fillRect(band, tint)
            painter.fillRect(band, QBrush(self._colour, self._pattern))
            self._label(painter, band)
        painter.restore()

    def _label(self, painter: QPainter, band: QRectF) -> None:
        if not self._word or painter.fontMetrics().horizontalAdvance(self._word) + 10 > band.width():
            return
        painter.setPen(self._colour)
        painter.drawText(band.adjusted(0, 4, 0, 0), int(Qt.AlignmentFlag.AlignHCenter), self._word)


class RpoGraph(pg.PlotWidget):  # type: ignore[misc]
    """Signals:
    pointed: a sentence about the sample under the mouse.
    """

    pointed = Signal(str)

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        self._axis = DurationAxis("left")
        super().__init__(parent, axisItems={"bottom": pg.DateAxisItem(), "left": self._axis})
        self.setAccessibleName("RPO over time")
        self._theme = theme
        self.series, self.span = Series(), timedelta()
        plot = self.getPlotItem()
        plot.setMenuEnabled(False)
        plot.hideButtons()
        plot.setMouseEnabled(x=True, y=False)
        plot.showGrid(x=False, y=True, alpha=0.18)
        self.unknown = HatchItem(Qt.BrushStyle.FDiagPattern, "unknown")
        self.breached = HatchItem(Qt.BrushStyle.BDiagPattern, "")
        self.line = pg.PlotDataItem(connect="finite", skipFiniteCheck=False)
        self.target = pg.PlotDataItem(stepMode=None)
        self.target_label = pg.TextItem(anchor=(1, 1))
        for z, item in enumerate((self.unknown, self.breached, self.target, self.line, self.target_label)):
            item.setZValue(z)
            self.addItem(item, ignoreBounds=True)
        self._marks: list[pg.InfiniteLine] = []
        self.line.setDownsampling(auto=True, method="peak")
        self.line.setClipToView(True)
        self.scene().sigMouseMoved.connect(self._hover)
        theme.changed.connect(self._draw)
        self._draw()

    def show_series(
        self,
        series: Series,
        since: datetime,
        until: datetime,
        marks: Sequence[tuple[float, str]] = (),
        begin: datetime | None = None,
    ) -> None:
        """Replace the data; the view spans the asked range, or what of it is after ``begin``.

        ``marks``: (Unix seconds, word) of what happened to the VM.
        """
        self.series, self.span = series, until - since
        top = max([series.highest, *([float(series.targets.max())] if series.targets.size else [60.0])])
        self.getPlotItem().setXRange((begin or since).timestamp(), until.timestamp(), padding=0)
        self.getPlotItem().setYRange(0, top * 1.15, padding=0)
        self._mark(marks)
        self._draw()

    def _mark(self, marks: Sequence[tuple[float, str]]) -> None:
        """A line with its word at each; neighbours' words stand at different heights."""
        for line in self._marks:
            self.removeItem(line)
        self._marks = []
        for n, (when, word) in enumerate(marks):
            options = {"position": 0.94 - 0.07 * (n % 4), "anchors": [(0, 0.5), (0, 0.5)]}
            line = pg.InfiniteLine(when, angle=90, label=word, labelOpts=options)
            line.setZValue(5)
            self.addItem(line, ignoreBounds=True)
            self._marks.append(line)

    @property
    def marked(self) -> list[tuple[float, str]]:
        """What is marked: (Unix seconds, word)."""
        return [(float(line.value()), line.label.format) for line in self._marks]

    def _draw(self) -> None:
        c, s = self._theme.colours, self.series
        self.setBackground(c.base)
        for name in ("left", "bottom"):
            axis = self.getPlotItem().getAxis(name)
            axis.setPen(QColor(c.line))
            axis.setTextPen(QColor(c.text))
        for mark in self._marks:
            mark.setPen(pg.mkPen(QColor(c.dim), width=1, style=Qt.PenStyle.DotLine))
            mark.label.setColor(QColor(c.text))
            mark.label.fill = pg.mkBrush(QColor(c.base))
        critical = self._theme.severity(Severity.CRITICAL)
        self.line.setPen(pg.mkPen(self._theme.severity(Severity.OK), width=1.6))
        self.line.setData(s.times, s.values)
        self.target.setPen(pg.mkPen(critical, width=1.4, style=Qt.PenStyle.DashLine))
        self.unknown.show_spans(s.gaps, QColor(c.dim))
        self.breached.show_spans(s.breaches, critical)
        has = bool(s.times.size)
        self.target_label.setVisible(has)
        if has:
            now = float(s.targets[-1])
            self.target.setData(np.append(s.times, self._right()), np.append(s.targets, now))
            self.target_label.setText(f"target {words.duration(now)}", color=critical)
            self.target_label.setPos(self._right(), now)
        else:
            self.target.setData([], [])

    def _right(self) -> float:
        return float(self.getPlotItem().viewRange()[0][1])

    def _hover(self, place: QPointF) -> None:
        if not self.sceneBoundingRect().contains(place):
            return
        when = self.getPlotItem().vb.mapSceneToView(place).x()
        self.pointed.emit(self.describe(float(when)))

    def describe(self, when: float) -> str:
        """What is known of a moment, in words."""
        at = words.exact(datetime.fromtimestamp(when, UTC))
        if any(a <= when <= b for a, b in self.series.gaps):
            return f"{at}: RPO unknown"
        found = self.series.at(when)
        if found is None:
            return ""
        time, rpo, target = found
        at = words.exact(datetime.fromtimestamp(time, UTC))
        over = " — breached" if rpo is not None and rpo > target else ""
        known = "unknown" if rpo is None else words.duration(rpo)
        return f"{at}: RPO {known}, target {words.duration(target)}{over}"
