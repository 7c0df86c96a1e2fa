"""``LibvirtHypervisor``: one host's libvirt, as ``engine.ports.Hypervisor`` wants it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from vapor_desktop.hypervisor.backup import BackupJobs
from vapor_desktop.hypervisor.bubbles import Bubbles
from vapor_desktop.hypervisor.checkpoints import Checkpoints
from vapor_desktop.hypervisor.inventory import Inventory
from vapor_desktop.hypervisor.lifecycle import Lifecycle
from vapor_desktop.hypervisor.link import Link
from vapor_desktop.hypervisor.write_down import write_down
from vapor_desktop.model.domains import AgentRun, BackupDisk, BackupJob, DomainView
from vapor_desktop.model.drills import Nic


class LibvirtHypervisor:
    """One libvirt, by URI: ``qemu:///system`` on the host itself, ``qemu+ssh://…?command=…&proxy=native`` from afar.

    Connects on first use and again after a loss; two connections, so that a call waiting for a guest
    never holds up the others. Thread-safe. All calls block; all raise only errors of ``model.errors``.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._link = Link(uri)
        self._slow = Link(uri)
        self._inventory = Inventory(self._link)
        self._checkpoints = Checkpoints(self._link)
        self._jobs = BackupJobs(self._link, self._slow, self._checkpoints)
        self._lifecycle = Lifecycle(self._link, self._slow)
        self.bubbles = Bubbles(self._link, self._slow)

    # what is there
    def domains(self) -> Sequence[DomainView]:
        """All domains of the host."""
        return self._inventory.domains()

    def domain(self, vm_uuid: str) -> DomainView:
        """One domain, read afresh. Raises DomainNotFound."""
        return self._inventory.domain(vm_uuid)

    def domain_xml(self, vm_uuid: str, *, secure: bool = True) -> str:
        """The persistent configuration, with secrets when ``secure``."""
        return self._inventory.domain_xml(vm_uuid, secure=secure)

    def networks(self) -> Sequence[str]:
        """Names of the active libvirt networks."""
        return self._inventory.networks()

    def capabilities_xml(self) -> str:
        """The host's ``<capabilities>``."""
        return self._inventory.capabilities_xml()

    def domain_capabilities_xml(self, arch: str, machine: str | None, virt_type: str) -> str:
        """``<domainCapabilities>`` for that machine; HypervisorFailed when the host lacks it."""
        return self._inventory.domain_capabilities_xml(arch, machine, virt_type)

    def versions(self) -> tuple[str, str]:
        """(libvirt, QEMU) as "9.0.0"."""
        return self._link.versions()

    def disk_errors(self, vm_uuid: str) -> Mapping[str, str]:
        """Disks whose errors paused the VM: target → "no-space" | "unspecified"."""
        return self._inventory.disk_errors(vm_uuid)

    def nics(self, vm_uuid: str) -> tuple[tuple[Nic, ...], dict[str, str]]:
        """(network cards with their last known addresses, source network -> "gateway/prefix")."""
        return self.bubbles.nics(vm_uuid)

    # checkpoints
    def create_checkpoint(self, vm_uuid: str, name: str, disks: Sequence[str]) -> None:
        """Begin to note writes."""
        self._checkpoints.create(vm_uuid, name, disks)

    def checkpoints(self, vm_uuid: str) -> Sequence[str]:
        """Every checkpoint libvirt knows, others' too, ancestors first."""
        return self._checkpoints.names(vm_uuid)

    def checkpoint_valid(self, vm_uuid: str, name: str, disks: Sequence[str]) -> bool:
        """Whether the checkpoint's bitmap is whole on each of ``disks``. Running VMs only."""
        return self._checkpoints.valid(vm_uuid, name, disks)

    def delete_checkpoint(self, vm_uuid: str, name: str) -> None:
        """Bitmaps and metadata as one act. Idempotent. NotAllowed for names that are not ours."""
        self._checkpoints.delete(vm_uuid, name)

    def bitmaps_dirty(self, vm_uuid: str, checkpoint: str) -> int | None:
        """Dirty bytes since the checkpoint, None when it cannot be told."""
        return self._checkpoints.dirty_bytes(vm_uuid, checkpoint)

    # backup jobs
    def begin_backup(
        self, vm_uuid: str, disks: Sequence[BackupDisk], checkpoint: str | None, socket_name: str, freeze: bool
    ) -> BackupJob:
        """Freeze if asked, backupBegin(pull) for all disks at once, thaw (always)."""
        return self._jobs.begin(vm_uuid, disks, checkpoint, socket_name, freeze)

    def our_job(self, vm_uuid: str) -> str | None:
        """Socket path of our open job, else None."""
        return self._jobs.our_socket(vm_uuid)

    def foreign_job(self, vm_uuid: str) -> str | None:
        """A sentence naming another tool's job, else None."""
        return self._jobs.foreign(vm_uuid)

    def end_backup(self, vm_uuid: str, only: str | None = None) -> None:
        """Abort our job (whose socket is named ``only``, if given) and wait until it is gone. Idempotent."""
        self._jobs.end(vm_uuid, only)

    def thaw(self, vm_uuid: str) -> bool:
        """Thaw whatever is frozen; True if something was."""
        return self._jobs.thaw(vm_uuid)

    # life cycle
    def define(self, xml: str) -> None:
        """Define or redefine a VM."""
        self._lifecycle.define(xml)

    def undefine(self, vm_uuid: str) -> None:
        """Forget the definition and nothing else."""
        self._lifecycle.undefine(vm_uuid)

    def start(self, vm_uuid: str, *, paused: bool = False) -> None:
        """Start it. Raises StartFailed."""
        self._lifecycle.start(vm_uuid, paused=paused)

    def try_start(self, xml: str) -> str | None:
        """Start a throw-away VM and destroy it: libvirt's words when a hook refused it, None when it started."""
        return self._lifecycle.try_start(xml)

    def shut_down(self, vm_uuid: str, *, agent: bool) -> None:
        """Ask the guest to switch itself off."""
        self._lifecycle.shut_down(vm_uuid, agent=agent)

    def destroy(self, vm_uuid: str) -> None:
        """Cut its power."""
        self._lifecycle.destroy(vm_uuid)

    def resume(self, vm_uuid: str) -> None:
        """Let a paused VM run."""
        self._lifecycle.resume(vm_uuid)

    def write_down(self, vm_uuid: str, disk: str, foot: str, cancelled: Callable[[], bool]) -> None:
        """A running VM's overlay down into ``foot``, a file of its chain, which it then runs on."""
        write_down(self._slow, vm_uuid, disk, foot, cancelled)

    def set_autostart(self, vm_uuid: str, on: bool) -> None:
        """Start it with the host, or not."""
        self._lifecycle.set_autostart(vm_uuid, on)

    def agent_ping(self, vm_uuid: str) -> bool:
        """Whether the guest agent answers."""
        return self._lifecycle.agent_ping(vm_uuid)

    def agent_run(self, vm_uuid: str, script: str, timeout_s: float) -> AgentRun:
        """Run a shell script in the guest by its agent."""
        return self._lifecycle.agent_run(vm_uuid, script, timeout_s)

    def agent_addresses(self, vm_uuid: str) -> Mapping[str, Sequence[str]]:
        """MAC -> addresses with their prefix, as the guest's agent tells."""
        return self._lifecycle.agent_addresses(vm_uuid)

    def close(self) -> None:
        """Close both connections; the next call opens them again."""
        self._link.close()
        self._slow.close()
