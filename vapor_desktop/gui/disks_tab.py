"""The tab *Disks*: where each is, how it replicates and why, what it takes at the target, when it was verified."""

from __future__ import annotations

from datetime import UTC, datetime
from html import escape
from typing import Any

from PySide6.QtCore import Qt, QTimer
from PySide6.QtGui import QHideEvent, QShowEvent
from PySide6.QtWidgets import QLabel, QVBoxLayout, QWidget

from vapor_desktop.gui import words
from vapor_desktop.gui.activity import severity_icon
from vapor_desktop.gui.context import Context
from vapor_desktop.gui.error_box import sentence
from vapor_desktop.gui.keyed_table import Field, RecordModel
from vapor_desktop.gui.record_table import RecordTable
from vapor_desktop.model.errors import VaporError
from vapor_desktop.model.states import Severity
from vapor_desktop.model.view import DiskStatus, DisksView

EVERY_MS = 3000
_MODES = {"delta": "by delta", "compare": "by compare", "full": "in full"}
_KINDS = {"delta": "by delta", "compare": "by compare", "excluded": "left out", "refused": "refused"}


def how(disk: DiskStatus) -> str:
    """How it replicates: what the last cycle did, else what the next one will; with the reason."""
    if disk.kind in ("excluded", "refused"):
        return f"{_KINDS[disk.kind]}: {disk.reason}"
    if disk.received_bytes is not None and not disk.in_point:
        return f"first copy, {words.size(disk.received_bytes)} received"
    if disk.last_mode:
        return f"{_MODES.get(disk.last_mode, disk.last_mode)}: {disk.last_why}"
    if not disk.kind:
        return words.UNKNOWN
    seed = " from a seed" if disk.seeded else ""
    return f"first copy{seed} is to come, then {_KINDS[disk.kind]}"


def verified(disk: DiskStatus, now: datetime) -> str:
    """When the scrub last read all of it; before that, how far it is."""
    if disk.verified is False:
        return "mismatch found"
    done = ""
    if disk.scrub_reached_bytes is not None and disk.size_bytes:
        done = f"{100 * disk.scrub_reached_bytes // disk.size_bytes} %"
    if disk.scrub_passed_at is not None:
        at = words.local(disk.scrub_passed_at, now)
        return f"{at}, next pass {done}" if done and done != "100 %" else at
    return f"first pass {done}" if done else words.UNKNOWN


def disk_severity(disk: DiskStatus) -> Severity:
    """A mismatch is critical, a warning or a disk without a replica a warning; left out is neither."""
    if disk.verified is False or disk.kind == "refused":
        return Severity.CRITICAL
    if disk.kind in ("excluded", ""):
        return Severity.IDLE
    return Severity.WARNING if disk.reason or not disk.in_point else Severity.OK


class DisksTab(QWidget):
    """Asks while it is seen, and never twice at once."""

    def __init__(self, context: Context, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._context = context
        self._key: str | None = None
        self._asking = False
        self.view: DisksView | None = None
        self.model: RecordModel[DiskStatus] = RecordModel(self._fields(), lambda d: d.target, self)
        self.table = RecordTable(self.model, "Disks", self)
        self.notes = QLabel("Reading…", self)
        self.notes.setWordWrap(True)
        self.notes.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        box = QVBoxLayout(self)
        box.setContentsMargins(4, 8, 4, 4)
        box.addWidget(self.table, 1)
        box.addWidget(self.notes)
        self._timer = QTimer(self)
        self._timer.setInterval(EVERY_MS)
        self._timer.timeout.connect(self.refresh)

    def show_protection(self, key: str) -> None:
        """Whose disks."""
        if key != self._key:
            self._key, self.view, self._asking = key, None, False
            self.model.put([])
            self.notes.setText("Reading…")
            self.refresh()

    def refresh(self) -> None:
        """Ask both sides, if somebody looks."""
        key, backend = self._key, self._context.backend
        if key is None or self._asking or not self.isVisible():
            return
        self._asking = True

        def told(view: DisksView) -> None:
            if key == self._key:
                self._show(view)

        def failed(error: VaporError) -> None:
            if key == self._key:
                self._asking = False
                self.notes.setText(f"The disks cannot be read. {sentence(error)}")

        self._context.bridge.ask(lambda: backend.disks(key), self, told, failed)

    def showEvent(self, event: QShowEvent) -> None:
        """Look at once, and go on."""
        super().showEvent(event)
        self._timer.start()
        self.refresh()

    def hideEvent(self, event: QHideEvent) -> None:
        """Nobody looks."""
        super().hideEvent(event)
        self._timer.stop()

    def _show(self, view: DisksView) -> None:
        self._asking = False
        self.view = view
        self.model.put(view.disks)
        lines = []
        if view.source_trouble:
            lines.append(f"The source cannot be asked: {escape(view.source_trouble)}")
        if view.target_trouble:
            lines.append(f"The target cannot be asked: {escape(view.target_trouble)}")
        for disk in view.disks:
            if disk.reason and disk.kind != "excluded":
                fix = f" {escape(disk.fix)}." if disk.fix else ""
                lines.append(f"<b>{escape(disk.target)}</b>: {escape(disk.reason)}.{fix}")
        self.notes.setText("<br>".join(lines))
        self.notes.setVisible(bool(lines))

    def _fields(self) -> list[Field[DiskStatus]]:
        def look(disk: DiskStatus, role: int) -> Any:
            if role == Qt.ItemDataRole.DecorationRole:
                return severity_icon(self._context.theme, disk_severity(disk))
            return None

        def sent(disk: DiskStatus) -> str:
            return words.size(disk.last_sent_bytes)

        return [
            Field("Disk", lambda d: d.target, 80, look=look, said=lambda d: f"{d.target}: {how(d)}"),
            Field("Format", lambda d: d.format or words.UNKNOWN, 60),
            Field("Size", lambda d: words.size(d.size_bytes), 80, right=True),
            Field("At the target", lambda d: words.size(d.replica_bytes), 100, right=True),
            Field("Last sent", sent, 90, right=True),
            Field("Verified", lambda d: verified(d, datetime.now(UTC)), 215),
            Field("Replicates", how, 260),
            Field("Source", lambda d: d.source or words.UNKNOWN, 160),
        ]
