"""The drill sheets: what will be rehearsed and how it is judged, and its end with a person's verdict."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape

from PySide6.QtCore import Qt
from PySide6.QtGui import QPixmap
from PySide6.QtWidgets import (
    QButtonGroup,
    QCheckBox,
    QComboBox,
    QDialog,
    QDoubleSpinBox,
    QFormLayout,
    QGroupBox,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QPlainTextEdit,
    QPushButton,
    QRadioButton,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)

from vapor_desktop.engine.ports import PointRow
from vapor_desktop.gui import words
from vapor_desktop.gui.context import Context
from vapor_desktop.gui.error_box import sentence
from vapor_desktop.model.drills import (
    BOOT_S,
    DISK_LIMIT_BYTES,
    LASTS_MAX_S,
    LASTS_S,
    DrillCheck,
    DrillPicture,
    DrillRecord,
)
from vapor_desktop.model.errors import VaporError
from vapor_desktop.model.policy import Policy
from vapor_desktop.model.states import Severity
from vapor_desktop.model.view import DrillStatus

GIB = 1 << 30
PICTURE_WIDTH = 360


def ports_of(text: str) -> tuple[int, ...] | None:
    """ "22, 443" as numbers; None when something in it is no port."""
    parts = [p for p in text.replace(",", " ").split() if p]
    if not all(p.isdecimal() and 1 <= int(p) <= 65535 for p in parts):
        return None
    return tuple(dict.fromkeys(int(p) for p in parts))


class DrillSheet(QDialog):
    """Which point, which checks, which limits. Read ``args`` and ``why`` after it was accepted."""

    def __init__(
        self, context: Context, key: str, vm_name: str, target: str, policy: Policy, parent: QWidget
    ) -> None:
        super().__init__(parent)
        self._context, self._vm_name, self._points_known = context, vm_name, False
        self.setWindowTitle(f"Drill {vm_name}")
        name, there = escape(vm_name), escape(target)
        self.headline = QLabel(f"<h3>Rehearse {name} at {there}</h3>", self)
        self.effects = QLabel(
            f"<ul style='margin-left:-22px'><li>A copy of <b>{name}</b>, of another name, boots at {there} on a new "
            "overlay; no recovery point is changed, and the VM itself goes on.</li>"
            "<li>It has its own MAC and last known address, in a network that leads nowhere; that nothing leaves it "
            "is proven before the copy starts, else it is not started.</li>"
            "<li>Replication goes on, and an emergency failover may begin at any time.</li>"
            "<li>It runs until you stop it, or its time is over; then everything of it is removed, and it is looked "
            "whether anything is left.</li></ul>",
            self,
        )
        self.hint = QLabel(self)
        for label in (self.headline, self.effects, self.hint):
            label.setTextFormat(Qt.TextFormat.RichText)
            label.setWordWrap(True)
        self.point, self.agent = QComboBox(self), QCheckBox("Its guest &agent answers", self)
        self.point.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToContents)  # it is filled later
        self.ports, self.script = QLineEdit(self), QPlainTextEdit(self)
        self.boot, self.hours, self.disk = QSpinBox(self), QDoubleSpinBox(self), QDoubleSpinBox(self)
        self.reason, self.every = QLineEdit(self), QSpinBox(self)
        self.auto = QCheckBox("and &begin one by itself, judged by its checks", self)
        self.scheduled = (policy.drill_days or 0, policy.drill_auto)
        self.go, self.cancel = QPushButton(f"Start the drill at {target}", self), QPushButton("Cancel", self)
        self._lay_out()
        self.ports.textChanged.connect(self._judge)
        self.go.clicked.connect(self.accept)
        self.cancel.clicked.connect(self.reject)
        self._judge()
        backend = context.backend
        context.bridge.ask(lambda: backend.points(key), self, self._show, self._failed)

    @property
    def args(self) -> dict[str, object]:
        """The operation's arguments."""
        wanted = {
            "boot_s": float(self.boot.value()),
            "agent": self.agent.isChecked(),
            "tcp_ports": list(ports_of(self.ports.text()) or ()),
            "script": self.script.toPlainText().strip(),
        }
        return {
            "seq": self.point.currentData(),
            "wanted": wanted,
            "lasts_s": self.hours.value() * 3600,
            "disk_limit_bytes": int(self.disk.value() * GIB),
        }

    @property
    def schedule(self) -> tuple[int | None, bool] | None:
        """(days, begins by itself) from now on; None: as it was."""
        wanted = (self.every.value(), self.auto.isChecked() and self.every.value() > 0)
        return None if wanted == self.scheduled else (wanted[0] or None, wanted[1])

    @property
    def why(self) -> str:
        """The typed reason, or the plain one."""
        return self.reason.text().strip() or "a drill"

    def _lay_out(self) -> None:
        self.point.setAccessibleName("Recovery point")
        self.agent.setChecked(True)
        self.ports.setPlaceholderText("for example 22, 443")
        self.ports.setAccessibleName("TCP ports that must accept")
        self.script.setPlaceholderText("A shell script in the guest, through its agent; exit code 0 passes")
        self.script.setAccessibleName("Script in the guest")
        self.script.setMaximumHeight(60)
        self.script.setTabChangesFocus(True)
        self.boot.setRange(1, 86400)
        self.boot.setValue(int(BOOT_S))
        self.boot.setSuffix(" s")
        self.boot.setAccessibleName("Seconds until every check must have passed")
        self.hours.setRange(0.1, LASTS_MAX_S / 3600)
        self.hours.setValue(LASTS_S / 3600)
        self.hours.setSuffix(" h")
        self.hours.setAccessibleName("Hours after which it ends by itself")
        self.disk.setRange(0.1, 65536)
        self.disk.setValue(DISK_LIMIT_BYTES / GIB)
        self.disk.setSuffix(" GiB")
        self.disk.setAccessibleName("GiB that it may write; then it is paused")
        self.reason.setPlaceholderText("a drill")
        self.reason.setAccessibleName("Reason")
        self.every.setRange(0, 366)
        self.every.setSpecialValueText("never")
        self.every.setSuffix(" days")
        self.every.setValue(self.scheduled[0])
        self.every.setAccessibleName("Days after which you are reminded that no drill has passed")
        self.auto.setChecked(self.scheduled[1])
        self.auto.setEnabled(self.scheduled[0] > 0)
        self.every.valueChanged.connect(lambda days: self.auto.setEnabled(days > 0))
        self.go.setAutoDefault(False)
        self.cancel.setDefault(True)
        happens = QGroupBox("What will happen", self)
        QVBoxLayout(happens).addWidget(self.effects)
        form = QFormLayout()
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.ExpandingFieldsGrow)
        form.addRow("&Recovery point:", self.point)
        form.addRow("Passes if:", self.agent)
        form.addRow("TCP &ports accept:", self.ports)
        form.addRow("S&cript:", self.script)
        form.addRow("All of it &within:", self.boot)
        form.addRow("&Ends by itself after:", self.hours)
        form.addRow("Is paused when it has &written:", self.disk)
        form.addRow("Rea&son:", self.reason)
        form.addRow("Re&mind me when none passed for:", self.every)
        form.addRow("", self.auto)
        buttons = QHBoxLayout()
        buttons.addStretch(1)
        buttons.addWidget(self.cancel)
        buttons.addWidget(self.go)
        box = QVBoxLayout(self)
        box.setContentsMargins(20, 14, 20, 14)
        box.setSpacing(10)
        for widget in (self.headline, happens):
            box.addWidget(widget)
        box.addLayout(form)
        box.addWidget(self.hint)
        box.addLayout(buttons)
        self.resize(640, 600)

    def _failed(self, error: VaporError) -> None:
        self.hint.setText(f"The recovery points cannot be read. {escape(sentence(error))}")

    def _show(self, points: Sequence[PointRow]) -> None:
        now = datetime.now(UTC)
        for n, p in enumerate(sorted(points, key=lambda p: -p.seq)):
            proven = f", proven {words.local(p.proven_at, now)}" if p.proven_at else ""
            newest = " (newest)" if n == 0 else ""
            # The newest of the moment it begins, not of now: a cycle may make one meanwhile.
            text = f"#{p.seq}, {words.local(p.taken_at, now)}, {p.consistency}{proven}{newest}"
            self.point.addItem(text, None if n == 0 else p.seq)
        self._points_known = bool(points)
        self._judge()

    def _judge(self) -> None:
        missing = ""
        if not self._points_known:
            missing = "Waiting for the recovery points."
        elif ports_of(self.ports.text()) is None:
            missing = "Ports are numbers from 1 to 65535."
        self.hint.setText(missing)
        self.go.setEnabled(not missing)


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


