"""Standing conditions, under the tool bar: one line per cause, the worst first."""

from __future__ import annotations

from html import escape

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QFrame, QHBoxLayout, QLabel, QPushButton, QVBoxLayout, QWidget

from vapor_desktop.gui.icons import SEVERITY_ICONS, SEVERITY_WORDS, pixmap
from vapor_desktop.gui.theme import Theme
from vapor_desktop.model.states import Severity
from vapor_desktop.model.view import Banner

SHOWN = 3
ACTION_TEXTS = {
    "open-vm": "&Open",
    "open-operation": "&Open",
    "open-site": "Open &site",
    "refresh": "&Try again",
    "pair": "&Pair…",
}


class BannerBar(QWidget):
    """Signals:
    acted: the Banner whose button was pressed.
    """

    acted = Signal(object)

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._theme = theme
        self._banners: tuple[Banner, ...] = ()
        self._box = QVBoxLayout(self)
        self._box.setContentsMargins(0, 0, 0, 0)
        self._box.setSpacing(1)
        self.setAccessibleName("Standing conditions")
        self.hide()
        theme.changed.connect(self._draw)

    def show_banners(self, banners: tuple[Banner, ...]) -> None:
        """Replace what is shown, if it differs."""
        wanted = tuple(sorted(banners, key=lambda banner: -banner.severity))
        if wanted != self._banners:
            self._banners = wanted
            self._draw()

    def texts(self) -> list[str]:
        """What is shown, worst first."""
        return [banner.text for banner in self._banners]

    def _draw(self) -> None:
        while (item := self._box.takeAt(0)) is not None:
            widget = item.widget()
            if widget is not None:
                widget.hide()
                widget.deleteLater()
        for banner in self._banners[:SHOWN]:
            self._box.addWidget(self._line(banner))
        hidden = len(self._banners) - SHOWN
        if hidden > 0:
            worst = max(banner.severity for banner in self._banners[SHOWN:])
            self._box.addWidget(self._line(Banner("more", worst, f"and {hidden} more; see Activity")))
        self.setVisible(bool(self._banners))

    def _line(self, banner: Banner) -> QFrame:
        colours = self._theme.colours
        back = colours.banner_info
        if banner.severity >= Severity.WARNING:
            back = colours.banner_critical if banner.severity is Severity.CRITICAL else colours.banner_warning
        frame = QFrame(self)
        frame.setObjectName("banner")
        frame.setStyleSheet(f"#banner {{ background: {back}; border-bottom: 1px solid {colours.line}; }}")
        row = QHBoxLayout(frame)
        row.setContentsMargins(12, 5, 8, 5)
        mark = QLabel(frame)
        name, colour = SEVERITY_ICONS[banner.severity], colours.severity[banner.severity]
        mark.setPixmap(pixmap(name, colour, 18, back))
        mark.setAccessibleName(SEVERITY_WORDS[banner.severity])
        text = QLabel(escape(banner.text), frame)
        text.setWordWrap(True)
        text.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        row.addWidget(mark)
        row.addWidget(text, 1)
        if banner.action:
            button = QPushButton(ACTION_TEXTS.get(banner.action, "&Show"), frame)
            button.setAccessibleName(f"{button.text().replace('&', '')}: {banner.text}")
            button.clicked.connect(lambda: self.acted.emit(banner))
            row.addWidget(button)
        return frame
