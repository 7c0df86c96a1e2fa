"""Steps that report themselves while they run: an icon, a title, a sentence, and the fix of what failed."""

from __future__ import annotations

from html import escape

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QGridLayout, QLabel, QScrollArea, QWidget

from vapor_desktop.gui.icons import pixmap
from vapor_desktop.gui.theme import Theme
from vapor_desktop.model.states import Severity
from vapor_desktop.model.view import Check

_LOOKS = {
    "waiting": ("wait", Severity.IDLE),
    "running": ("sev-progress", Severity.PROGRESS),
    "ok": ("sev-ok", Severity.OK),
    "warning": ("sev-warning", Severity.WARNING),
    "failed": ("sev-critical", Severity.CRITICAL),
}
_WORDS = {"waiting": "waiting", "running": "running", "ok": "OK", "warning": "warning", "failed": "failed"}


class CheckList(QWidget):
    """One line per check key, in the order of first appearance."""

    def __init__(self, theme: Theme, area: QScrollArea) -> None:
        super().__init__(area)
        self._theme = theme
        policy = self.sizePolicy()
        policy.setHeightForWidth(True)
        self.setSizePolicy(policy)
        area.setWidget(self)
        bar = area.verticalScrollBar()
        bar.rangeChanged.connect(lambda _least, most: bar.setValue(most))  # the newest step stays in sight
        self.checks: dict[str, Check] = {}
        self._lines: dict[str, tuple[QLabel, QLabel]] = {}
        self._grid = QGridLayout(self)
        self._grid.setContentsMargins(10, 10, 10, 10)
        self._grid.setVerticalSpacing(8)
        self._grid.setColumnStretch(1, 1)

    def clear(self) -> None:
        """Forget every line."""
        for pair in self._lines.values():
            for label in pair:
                self._grid.removeWidget(label)
                label.hide()
                label.deleteLater()
        self.checks.clear()
        self._lines.clear()

    def show_check(self, check: Check, group: str = "") -> None:
        """Add the line, or change it."""
        key = f"{group}\0{check.key}"
        self.checks[key] = check
        if key not in self._lines:
            mark, text = QLabel(self), QLabel(self)
            text.setWordWrap(True)
            text.setTextFormat(Qt.TextFormat.RichText)
            text.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
            at = len(self._lines)
            self._grid.addWidget(mark, at, 0, Qt.AlignmentFlag.AlignTop)
            self._grid.addWidget(text, at, 1)
            self._grid.setRowStretch(at, 0)
            self._grid.setRowStretch(at + 1, 1)
            self._lines[key] = (mark, text)
        self._draw(key, group)

    def states(self) -> dict[str, str]:
        """Title → state."""
        return {check.title: check.state for check in self.checks.values()}

    def _draw(self, key: str, group: str) -> None:
        check, (mark, text) = self.checks[key], self._lines[key]
        name, severity = _LOOKS.get(check.state, _LOOKS["waiting"])
        colours = self._theme.colours
        mark.setPixmap(pixmap(name, colours.severity[severity], 18, colours.base))
        head = escape(f"{group}: {check.title}" if group else check.title)
        lines = [f"<b>{head}</b>" + (f" — {escape(check.text)}" if check.text else "")]
        if check.fix and check.state in ("failed", "warning"):
            lines.append(f"<span style='color:{colours.link}'>{escape(check.fix)}</span>")
        text.setText("<br>".join(lines))
        text.setAccessibleName(f"{head}: {_WORDS.get(check.state, check.state)}. {check.text} {check.fix}".strip())
