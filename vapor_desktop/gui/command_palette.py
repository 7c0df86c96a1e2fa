"""The command palette: everything there is, found by a few letters (Ctrl+K)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PySide6.QtCore import QAbstractListModel, QEvent, QModelIndex, QObject, QPersistentModelIndex, QRect, QSize, Qt
from PySide6.QtGui import QColor, QFont, QIcon, QKeyEvent, QPainter
from PySide6.QtWidgets import (
    QDialog,
    QLabel,
    QLineEdit,
    QListView,
    QStyle,
    QStyledItemDelegate,
    QStyleOptionViewItem,
    QVBoxLayout,
    QWidget,
)

from vapor_desktop.gui import fuzzy
from vapor_desktop.gui.theme import Theme

Index = QModelIndex | QPersistentModelIndex
MOST = 200
_ROW, _WIDTH, _HEIGHT = 44, 680, 440
_SHORTCUT, _UNDER, _DEAD = (Qt.ItemDataRole.UserRole + n for n in range(3))


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that can be done or shown. ``why``: what keeps it from being done now, "" when nothing does."""

    title: str
    kind: str  # Action, Virtual machine, Site, …
    run: Callable[[], object]
    shortcut: str = ""
    why: str = ""
    words: str = ""  # also found by these
    icon: QIcon | None = None

    @property
    def sought(self) -> str:
        """What is searched: the title counts first, because it stands first."""
        return f"{self.title} {self.kind} {self.words}".strip()


class _Found(QAbstractListModel):
    def __init__(self, parent: QObject) -> None:
        super().__init__(parent)
        self.entries: list[Entry] = []

    def show_entries(self, entries: list[Entry]) -> None:
        self.beginResetModel()
        self.entries = entries
        self.endResetModel()

    def rowCount(self, parent: Index | None = None) -> int:
        return 0 if parent is not None and parent.isValid() else len(self.entries)

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> object:
        if not index.isValid():
            return None
        entry = self.entries[index.row()]
        under = f"{entry.kind} — not now: {entry.why}" if entry.why else entry.kind
        return {
            int(Qt.ItemDataRole.DisplayRole): entry.title,
            int(Qt.ItemDataRole.DecorationRole): entry.icon,
            int(Qt.ItemDataRole.AccessibleTextRole): ", ".join(t for t in (entry.title, under, entry.shortcut) if t),
            int(Qt.ItemDataRole.ToolTipRole): under,
            int(_SHORTCUT): entry.shortcut,
            int(_UNDER): under,
            int(_DEAD): bool(entry.why),
        }.get(int(role))


class _Line(QStyledItemDelegate):
    """Title above, kind and reason below, shortcut at the right."""

    def __init__(self, theme: Theme, parent: QObject) -> None:
        super().__init__(parent)
        self._theme = theme

    def sizeHint(self, option: QStyleOptionViewItem, index: Index) -> QSize:
        """The same for all; higher where the font is."""
        return QSize(0, max(_ROW, 2 * option.fontMetrics.height() + 12))

    def paint(self, painter: QPainter, option: QStyleOptionViewItem, index: Index) -> None:
        """Draw one entry."""
        colours, rect = self._theme.colours, QRect(option.rect)
        chosen = bool(option.state & QStyle.StateFlag.State_Selected)
        painter.save()
        if chosen:
            painter.fillRect(rect, QColor(colours.highlight))
        ink = colours.highlighted_text if chosen else (colours.dim if index.data(_DEAD) else colours.text)
        inside = rect.adjusted(12, 5, -12, -5)
        picture = index.data(Qt.ItemDataRole.DecorationRole)
        if isinstance(picture, QIcon):
            mode = QIcon.Mode.Selected if chosen else QIcon.Mode.Normal
            picture.paint(painter, inside.left(), inside.center().y() - 9, 18, 18, mode=mode)
        inside.setLeft(inside.left() + 30)
        keys = str(index.data(_SHORTCUT))
        painter.setPen(QColor(ink))
        width = painter.fontMetrics().horizontalAdvance(keys)
        painter.drawText(inside, Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignTop, keys)
        self._text(painter, inside.adjusted(0, 0, -width - 12, 0), str(index.data()), Qt.AlignmentFlag.AlignTop)
        small = QFont(painter.font())
        small.setPointSizeF(small.pointSizeF() * 0.88)
        painter.setFont(small)
        painter.setPen(QColor(ink if chosen else colours.dim))
        self._text(painter, inside, str(index.data(_UNDER)), Qt.AlignmentFlag.AlignBottom)
        painter.restore()

    @staticmethod
    def _text(painter: QPainter, where: QRect, text: str, place: Qt.AlignmentFlag) -> None:
        short = painter.fontMetrics().elidedText(text, Qt.TextElideMode.ElideRight, where.width())
        painter.drawText(where, Qt.AlignmentFlag.AlignLeft | place, short)