class StopDrillSheet(QDialog):
    """What the drill has shown, the verdict, and the end. Read ``args`` after it was accepted."""

    def __init__(self, context: Context, key: str, vm_uuid: str, vm_name: str, parent: QWidget) -> None:
        super().__init__(parent)
        self._context, self._vm_uuid = context, vm_uuid
        self.record: DrillRecord | None = None
        self.forced = False
        self.setWindowTitle(f"Stop the drill of {vm_name}")
        self.headline = QLabel(f"<h3>Stop the drill of {escape(vm_name)}</h3>", self)
        self.found, self.picture, self.hint = QLabel("Looking at the drill…", self), QLabel(self), QLabel(self)
        for label in (self.headline, self.found, self.hint):
            label.setTextFormat(Qt.TextFormat.RichText)
            label.setWordWrap(True)
        self.picture.setAccessibleName("Picture of the copy's screen")
        self.passed = QRadioButton("It &passed: its recovery point is marked as proven", self)
        self.failed = QRadioButton("It &failed", self)
        self.note = QLineEdit(self)
        self.go, self.cancel = QPushButton("Stop the drill", self), QPushButton("Let it run", self)
        self.force = QPushButton("F&orce clean up", self)
        self._lay_out()
        group = QButtonGroup(self)
        for button in (self.passed, self.failed):
            group.addButton(button)
            button.toggled.connect(self._judge)
        self.go.clicked.connect(self.accept)
        self.force.clicked.connect(self._forced)
        self.cancel.clicked.connect(self.reject)
        self._judge()
        backend, ask = context.backend, context.bridge.ask
        ask(backend.drills, self, self._show, self._failed_to_look)
        ask(lambda: backend.drill_screen(key), self, self._show_picture, lambda _e: None)

    @property
    def args(self) -> dict[str, object]:
        """The operation's arguments."""
        passed = None if self.forced else self.passed.isChecked()
        return {"passed": passed, "note": self.note.text().strip(), "force": self.forced}

    def _lay_out(self) -> None:
        self.note.setPlaceholderText("What you saw; kept in the history and with the recovery point")
        self.note.setAccessibleName("Note")
        self.force.hide()
        self.force.setToolTip("What cannot be removed now does not hold up the rest")
        self.go.setAutoDefault(False)
        self.cancel.setDefault(True)
        shown = QHBoxLayout()
        shown.addWidget(self.found, 1)
        shown.addWidget(self.picture)
        form = QFormLayout()
        form.addRow("&Note:", self.note)
        buttons = QHBoxLayout()
        buttons.addWidget(self.force)
        buttons.addStretch(1)
        buttons.addWidget(self.cancel)
        buttons.addWidget(self.go)
        box = QVBoxLayout(self)
        box.setContentsMargins(20, 14, 20, 14)
        box.setSpacing(10)
        box.addWidget(self.headline)
        box.addLayout(shown)
        box.addStretch(1)
        box.addWidget(self.passed)
        box.addWidget(self.failed)
        box.addLayout(form)
        box.addWidget(self.hint)
        box.addLayout(buttons)
        self.resize(760, 520)

    def _failed_to_look(self, error: VaporError) -> None:
        self.found.setText(f"The drill cannot be looked at. {escape(sentence(error))}")

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
                lines.append(self._coloured(Severity.WARNING, f"Paused: {copy.paused}"))
        others = [v.vm_name for v in record.vms if v.vm_uuid != self._vm_uuid]
        if others:
            lines.append(f"In one bubble with {escape(', '.join(others))}, which end with it")
        lines.append(f"Ends by itself {escape(words.until(record.expires_at, now))}")
        if record.trouble:
            lines.append(self._coloured(Severity.CRITICAL, record.trouble))
        lines += [self._line(c) for c in (copy.checks if copy else ())]
        if copy is not None and copy.usable_s is not None:
            lines.append(f"Usable after {words.duration(copy.usable_s)}")
        lines += [self._line(c) for c in record.isolation]
        self.found.setText("<br>".join(lines))
        self.force.setVisible(bool(record.trouble))

    def _line(self, check: DrillCheck) -> str:
        looks = {"ok": (Severity.OK, "✓"), "failed": (Severity.CRITICAL, "✗")}
        severity, mark = looks.get(check.state, (Severity.PROGRESS, "…"))
        return f"{self._coloured(severity, mark)} {escape(check.title)}: {escape(check.text or check.state)}"

    def _coloured(self, severity: Severity, text: str) -> str:
        return f"<b style='color:{self._context.theme.colours.severity[severity]}'>{escape(text)}</b>"

    def _show_picture(self, png: bytes) -> None:
        found = QPixmap()
        if found.loadFromData(png):
            self.picture.setPixmap(found.scaledToWidth(PICTURE_WIDTH, Qt.TransformationMode.SmoothTransformation))

    def _forced(self) -> None:
        self.forced = True
        self.accept()

    def _judge(self) -> None:
        judged = self.passed.isChecked() or self.failed.isChecked()
        self.hint.setText("" if judged else "Did it pass?")
        self.go.setEnabled(judged)
