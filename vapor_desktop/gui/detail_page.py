"""One VM: a sentence, its verbs, and tabs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from PySide6.QtCore import Qt, Signal
from PySide6.QtGui import QAction
from PySide6.QtWidgets import (
    QHBoxLayout,
    QInputDialog,
    QLabel,
    QPushButton,
    QTabWidget,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from vapor_desktop.engine.ports import CycleRecord, Event, PointRow
from vapor_desktop.gui import after_failover, words
from vapor_desktop.gui.activity import event_fields, severity_icon
from vapor_desktop.gui.context import Context
from vapor_desktop.gui.disks_tab import DisksTab
from vapor_desktop.gui.drill_verdict import ProofDialog
from vapor_desktop.gui.icons import SEVERITY_ICONS, icon, pixmap
from vapor_desktop.gui.keyed_table import Field, RecordModel
from vapor_desktop.gui.protection_columns import Row
from vapor_desktop.gui.record_table import RecordTable
from vapor_desktop.gui.rpo_tab import RpoTab
from vapor_desktop.gui.runbook_tab import RunbookTab
from vapor_desktop.gui.settings_tab import SettingsTab
from vapor_desktop.gui.verbs import Verbs
from vapor_desktop.model.states import DrillState, Phase, RpoHealth, Severity
from vapor_desktop.model.view import ProtectionStatus, Snapshot

REREAD_S = 10
_DRILL = {
    DrillState.RUNNING: "A drill of it is running; Stop drill… judges and removes it.",
    DrillState.CLEANUP_NEEDED: "A drill of it could not be removed whole: Stop drill… says what is left.",
}


def headline(row: ProtectionStatus) -> str:
    """The state of a protection in one or two sentences."""
    target = words.duration(row.protection.policy.rpo_target_s)
    state = words.capital(row.protection.phase.value)
    if row.protection.phase is Phase.PROVISIONAL:
        name = row.protection.vm_name
        return f"{state}: {name} runs at {row.target_name}. Commit the failover, or roll back to another point."
    if row.protection.phase in (Phase.SPLIT_BRAIN, Phase.SPLIT_BRAIN_RISK):
        return f"{state}: {row.protection.last_error or 'look at both sites, then resolve it'}"
    if row.protection.phase is Phase.FAILED_OVER:
        return f"{state}: {row.protection.vm_name} runs at {row.target_name} and is not protected."
    if row.rpo_health is RpoHealth.NO_POINT:
        return f"{state}. There is no recovery point yet; the target is {target}."
    if row.rpo_now_s is None:
        return f"{state}. How old the newest recovery point is, is unknown; the target is {target}."
    text = f"{state}. The newest recovery point is {words.duration(row.rpo_now_s)} old; the target is {target}"
    return f"{text}: breached." if row.rpo_health is RpoHealth.BREACHED else f"{text}."


def _while_possible(action: QAction, parent: QWidget) -> QToolButton:
    """A button that is there as long as its verb can be used."""
    button = QToolButton(parent)
    button.setDefaultAction(action)
    button.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
    button.setVisible(action.isEnabled())
    action.enabledChanged.connect(button.setVisible)
    return button


class DetailPage(QWidget):
    """Signals:
    left: back to the table.
    """

    left = Signal()

    def __init__(self, context: Context, verbs: Verbs, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._context, self._theme, self._verbs = context, context.theme, verbs
        self._key: str | None = None
        self._row: Row | None = None
        self._read_at: datetime | None = None
        self._seq: int | None = None
        key_of_point: Any = lambda p: str(p.seq)  # noqa: E731
        self.points: RecordModel[PointRow] = RecordModel(self._point_fields(), key_of_point, self)
        self.cycles: RecordModel[CycleRecord] = RecordModel(
            self._cycle_fields(), lambda c: f"{c.started_at.isoformat()}", self
        )
        self.events: RecordModel[Event] = RecordModel(
            event_fields(context.theme), lambda e: f"{e.at}|{e.kind}|{e.text}", self
        )
        self.title, self.sentence, self._mark = QLabel(self), QLabel(self), QLabel(self)
        self.rpo = RpoTab(context, self)
        self.disks = DisksTab(context, self)
        self.settings = SettingsTab(verbs, self)
        self.runbook = RunbookTab(context, self)
        self.tabs = QTabWidget(self)
        self._lay_out()
        self.points_table.selectionModel().selectionChanged.connect(self._judge_pins)
        self.tabs.currentChanged.connect(lambda _n: self._refresh(force=True))
        context.theme.changed.connect(self._restyle)
        self._restyle()

    @property
    def key(self) -> str:
        """The protection shown; "" for none."""
        return self._key or ""

    # --- layout -----------------------------------------------------------------------------------
    def _lay_out(self) -> None:
        self.back = QToolButton(self)
        self.back.setAutoRaise(True)
        self.back.setToolTip("Back to the table (Alt+Left)")
        self.back.setAccessibleName("Back to the table")
        self.back.setShortcut("Alt+Left")
        self.back.clicked.connect(self.left)
        self.sentence.setWordWrap(True)
        self.sentence.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        top = QHBoxLayout()
        for widget in (self.back, self._mark, self.title):
            top.addWidget(widget)
        top.addStretch(1)
        for key in ("sync", "pause", "resume"):
            button = QToolButton(self)
            button.setDefaultAction(self._verbs[key])
            button.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
            top.addWidget(button)
        top.addSpacing(30)
        for key in ("drill", "stop-drill", "migrate", "failover", "reprotect"):
            over = QToolButton(self)
            over.setDefaultAction(self._verbs[key])
            over.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
            top.addWidget(over)
        for key in ("commit", "roll-back", "resolve"):  # only while there is something to decide
            top.addWidget(_while_possible(self._verbs[key], self))
        self.tabs.setDocumentMode(True)
        self.tabs.addTab(self.rpo, "&RPO")
        self.tabs.addTab(self._points_tab(), "Recovery &points")
        self.tabs.addTab(self.disks, "&Disks")
        self.tabs.addTab(self._history_tab(), "&History")
        self.tabs.addTab(self.settings, "&Settings")
        self.tabs.addTab(self.runbook, "R&unbook")
        box = QVBoxLayout(self)
        box.setContentsMargins(10, 8, 10, 6)
        box.addLayout(top)
        box.addWidget(self.sentence)
        box.addWidget(self.tabs, 1)

    def _points_tab(self) -> QWidget:
        page = QWidget(self)
        self.points_table = RecordTable(self.points, "Recovery points", page)
        self.pin, self.unpin = QPushButton("&Keep this point…", page), QPushButton("&No longer keep", page)
        self.kept = QPushButton("&Let go a kept run…", page)
        self.kept.setToolTip("What ran before a roll back, or lost a split brain, is kept until it is let go")
        self.kept.clicked.connect(self._ask_let_go)
        self.pin.setToolTip("A kept point is never dropped by retention")
        self.pin.clicked.connect(self._ask_pin)
        self.unpin.clicked.connect(self._do_unpin)
        self._points_state = QLabel("Reading…", page)
        row = QHBoxLayout()
        row.addWidget(self.pin)
        row.addWidget(self.unpin)
        self.proof = QPushButton("&Proof…", page)
        self.proof.setToolTip("The picture that a passed drill has left, and how long the boot took")
        self.proof.clicked.connect(self._show_proof)
        row.addWidget(self.proof)
        row.addWidget(self.kept)
        row.addStretch(1)
        row.addWidget(self._points_state)
        box = QVBoxLayout(page)
        box.setContentsMargins(4, 8, 4, 4)
        box.addWidget(self.points_table, 1)
        box.addLayout(row)
        self._judge_pins()
        return page

    def _history_tab(self) -> QWidget:
        page = QWidget(self)
        box = QVBoxLayout(page)
        box.setContentsMargins(4, 8, 4, 4)
        box.addWidget(QLabel("<b>Cycles</b>", page))
        box.addWidget(RecordTable(self.cycles, "Cycles", page), 3)
        box.addWidget(QLabel("<b>Events</b>", page))
        box.addWidget(RecordTable(self.events, "Events of this VM", page), 2)
        return page

    def _point_fields(self) -> list[Field[PointRow]]:
        def taken(p: PointRow) -> str:
            return words.local(p.taken_at, datetime.now(UTC))

        def pins(p: PointRow) -> str:
            return ", ".join(p.pins)

        def look(p: PointRow, role: int) -> Any:
            if role == Qt.ItemDataRole.DecorationRole and p.pins:
                return icon("pin", self._theme.colours.text)
            return None

        return [
            Field("Point", lambda p: f"#{p.seq}", 90, look=look),
            Field("Taken", taken, 140, said=lambda p: f"taken {words.exact(p.taken_at)}"),
            Field("Current as of", lambda p: words.local(p.current_as_of, datetime.now(UTC)), 140),
            Field("Consistency", lambda p: p.consistency, 110),
            Field("Sent", lambda p: words.size(p.bytes_sent), 90, right=True),
            Field("Digests", lambda p: "no mismatch found" if p.verified else "MISMATCH", 130),
            Field("Proven", lambda p: words.local(p.proven_at, datetime.now(UTC)) if p.proven_at else "never", 120),
            Field("Kept because", pins, 200),
        ]

    def _cycle_fields(self) -> list[Field[CycleRecord]]:
        def look(c: CycleRecord, role: int) -> Any:
            if role == Qt.ItemDataRole.DecorationRole:
                bad = {"failed": Severity.CRITICAL, "skipped": Severity.IDLE}
                return severity_icon(self._theme, bad.get(c.outcome, Severity.OK))
            return None

        return [
            Field("Started", lambda c: words.local(c.started_at, datetime.now(UTC)), 140, look=look),
            Field("Result", lambda c: f"point #{c.seq}" if c.seq is not None else c.outcome, 110),
            Field("Took", lambda c: words.duration(c.duration_s), 80, right=True),
            Field("Data", lambda c: words.size(c.data_bytes), 90, right=True),
            Field("Sent", lambda c: words.size(c.wire_bytes), 90, right=True),
            Field("Mode", lambda c: c.mode, 90),
            Field("Error", lambda c: f"{c.error} ({c.error_code})" if c.error else "", 300),
        ]

    # --- showing ----------------------------------------------------------------------------------
    def show_row(self, row: Row) -> None:
        """Open a VM."""
        if row.key != self._key:
            self._key, self._read_at, self._seq = row.key, None, None
            for model in (self.points, self.cycles, self.events):
                model.put([])
            self.tabs.setCurrentIndex(0)
        self._show(row)

    def take(self, snapshot: Snapshot) -> None:
        """A new snapshot: show what became of this VM."""
        if self._key is None:
            return
        found = next((p for p in snapshot.protections if p.key == self._key), None)
        if found is not None:
            self._show(Row.of_protection(found, snapshot.at))
        elif self.isVisible():
            self._key = None
            self.left.emit()

    def _show(self, row: Row) -> None:
        self._row = row
        status = row.status
        if status is None:
            return
        if self.isVisible():
            self._verbs.use([row])
        colours = self._theme.colours
        mark = pixmap(SEVERITY_ICONS[row.severity], colours.severity[row.severity], 26, colours.window)
        self._mark.setPixmap(mark)
        self.title.setText(f"{row.name}   {status.source_name} → {status.target_name}")
        lines = [headline(status)]
        if status.protection.last_error:
            lines.append(f"Last error: {status.protection.last_error}")
        lines += [words.capital(text) for text in status.protection.warnings]
        lines += [_DRILL[status.protection.drill]] if status.protection.drill in _DRILL else []
        self.sentence.setText("\n".join(lines))
        self.settings.show_status(status)
        self.rpo.show_protection(status, row.now)
        self.disks.show_protection(row.key)
        self.runbook.show_protection(row.key)
        self._refresh(force=status.last_seq != self._seq)
        self._seq = status.last_seq

    def _refresh(self, *, force: bool = False) -> None:
        key, now = self._key, datetime.now(UTC)
        old = self._read_at is None or (now - self._read_at).total_seconds() >= REREAD_S
        if key is None or not self.isVisible() or not (force or old):
            return
        self._read_at = now
        backend, ask = self._context.backend, self._context.bridge.ask

        def mine(put: Any) -> Any:
            return lambda rows: put(rows) if key == self._key else None

        failed = self._points_state.setText
        ask(lambda: backend.points(key), self, mine(self._put_points), lambda e: failed(f"Cannot be read: {e}"))
        ask(lambda: backend.cycles(key), self, mine(self.cycles.put), lambda e: failed(f"Cannot be read: {e}"))
        ask(lambda: backend.events(key), self, mine(self.events.put), lambda e: failed(f"Cannot be read: {e}"))

    def _put_points(self, points: Sequence[PointRow]) -> None:
        self.points.put(sorted(points, key=lambda p: -p.seq))
        self._points_state.setText(f"{len(points)} points" if points else "No recovery point yet.")
        self._judge_pins()

    # --- doing ------------------------------------------------------------------------------------
    def _point(self) -> PointRow | None:
        return self.points.record(self.points_table.chosen_row())

    def _judge_pins(self) -> None:
        point = self._point()
        self.pin.setEnabled(point is not None and not point.pins)
        self.unpin.setEnabled(point is not None and bool(point.pins))
        self.proof.setEnabled(point is not None and point.proven_at is not None)

    def _show_proof(self) -> None:
        point, key = self._point(), self._key
        if point is not None and key is not None:
            self.dialog = ProofDialog(self._context, key, point.seq, self)
            self.dialog.open()

    def _ask_pin(self) -> None:
        point, key = self._point(), self._key
        if point is None or key is None:
            return
        note, ok = QInputDialog.getText(self, "Keep this point", f"Why is point #{point.seq} kept?")
        if ok:
            self.do_pin(key, point.seq, note.strip())

    def _ask_let_go(self) -> None:
        if self._row is None or self._row.status is None:
            return
        self.sheet = after_failover.let_go(self._context, self._row.status, self)
        self.sheet.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.sheet.setModal(True)
        self.sheet.open()

    def do_pin(self, key: str, seq: int, note: str) -> None:
        """Pin a point."""
        backend = self._context.backend
        title = f"Keep point #{seq}"
        self._context.errands.run(
            title, lambda: backend.pin(key, seq, note), subject=key, done=lambda _r: self._refresh(force=True)
        )

    def _do_unpin(self) -> None:
        point, key, backend = self._point(), self._key, self._context.backend
        if point is None or key is None:
            return
        self._context.errands.run(
            f"No longer keep point #{point.seq}",
            lambda: backend.unpin(key, point.seq),
            subject=key,
            done=lambda _r: self._refresh(force=True),
        )

    def _restyle(self) -> None:
        self.back.setIcon(icon("back", self._theme.colours.text))
        font = self.title.font()
        font.setPointSizeF(self.font().pointSizeF() * 1.35)
        font.setBold(True)
        self.title.setFont(font)
