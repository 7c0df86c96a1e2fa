"""A verb was refused because somebody holds the VM's lease: who it is, and taking it over with a reason."""

from __future__ import annotations

from html import escape

from PySide6.QtWidgets import (
    QDialog,
    QDialogButtonBox,
    QLabel,
    QLineEdit,
    QMessageBox,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from vapor_desktop.engine.backend import Backend
from vapor_desktop.gui.error_box import sentence
from vapor_desktop.model.errors import LeaseHeld, NotFound


class TakeOverDialog(QDialog):
    """Cancel is the default; without a reason nothing can be taken over."""

    def __init__(self, parent: QWidget, vm_name: str, error: LeaseHeld) -> None:
        super().__init__(parent)
        self.setWindowTitle(f"Take over: {vm_name}")
        box = QVBoxLayout(self)
        holder = str(error.details.get("holder_name", "its holder"))
        text = QLabel(
            f"{sentence(error)}<br><br>What {escape(holder)} writes afterwards is refused by the site; what it has"
            " begun may be left half-way. Look at both sites before you do this.",
            self,
        )
        text.setWordWrap(True)
        box.addWidget(text)
        label = QLabel("&Reason (kept in the site's log):", self)
        self.reason = QLineEdit(self)
        label.setBuddy(self.reason)
        box.addWidget(label)
        box.addWidget(self.reason)
        buttons = QDialogButtonBox(QDialogButtonBox.StandardButton.Cancel, self)
        self.go: QPushButton = buttons.addButton("Take over", QDialogButtonBox.ButtonRole.DestructiveRole)
        self.go.setEnabled(False)
        buttons.button(QDialogButtonBox.StandardButton.Cancel).setDefault(True)
        self.reason.textChanged.connect(lambda typed: self.go.setEnabled(bool(typed.strip())))
        self.go.clicked.connect(self.accept)
        buttons.rejected.connect(self.reject)
        box.addWidget(buttons)


def offer(box: QMessageBox) -> QPushButton:
    """The button by which an error's window leads here."""
    button = box.addButton("&Take over…", QMessageBox.ButtonRole.ActionRole)
    button.setAutoDefault(False)
    return button


def take_over(backend: Backend, protection_id: str, holder: str, reason: str) -> str:
    """Wherever that holder has it. Blocks. Raises NotFound when it holds it no more."""
    was = [
        backend.take_over_lease(protection_id, held.site_id, reason)
        for held in backend.leases(protection_id)
        if held.lease is not None and held.lease.holder == holder
    ]
    if not was:
        raise NotFound("That holder has let go of the VM meanwhile", fix="Do again what was refused")
    return was[0]
