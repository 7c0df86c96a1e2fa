"""The protect wizard's last pages: the promise, the checks, the summary."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from PySide6.QtWidgets import QApplication, QLabel, QPlainTextEdit, QPushButton, QVBoxLayout, QWizardPage

from vapor_desktop.gui import words
from vapor_desktop.gui.context import Context
from vapor_desktop.gui.error_box import sentence
from vapor_desktop.gui.forms import child
from vapor_desktop.gui.pair_wizard import FormPage, checks_of
from vapor_desktop.gui.policy_editor import PolicyEditor
from vapor_desktop.gui.protect_choose import VmsPage
from vapor_desktop.model.errors import VaporError
from vapor_desktop.model.policy import Policy, Quiesce, StartGuard
from vapor_desktop.model.times import times_text
from vapor_desktop.model.view import Check, ProtectRequest

Ask = Callable[[], ProtectRequest]


class PolicyPage(QWizardPage):
    """RPO target or times of day, retention, transfer. ``limit``: (chain limit, name) of the target chosen."""

    def __init__(self, context: Context, limit: Callable[[], tuple[int, str]]) -> None:
        super().__init__()
        self.setTitle("What is promised?")
        self._limit = limit
        self.editor = PolicyEditor(context.theme, self)
        box = QVBoxLayout(self)
        box.setContentsMargins(0, 0, 0, 0)
        box.addWidget(self.editor)
        self.editor.changed.connect(self.completeChanged)

    def initializePage(self) -> None:
        """Another target may start only shorter chains."""
        self.editor.show_limit(*self._limit())

    def isComplete(self) -> bool:
        """What is asked for can be kept."""
        return not self.editor.problem()

    def values(self) -> dict[str, Any]:
        """The fields of a ProtectRequest that are set here."""
        policy = self.editor.policy(Policy())
        return {
            **policy.retention.model_dump(),
            "rpo_target_s": policy.rpo_target_s,
            "at_times": policy.at_times,
            "bandwidth_bytes_s": policy.bandwidth_bytes_s,
            "bandwidth_windows": policy.bandwidth_windows,
            "streams": policy.streams,
            "priority": policy.priority,
            "quiesce": policy.quiesce.value,
            "start_guard": policy.start_guard.value,
        }


class CheckPage(FormPage):
    """Preflight: nothing is changed yet."""

    def __init__(self, context: Context, request: Ask) -> None:
        super().__init__("protect_check", "Can it work?")
        self._context, self._request = context, request
        self.checks = checks_of(self.form, context.theme)
        self.problem, self.retry = child(self.form, QLabel, "problem"), child(self.form, QPushButton, "retry")
        self.retry.clicked.connect(self._run)
        self._fine = False

    def initializePage(self) -> None:
        """Look again whenever the page is entered."""
        self._run()

    def isComplete(self) -> bool:
        """Nothing failed. A warning does not stop."""
        return self._fine

    def _run(self) -> None:
        self._fine = False
        self.checks.clear()
        self.retry.hide()
        self.problem.setText("")
        self.completeChanged.emit()
        request, backend = self._request(), self._context.backend
        self._context.bridge.ask_live(
            lambda on_check: backend.preflight(request, on_check),
            self,
            self.checks.show_check,
            self._show,
            self._failed,
        )

    def _show(self, checks: Sequence[Check]) -> None:
        for check in checks:
            self.checks.show_check(check)
        self._fine = not any(check.state == "failed" for check in checks)
        if not self._fine:
            self.problem.setText("<b>Mend what failed, then check again.</b>")
        self.retry.show()
        self.completeChanged.emit()

    def _failed(self, error: VaporError) -> None:
        self.problem.setText(sentence(error))
        self.retry.show()


def command_line(request: ProtectRequest, vm_names: Sequence[str], sites: Mapping[str, str]) -> str:
    """The vaporctl command that asks for the same."""
    parts = ["vaporctl", "protect", *vm_names, "--from", sites.get(request.source_site, request.source_site)]
    parts += ["--to", sites.get(request.target_site, request.target_site), "--rpo", f"{request.rpo_target_s}s"]
    for here, there in sorted(request.networks.items()):
        parts += ["--map", f"{here}={there}"]
    parts += ["--keep", str(request.newest), str(request.hourly), str(request.daily)]
    for at in request.at_times:
        parts += ["--at", at.isoformat("auto" if at.second else "minutes")]
    if request.bandwidth_bytes_s:
        parts += ["--limit", str(request.bandwidth_bytes_s)]
    for window in request.bandwidth_windows:
        hours = "-".join(at.isoformat("auto" if at.second else "minutes") for at in (window.start, window.end))
        parts += ["--window", f"{hours}={window.bandwidth_bytes_s or 'none'}"]
    if request.quiesce != Quiesce.TRY:
        parts += ["--quiesce", request.quiesce]
    if request.start_guard != StartGuard.HOLD:
        parts += ["--start-guard", request.start_guard]
    return shlex.join(parts)


class SummaryPage(FormPage):
    """Everything once more, and the equal command."""

    def __init__(self, request: Ask, vms: VmsPage, sites: Mapping[str, str]) -> None:
        super().__init__("protect_summary", "Protect")
        self._request, self._vms, self._sites = request, vms, sites
        self._text, self.command = child(self.form, QLabel, "summary"), child(self.form, QPlainTextEdit, "command")
        child(self.form, QPushButton, "copy").clicked.connect(
            lambda: QApplication.clipboard().setText(self.command.toPlainText())
        )

    def initializePage(self) -> None:
        """Write it out."""
        request, vms = self._request(), self._vms.chosen()
        names = [vm.name for vm in vms]
        total = sum(disk.size_bytes or 0 for vm in vms for disk in vm.disks if disk.kind in ("delta", "compare"))
        networks = ", ".join(f"{a} → {b}" for a, b in sorted(request.networks.items())) or "none"
        limit = words.rate(request.bandwidth_bytes_s) if request.bandwidth_bytes_s else "no limit"
        if request.bandwidth_windows:
            limit += f", other limits in {len(request.bandwidth_windows)} windows of the day"
        source, target = (self._sites.get(s, s) for s in (request.source_site, request.target_site))
        lines = {
            "Virtual machines": ", ".join(names),
            "From → to": f"{source} → {target}",
            "RPO target": words.duration(request.rpo_target_s),
            "Recovery points": f"at {times_text(request.at_times)} UTC" if request.at_times else "as often as needed",
            "Points kept": f"newest {request.newest}, hourly {request.hourly}, daily {request.daily}",
            "Networks": networks,
            "Transfer": f"{limit}; first copy of up to {words.size(total)}",
        }
        rows = "".join(
            f"<tr><td><b>{key}:</b>&nbsp;&nbsp;</td><td>{escape(text)}</td></tr>" for key, text in lines.items()
        )
        guard = (
            "While the other site cannot be asked after a reboot of a host, the start guard holds a protected VM "
            "back there, so that it never runs on both sides."
            if request.start_guard == StartGuard.HOLD
            else "<b>After a reboot of a host the VM is started there even while the other site cannot be asked: "
            "it may then run on both sides.</b>"
        )
        self._text.setText(f"<table cellspacing='6'>{rows}</table><p>{guard}</p>")
        self.command.setPlainText(command_line(request, names, self._sites))
