"""The user's guide in a window of its own: pages at the left, text at the right. It needs no network."""

from __future__ import annotations

from PySide6.QtCore import QSize, Qt, QTimer, QUrl
from PySide6.QtGui import QAction, QDesktopServices, QKeySequence
from PySide6.QtWidgets import (
    QHBoxLayout,
    QLineEdit,
    QListWidget,
    QMainWindow,
    QTextBrowser,
    QToolBar,
    QWidget,
)

from vapor_desktop.gui.icons import icon
from vapor_desktop.gui.theme import Theme
from vapor_desktop.guide.html import anchor, body
from vapor_desktop.guide.pages import ERRORS, NAMES, folder, page, pages


class GuideWindow(QMainWindow):
    """Links between pages stay here; links to the world open in the desktop's browser."""

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(parent, Qt.WindowType.Window)
        self._theme = theme
        self._history: list[tuple[str, str]] = []
        self.setWindowTitle("Vapor Desktop — User guide")
        self.setObjectName("guide")
        self.contents = QListWidget(self)
        self.contents.setAccessibleName("Pages of the guide")
        self.contents.setFixedWidth(250)
        self.contents.setFrameShape(QListWidget.Shape.NoFrame)
        self.contents.addItems([p.title for p in pages()])
        for n in range(self.contents.count()):
            self.contents.item(n).setSizeHint(QSize(0, 34))
        self.text = QTextBrowser(self)
        self.text.setAccessibleName("The page's text")
        self.text.setOpenLinks(False)
        self.text.setSearchPaths([str(folder())])
        self.text.document().setDocumentMargin(24)
        self.find_edit = QLineEdit(self)
        self.find_edit.setPlaceholderText("Find in this page")
        self.find_edit.setAccessibleName("Find in this page")
        self.find_edit.setMaximumWidth(260)
        self.find_edit.setClearButtonEnabled(True)
        self._build_bar()
        middle = QWidget(self)
        row = QHBoxLayout(middle)
        row.setContentsMargins(0, 0, 0, 0)
        row.setSpacing(0)
        row.addWidget(self.contents)
        row.addWidget(self.text, 1)
        self.setCentralWidget(middle)
        self.resize(980, 720)
        self.contents.currentRowChanged.connect(self._chosen)
        self.text.anchorClicked.connect(self._followed)
        self.find_edit.textChanged.connect(lambda _text: self._find(from_start=True))
        self.find_edit.returnPressed.connect(self._find)
        theme.changed.connect(self._again)

    def show_page(self, name: str, heading: str = "") -> None:
        """Raise the window on a page, at a heading if one is given. Raises NotFound."""
        wanted = page(name)
        self._history.append((name, heading))
        self.back.setEnabled(len(self._history) > 1)
        self.contents.blockSignals(True)
        self.contents.setCurrentRow(NAMES.index(name))
        self.contents.blockSignals(False)
        colours = self._theme.colours
        self.text.document().setDefaultStyleSheet(
            f"code, pre {{ background: {colours.alternate}; }} a {{ color: {colours.link}; }}"
            " p, li { line-height: 135%; } table { border-collapse: collapse; margin: 6px 0; }"
            f" td, th {{ padding: 4px 8px; border: 1px solid {colours.line}; }} th {{ text-align: left; }}"
        )
        self.contents.setStyleSheet(
            f"QListWidget {{ background: {colours.alternate}; border-right: 1px solid {colours.line}; }}"
            "QListWidget::item { padding-left: 10px; }"
        )
        self.text.setHtml(body(wanted))
        self.show()
        self.raise_()
        self.activateWindow()
        if heading:  # once it is laid out in the width it has on the screen
            QTimer.singleShot(0, self, lambda: self.text.scrollToAnchor(anchor(heading)))

    def _build_bar(self) -> None:
        bar = QToolBar("Guide", self)
        bar.setObjectName("guide-tools")
        bar.setMovable(False)
        self.back = QAction(icon("back", self._theme.colours.text), "&Back", self)
        self.back.setShortcut(QKeySequence(QKeySequence.StandardKey.Back))
        self.back.setEnabled(False)
        self.back.triggered.connect(self._go_back)
        find = QAction("&Find", self)
        find.setShortcut(QKeySequence(QKeySequence.StandardKey.Find))
        find.triggered.connect(lambda _on=False: self.find_edit.setFocus())
        self.addAction(find)
        close = QAction("&Close", self)
        close.setShortcuts([QKeySequence("Esc"), QKeySequence(QKeySequence.StandardKey.Close)])
        close.triggered.connect(self.close)
        self.addAction(close)
        bar.addAction(self.back)
        bar.addSeparator()
        bar.addWidget(self.find_edit)
        self.addToolBar(bar)

    def _chosen(self, row: int) -> None:
        if row >= 0:
            self.show_page(NAMES[row])

    def _followed(self, url: QUrl) -> None:
        if not url.isRelative():
            QDesktopServices.openUrl(url)
        elif not url.path():
            self.text.scrollToAnchor(url.fragment())
        elif url.path() in NAMES:
            self.show_page(url.path(), url.fragment())

    def _go_back(self) -> None:
        self._history.pop()
        self.show_page(*self._history.pop())

    def _again(self) -> None:
        if self._history and self.isVisible():
            self.show_page(*self._history.pop())

    def _find(self, *, from_start: bool = False) -> None:
        if from_start:
            cursor = self.text.textCursor()
            cursor.setPosition(0)
            self.text.setTextCursor(cursor)
        found = not self.find_edit.text() or self.text.find(self.find_edit.text())
        if not found and not from_start:  # from the top again
            self._find(from_start=True)


def open_guide(parent: QWidget, theme: Theme, name: str = NAMES[0], heading: str = "") -> GuideWindow:
    """The guide's one window, on that page; it goes with ``parent``."""
    window = parent.findChild(GuideWindow) or GuideWindow(theme, parent)
    window.show_page(name, heading)
    return window


def explain(parent: QWidget, theme: Theme, code: str) -> GuideWindow:
    """What an error's code means."""
    return open_guide(parent, theme, ERRORS, code)
