"""What a drill asks of libvirt: networks of its own, addresses, a picture of the screen, a script in the guest."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any

import libvirt
import libvirt_qemu

from vapor_desktop.hypervisor.errors import code_of
from vapor_desktop.hypervisor.link import Link
from vapor_desktop.hypervisor.views import state_of
from vapor_desktop.model.domain_xml.drill import cards, gateway_of
from vapor_desktop.model.drills import Nic

_log = logging.getLogger(__name__)

AGENT_S = 5
_NO_NETWORK = libvirt.VIR_ERR_NO_NETWORK


class Bubbles:
    """Acts only when called to."""

    def __init__(self, link: Link, slow: Link) -> None:
        self._link = link
        self._slow = slow

    def create_network(self, name: str, xml: str) -> None:
        """A transient network: it is on, and gone with the host's power. One of that name is left as it is."""
        with self._link.call("The drill's network was not made") as conn:
            try:
                conn.networkLookupByName(name)
            except libvirt.libvirtError as error:
                if code_of(error) != _NO_NETWORK:
                    raise
                conn.networkCreateXML(xml)

    def destroy_network(self, name: str) -> None:
        """Idempotent."""
        with self._link.call("The drill's network was not removed") as conn:
            try:
                found = conn.networkLookupByName(name)
            except libvirt.libvirtError as error:
                if code_of(error) != _NO_NETWORK:
                    raise
                return
            if found.isActive():
                found.destroy()
            elif found.isPersistent():
                found.undefine()

    def network_xml(self, name: str) -> str:
        """libvirt's own word on an active network. Raises HypervisorFailed when there is none."""
        with self._link.call(f"There is no network {name}") as conn:
            return str(conn.networkLookupByName(name).XMLDesc(0))

    def all_networks(self) -> Sequence[str]:
        """Every network, off ones too."""
        with self._link.call("Could not list the networks") as conn:
            return sorted(net.name() for net in conn.listAllNetworks(0))

    def live_xml(self, vm_uuid: str) -> str:
        """The running configuration."""
        with self._link.domain(vm_uuid, "Could not read the VM") as dom:
            return str(dom.XMLDesc(0))

    def nics(self, vm_uuid: str) -> tuple[tuple[Nic, ...], dict[str, str]]:
        """(network cards with their last known IPv4 addresses, source network -> "gateway/prefix").

        From the leases of libvirt's networks; where these do not tell, from the guest's agent.
        """
        with self._slow.domain(vm_uuid, "Could not read the VM's addresses") as dom:
            found = cards(dom.XMLDesc(0))
            known: dict[str, str] = {}
            if dom.isActive():
                known = _leased(dom)
                if any(n.mac not in known for n in found) and state_of(dom)[0] == "running":
                    known = {**_told_by_agent(dom), **known}
        gateways = {}
        with self._link.call("Could not read the networks") as conn:
            networks = {net.name(): net for net in conn.listAllNetworks(0)}
            for source in {n.source for n in found} & set(networks):
                gateway = gateway_of(networks[source].XMLDesc(0))
                if gateway:
                    gateways[source] = gateway
                known = {**_leases(networks[source]), **known}
        return tuple(n.model_copy(update={"address": known.get(n.mac, "")}) for n in found), gateways

    def screenshot(self, vm_uuid: str) -> tuple[str, bytes]:
        """(media type, picture) of the first screen."""
        with self._slow.domain(vm_uuid, "The VM's screen could not be read") as dom:
            stream = dom.connect().newStream(0)
            kind = dom.screenshot(stream, 0, 0)
            parts: list[bytes] = []
            stream.recvAll(lambda _s, data, _o: parts.append(bytes(data)), None)
            stream.finish()
        return str(kind), b"".join(parts)

    def suspend(self, vm_uuid: str) -> None:
        """Stop its processors; one that is not running is left as it is."""
        with self._link.domain(vm_uuid, "The VM was not paused") as dom:
            if state_of(dom)[0] == "running":
                dom.suspend()

    def undefine_copy(self, vm_uuid: str) -> None:
        """Forget a drill's copy with its TPM's state and its varstore: nobody wants those back."""
        with self._link.domain(vm_uuid, "libvirt did not undefine the drill's VM") as dom:
            dom.undefineFlags(
                libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
                | libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
                | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
                | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
            )


def _leased(dom: Any) -> dict[str, str]:
    """MAC -> first IPv4 address that a libvirt network gave it; a network that cannot tell knows none."""
    try:
        found = dom.interfaceAddresses(libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_LEASE, 0) or {}
    except libvirt.libvirtError:
        if not dom.connect().isAlive():
            raise
        return {}
    known = {}
    for nic in found.values():
        first = next((a["addr"] for a in nic["addrs"] or () if a["type"] == libvirt.VIR_IP_ADDR_TYPE_IPV4), None)
        if nic["hwaddr"] and first:
            known[nic["hwaddr"].lower()] = str(first)
    return known


def _told_by_agent(dom: Any) -> dict[str, str]:
    """The same by the guest's agent. With a time-out of its own: a guest that a cycle has frozen does not answer."""
    asked = json.dumps({"execute": "guest-network-get-interfaces"})
    try:
        answer = json.loads(libvirt_qemu.qemuAgentCommand(dom, asked, AGENT_S, 0))
    except libvirt.libvirtError as error:
        if not dom.connect().isAlive():
            raise
        _log.debug("the agent of %s tells no addresses: %s", dom.name(), error)
        return {}
    known = {}
    for nic in answer.get("return", ()):
        addresses = nic.get("ip-addresses", ())
        first = next((a["ip-address"] for a in addresses if a["ip-address-type"] == "ipv4"), None)
        if nic.get("hardware-address") and first and nic.get("name") != "lo":
            known[nic["hardware-address"].lower()] = str(first)
    return known


def _leases(network: Any) -> dict[str, str]:
    try:
        found = network.DHCPLeases() if network.isActive() else []
    except libvirt.libvirtError:
        if not network.connect().isAlive():
            raise
        return {}
    return {
        item["mac"].lower(): str(item["ipaddr"]) for item in found if item.get("mac") and ":" not in item["ipaddr"]
    }