class CommandPalette(QDialog):
    """Type, choose with the arrows, Enter. What cannot be done now stays listed, and says why."""

    def __init__(self, theme: Theme, entries: Sequence[Entry], parent: QWidget) -> None:
        super().__init__(parent)
        self._entries = list(entries)
        self.setWindowTitle("Command palette")
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.edit = QLineEdit(self)
        self.edit.setPlaceholderText("A verb, a virtual machine, a site, a plan, a page, a setting…")
        self.edit.setAccessibleName("What do you look for")
        self.edit.setClearButtonEnabled(True)
        self.edit.setMinimumHeight(34)
        self.found = _Found(self)
        self.view = QListView(self)
        self.view.setAccessibleName("Found")
        self.view.setUniformItemSizes(True)
        self.view.setModel(self.found)
        self.view.setItemDelegate(_Line(theme, self.view))
        self.view.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.view.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.hint = QLabel(self)
        self.hint.setWordWrap(True)
        box = QVBoxLayout(self)
        box.setContentsMargins(10, 10, 10, 8)
        for widget in (self.edit, self.view, self.hint):
            box.addWidget(widget)
        self.resize(_WIDTH, _HEIGHT)
        self.edit.textChanged.connect(self.search)
        self.edit.installEventFilter(self)
        self.view.clicked.connect(lambda _index: self.run_chosen())
        self.view.selectionModel().currentChanged.connect(lambda _now, _before: self._say())
        self.search("")

    def search(self, text: str) -> None:
        """Show what answers the text."""
        found = fuzzy.rank(text, self._entries, lambda entry: entry.sought)[:MOST]
        self.found.show_entries(found)
        self.view.setCurrentIndex(self.found.index(0))
        self._say()

    def chosen(self) -> Entry | None:
        """The marked entry."""
        index = self.view.currentIndex()
        return self.found.entries[index.row()] if index.isValid() else None

    def run_chosen(self) -> None:
        """Do it, when it can be done; else stay and say why."""
        entry = self.chosen()
        if entry is not None and not entry.why:
            self.accept()  # first: what it opens must be in front
            entry.run()

    def _say(self) -> None:
        entry = self.chosen()
        if entry is None:
            self.hint.setText("Nothing is called so.")
        elif entry.why:
            self.hint.setText(f"Not now: {entry.why}.")
        else:
            self.hint.setText("Enter: do it · ↑ ↓: choose · Esc: close")

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """Arrows and Enter act on the list while one types."""
        if isinstance(event, QKeyEvent) and event.type() == QEvent.Type.KeyPress:
            steps = {Qt.Key.Key_Up: -1, Qt.Key.Key_Down: 1, Qt.Key.Key_PageUp: -8, Qt.Key.Key_PageDown: 8}
            if event.key() in steps:
                last = self.found.rowCount() - 1
                row = min(max(0, self.view.currentIndex().row() + steps[Qt.Key(event.key())]), last)
                self.view.setCurrentIndex(self.found.index(row))
                return True
            if event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter):
                self.run_chosen()
                return True
        return super().eventFilter(watched, event)
