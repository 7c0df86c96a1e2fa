"""The policy of a protection as a form: the same in the protect wizard and in *Edit protection…*."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, time, timedelta
from html import escape

from PySide6.QtCore import Signal
from PySide6.QtWidgets import (
    QComboBox,
    QDoubleSpinBox,
    QLabel,
    QLineEdit,
    QPushButton,
    QRadioButton,
    QSpinBox,
    QTableWidget,
    QVBoxLayout,
    QWidget,
)

from vapor_desktop.gui import words
from vapor_desktop.gui.forms import child, load_form
from vapor_desktop.gui.rate_edit import RateEdit
from vapor_desktop.gui.rpo_edit import RpoEdit
from vapor_desktop.gui.theme import Theme
from vapor_desktop.gui.window_table import WindowTable
from vapor_desktop.model import retention
from vapor_desktop.model.errors import InvalidRequest
from vapor_desktop.model.policy import Policy, Quiesce, Retention, StartGuard
from vapor_desktop.model.states import Severity
from vapor_desktop.model.times import times_of_day, times_text

QUIESCE = {
    Quiesce.TRY: "freeze the file systems when the guest agent answers",
    Quiesce.NEVER: "never (crash-consistent points)",
}
GUARD = {
    StartGuard.HOLD: "hold the VM until the other site was asked who owns it",
    StartGuard.START: "start it all the same (it may then run on both sides)",
}


class PolicyEditor(QWidget):
    """Signals:
    changed: something else is set now.
    """

    changed = Signal()

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._theme = theme
        self._chain_limit, self._target = retention.chain_limit(None), "The target"
        form = self.form = load_form("policy", self)
        box = QVBoxLayout(self)
        box.setContentsMargins(0, 0, 0, 0)
        box.addWidget(form)
        preset, value, unit = (
            child(form, QComboBox, "preset"),
            child(form, QSpinBox, "value"),
            child(form, QComboBox, "unit"),
        )
        self._rpo_hint, self._keep_hint = child(form, QLabel, "rpohint"), child(form, QLabel, "keephint")
        self._window_hint = child(form, QLabel, "windowhint")
        self.continuous, self.fixed = child(form, QRadioButton, "continuous"), child(form, QRadioButton, "fixed")
        self.times = child(form, QLineEdit, "times")
        self.keep = {key: child(form, QSpinBox, key) for key in ("newest", "hourly", "daily")}
        self.quiesce, self.guard = child(form, QComboBox, "quiesce"), child(form, QComboBox, "guard")
        self.streams, self.priority = child(form, QSpinBox, "streams"), child(form, QSpinBox, "priority")
        self.limit = RateEdit(child(form, QDoubleSpinBox, "limit"))
        self.windows = WindowTable(
            child(form, QTableWidget, "windows"),
            child(form, QPushButton, "addwindow"),
            child(form, QPushButton, "dropwindow"),
        )
        self.quiesce.addItems(list(QUIESCE.values()))
        self.guard.addItems(list(GUARD.values()))
        self.rpo = RpoEdit(self, preset, value, unit)
        self.rpo.hide()  # only its logic: the widgets are the form's
        self._connect()
        self.show_policy(Policy())

    def _connect(self) -> None:
        self.rpo.changed.connect(self._told)
        for box in self.keep.values():
            box.valueChanged.connect(self._told)
        self.fixed.toggled.connect(self._use_times)
        self.fixed.clicked.connect(self._write_times)
        self.times.textChanged.connect(self._told)
        for combo in (self.quiesce, self.guard):
            combo.currentIndexChanged.connect(self._told)
        self.limit.box.valueChanged.connect(self._told)
        for number in (self.streams, self.priority):
            number.valueChanged.connect(self._told)
        self.windows.changed.connect(self._told)

    def show_policy(self, policy: Policy) -> None:
        """Fill the form."""
        self.rpo.set_seconds(policy.rpo_target_s)
        self.times.setText(times_text(policy.at_times))
        (self.fixed if policy.at_times else self.continuous).setChecked(True)
        for key, box in self.keep.items():
            box.setValue(getattr(policy.retention, key))
        self.quiesce.setCurrentText(QUIESCE[policy.quiesce])
        self.guard.setCurrentText(GUARD[policy.start_guard])
        self.limit.set_rate(policy.bandwidth_bytes_s)
        self.streams.setValue(policy.streams)
        self.priority.setValue(policy.priority)
        self.windows.set_windows(policy.bandwidth_windows)
        self._told()

    def show_limit(self, chain_limit: int, target: str) -> None:
        """How many files a chain may have at the target, of that name."""
        self._chain_limit, self._target = chain_limit, target
        self._told()

    def policy(self, base: Policy) -> Policy:
        """``base`` with what the form says. Raises InvalidRequest when a time of day is none."""
        values = {
            "rpo_target_s": self.rpo.seconds(),
            "at_times": self._at_times(),
            "retention": self._retention(),
            "quiesce": next(q for q, text in QUIESCE.items() if text == self.quiesce.currentText()),
            "start_guard": next(g for g, text in GUARD.items() if text == self.guard.currentText()),
            "bandwidth_bytes_s": self.limit.rate(),
            "streams": self.streams.value(),
            "priority": self.priority.value(),
            "bandwidth_windows": self.windows.windows(),
        }
        return base.model_copy(update=values)

    def problem(self) -> str:
        """Why it cannot be so; "" when it can."""
        try:
            at_times = self._at_times()
            retention.check_fits(self._retention(), self._chain_limit)
        except InvalidRequest as error:
            return str(error)
        if self.fixed.isChecked() and not at_times:
            return "Write at least one time of day"
        return "A bandwidth window ends when it begins" if self._empty_window() else ""

    def _empty_window(self) -> bool:
        return any(window.start == window.end for window in self.windows.windows())

    def _at_times(self) -> tuple[time, ...]:
        return times_of_day(self.times.text()) if self.fixed.isChecked() else ()

    def _retention(self) -> Retention:
        return Retention(**{key: box.value() for key, box in self.keep.items()})

    def _use_times(self, on: bool) -> None:
        self.times.setEnabled(on)
        self._told()

    def _write_times(self) -> None:
        """Chosen by hand: the next thing to do is to write them."""
        self.times.setFocus()

    def _told(self, *_what: object) -> None:
        self._rpo_hint.setText(self._schedule_hint())
        self._keep_hint.setText(self._reach_hint())
        empty = self._warned("A window that ends when it begins never holds.", Severity.CRITICAL)
        self._window_hint.setText(empty if self._empty_window() else "")
        self._window_hint.setVisible(self._empty_window())
        self.changed.emit()

    def _schedule_hint(self) -> str:
        seconds = self.rpo.seconds()
        if self.continuous.isChecked():
            return (
                f"Cycles start early enough that the newest point is never older than {words.duration(seconds)}, "
                "if they take less than half of that. From 5 s to 24 h."
            )
        try:
            at_times = self._at_times()
        except InvalidRequest as error:
            return self._warned(str(error), Severity.CRITICAL)
        if not at_times:
            return self._warned("Write at least one time of day, such as 06:00, 18:30.", Severity.WARNING)
        text = f"Next: {', '.join(next_runs(at_times, datetime.now(UTC)))}."
        gap_s = retention.longest_gap_s(at_times)
        if gap_s > seconds:
            more = (
                f"Up to {words.duration(gap_s)} lie between them: longer than the target of "
                f"{words.duration(seconds)}, which will be breached each time."
            )
            return f"{text} {self._warned(more, Severity.WARNING)}"
        return text

    def _reach_hint(self) -> str:
        kept, count = self._retention(), retention.kept_points(self._retention())
        most = self._chain_limit - 1
        try:
            retention.check_fits(kept, self._chain_limit)
            interval_s = float(retention.longest_gap_s(self._at_times()) or self.rpo.seconds())
        except InvalidRequest as error:
            return self._warned(f"{error}.", Severity.CRITICAL)
        back = retention.reach(kept, interval_s).total_seconds()
        return (
            f"{count} points of at most {most} that fit at {escape(self._target)}; "
            f"in the long run they reach back <b>{words.duration(back)}</b>."
        )

    def _warned(self, text: str, severity: Severity) -> str:
        return f"<span style='color:{self._theme.colours.severity[severity]}'>{escape(text)}</span>"


def next_runs(at_times: Sequence[time], now: datetime, count: int = 3) -> list[str]:
    """The next cycles at these times of day (UTC), as the clock on this desk will show them."""
    found: list[datetime] = []
    day = now.astimezone(UTC).date()
    while at_times and len(found) < count:
        moments = (datetime.combine(day, at, tzinfo=UTC) for at in at_times)
        found += [moment for moment in moments if moment > now]
        day += timedelta(days=1)
    return [f"{moment:%a %H:%M} UTC{_here(moment)}" for moment in found[:count]]


def _here(moment: datetime) -> str:
    local = moment.astimezone()
    return f" ({local:%H:%M} here)" if local.utcoffset() else ""
