"""A report on paper: the same page as everywhere, laid out by Qt's text engine."""

from __future__ import annotations

from pathlib import Path

from PySide6.QtCore import QMarginsF
from PySide6.QtGui import QFont, QPageLayout, QPageSize, QPdfWriter, QTextDocument

from vapor_desktop.engine.reporting.document import Report
from vapor_desktop.engine.reporting.rendering import html

# Qt's text engine knows a part of CSS; what the page's own style says beyond that it ignores.
STYLE = (
    "h1 { font-size: 17pt; } h2 { font-size: 12pt; margin-top: 14px; } p { margin: 3px 0; }"
    " th { text-align: left; } td, th { padding: 2px 10px 2px 0; } figcaption, dt { font-weight: bold; }"
)
_PIXELS_PER_INCH = 150
_UPRIGHT_COLUMNS = 6
# (columns at most, points): a word should never be wider than its column.
_FONTS = ((6, 9.0), (10, 7.5), (1 << 16, 6.0))


def laid_out(report: Report, *, extra_style: str = "") -> QTextDocument:
    """The report as a document for the screen or a page."""
    document = QTextDocument()
    document.setDefaultStyleSheet(STYLE + extra_style)
    document.setHtml(html(report).partition("<body>")[2].partition("</body>")[0])
    return document


def write_pdf(report: Report, path: Path) -> None:
    """A4, with page numbers. Raises OSError when it cannot be written."""
    path.open("ab").close()  # QPdfWriter only prints a warning for a place that cannot be written to
    writer = QPdfWriter(str(path))
    writer.setResolution(_PIXELS_PER_INCH)
    writer.setPageSize(QPageSize(QPageSize.PageSizeId.A4))
    columns = max((len(section.columns) for section in report.sections), default=0)
    if columns > _UPRIGHT_COLUMNS:
        writer.setPageOrientation(QPageLayout.Orientation.Landscape)
    writer.setPageMargins(QMarginsF(0, 0, 0, 0), QPageLayout.Unit.Millimeter)  # Qt prints 2 cm of its own
    writer.setTitle(report.title)
    writer.setCreator("Vapor Desktop")
    document = laid_out(report)
    font = QFont("DejaVu Sans")
    font.setPointSizeF(next(size for most, size in _FONTS if columns <= most))
    document.setDefaultFont(font)
    document.print_(writer)
