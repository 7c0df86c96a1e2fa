"""*Edit protection…*: the settings as the target has them now, changed and written back on their version."""

from __future__ import annotations

from html import escape

from PySide6.QtWidgets import QDialog, QLabel, QPushButton, QTableWidget, QTabWidget, QVBoxLayout, QWidget

from vapor_desktop.gui.context import Context
from vapor_desktop.gui.error_box import sentence
from vapor_desktop.gui.forms import child, load_form
from vapor_desktop.gui.network_map import NetworkMap
from vapor_desktop.gui.policy_editor import PolicyEditor
from vapor_desktop.model.errors import EditOutdated, VaporError
from vapor_desktop.model.states import Severity
from vapor_desktop.model.view import ProtectionSettings, SettingsEdit


class EditDialog(QDialog):
    """Stays open until the settings are written: what a refusal says must not cost what was typed."""

    def __init__(self, context: Context, protection_id: str, vm_name: str, parent: QWidget) -> None:
        super().__init__(parent)
        self._context, self._key, self._vm_name = context, protection_id, vm_name
        self.settings: ProtectionSettings | None = None
        self._busy = False
        self.setWindowTitle(f"Edit protection of {vm_name}")
        form = load_form("edit_protection", self)
        box = QVBoxLayout(self)
        box.addWidget(form)
        self._headline, self.state = child(form, QLabel, "headline"), child(form, QLabel, "state")
        self.tabs = child(form, QTabWidget, "tabs")
        self.save, self.again = child(form, QPushButton, "save"), child(form, QPushButton, "again")
        self.editor = PolicyEditor(context.theme, self)
        page = child(form, QWidget, "policypage").layout()
        if page is None:
            raise LookupError("Form 'edit_protection' has no layout in its policy page")
        page.setContentsMargins(0, 6, 0, 0)
        page.addWidget(self.editor)
        self.networks = NetworkMap(child(form, QTableWidget, "networks"))
        self._intro, self._none = child(form, QLabel, "intro"), child(form, QLabel, "nonetwork")
        self.editor.changed.connect(self._judge)
        self.networks.changed.connect(self._judge)
        self.save.clicked.connect(self._save)
        self.again.clicked.connect(self._read)
        child(form, QPushButton, "cancel").clicked.connect(self.reject)
        self.save.setDefault(True)
        self.resize(760, 640)
        self._read()

    # --- reading ------------------------------------------------------------------------------------
    def _read(self) -> None:
        self.settings = None
        self._headline.setText(f"<h3>What is promised for {escape(self._vm_name)}</h3>")
        self.tabs.setEnabled(False)
        self.again.hide()
        self.state.setText("Reading the settings at the target…")
        self._judge()
        backend = self._context.backend
        self._context.bridge.ask(lambda: backend.settings(self._key), self, self._show, self._unread)

    def _unread(self, error: VaporError) -> None:
        self.state.setText(f"The settings cannot be read. {sentence(error)}")
        self.again.show()

    def _show(self, settings: ProtectionSettings) -> None:
        self.settings = settings
        self.tabs.setEnabled(True)
        self.editor.show_limit(settings.chain_limit, settings.target_name)
        self.editor.show_policy(settings.policy)
        mapped = settings.mappings.networks
        self.networks.show_networks(sorted(settings.source_networks), settings.target_networks, mapped)
        self._intro.setVisible(bool(settings.source_networks))
        self._none.setVisible(not settings.source_networks)
        self._judge()

    # --- deciding -----------------------------------------------------------------------------------
    def edit(self) -> SettingsEdit | None:
        """What the form says now; None while nothing is read, or something is wrong."""
        settings = self.settings
        if settings is None or self.editor.problem():
            return None
        mappings = settings.mappings.model_copy(update={"networks": self.networks.mapping()})
        return SettingsEdit(settings.version, self.editor.policy(settings.policy), mappings)

    def _judge(self) -> None:
        settings, edit, problem = self.settings, self.edit(), self.editor.problem()
        same = settings is None or edit == SettingsEdit(settings.version, settings.policy, settings.mappings)
        self.save.setEnabled(edit is not None and not same and not self._busy)
        if settings is None or self._busy:
            return
        if problem:
            self.state.setText(self._coloured("The policy cannot be kept as it is; it says why.", Severity.CRITICAL))
        elif not self.networks.complete():
            text = "A network has no counterpart: a failover would look for one of the same name at the target"
            self.state.setText(self._coloured(f"{text}.", Severity.WARNING))
        elif same:
            self.state.setText(f"Version {settings.version}, as {escape(settings.target_name)} has it.")
        else:
            self.state.setText("A running cycle is stopped for the change and goes on under the new settings.")

    def _coloured(self, text: str, severity: Severity) -> str:
        return f"<span style='color:{self._context.theme.colours.severity[severity]}'>{escape(text)}</span>"

    # --- writing ------------------------------------------------------------------------------------
    def _save(self) -> None:
        edit, backend = self.edit(), self._context.backend
        if edit is None:
            return
        self._busy = True
        self.tabs.setEnabled(False)
        self.again.hide()
        self._judge()
        self.state.setText("Writing them at the target…")
        self._context.bridge.ask(lambda: backend.edit(self._key, edit), self, self._saved, self._refused)

    def _saved(self, _protection: object) -> None:
        self._context.bridge.refresh()
        self.accept()

    def _refused(self, error: VaporError) -> None:
        self._busy = False
        self.tabs.setEnabled(True)
        self._judge()
        self.state.setText(f"Nothing was changed. {sentence(error)}")
        self.again.setVisible(isinstance(error, EditOutdated))
        if isinstance(error, EditOutdated):
            self.save.setEnabled(False)
