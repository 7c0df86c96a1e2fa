"""What a begin tells of its freeze, with libvirt's objects played: only an answered thaw is a thaw."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import libvirt
import pytest

from vapor_desktop.hypervisor.backup import BackupJobs
from vapor_desktop.hypervisor.checkpoints import Checkpoints
from vapor_desktop.hypervisor.errors import AGENT_UNRESPONSIVE, NO_DOMAIN_BACKUP, translate
from vapor_desktop.hypervisor.link import Link
from vapor_desktop.model.domains import GUEST_THAWED, BackupDisk
from vapor_desktop.model.errors import DomainBusy, VaporError

VM = "8f1d6f0e-2c0b-4f7a-9d52-0a3b6f1f2a11"
XML = f"""<domain type='qemu' id='1'><name>web</name><uuid>{VM}</uuid><memory>1</memory>
<os><type arch='x86_64' machine='q35'>hvm</type></os><devices>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/i/web.qcow2'/>
<target dev='vda' bus='virtio'/></disk>
<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0' state='connected'/></channel>
</devices></domain>"""
DISK = BackupDisk("vda", "/s/vda", None, True, "vda")


def refusal(code: int) -> libvirt.libvirtError:
    error = libvirt.libvirtError("refused")
    error.err = (code, 10, "refused", 2, "", "", "", 0, 0)
    return error


class Dom:
    """A running VM with an agent; ``thaw_fails``, ``begin_fails``: libvirt's code, 0 for none."""

    def __init__(
        self, *, freeze_fails: int = 0, begin_fails: int = 0, thaw_fails: int = 0, job: bool = False
    ) -> None:
        self.freeze_fails, self.begin_fails, self.thaw_fails, self.job = freeze_fails, begin_fails, thaw_fails, job
        self.frozen = 0

    def isActive(self) -> bool:
        return True

    def isAlive(self) -> bool:
        return True

    def connect(self) -> Dom:
        return self

    def name(self) -> str:
        return "web"

    def ID(self) -> int:
        return 1

    def listAllCheckpoints(self, _flags: int) -> list[Any]:
        return []

    def state(self, _flags: int = 0) -> tuple[int, int]:
        return libvirt.VIR_DOMAIN_RUNNING, 0

    def jobStats(self, _flags: int) -> dict[str, int]:
        if self.job:
            return {"type": 1, "operation": libvirt.VIR_DOMAIN_JOB_OPERATION_DUMP}
        return {"type": libvirt.VIR_DOMAIN_JOB_NONE}

    def blockJobInfo(self, _disk: str, _flags: int) -> dict[str, int]:
        return {}

    def XMLDesc(self, _flags: int) -> str:
        return XML

    def agentSetResponseTimeout(self, _seconds: int, _flags: int) -> None:
        return None

    def backupGetXMLDesc(self, _flags: int) -> str:
        raise refusal(NO_DOMAIN_BACKUP)

    def fsFreeze(self) -> int:
        self.frozen = 2  # also when it times out: it takes effect later
        if self.freeze_fails:
            raise refusal(self.freeze_fails)
        return 2

    def backupBegin(self, _job: str, _checkpoint: str | None, _flags: int) -> None:
        if self.begin_fails:
            raise refusal(self.begin_fails)

    def fsThaw(self) -> int:
        if self.thaw_fails:
            raise refusal(self.thaw_fails)
        was, self.frozen = self.frozen, 0
        return was


class OneVm:
    """A link whose only VM is that one."""

    def __init__(self, dom: Dom) -> None:
        self._dom = dom

    @contextmanager
    def domain(self, _vm_uuid: str, what: str) -> Iterator[Dom]:
        try:
            yield self._dom
        except libvirt.libvirtError as error:
            raise translate(error, what, alive=True) from error

    def version(self) -> int:
        return 9_000_000


def jobs(dom: Dom) -> BackupJobs:
    link = cast("Link", OneVm(dom))
    return BackupJobs(link, link, Checkpoints(link))


@pytest.mark.parametrize(
    ("dom", "frozen", "thawed"),
    [
        (Dom(), True, True),
        (Dom(thaw_fails=AGENT_UNRESPONSIVE), False, False),
        (Dom(freeze_fails=AGENT_UNRESPONSIVE), False, True),
        (Dom(freeze_fails=AGENT_UNRESPONSIVE, thaw_fails=AGENT_UNRESPONSIVE), False, False),
    ],
)
def test_a_job_says_whether_the_thaw_was_answered(dom: Dom, frozen: bool, thawed: bool) -> None:
    job = jobs(dom).begin(VM, [DISK], None, "vapor-1.sock", True)
    assert (job.frozen, job.thawed) == (frozen, thawed)
    assert job.thawed == (dom.frozen == 0)


def test_without_a_freeze_there_is_nothing_to_thaw() -> None:
    assert jobs(Dom(thaw_fails=1)).begin(VM, [DISK], None, "vapor-1.sock", False).thawed


@pytest.mark.parametrize("thaw_fails", [0, AGENT_UNRESPONSIVE])
def test_an_error_says_it_too(thaw_fails: int) -> None:
    dom = Dom(begin_fails=1, thaw_fails=thaw_fails)
    with pytest.raises(VaporError) as caught:
        jobs(dom).begin(VM, [DISK], None, "vapor-1.sock", True)
    assert caught.value.details[GUEST_THAWED] == (dom.frozen == 0) == (not thaw_fails)


def test_a_refusal_before_the_freeze_has_frozen_nothing() -> None:
    dom = Dom(job=True)
    with pytest.raises(DomainBusy) as caught:
        jobs(dom).begin(VM, [DISK], None, "vapor-1.sock", True)
    assert caught.value.details[GUEST_THAWED] is True
    assert dom.frozen == 0
