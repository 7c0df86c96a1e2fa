"""What every sheet before an operation is made of: what is told, a reason, a typed name, and the button last."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from html import escape
from typing import TypeVar

from PySide6.QtCore import Qt
from PySide6.QtWidgets import (
    QDialog,
    QFormLayout,
    QGroupBox,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from vapor_desktop.gui.bridge import Call
from vapor_desktop.gui.context import Context
from vapor_desktop.gui.error_box import sentence
from vapor_desktop.model.errors import VaporError
from vapor_desktop.model.operations import OperationKind
from vapor_desktop.model.states import Severity

T = TypeVar("T")
Begun = Callable[[str], None]


class Sheet(QDialog):
    """Cancel is the default; ``go`` is enabled as soon as nothing is missing, and ``hint`` says what is.

    A subclass fills ``box`` from above, then calls ``add_form``, ``add_buttons`` and ``ask``, and tells in
    ``missing`` what it wants itself. ``typed``: what must be typed while ``name`` is enabled, "" for nothing.
    Read ``why`` after it was accepted.
    """

    reason_needed = True

    def __init__(
        self, context: Context, title: str, headline: str, button: str, parent: QWidget, typed: str = ""
    ) -> None:
        super().__init__(parent)
        self._context, self._typed = context, typed
        self._asked: Call | None = None
        self.setWindowTitle(title)
        self.headline, self.hint = self.rich(f"<h3>{escape(headline)}</h3>"), self.rich()
        # Without a parent yet: the Tab key goes to them as they are laid out, after what a subclass made.
        self.reason, self.name = QLineEdit(), QLineEdit()
        self.reason.setPlaceholderText("Kept in the history and at the sites")
        self.reason.setAccessibleName("Reason")
        self.name.setAccessibleName("Type the name to confirm")
        self.go, self.cancel = QPushButton(button), QPushButton("Cancel")
        self.go.setAutoDefault(False)
        self.cancel.setDefault(True)
        self.box = QVBoxLayout(self)
        self.box.setContentsMargins(20, 14, 20, 14)
        self.box.setSpacing(10)
        self.box.addWidget(self.headline)
        self.reason.textChanged.connect(self.judge)
        self.name.textChanged.connect(self.judge)
        self.go.clicked.connect(self.accept)
        self.cancel.clicked.connect(self.reject)

    @property
    def why(self) -> str:
        """The typed reason."""
        return self.reason.text().strip()

    # --- building ---------------------------------------------------------------------------------------
    def rich(self, text: str = "") -> QLabel:
        """A label of rich text that wraps."""
        label = QLabel(text, self)
        label.setTextFormat(Qt.TextFormat.RichText)
        label.setWordWrap(True)
        return label

    def add_group(self, title: str, *inside: QWidget) -> None:
        """A titled frame."""
        group = QGroupBox(title, self)
        box = QVBoxLayout(group)
        for widget in inside:
            box.addWidget(widget)
        self.box.addWidget(group)

    def add_form(self, *rows: tuple[str, QWidget]) -> None:
        """Own rows, then the reason (unless it has a row already) and the name to type."""
        form = QFormLayout()
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.ExpandingFieldsGrow)
        if all(widget is not self.reason for _text, widget in rows):
            rows = (*rows, ("&Reason:", self.reason))
        if self._typed:
            typed = escape(self._typed.replace("&", "&&"))  # a single one would be the mark of a shortcut
            rows = (*rows, (f"&Type <b>{typed}</b> to confirm:", self.name))
        else:
            self.name.setParent(self)
            self.name.hide()
        for text, widget in rows:
            form.addRow(text, widget)
        self.box.addLayout(form)

    def add_buttons(self, width: int, height: int, *left: QWidget) -> None:
        """The hint, and the buttons below it."""
        buttons = QHBoxLayout()
        for widget in left:
            buttons.addWidget(widget)
        buttons.addStretch(1)
        buttons.addWidget(self.cancel)
        buttons.addWidget(self.go)
        self.box.addWidget(self.hint)
        self.box.addLayout(buttons)
        self.resize(width, height)
        if self.reason_needed:
            self.reason.setFocus()

    # --- asking and judging -----------------------------------------------------------------------------
    def ask(self, load: Callable[[], T], show: Callable[[T], None], told: QLabel, cannot: str) -> None:
        """``load`` off the GUI thread, then ``show``; ``told`` says why it cannot. Asking again forgets the first."""
        if self._asked is not None:
            self._asked.abandon()

        def shown(answer: T) -> None:
            show(answer)
            self.judge()

        def failed(error: VaporError) -> None:
            told.setText(f"{cannot} {sentence(error)}")

        self.judge()
        self._asked = self._context.bridge.ask(load, self, shown, failed)

    def missing(self) -> str:
        """What is still missing, but for reason and name; "" for nothing."""
        return ""

    def judge(self) -> None:
        """Say what is missing."""
        missing = self.missing()
        if not missing and self.reason_needed and not self.why:
            missing = "Give a reason."
        if not missing and self._typed and self.name.isEnabled() and self.name.text() != self._typed:
            missing = f"Type “{escape(self._typed)}” exactly as it is."
        self.hint.setText(missing)
        self.go.setEnabled(not missing)

    # --- telling ----------------------------------------------------------------------------------------
    def coloured(self, severity: Severity, text: str) -> str:
        """Plain text, bold and in that colour."""
        return f"<b style='color:{self._context.theme.colours.severity[severity]}'>{escape(text)}</b>"

    def told(self, effects: Iterable[str], blockers: Sequence[str]) -> str:
        """What will happen, and what is in the way of it, as a list."""
        lines = [escape(text) for text in effects]
        lines += [self.coloured(Severity.CRITICAL, f"Not possible: {text}") for text in blockers]
        return f"<ul style='margin-left:-22px'>{''.join(f'<li>{line}</li>' for line in lines)}</ul>"


def begins(
    context: Context,
    sheet: Sheet,
    kind: OperationKind,
    protection_id: str,
    title: str,
    begun: Begun,
    args: Callable[[], Mapping[str, object]] = dict,
) -> None:
    """Accepting the sheet begins that operation; ``begun`` gets its id."""

    def run() -> None:
        begin = partial(context.backend.begin_operation, kind, protection_id, args(), sheet.why)
        context.errands.run(title, begin, subject=protection_id, done=begun)

    sheet.accepted.connect(run)
