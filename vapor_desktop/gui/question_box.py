"""What a waiting operation asks, with a button for each answer."""

from __future__ import annotations

from html import escape

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QFrame, QHBoxLayout, QLabel, QPushButton, QVBoxLayout, QWidget

from vapor_desktop.gui.context import Context
from vapor_desktop.gui.operations_tab import asks
from vapor_desktop.model.operations import Choice, Operation


class QuestionBox(QFrame):
    """Hidden while nothing is asked.

    Signals:
        answered: (Operation, Choice) that a button was pressed for.
    """

    answered = Signal(object, object)

    def __init__(self, context: Context, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._context = context
        self._drawn: tuple[str, str] | None = None
        self.choices: list[QPushButton] = []
        self.text = QLabel(self)
        self.text.setTextFormat(Qt.TextFormat.RichText)
        self.text.setWordWrap(True)
        self._buttons = QHBoxLayout()
        box = QVBoxLayout(self)
        box.addWidget(self.text)
        box.addLayout(self._buttons)
        self.setObjectName("question")
        context.errands.failed.connect(lambda _title, _error: self._allow(True))
        context.theme.changed.connect(self._restyle)
        self._restyle()
        self.hide()

    def show_question(self, operation: Operation | None) -> None:
        """Of that operation; hidden when it asks nothing (any more)."""
        question = operation.question if operation is not None and asks(operation) else None
        self.setVisible(question is not None)
        wanted = (operation.operation_id, question.question_id) if operation and question else None
        if wanted == self._drawn:
            return
        self._drawn = wanted
        for button in self.choices:
            button.hide()
            button.deleteLater()
        while self._buttons.takeAt(0) is not None:
            pass
        self.choices = []
        if operation is None or question is None:
            return
        self.text.setText(f"<b>{escape(operation.vm_name)} asks:</b> {escape(question.text)}")
        for choice in question.choices:
            button = QPushButton(choice.text.replace("&", "&&"), self)
            button.setAutoDefault(False)
            button.clicked.connect(lambda _on=False, o=operation, c=choice: self._answer(o, c))
            self._buttons.addWidget(button)
            self.choices.append(button)
        self._buttons.addStretch(1)

    def _answer(self, operation: Operation, choice: Choice) -> None:
        self._allow(False)
        self.answered.emit(operation, choice)

    def _allow(self, on: bool) -> None:
        for button in self.choices:
            button.setEnabled(on)

    def _restyle(self) -> None:
        colours = self._context.theme.colours
        self.setStyleSheet(f"#question {{ background: {colours.banner_warning}; border: 1px solid {colours.line}; }}")
