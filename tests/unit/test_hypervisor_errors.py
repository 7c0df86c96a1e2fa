"""libvirt's errors become ours by code. Real ones, from libvirt's own test driver where it can make them."""

from __future__ import annotations

import libvirt
import pytest

from vapor_desktop.hypervisor.connection import LibvirtHypervisor
from vapor_desktop.hypervisor.errors import translate
from vapor_desktop.model.errors import (
    CheckpointInconsistent,
    DomainBusy,
    DomainNotFound,
    HypervisorFailed,
    HypervisorUnreachable,
    NotAllowed,
    VaporError,
)

DRIVER = "test:///default"
KNOWN = "6695eb01-f6a4-8304-79aa-97f2502e193f"


def raised(code: int) -> libvirt.libvirtError:
    error = libvirt.libvirtError("made for a test")
    error.err = (code, 10, "the message may say anything", 2, None, None, None, -1, -1)
    return error


@pytest.mark.parametrize(
    ("code", "alive", "kind"),
    [
        (42, True, DomainNotFound),
        (68, True, DomainBusy),
        (109, True, CheckpointInconsistent),
        (38, False, HypervisorUnreachable),
        (1, False, HypervisorUnreachable),
        (39, False, HypervisorUnreachable),
        # on a dead connection "no such domain" proves nothing
        (42, False, HypervisorUnreachable),
        (38, True, HypervisorFailed),
        (1, True, HypervisorFailed),
        (55, True, HypervisorFailed),
        (45, False, NotAllowed),
        (88, True, NotAllowed),
    ],
)
def test_code_decides(code: int, alive: bool, kind: type[VaporError]) -> None:
    error = translate(raised(code), "It failed", alive=alive)
    assert type(error) is kind
    assert error.details == {"libvirt_code": code}
    assert error.what == "It failed"


def test_unknown_domain_is_not_found() -> None:
    hypervisor = LibvirtHypervisor(DRIVER)
    with pytest.raises(DomainNotFound):
        hypervisor.domain("00000000-0000-4000-8000-000000000000")
    hypervisor.close()


def test_nobody_listens() -> None:
    hypervisor = LibvirtHypervisor("qemu+unix:///system?socket=/nonexistent/libvirt-sock")
    with pytest.raises(HypervisorUnreachable) as caught:
        hypervisor.domains()
    assert caught.value.fix
    assert caught.value.details["libvirt_code"] == 38


def test_closed_connection_opens_again() -> None:
    hypervisor = LibvirtHypervisor(DRIVER)
    assert hypervisor.networks() == ["default"]
    hypervisor.close()
    assert hypervisor.networks() == ["default"]
    hypervisor.close()


def test_libvirt_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    hypervisor = LibvirtHypervisor(DRIVER)
    with pytest.raises(DomainNotFound):
        hypervisor.domain_xml("00000000-0000-4000-8000-000000000000")
    hypervisor.close()
    assert capfd.readouterr() == ("", "")


def test_foreign_checkpoints_are_refused_before_libvirt_is_asked() -> None:
    hypervisor = LibvirtHypervisor("qemu+unix:///system?socket=/nonexistent/libvirt-sock")
    with pytest.raises(NotAllowed):
        hypervisor.delete_checkpoint(KNOWN, "virtnbdbackup.0")
