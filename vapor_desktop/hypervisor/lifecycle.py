"""Define, start, resume, undefine: what a failover does to a host."""

from __future__ import annotations

import libvirt

from vapor_desktop.hypervisor.agent import addresses, ping, run_script
from vapor_desktop.hypervisor.link import Link
from vapor_desktop.hypervisor.views import state_of
from vapor_desktop.model.domains import AgentRun
from vapor_desktop.model.errors import HypervisorFailed, StartFailed

KEEP_TPM, KEEP_TPM_SINCE = 1 << 5, 8_009_000


class Lifecycle:
    """Acts on a VM only when called to."""

    def __init__(self, link: Link, slow: Link) -> None:
        self._link = link
        self._slow = slow

    def define(self, xml: str) -> None:
        """Define or redefine, checked against libvirt's schema."""
        with self._link.call("libvirt did not accept the VM's configuration") as conn:
            conn.defineXMLFlags(xml, libvirt.VIR_DOMAIN_DEFINE_VALIDATE)

    def undefine(self, vm_uuid: str) -> None:
        """Forget the definition; NVRAM, TPM state, disks and a saved memory stay where they are.

        Refused by libvirt while a managed save exists: that file is not ours to lose.
        """
        flags = (
            libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM
            | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
            | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
        )
        with self._link.domain(vm_uuid, "libvirt did not undefine the VM") as dom:
            dom.undefineFlags(flags | (KEEP_TPM if self._link.version() >= KEEP_TPM_SINCE else 0))

    def start(self, vm_uuid: str, *, paused: bool = False) -> None:
        """Start it; a VM that is on already is left as it is. Raises StartFailed."""
        try:
            with self._slow.domain(vm_uuid, "The VM did not start") as dom:
                if not dom.isActive():
                    dom.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED if paused else 0)
                elif paused and state_of(dom)[0] != "paused":
                    raise StartFailed("The VM was to start paused, and it runs already")
        except HypervisorFailed as error:
            raise StartFailed(error.what, why=error.why, **error.details) from error

    def try_start(self, xml: str) -> str | None:
        """Start a VM that is defined nowhere, paused, and destroy it at once.

        Returns libvirt's words when a hook refused it, None when it did start. Raises HypervisorFailed otherwise.
        """
        flags = libvirt.VIR_DOMAIN_START_PAUSED | libvirt.VIR_DOMAIN_START_AUTODESTROY
        try:
            with self._slow.call("The throw-away VM did not start") as conn:
                conn.createXML(xml, flags).destroy()
        except HypervisorFailed as error:
            if error.details.get("libvirt_code") == libvirt.VIR_ERR_HOOK_SCRIPT_FAILED:
                return error.why
            raise
        return None

    def resume(self, vm_uuid: str) -> None:
        """Let a paused VM run; one that runs is left as it is."""
        with self._link.domain(vm_uuid, "The VM did not resume") as dom:
            if state_of(dom)[0] != "running":
                dom.resume()

    def shut_down(self, vm_uuid: str, *, agent: bool) -> None:
        """Ask the guest to switch itself off; one that is off already is left as it is.

        ``agent``: through qemu-ga, else by the ACPI button, which a guest may ignore.
        """
        flags = libvirt.VIR_DOMAIN_SHUTDOWN_GUEST_AGENT if agent else libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN
        with self._slow.domain(vm_uuid, "The guest could not be asked to shut down") as dom:
            if dom.isActive():
                dom.shutdownFlags(flags)

    def destroy(self, vm_uuid: str) -> None:
        """Cut its power; one that is off already is left as it is."""
        with self._slow.domain(vm_uuid, "The VM could not be switched off") as dom:
            if dom.isActive():
                dom.destroy()

    def set_autostart(self, vm_uuid: str, on: bool) -> None:
        """Start it with the host, or not."""
        with self._link.domain(vm_uuid, "The VM's autostart was not changed") as dom:
            dom.setAutostart(int(on))

    def agent_ping(self, vm_uuid: str) -> bool:
        """Whether the guest agent answers; False also for a VM that is off."""
        with self._slow.domain(vm_uuid, "The guest agent could not be asked") as dom:
            return state_of(dom)[0] == "running" and ping(dom)

    def agent_run(self, vm_uuid: str, script: str, timeout_s: float) -> AgentRun:
        """Run a shell script in the guest."""
        with self._slow.domain(vm_uuid, "The guest agent did not run the script") as dom:
            return run_script(dom, script, timeout_s)

    def agent_addresses(self, vm_uuid: str) -> dict[str, tuple[str, ...]]:
        """MAC -> addresses with their prefix, as the guest's agent tells."""
        with self._slow.domain(vm_uuid, "The guest agent was not asked for addresses") as dom:
            return addresses(dom) if state_of(dom)[0] == "running" and ping(dom) else {}
