"""*Protect…*: which VMs, to where, with what promise; checks first; many VMs in one go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QWidget, QWizard

from vapor_desktop.gui.context import Context
from vapor_desktop.gui.preferences import Preferences
from vapor_desktop.gui.protect_choose import TargetPage, VmsPage
from vapor_desktop.gui.protect_promise import CheckPage, PolicyPage, SummaryPage
from vapor_desktop.model import retention
from vapor_desktop.model.policy import Policy
from vapor_desktop.model.view import ProtectRequest, SiteStatus, VmStatus

Pairs = tuple[tuple[str, str, str], ...]


class ProtectWizard(QWizard):
    """Five pages; *Protect* starts an errand and closes at once."""

    def __init__(
        self,
        context: Context,
        sites: Sequence[SiteStatus],
        pairs: Pairs,
        chosen: Sequence[VmStatus],
        covered: frozenset[str],
        parent: QWidget,
    ) -> None:
        """``covered``: UUIDs of the VMs that are protected already."""
        super().__init__(parent)
        self._context = context
        self.setWindowTitle("Protect virtual machines")
        self.setWizardStyle(QWizard.WizardStyle.ClassicStyle)
        self.setTitleFormat(Qt.TextFormat.RichText)
        self.names = {s.site.site_id: s.site.name for s in sites}
        self.vms = VmsPage(context, sites, chosen, covered)
        self.target = TargetPage(context, sites, pairs, self.vms)
        self._sites = {s.site.site_id: s for s in sites}
        self.policy = PolicyPage(context, self._target_limit)
        self.policy.editor.rpo.set_seconds(Preferences(context.memory).get("default_rpo_s"))
        self.check = CheckPage(context, self.request)
        self.summary = SummaryPage(self.request, self.vms, self.names)
        for page in (self.vms, self.target, self.policy, self.check, self.summary):
            page.setTitle(f"<h3>{page.title()}</h3>")
            self.addPage(page)
        self.setButtonText(QWizard.WizardButton.FinishButton, "&Protect")
        self.resize(780, 600)

    def request(self) -> ProtectRequest:
        """What is asked for, as far as it is known."""
        base = ProtectRequest(
            vm_uuids=tuple(vm.vm_uuid for vm in self.vms.chosen()),
            source_site=self.vms.source(),
            target_site=self.target.target(),
            rpo_target_s=Policy().rpo_target_s,
            networks=self.target.mapping(),
        )
        return replace(base, **self.policy.values())

    def _target_limit(self) -> tuple[int, str]:
        status = self._sites.get(self.target.target())
        version = status.libvirt_version if status else None
        return retention.chain_limit_of(version), status.site.name if status else "the target"

    def accept(self) -> None:
        """Start it and close."""
        request, backend = self.request(), self._context.backend
        names = ", ".join(vm.name for vm in self.vms.chosen())
        title = f"Protect {names} at {self.names.get(request.target_site, '?')}"
        self._context.errands.run(title if len(title) < 80 else title[:79] + "…", lambda: backend.protect(request))
        super().accept()

    def keyPressEvent(self, event: object) -> None:
        """Enter in a table does not finish the wizard."""
        key = getattr(event, "key", lambda: None)()
        if key not in (Qt.Key.Key_Return, Qt.Key.Key_Enter) or self.focusWidget() in self.buttons():
            super().keyPressEvent(event)  # type: ignore[arg-type]

    def buttons(self) -> list[QWidget]:
        """The wizard's own buttons."""
        kinds = QWizard.WizardButton
        which = (kinds.NextButton, kinds.BackButton, kinds.FinishButton, kinds.CancelButton)
        return [self.button(kind) for kind in which]
