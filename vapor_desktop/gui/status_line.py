"""The status bar: where the engine is, the worst state, how old the data is."""

from __future__ import annotations

from datetime import UTC, datetime

from PySide6.QtWidgets import QLabel, QStatusBar

from vapor_desktop.gui import words
from vapor_desktop.gui.icons import SEVERITY_ICONS, pixmap
from vapor_desktop.gui.theme import Theme
from vapor_desktop.model.states import RpoHealth, Severity
from vapor_desktop.model.view import EngineView, Snapshot

STALE_S = 5.0
_ENGINES = {
    "here": "Engine: in this window",
    "service": "Engine: background service",
    "none": "No engine runs: nothing is replicated",
}


def _told(engine: EngineView) -> str:
    many = f"{engine.protections} VM{'' if engine.protections == 1 else 's'}"
    work = f"works for {many}" if engine.acts else "stands by"
    return f"{engine.kind} on {engine.host} (process {engine.pid}): {work}"


def worst(snapshot: Snapshot) -> Severity:
    """The worst severity of all protections."""
    return max((row.severity for row in snapshot.protections), default=Severity.IDLE)


def headline(snapshot: Snapshot) -> str:
    """One line for status bar and tray: what is worst."""
    rows = snapshot.protections
    breached = [r.rpo_now_s for r in rows if r.rpo_health is RpoHealth.BREACHED and r.rpo_now_s is not None]
    if breached:
        many = f"{len(breached)} VM{'s' if len(breached) > 1 else ''}"
        return f"{many} beyond the RPO target (worst {words.duration(max(breached))})"
    bad = sum(row.severity >= Severity.WARNING for row in rows)
    if bad:
        return f"{bad} VM{'s need' if bad > 1 else ' needs'} attention"
    return f"{len(rows)} VM{'s' if len(rows) > 1 else ''} within target" if rows else "Nothing is protected"


class StatusLine(QStatusBar):
    """Shows a snapshot's condition and ages it between snapshots."""

    def __init__(self, theme: Theme) -> None:
        super().__init__()
        self._theme = theme
        self._snapshot: Snapshot | None = None
        self._mark, self.worst_text = QLabel(self), QLabel("Reading…", self)
        self.engine, self.age = QLabel(self), QLabel(self)
        self.engine.setAccessibleName("Engine")
        self.age.setAccessibleName("Age of the data")
        self.addWidget(self._mark)
        self.addWidget(self.worst_text)
        self.addPermanentWidget(self.engine)
        self.addPermanentWidget(self.age)
        theme.changed.connect(self.refresh)

    def take(self, snapshot: Snapshot) -> None:
        """Show a snapshot."""
        self._snapshot = snapshot
        self.refresh()

    def refresh(self) -> None:
        """Once a second: the data grows older, whether news comes or not."""
        snapshot = self._snapshot
        if snapshot is None:
            return
        severity, colours = worst(snapshot), self._theme.colours
        self._mark.setPixmap(pixmap(SEVERITY_ICONS[severity], colours.severity[severity], 16, colours.window))
        self.worst_text.setText(headline(snapshot))
        self.engine.setText(_ENGINES.get(snapshot.engine, snapshot.engine))
        self.engine.setToolTip("\n".join(_told(e) for e in snapshot.engines))
        self.engine.setStyleSheet(self._loud(snapshot.engine == "none"))
        age = (datetime.now(UTC) - snapshot.at).total_seconds()
        self.age.setText(f"Data {words.duration(age)} old" if age >= 2 else "Data: live")
        self.age.setStyleSheet(self._loud(age >= STALE_S))

    def _loud(self, loud: bool) -> str:
        return f"color: {self._theme.colours.severity[Severity.CRITICAL]}; font-weight: bold" if loud else ""
