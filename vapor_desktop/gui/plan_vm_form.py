"""What a recovery plan says of one VM: checks, delay, networks and address at the target."""

from __future__ import annotations

from PySide6.QtCore import Signal
from PySide6.QtWidgets import (
    QCheckBox,
    QDoubleSpinBox,
    QFormLayout,
    QLabel,
    QLineEdit,
    QTableWidget,
    QVBoxLayout,
    QWidget,
)

from vapor_desktop.gui.context import Context
from vapor_desktop.gui.network_map import NetworkMap
from vapor_desktop.model.errors import InvalidRequest, VaporError
from vapor_desktop.model.plans import CHECK_TIMEOUT_S, CheckKind, PlanVm, WaitFor
from vapor_desktop.model.view import ProtectionSettings


class PlanVmForm(QWidget):
    """Signals:
    changed: something was typed or chosen.
    """

    changed = Signal()

    def __init__(self, context: Context, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._context = context
        self._vm: PlanVm | None = None
        self._mapped: dict[str, str] = {}  # as the protection maps them
        self._shown = ""
        self.running, self.agent = QCheckBox("its guest &runs", self), QCheckBox("its guest &agent answers", self)
        self.ports, self.timeout = QLineEdit(self), _seconds(self, "Longest wait for each check", CHECK_TIMEOUT_S)
        self.delay = _seconds(self, "Delay after it", 0)
        self.address, self.gateway, self.dns = QLineEdit(self), QLineEdit(self), QLineEdit(self)
        self.state = QLabel(self)
        self.networks = NetworkMap(QTableWidget(self))
        self._lay_out()

    def _lay_out(self) -> None:
        self.ports.setPlaceholderText("for example 443, 5432")
        self.ports.setAccessibleName("TCP ports that must take a connection")
        self.address.setPlaceholderText("as 198.51.100.7/24; empty: as it is")
        self.address.setAccessibleName("Address at the target")
        self.gateway.setAccessibleName("Gateway at the target")
        self.dns.setAccessibleName("DNS servers at the target")
        self.address.setToolTip("Set inside the guest by its agent (Linux) after it runs")
        self.state.setWordWrap(True)
        self.networks.table.setMaximumHeight(130)
        form = QFormLayout()
        form.addRow("Wait until", self.running)
        form.addRow("", self.agent)
        form.addRow("TCP &ports open:", self.ports)
        form.addRow("&Longest wait:", self.timeout)
        form.addRow("&Delay after it:", self.delay)
        form.addRow("A&ddress there:", self.address)
        form.addRow("&Gateway there:", self.gateway)
        form.addRow("D&NS there:", self.dns)
        box = QVBoxLayout(self)
        box.setContentsMargins(0, 0, 0, 0)
        box.addLayout(form)
        box.addWidget(self.state)
        box.addWidget(self.networks.table)
        box.addStretch(1)
        for line in (self.ports, self.address, self.gateway, self.dns):
            line.textEdited.connect(lambda _t: self.changed.emit())
        for tick in (self.running, self.agent):
            tick.clicked.connect(lambda _on: self.changed.emit())
        for spin in (self.timeout, self.delay):
            spin.valueChanged.connect(lambda _v: self.changed.emit())
        self.networks.changed.connect(self.changed)

    def show_vm(self, vm: PlanVm, protection_id: str) -> None:
        """Its settings; the networks follow when the target has told them."""
        self.blockSignals(True)
        self._vm, self._shown, self._mapped = vm, protection_id, {}
        kinds = {c.kind for c in vm.checks}
        self.running.setChecked(CheckKind.RUNNING in kinds)
        self.agent.setChecked(CheckKind.AGENT in kinds)
        self.ports.setText(", ".join(str(c.port) for c in vm.checks if c.port is not None))
        self.timeout.setValue(max((c.timeout_s for c in vm.checks), default=CHECK_TIMEOUT_S))
        self.delay.setValue(vm.delay_s)
        first = vm.addresses[0] if vm.addresses else None
        self.address.setText(first.address if first else "")
        self.gateway.setText(first.gateway if first else "")
        self.dns.setText(" ".join(first.dns) if first else "")
        self.networks.clear()
        self.blockSignals(False)
        self.state.setText("Reading the networks at the target…")
        backend = self._context.backend
        self._context.bridge.ask(lambda: backend.settings(protection_id), self, self._networks_read, self._unread)

    def _networks_read(self, settings: ProtectionSettings) -> None:
        if settings.protection_id != self._shown or self._vm is None:
            return
        self._mapped = dict(settings.mappings.networks)
        wanted = {**self._mapped, **self._vm.networks}
        self.state.setText(f"Its networks at {settings.target_name}, for this plan:")
        self.networks.show_networks(settings.source_networks, settings.target_networks, wanted)

    def _unread(self, error: VaporError) -> None:
        self.state.setText(f"The networks at the target cannot be read; they stay as they are. {error}")

    def vm(self) -> PlanVm:
        """As the form has it now. Raises InvalidRequest naming what does not fit."""
        old = self._vm
        if old is None:
            raise InvalidRequest("No VM is chosen")
        networks = old.networks
        if self.networks.choices:
            networks = {k: v for k, v in self.networks.mapping().items() if self._mapped.get(k) != v}
        raw = {**old.model_dump(mode="json"), "delay_s": self.delay.value(), "networks": networks}
        raw["checks"] = [c.model_dump(mode="json") for c in self._checks(old)]
        rest = raw["addresses"][1:]
        raw["addresses"] = [*self._address(raw["addresses"][:1]), *rest]
        try:
            return PlanVm.model_validate(raw, strict=False)
        except ValueError as error:
            raise InvalidRequest(f"{old.name}: {_first(error)}") from error

    def _checks(self, old: PlanVm) -> list[WaitFor]:
        timeout = self.timeout.value()
        found = [WaitFor(kind=CheckKind.RUNNING, timeout_s=timeout)] if self.running.isChecked() else []
        found += [WaitFor(kind=CheckKind.AGENT, timeout_s=timeout)] if self.agent.isChecked() else []
        addresses = {c.port: c.address for c in old.checks if c.port is not None}
        for word in self.ports.text().replace(",", " ").split():
            if not word.isdigit() or not 1 <= int(word) <= 65535:
                raise InvalidRequest(f"{old.name}: “{word}” is no port")
            port = int(word)
            address = addresses.get(port, "")
            found.append(WaitFor(kind=CheckKind.TCP, port=port, address=address, timeout_s=timeout))
        return found

    def _address(self, old: list[dict[str, object]]) -> list[dict[str, object]]:
        text = self.address.text().strip()
        if not text:
            return []
        mac = old[0]["mac"] if old else ""
        gateway, dns = self.gateway.text().strip(), self.dns.text().replace(",", " ").split()
        return [{"mac": mac, "address": text, "gateway": gateway, "dns": dns}]


def _seconds(parent: QWidget, name: str, value: float) -> QDoubleSpinBox:
    spin = QDoubleSpinBox(parent)
    spin.setRange(0, 86400)
    spin.setDecimals(0)
    spin.setSuffix(" s")
    spin.setValue(value)
    spin.setMaximumWidth(130)
    spin.setAccessibleName(name)
    return spin


def _first(error: ValueError) -> str:
    told = getattr(error, "errors", None)
    if told is None:
        return str(error)
    return str(told(include_input=False, include_url=False)[0]["msg"])
