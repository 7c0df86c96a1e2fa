"""The third tier of confirmation: the name must be typed, exactly; Cancel is the default."""

from __future__ import annotations

from html import escape

from PySide6.QtWidgets import QCheckBox, QDialog, QLabel, QLineEdit, QPushButton, QVBoxLayout, QWidget

from vapor_desktop.gui.forms import child, load_form


class TypedConfirm(QDialog):
    """``text`` is rich text; ``option`` an unticked box (a side effect to ask for)."""

    def __init__(self, parent: QWidget, *, title: str, text: str, name: str, button: str, option: str = "") -> None:
        super().__init__(parent)
        self.setWindowTitle(title)
        form = load_form("typed_confirm", self)
        box = QVBoxLayout(self)
        box.addWidget(form)
        self._wanted = name
        self.name = child(form, QLineEdit, "name")
        self.go = child(form, QPushButton, "go")
        self.option = child(form, QCheckBox, "option")
        cancel = child(form, QPushButton, "cancel")
        child(form, QLabel, "text").setText(text)
        child(form, QLabel, "lname").setText(f"&Type <b>{escape(name)}</b> to confirm:")
        child(form, QLabel, "lname").setBuddy(self.name)
        self.option.setText(option)
        self.option.setVisible(bool(option))
        self.go.setText(button)
        self.name.textChanged.connect(self._judge)
        self.go.clicked.connect(self.accept)
        cancel.clicked.connect(self.reject)
        cancel.setDefault(True)
        self.name.setFocus()

    def _judge(self, text: str) -> None:
        self.go.setEnabled(text == self._wanted)
