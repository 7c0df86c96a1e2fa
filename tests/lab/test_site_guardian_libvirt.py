"""The guardian against a real libvirtd and real backup jobs: it ends ours, in time, and nobody else's."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from private_libvirt import Host, domain_xml, private_host, wait_for

from vapor_desktop.hypervisor.connection import LibvirtHypervisor
from vapor_desktop.model.domains import BackupDisk
from vapor_desktop.model.wire import WatchJob
from vapor_desktop.site.guardian import Guardian, free_bytes
from vapor_desktop.site.settings import AlarmTargets
from vapor_desktop.site.site_events import EventLog
from vapor_desktop.site.watches import Watches

pytestmark = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces")]

MIB = 1 << 20


class Rig:
    """A guest with a written disk, scratch on a small file system of its own, and a running guardian."""

    def __init__(self, host: Host, hypervisor: LibvirtHypervisor, state: Path) -> None:
        self.host, self.hypervisor = host, hypervisor
        self.vm = str(uuid.uuid4())
        self.name = f"vm-{self.vm[:8]}"
        self.inside = f"/var/lib/libvirt/images/scratch-{self.vm[:8]}"
        host.run("mkdir", self.inside)
        host.run("mount", "-t", "tmpfs", "-o", "size=64M,mode=777", "tmpfs", self.inside)
        self.scratch = Path(f"/proc/{host.init_pid}/root{self.inside}")
        hypervisor.define(domain_xml(self.name, {"vda": (host.disk(f"{self.vm}.qcow2"), "qcow2")}, vm_uuid=self.vm))
        hypervisor.start(self.vm)
        host.write(self.name, 0, 7, "0", "48M")
        self.events = EventLog(state / "events", AlarmTargets(), "test")
        self.watches = Watches(state / "watches")
        self.guardian = Guardian(self.watches, hypervisor, self.events)
        self.guardian.start()

    def begin(self, socket: str) -> None:
        disk = BackupDisk("vda", f"{self.inside}/{uuid.uuid4()}", None, True, "vda")
        self.hypervisor.begin_backup(self.vm, [disk], f"vapor-{uuid.uuid4()}", socket, False)

    def watch(self, ttl_s: float, reserve_bytes: int) -> None:
        watch = WatchJob(holder="engine", ttl_s=ttl_s, scratch_dir=str(self.scratch), reserve_bytes=reserve_bytes)
        self.guardian.watch_job(self.vm, watch)

    def what(self) -> list[str]:
        return [item.what for item in self.events.since(None)]

    def remove(self) -> None:
        self.guardian.stop()
        self.host.run("virsh", "destroy", self.name)
        self.hypervisor.undefine(self.vm)
        self.host.run("umount", self.inside)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with private_host(tmp_path_factory.mktemp("host")) as made:
        yield made


@pytest.fixture
def rig(host: Host, tmp_path: Path) -> Iterator[Rig]:
    hypervisor = LibvirtHypervisor(host.uri)
    made = Rig(host, hypervisor, tmp_path)
    yield made
    made.remove()
    hypervisor.close()


def test_a_job_that_nobody_renews_is_ended(rig: Rig) -> None:
    rig.watch(ttl_s=1, reserve_bytes=0)
    rig.begin("vapor-lapse.sock")
    wait_for(lambda: rig.hypervisor.our_job(rig.vm) is None, "the guardian ends the lapsed job", 15)
    wait_for(lambda: rig.what() == ["job-ended"], "the event", 5)
    assert "did not renew" in rig.events.since(None)[0].why
    wait_for(lambda: list(rig.scratch.iterdir()) == [], "libvirt deletes the scratch, a moment later", 10)
    assert rig.hypervisor.domain(rig.vm).state == "running"


def test_filling_scratch_ends_the_job_and_gives_the_space_back(rig: Rig) -> None:
    rig.watch(ttl_s=600, reserve_bytes=32 * MIB)
    rig.begin("vapor-full.sock")
    assert free_bytes(rig.scratch) > 32 * MIB
    rig.host.write(rig.name, 0, 8, "0", "40M")  # 40 MiB of old content go to the scratch
    wait_for(lambda: rig.hypervisor.our_job(rig.vm) is None, "the guardian ends the job", 15)
    wait_for(lambda: rig.what() == ["job-ended"], "the event", 5)
    assert "its reserve is" in rig.events.since(None)[0].why
    wait_for(lambda: free_bytes(rig.scratch) > 60 * MIB, "libvirt gives the space back, a moment later", 10)
    assert rig.hypervisor.domain(rig.vm).state == "running"


def test_another_tools_job_is_left_alone(rig: Rig) -> None:
    """Its socket is not named vapor-…: the watch lapses and the job goes on."""
    directory = f"/var/lib/libvirt/qemu/{_domain_dir(rig)}"
    xml = (
        f"<domainbackup mode='pull'><server transport='unix' socket='{directory}/other.sock'/>"
        f"<disks><disk name='vda' backup='yes' type='file'><scratch file='{rig.inside}/other'/></disk></disks>"
        "</domainbackup>"
    )
    rig.host.outside("/var/lib/libvirt/other.xml").write_text(xml)
    rig.host.run("virsh", "backup-begin", rig.name, "/var/lib/libvirt/other.xml")
    rig.watch(ttl_s=0.5, reserve_bytes=0)
    wait_for(lambda: rig.watches.all() == {}, "the watch lapses", 15)
    assert rig.hypervisor.foreign_job(rig.vm) is not None
    assert rig.what() == []


def _domain_dir(rig: Rig) -> str:
    live = rig.hypervisor.domain(rig.vm).live_id
    return f"domain-{live}-{rig.name[:20]}"
