"""The first run: three ways to begin, each with what it needs."""

from __future__ import annotations

from html import escape

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QFrame, QGridLayout, QHBoxLayout, QLabel, QPushButton, QVBoxLayout, QWidget

from vapor_desktop.gui import demo_start
from vapor_desktop.gui.icons import pixmap
from vapor_desktop.gui.places import config_file, data_folder
from vapor_desktop.gui.theme import Theme
from vapor_desktop.model.view import Snapshot

_CARDS = (
    (
        "pair",
        "pair",
        "Pair two sites",
        "You need the URL and a token of each host. On the host run<br><code>vapor-site token new</code>",
        "&Pair site…",
    ),
    (
        "protect",
        "protect",
        "Protect a virtual machine",
        "Your sites are paired. Choose VMs, their target site, and how much data may be lost at most (the RPO).",
        "P&rotect…",
    ),
    (
        "engine",
        "sync",
        "Connect to a running engine",
        "A service of yours on this machine is found by itself. An engine elsewhere shares its PostgreSQL database "
        "with you: you need the database's URL.",
        "&Connect to engine…",
    ),
    ("demo", "drill", "Try the demo", demo_start.NEEDS, "&Start the demo"),
)


class Welcome(QWidget):
    """Signals:
    asked: "pair", "protect", "engine" or "demo".
    """

    asked = Signal(str)

    def __init__(self, theme: Theme, parent: QWidget) -> None:
        super().__init__(parent)
        self._theme = theme
        self.buttons: dict[str, QPushButton] = {}
        self.texts: dict[str, QLabel] = {}
        self._cards: dict[str, QFrame] = {}
        self._marks: dict[QLabel, str] = {}
        self.offer = demo_start.found()
        grid = QGridLayout(self)
        grid.addWidget(
            QLabel("<h2>Protect your virtual machines against the loss of their host</h2>", self), 0, 0, 1, 3
        )
        for card in _CARDS:
            place = {"pair": 0, "protect": 0, "engine": 1, "demo": 2}[card[0]]
            grid.addWidget(self._card(*card), 1, place)
            grid.setColumnStretch(place, 1)
        self._say_demo()
        self.engine = QLabel(self)
        self.engine.setWordWrap(True)
        note = QLabel(
            "Tokens are kept only in your desktop's keyring, as <code>vapor-desktop</code>; settings in "
            f"<code>{escape(str(config_file()))}</code>, history in <code>{escape(str(data_folder()))}</code>. "
            "The user guide is under Help.",
            self,
        )
        note.setWordWrap(True)
        grid.addWidget(self.engine, 2, 0, 1, 3)
        grid.addWidget(note, 3, 0, 1, 3)
        grid.setRowStretch(4, 1)
        theme.changed.connect(self._draw)
        self._draw()

    def take(self, snapshot: Snapshot) -> None:
        """With two sites the next thing is a VM."""
        paired = len(snapshot.sites) > 1
        self._cards["pair"].setVisible(not paired)
        self._cards["protect"].setVisible(paired)
        told = {
            "service": "An engine runs in the background, and this window is connected to it.",
            "here": "The engine runs in this window.",
            "none": "No engine runs.",
        }
        self.engine.setText(told.get(snapshot.engine, ""))

    def say_demo(self, text: str) -> None:
        """How the start of the demo went."""
        self.texts["demo"].setText(text)

    def _card(self, key: str, picture: str, head: str, text: str, button: str) -> QFrame:
        card = QFrame(self)
        card.setObjectName("card")
        box = QVBoxLayout(card)
        box.setContentsMargins(16, 14, 16, 14)
        top = QHBoxLayout()
        mark, title, label = QLabel(card), QLabel(f"<h3>{head}</h3>", card), QLabel(text, card)
        self._marks[mark] = picture
        top.addWidget(mark)
        top.addWidget(title, 1)
        label.setWordWrap(True)
        label.setTextFormat(Qt.TextFormat.RichText)
        label.setAlignment(Qt.AlignmentFlag.AlignTop)
        label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        box.addLayout(top)
        box.addWidget(label, 1)
        push = QPushButton(button, card)
        push.setAccessibleName(head)
        push.clicked.connect(lambda _on=False: self.asked.emit(key))
        box.addWidget(push)
        card.setMinimumHeight(190)
        self.buttons[key], self.texts[key], self._cards[key] = push, label, card
        return card

    def _say_demo(self) -> None:
        by_hand = f"<br><br>By hand: <code>{escape(self.offer.how)}</code>" if self.offer.command else ""
        told = "" if self.offer.command else f"<br><br><b>Not from here:</b> {escape(self.offer.how)}"
        self.texts["demo"].setText(f"{escape(demo_start.NEEDS)}{by_hand}{told}")
        self.buttons["demo"].setEnabled(bool(self.offer.command))
        self.buttons["demo"].setToolTip(self.offer.how)

    def _draw(self) -> None:
        for mark, picture in self._marks.items():
            mark.setPixmap(pixmap(picture, self._theme.colours.highlight, 26))
