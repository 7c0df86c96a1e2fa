"""Names and addresses of a lab."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from vapor_desktop.lab import guests
from vapor_desktop.lab.guests import GuestSpec, parse_spec
from vapor_desktop.lab.layout import DOCUMENTATION_RANGE, MAX_LABS, LabLayout, checked_name
from vapor_desktop.lab.processes import LabFailed
from vapor_desktop.model.errors import InvalidRequest


def test_all_labs_have_addresses_of_their_own() -> None:
    seen = set()
    for index in range(MAX_LABS):
        layout = LabLayout("lab", Path("/x"), index)
        addresses = {layout.console_address, *(site.address for site in layout.sites.values())}
        assert len(addresses) == 3
        assert not addresses & seen
        assert all(layout.host_address(number) in DOCUMENTATION_RANGE for number in range(16))
        seen |= addresses


def test_device_names_fit_the_kernel_and_differ_between_labs() -> None:
    names = set()
    for lab in ("lab", "a-very-long-name-of-a-lab", "tests"):
        layout = LabLayout(lab, Path("/x"))
        devices = {layout.bridge, *(site.port_device for site in layout.sites.values())}
        assert all(len(device) <= 15 for device in devices)
        assert not devices & names
        names |= devices


@pytest.mark.parametrize("name", ["", "Lab", "../x", "1lab", "a b", "x" * 25])
def test_names_that_would_break_paths_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequest):
        checked_name(name)


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("web", GuestSpec("web")),
        ("db:uefi:2", GuestSpec("db", "a", "uefi", 2)),
        ("far:bios:1:b", GuestSpec("far", "b", "bios", 1)),
    ],
)
def test_guest_specifications(text: str, spec: GuestSpec) -> None:
    assert parse_spec(text) == spec


@pytest.mark.parametrize("text", ["", "web:efi", "web:bios:x", "We/b"])
def test_bad_guest_specifications_are_refused(text: str) -> None:
    with pytest.raises(LabFailed):
        parse_spec(text)


def test_domain_has_the_spec_disks_network_and_firmware() -> None:
    spec = GuestSpec("db", firmware="uefi", disk_count=2, tpm=True)
    tree = ET.fromstring(guests.domain_xml(spec, "lan-a"))  # noqa: S314 - our own text
    assert [disk.get("file") for disk in tree.findall("devices/disk/source")] == spec.files
    assert [disk.get("dev") for disk in tree.findall("devices/disk/target")] == ["vda", "vdb"]
    source = tree.find("devices/interface/source")
    assert source is not None
    assert source.get("network") == "lan-a"
    assert tree.find("os/nvram") is not None
    assert tree.find("devices/tpm") is not None
    bios = ET.fromstring(guests.domain_xml(GuestSpec("web"), "lan-b"))  # noqa: S314
    assert bios.find("os/loader") is None
    assert bios.findtext("uuid") != tree.findtext("uuid")
