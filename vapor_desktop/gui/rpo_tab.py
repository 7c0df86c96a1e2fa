"""The RPO tab: ranges, graph, read-out, export."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from PySide6.QtCore import Qt
from PySide6.QtWidgets import (
    QButtonGroup,
    QFileDialog,
    QHBoxLayout,
    QLabel,
    QMessageBox,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from vapor_desktop.engine.ports import RpoSample
from vapor_desktop.gui import words
from vapor_desktop.gui.bridge import Call
from vapor_desktop.gui.context import Context
from vapor_desktop.gui.rpo_graph import RpoGraph
from vapor_desktop.gui.rpo_series import Marks, Series, build, marks, shown_from
from vapor_desktop.gui.theme import chip_style
from vapor_desktop.model.errors import VaporError
from vapor_desktop.model.view import ProtectionStatus

RANGES = {
    "1 h": timedelta(hours=1),
    "24 h": timedelta(hours=24),
    "7 d": timedelta(days=7),
    "30 d": timedelta(days=30),
    "1 y": timedelta(days=365),
}
Loaded = tuple[Sequence[RpoSample], Series, Marks, datetime, datetime]


def first_span(age: timedelta) -> timedelta:
    """The range to begin with: a day, or an hour for a VM that has been protected for less than a few."""
    return RANGES["1 h"] if age < timedelta(hours=3) else RANGES["24 h"]


def _begin(since: datetime, created_at: datetime | None) -> datetime:
    """Before a VM was protected nothing was unknown: there was nothing to know."""
    return since if created_at is None else max(since, created_at)


class RpoTab(QWidget):
    """Asks for samples in a worker, builds the series there, and draws it here."""

    def __init__(self, context: Context, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._context = context
        self._key: str | None = None
        self._span = RANGES["24 h"]
        self._created_at: datetime | None = None
        self._samples: Sequence[RpoSample] = ()
        self._pending: Call | None = None
        self._loaded_at: datetime | None = None
        self.graph = RpoGraph(context.theme, self)
        self.readout = QLabel(self)
        self.readout.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.readout.setAccessibleName("Value under the mouse")
        self.summary = QLabel(self)
        self.summary.setWordWrap(True)
        self.ranges: dict[str, QPushButton] = {}
        box = QVBoxLayout(self)
        box.setContentsMargins(4, 8, 4, 4)
        box.addLayout(self._bar())
        box.addWidget(self.graph, 1)
        box.addWidget(self.readout)
        box.addWidget(self.summary)
        self.graph.pointed.connect(self.readout.setText)
        context.theme.changed.connect(self._restyle)
        self._restyle()

    def _restyle(self) -> None:
        self.setStyleSheet(chip_style(self._context.theme.colours))

    def _bar(self) -> QHBoxLayout:
        bar = QHBoxLayout()
        group = QButtonGroup(self)
        for name, span in RANGES.items():
            button = QPushButton(name, self)
            button.setCheckable(True)
            button.setChecked(span == self._span)
            button.setObjectName("chip")
            button.setAccessibleName(f"Show the last {name}")
            button.clicked.connect(lambda _on, span=span: self._choose(span))
            group.addButton(button)
            bar.addWidget(button)
            self.ranges[name] = button
        bar.addStretch(1)
        for text, slot in (("Save &picture…", self._ask_picture), ("Save &table…", self._ask_table)):
            button = QPushButton(text, self)
            button.clicked.connect(slot)
            bar.addWidget(button)
        return bar

    def show_protection(self, status: ProtectionStatus, now: datetime) -> None:
        """Another VM, or the same one a second later."""
        if status.key != self._key:
            self._key, self._samples, self._loaded_at = status.key, (), None
            self._created_at = status.protection.created_at
            self._span = first_span(now - self._created_at)
            for name, span in RANGES.items():
                self.ranges[name].setChecked(span == self._span)
            self.graph.show_series(Series(), now - self._span, now)
            self.summary.setText("Reading…")
        every = max(1.0, self._span.total_seconds() / 600)
        due = self._loaded_at is None or (now - self._loaded_at).total_seconds() >= min(every, 60)
        if due and self._pending is None and self.isVisible():
            self._load()

    def _choose(self, span: timedelta) -> None:
        self._span = span
        if self._pending is not None:
            self._pending.abandon()
            self._pending = None
        if self._key is not None:
            self._load()

    def _load(self) -> None:
        key, span, backend = self._key, self._span, self._context.backend
        if key is None:
            return
        if self.graph.span != span:
            self.summary.setText("Reading…")

        created_at = self._created_at

        def work() -> Loaded:
            until = datetime.now(UTC)
            samples = backend.rpo_samples(key, until - span)
            series = build(samples, _begin(until - span, created_at), until)
            return samples, series, marks(backend.events(key), until - span, until), until - span, until

        self._pending = self._context.bridge.ask(work, self, lambda loaded: self._show(key, loaded), self._failed)

    def _show(self, key: str, loaded: Loaded) -> None:
        self._pending = None
        if key != self._key:
            return
        self._samples, series, marked, since, until = loaded
        self._loaded_at = until
        self.graph.show_series(series, since, until, marked, shown_from(since, self._created_at, until))
        self.summary.setText(self.describe(series, _begin(since, self._created_at), until))

    def _failed(self, error: VaporError) -> None:
        self._pending = None
        self.summary.setText(f"The samples cannot be read: {error}")

    @staticmethod
    def describe(series: Series, since: datetime, until: datetime) -> str:
        """The graph in a sentence."""
        if not series.samples:
            return "Nothing was measured in this time."
        whole = (until - since).total_seconds()
        unknown = sum(b - a for a, b in series.gaps)
        broken = sum(b - a for a, b in series.breaches)
        times = f"{len(series.breaches)} time{'s' if len(series.breaches) != 1 else ''}"
        known = max(0.0, whole - unknown)
        share = f"{100 * (known - broken) / known:.2f} % of the known time within target" if known else ""
        parts = [
            f"Highest {words.duration(series.highest)}",
            f"breached {times}, {words.duration(broken)} in all" if series.breaches else "never breached",
            f"unknown for {words.duration(unknown)}" if unknown else "known throughout",
            share,
        ]
        return "; ".join(part for part in parts if part) + "."

    # --- export ----------------------------------------------------------------------------------------
    def _ask_picture(self) -> None:
        path, _kind = QFileDialog.getSaveFileName(self, "Save picture", "rpo.png", "PNG (*.png)")
        if path:
            self._or_say(self.save_picture, Path(path))

    def _ask_table(self) -> None:
        path, _kind = QFileDialog.getSaveFileName(self, "Save table", "rpo.csv", "CSV (*.csv)")
        if path:
            self._or_say(self.save_table, Path(path))

    def _or_say(self, save: object, path: Path) -> None:
        try:
            save(path)  # type: ignore[operator]
        except OSError as error:
            QMessageBox.warning(self, "Not saved", f"{path} cannot be written: {error.strerror}.")

    def save_picture(self, path: Path) -> None:
        """The graph as PNG. Raises OSError."""
        if not self.graph.grab().save(str(path), "PNG"):
            raise OSError(5, "the picture was not written")

    def save_table(self, path: Path) -> None:
        """The samples as CSV, UTC; unknown is empty. Raises OSError."""
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("at_utc", "rpo_s", "target_s"))
            for sample in self._samples:
                rpo = "" if sample.rpo_s is None else f"{sample.rpo_s:.3f}"
                writer.writerow((sample.at.isoformat(), rpo, f"{sample.target_s:g}"))
