"""The drill sheet: what will be rehearsed, and how it is judged."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape

from PySide6.QtWidgets import QCheckBox, QComboBox, QDoubleSpinBox, QLineEdit, QPlainTextEdit, QSpinBox, QWidget

from vapor_desktop.engine.ports import PointRow
from vapor_desktop.gui import words
from vapor_desktop.gui.context import Context
from vapor_desktop.gui.sheet import Sheet
from vapor_desktop.model.drills import BOOT_S, DISK_LIMIT_BYTES, LASTS_MAX_S, LASTS_S
from vapor_desktop.model.policy import Policy

GIB = 1 << 30


def ports_of(text: str) -> tuple[int, ...] | None:
    """ "22, 443" as numbers; None when something in it is no port."""
    parts = [p for p in text.replace(",", " ").split() if p]
    if not all(p.isdecimal() and 1 <= int(p) <= 65535 for p in parts):
        return None
    return tuple(dict.fromkeys(int(p) for p in parts))


class DrillSheet(Sheet):
    """Which point, which checks, which limits. Read ``args`` and ``why`` after it was accepted."""

    reason_needed = False

    def __init__(
        self, context: Context, key: str, vm_name: str, target: str, policy: Policy, parent: QWidget
    ) -> None:
        super().__init__(
            context, f"Drill {vm_name}", f"Rehearse {vm_name} at {target}", f"Start the drill at {target}", parent
        )
        name, there = escape(vm_name), escape(target)
        self._points_known = False
        self.effects = self.rich(
            f"<ul style='margin-left:-22px'><li>A copy of <b>{name}</b>, of another name, boots at {there} on a new "
            "overlay; no recovery point is changed, and the VM itself goes on.</li>"
            "<li>It has its own MAC and last known address, in a network that leads nowhere; that nothing leaves it "
            "is proven before the copy starts, else it is not started.</li>"
            "<li>Replication goes on, and an emergency failover may begin at any time.</li>"
            "<li>It runs until you stop it, or its time is over; then everything of it is removed, and it is looked "
            "whether anything is left.</li></ul>"
        )
        self.point, self.agent = QComboBox(self), QCheckBox("Its guest &agent answers", self)
        self.point.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToContents)  # it is filled later
        self.ports, self.script = QLineEdit(self), QPlainTextEdit(self)
        self.boot, self.hours, self.disk = QSpinBox(self), QDoubleSpinBox(self), QDoubleSpinBox(self)
        self.every = QSpinBox()  # after the reason, for the Tab key
        self.auto = QCheckBox("and &begin one by itself, judged by its checks")
        self.scheduled = (policy.drill_days or 0, policy.drill_auto)
        self._prepare()
        self.add_group("What will happen", self.effects)
        self.add_form(
            ("&Recovery point:", self.point),
            ("Passes if:", self.agent),
            ("TCP &ports accept:", self.ports),
            ("S&cript:", self.script),
            ("All of it &within:", self.boot),
            ("&Ends by itself after:", self.hours),
            ("Is paused when it has &written:", self.disk),
            ("Rea&son:", self.reason),
            ("Re&mind me when none passed for:", self.every),
            ("", self.auto),
        )
        self.add_buttons(640, 600)
        self.ports.textChanged.connect(self.judge)
        backend = context.backend
        self.ask(lambda: backend.points(key), self._show, self.hint, "The recovery points cannot be read.")

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
        return super().why or "a drill"

    def _prepare(self) -> None:
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
        self.every.setRange(0, 366)
        self.every.setSpecialValueText("never")
        self.every.setSuffix(" days")
        self.every.setValue(self.scheduled[0])
        self.every.setAccessibleName("Days after which you are reminded that no drill has passed")
        self.auto.setChecked(self.scheduled[1])
        self.auto.setEnabled(self.scheduled[0] > 0)
        self.every.valueChanged.connect(lambda days: self.auto.setEnabled(days > 0))

    def _show(self, points: Sequence[PointRow]) -> None:
        now = datetime.now(UTC)
        for n, p in enumerate(sorted(points, key=lambda p: -p.seq)):
            proven = f", proven {words.local(p.proven_at, now)}" if p.proven_at else ""
            newest = " (newest)" if n == 0 else ""
            # The newest of the moment it begins, not of now: a cycle may make one meanwhile.
            text = f"#{p.seq}, {words.local(p.taken_at, now)}, {p.consistency}{proven}{newest}"
            self.point.addItem(text, None if n == 0 else p.seq)
        self._points_known = bool(points)

    def missing(self) -> str:
        """The points, and ports that are ports."""
        if not self._points_known:
            return "Waiting for the recovery points."
        return "Ports are numbers from 1 to 65535." if ports_of(self.ports.text()) is None else ""
