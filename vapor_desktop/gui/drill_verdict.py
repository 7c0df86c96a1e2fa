"""What a drill has shown: its end with a person's verdict, and the proof it leaves of a recovery point."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from html import escape

from PySide6.QtCore import Qt, QTimer
from PySide6.QtGui import QPixmap
from PySide6.QtWidgets import (
    QButtonGroup,
    QDialog,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QRadioButton,
    QVBoxLayout,
    QWidget,
)

from vapor_desktop.gui import words
from vapor_desktop.gui.context import Context
from vapor_desktop.gui.error_box import sentence
from vapor_desktop.gui.sheet import Sheet
from vapor_desktop.model.drills import DrillCheck, DrillPicture, DrillRecord
from vapor_desktop.model.errors import VaporError
from vapor_desktop.model.states import Severity
from vapor_desktop.model.view import DrillStatus

PICTURE_WIDTH = 360


class ProofDialog(QDialog):
    """What a passed drill has left of a recovery point: its picture and its boot seconds."""

    def __init__(self, context: Context, key: str, seq: int, parent: QWidget) -> None:
        super().__init__(parent)
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.setWindowTitle(f"Proof of recovery point #{seq}")
        self.text, self.picture = QLabel("Reading…", self), QLabel(self)
        self.text.setWordWrap(True)
        self.picture.setAccessibleName("Picture of the screen in the drill")
        close = QPushButton("Close", self)
        close.clicked.connect(self.accept)
        box = QVBoxLayout(self)
        box.addWidget(self.text)
        box.addWidget(self.picture)
        box.addWidget(close, 0, Qt.AlignmentFlag.AlignRight)
        self.resize(760, 520)
        backend = context.backend
        context.bridge.ask(lambda: backend.point_proof(key, seq), self, self._show, self._failed)

    def _failed(self, error: VaporError) -> None:
        self.text.setText(sentence(error))

    def _show(self, proof: DrillPicture) -> None:
        boot = (
            f"; its first sign of life came after {words.duration(proof.boot_s)}" if proof.boot_s is not None else ""
        )
        self.text.setText(f"A drill passed on it {words.local(proof.at, datetime.now(UTC))}{boot}.")
        found = QPixmap()
        if found.loadFromData(b64decode(proof.png)):
            self.picture.setPixmap(found)


class StopDrillSheet(Sheet):
    """What the drill has shown, the verdict, and the end. Read ``args`` after it was accepted."""

    reason_needed = False

    def __init__(
        self,
        context: Context,
        key: str,
        vm_uuid: str,
        vm_name: str,
        parent: QWidget,
        checked_now: Callable[[], bool] = lambda: False,
    ) -> None:
        """``checked_now``: whether the drill's own checks still run; it cannot be stopped before they end."""
        title = f"Stop the drill of {vm_name}"
        super().__init__(context, title, title, "Stop the drill", parent)
        self._vm_uuid = vm_uuid
        self.record: DrillRecord | None = None
        self.forced = False
        self.cancel.setText("Let it run")
        self.found, self.picture = self.rich("Looking at the drill…"), QLabel(self)
        self.picture.setAccessibleName("Picture of the copy's screen")
        self.passed = QRadioButton("It &passed: its recovery point is marked as proven", self)
        self.failed = QRadioButton("It &failed", self)
        self.note = self.reason
        self.note.setPlaceholderText("What you saw; kept in the history and with the recovery point")
        self.note.setAccessibleName("Note")
        self.force = QPushButton("F&orce clean up")
        self.force.hide()
        self.force.setToolTip("What cannot be removed now does not hold up the rest")
        self.force.clicked.connect(self._forced)
        self._checked_now, self._key = checked_now, key
        self._lay_out()
        self._look()
        if checked_now():
            self._again = QTimer(self)
            self._again.timeout.connect(self._look_again)
            self._again.start(1000)

    @property
    def args(self) -> dict[str, object]:
        """The operation's arguments."""
        passed = None if self.forced else self.passed.isChecked()
        return {"passed": passed, "note": super().why, "force": self.forced}

    @property
    def why(self) -> str:
        """What the history says; the note goes with the point."""
        return "a forced clean-up" if self.forced else "the drill was stopped"

    def _lay_out(self) -> None:
        shown, group = QHBoxLayout(), QButtonGroup(self)
        shown.addWidget(self.found, 1)
        shown.addWidget(self.picture)
        self.box.addLayout(shown)
        self.box.addStretch(1)
        for button in (self.passed, self.failed):
            group.addButton(button)
            button.toggled.connect(self.judge)
            self.box.addWidget(button)
        self.add_form(("&Note:", self.note))
        self.add_buttons(760, 520, self.force)

    def _look(self) -> None:
        context, backend, key = self._context, self._context.backend, self._key
        self.ask(backend.drills, self._show, self.found, "The drill cannot be looked at.")
        context.bridge.ask(lambda: backend.drill_screen(key), self, self._show_picture, lambda _e: None)

    def _look_again(self) -> None:
        """Until the checks have ended, and once more then."""
        if not self._checked_now():
            self._again.stop()
        self._look()

    def _show(self, drills: Sequence[DrillStatus]) -> None:
        mine = [d.record for d in drills if d.record.open and d.record.vm(self._vm_uuid) is not None]
        if not mine:
            self.found.setText("There is no drill of it any more.")
            return
        self.record = record = mine[0]
        copy = record.vm(self._vm_uuid)
        now, lines = datetime.now(UTC), []
        if copy is not None:
            lines.append(f"<b>{escape(copy.domain_name)}</b> on recovery point #{copy.seq}, by {escape(record.by)}")
            if copy.paused:
                lines.append(self.coloured(Severity.WARNING, f"Paused: {copy.paused}"))
        others = [v.vm_name for v in record.vms if v.vm_uuid != self._vm_uuid]
        if others:
            lines.append(f"In one bubble with {escape(', '.join(others))}, which end with it")
        lines.append(f"Ends by itself {escape(words.until(record.expires_at, now))}")
        if record.trouble:
            lines.append(self.coloured(Severity.CRITICAL, record.trouble))
        lines += [self._line(c) for c in (copy.checks if copy else ())]
        if copy is not None and copy.usable_s is not None:
            lines.append(f"Usable after {words.duration(copy.usable_s)}")
        lines += [self._line(c) for c in record.isolation]
        self.found.setText("<br>".join(lines))
        self.force.setVisible(bool(record.trouble))

    def _line(self, check: DrillCheck) -> str:
        looks = {"ok": (Severity.OK, "✓"), "failed": (Severity.CRITICAL, "✗")}
        severity, mark = looks.get(check.state, (Severity.PROGRESS, "…"))
        return f"{self.coloured(severity, mark)} {escape(check.title)}: {escape(check.text or check.state)}"

    def _show_picture(self, png: bytes) -> None:
        found = QPixmap()
        if found.loadFromData(png):
            self.picture.setPixmap(found.scaledToWidth(PICTURE_WIDTH, Qt.TransformationMode.SmoothTransformation))

    def _forced(self) -> None:
        self.forced = True
        self.accept()

    def missing(self) -> str:
        """The verdict, once there is something to judge."""
        if self._checked_now():
            return "Its checks still run: wait for them, or cancel the drill on the Activity page."
        return "" if self.passed.isChecked() or self.failed.isChecked() else "Did it pass?"
