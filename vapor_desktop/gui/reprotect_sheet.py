"""The reprotect sheet: the price first and why, then what will happen, then the button."""

from __future__ import annotations

from html import escape

from PySide6.QtWidgets import QWidget

from vapor_desktop.gui.context import Context
from vapor_desktop.gui.sheet import Sheet
from vapor_desktop.model.states import Severity
from vapor_desktop.model.view import ReprotectPreview


class ReprotectSheet(Sheet):
    """Asks both sites for the price, then for a decision. Read ``why`` after it was accepted."""

    def __init__(self, context: Context, key: str, vm_name: str, here: str, there: str, parent: QWidget) -> None:
        headline = f"Protect {vm_name} the other way: from {here} to {there}"
        super().__init__(context, f"Reprotect {vm_name}", headline, f"Reprotect {vm_name} to {there}", parent)
        self.preview: ReprotectPreview | None = None
        self.price, self.effects = self.rich("Asking both sites…"), self.rich()
        self.price.setAccessibleName("What it costs, and why")
        self.add_group("What it costs", self.price)
        self.add_group("What will happen", self.effects)
        self.box.addStretch(1)
        self.add_form()
        self.add_buttons(640, 460)
        backend = context.backend
        self.ask(lambda: backend.reprotect_preview(key), self._show, self.price, "The price cannot be told.")

    def _show(self, preview: ReprotectPreview) -> None:
        self.preview = preview
        if preview.blockers:
            lines = "".join(f"<li>{self.coloured(Severity.CRITICAL, text)}</li>" for text in preview.blockers)
            self.price.setText(f"It cannot be done now:<ul>{lines}</ul>")
        else:
            self.price.setText(f"<b>{escape(preview.price)}</b><br>{escape(preview.why)}")
        self.effects.setText(self.told(preview.effects, ()))

    def missing(self) -> str:
        """The price, and nothing in the way."""
        if self.preview is None:
            return "Waiting for the price."
        return "Mend what is in the way first." if self.preview.blockers else ""
