"""The tab *Settings*: what a protection promises, in words, and the verbs that change it."""

from __future__ import annotations

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QFormLayout, QHBoxLayout, QLabel, QToolButton, QWidget

from vapor_desktop.gui import words
from vapor_desktop.gui.policy_editor import GUARD, QUIESCE
from vapor_desktop.gui.verbs import Verbs
from vapor_desktop.model import retention
from vapor_desktop.model.policy import Policy
from vapor_desktop.model.times import times_text
from vapor_desktop.model.view import ProtectionStatus

_FACTS = {
    "target": "RPO target",
    "attainable": "Attainable",
    "kept": "Points kept",
    "networks": "Networks",
    "transfer": "Bandwidth",
    "quiesce": "Quiesce",
    "guard": "Start guard",
    "identity": "Identity",
}


def _rate(bytes_s: int | None) -> str:
    return words.rate(bytes_s) if bytes_s else "no limit"


def facts(status: ProtectionStatus) -> dict[str, str]:
    """Key of ``_FACTS`` → what is so now."""
    prot = status.protection
    policy, keep = prot.policy, prot.policy.retention
    attainable = "unknown until a cycle has run"
    if status.attainable_rpo_s is not None:
        attainable = f"{words.duration(status.attainable_rpo_s)} with cycles as long as the last ones"
    reach_s = retention.reach(keep, retention.interval_s(policy)).total_seconds()
    limits = [_rate(policy.bandwidth_bytes_s)]
    limits += [f"{w.start:%H:%M} to {w.end:%H:%M} UTC {_rate(w.bandwidth_bytes_s)}" for w in policy.bandwidth_windows]
    return {
        "target": _target(policy),
        "attainable": attainable,
        "kept": f"newest {keep.newest}, hourly {keep.hourly}, daily {keep.daily}; "
        f"in the long run back to {words.duration(reach_s)}",
        "networks": ", ".join(f"{a} → {b}" for a, b in prot.mappings.networks.items()) or "same names at the target",
        "transfer": f"{'; '.join(limits)} (route: {status.route})",
        "quiesce": QUIESCE[policy.quiesce],
        "guard": GUARD[policy.start_guard],
        "identity": f"VM {prot.vm_uuid}, epoch {prot.epoch_number}, settings version {prot.settings_version}, "
        f"source power {status.source_power or 'unknown'}",
    }


def _target(policy: Policy) -> str:
    target = words.duration(policy.rpo_target_s)
    return f"{target}; points are made at {times_text(policy.at_times)} UTC" if policy.at_times else target


class SettingsTab(QWidget):
    """Read-only; *Edit protection…* changes it at the target."""

    def __init__(self, verbs: Verbs, parent: QWidget) -> None:
        super().__init__(parent)
        self.labels = {key: QLabel(self) for key in _FACTS}
        form = QFormLayout(self)
        form.setContentsMargins(8, 14, 8, 8)
        form.setVerticalSpacing(12)
        for key, text in _FACTS.items():
            label = self.labels[key]
            label.setWordWrap(True)
            label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
            form.addRow(f"{text}:", label)
        buttons = QHBoxLayout()
        for key in ("edit", "seed", "unprotect"):
            button = QToolButton(self)
            button.setDefaultAction(verbs[key])
            button.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
            buttons.addWidget(button)
        buttons.addStretch(1)
        form.addRow(buttons)

    def show_status(self, status: ProtectionStatus) -> None:
        """What is so now."""
        for key, text in facts(status).items():
            self.labels[key].setText(text)
