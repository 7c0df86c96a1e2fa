"""The page *Sites*."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QHBoxLayout, QLabel, QPushButton, QVBoxLayout, QWidget

from vapor_desktop.gui import words
from vapor_desktop.gui.activity import severity_icon
from vapor_desktop.gui.context import Context
from vapor_desktop.gui.icons import icon
from vapor_desktop.gui.keyed_table import Field, RecordModel
from vapor_desktop.gui.record_table import RecordTable
from vapor_desktop.model.states import Severity
from vapor_desktop.model.view import SiteStatus, Snapshot


def site_severity(site: SiteStatus) -> Severity:
    """Not tried yet is not OK."""
    if site.reachable is None:
        return Severity.IDLE
    if not site.reachable:
        return Severity.CRITICAL
    return Severity.WARNING if site.error else Severity.OK


def _state(site: SiteStatus) -> str:
    if site.reachable is None:
        return "not tried yet"
    if site.reachable:
        return "reachable" if not site.error else "trouble"
    state = "cannot be used" if site.refuses else "unreachable"
    return f"{state}, seen {words.ago(site.last_seen_at, datetime.now(UTC))}"


def _clock(site: SiteStatus) -> str:
    if site.clock_offset_s is None:
        return words.UNKNOWN
    return f"{site.clock_offset_s:+.3f} s ± {site.clock_error_s or 0:.3f}"


def _latency(site: SiteStatus) -> str:
    return words.UNKNOWN if site.latency_s is None else f"{site.latency_s * 1000:.0f} ms"


def _space(site: SiteStatus) -> str:
    if site.free_bytes is None:
        return words.UNKNOWN
    return f"{words.size(site.free_bytes)} of {words.size(site.total_bytes)}"


def _guard(site: SiteStatus) -> str:
    return {True: "proven", False: "off", None: words.UNKNOWN}[site.guard_proven]


class SitesPage(QWidget):
    """Signals:
    pair_asked: open the wizard.
    remove_asked: the SiteStatus to forget.
    adopt_asked: the SiteStatus whose replicas shall be adopted.
    """

    pair_asked = Signal()
    remove_asked = Signal(object)
    adopt_asked = Signal(object)

    def __init__(self, context: Context, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._theme = context.theme
        self._names: dict[str, str] = {}
        self._pairs: tuple[tuple[str, str, str], ...] = ()
        self.model: RecordModel[SiteStatus] = RecordModel(self._fields(), lambda s: s.site.site_id, self)
        self.table = RecordTable(self.model, "Sites", self)
        self.table.selectionModel().selectionChanged.connect(self._explain)
        self.pair = QPushButton("&Pair site…", self)
        self.adopt = QPushButton("&Adopt replicas…", self)
        self.adopt.setToolTip("Take over the protections that the site's own manifests describe")
        self.remove = QPushButton("&Remove…", self)
        self.about = QLabel(self)
        self.about.setWordWrap(True)
        self.about.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.pair.clicked.connect(self.pair_asked)
        self.remove.clicked.connect(lambda: self._emit(self.remove_asked))
        self.adopt.clicked.connect(lambda: self._emit(self.adopt_asked))
        buttons = QHBoxLayout()
        for button in (self.pair, self.adopt, self.remove):
            buttons.addWidget(button)
        buttons.addStretch(1)
        box = QVBoxLayout(self)
        box.setContentsMargins(10, 8, 10, 6)
        box.addLayout(buttons)
        box.addWidget(self.table, 1)
        box.addWidget(self.about)
        context.theme.changed.connect(self._restyle)
        self._restyle()
        self._explain()

    def _fields(self) -> list[Field[SiteStatus]]:
        def look(site: SiteStatus, role: int) -> Any:
            return severity_icon(self._theme, site_severity(site)) if role == Qt.ItemDataRole.DecorationRole else None

        def name(site: SiteStatus) -> str:
            return site.site.name

        return [
            Field("Site", name, 130, said=lambda s: f"{s.site.name}: {_state(s)}", look=look),
            Field("State", _state, 150),
            Field("Address", lambda s: s.site.api_url, 250),
            Field("Paired with", self._peers, 150),
            Field("Free space", _space, 150),
            Field("Latency", _latency, 70, right=True),
            Field("Clock offset", _clock, 130, right=True),
            Field("Start guard", _guard, 80),
            Field("Service", lambda s: s.version or words.UNKNOWN, 70),
            Field("libvirt", lambda s: s.libvirt_version or words.UNKNOWN, 70),
            Field("QEMU", lambda s: s.qemu_version or words.UNKNOWN, 70),
        ]

    def _peers(self, site: SiteStatus) -> str:
        me = site.site.site_id
        lines = []
        for a, b, route in self._pairs:
            if me in (a, b):
                other = self._names.get(b if me == a else a, "an unknown site")
                lines.append(f"{other} ({route})")
        return ", ".join(lines) or "none"

    def take(self, snapshot: Snapshot) -> None:
        """Show a snapshot."""
        self._names = {s.site.site_id: s.site.name for s in snapshot.sites}
        self._pairs = snapshot.pairs
        self.model.put(snapshot.sites)
        self._explain()

    def chosen(self) -> SiteStatus | None:
        """The selected site."""
        return self.model.record(self.table.chosen_row())

    def _emit(self, signal: Any) -> None:
        site = self.chosen()
        if site is not None:
            signal.emit(site)

    def _explain(self) -> None:
        site = self.chosen()
        for button in (self.remove, self.adopt):
            button.setEnabled(site is not None)
        if site is None:
            none = "No site is paired yet. You need a host's URL and a token: run “vapor-site token new” there."
            self.about.setText(none if not self.model.rowCount() else "Choose a site to see more.")
            return
        lines = [f"{site.site.name}: identity {site.site.site_id}, replicas in {site.site.replica_root}"]
        if site.guard_proven is False:
            lines.append(
                "The start guard is off there: a VM that was failed over would start again with that host. "
                "Run “vapor-site guard install” on it as root."
            )
        lines += [f"{site.error}. {site.fix or ''}".strip()] if site.error else []
        self.about.setText("\n".join(lines))

    def _restyle(self) -> None:
        colour = self._theme.colours.text
        self.pair.setIcon(icon("pair", colour))
        self.adopt.setIcon(icon("protect", colour))
        self.remove.setIcon(icon("cross", colour))
