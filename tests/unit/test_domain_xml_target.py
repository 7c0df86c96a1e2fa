"""XML in, XML out: the target's domain of realistic sources, compared as whole documents."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from lxml import etree

from vapor_desktop.model.domain_xml.mark import Mark, read_mark
from vapor_desktop.model.domain_xml.parse import parse_domain
from vapor_desktop.model.domain_xml.target import build_target
from vapor_desktop.model.errors import InvalidRequest, NotReplicable

DATA = Path(__file__).parent / "domain_xml"
RUN = "/var/lib/libvirt/images/vapor/run/2"
CASES: dict[str, dict[str, Any]] = {
    "bios": {
        "disks": {"vda": f"{RUN}/web01-vda.qcow2"},
        "networks": {},
        "nvram": None,
        "kvm": False,
        "fresh_genid": False,
    },
    "uefi-tpm": {
        "disks": {"sda": f"{RUN}/dc01-sda.qcow2", "sdb": f"{RUN}/dc01-sdb.qcow2"},
        "networks": {"br-lan": "lan", "storage": "storage"},
        "nvram": f"{RUN}/dc01_VARS.fd",
        "kvm": True,
        "fresh_genid": True,
        "mark": Mark("p-17", 2, 41),
    },
    "hardware": {
        "disks": {"vda": f"{RUN}/router-vda.qcow2"},
        "networks": {"ovs0": "lan", "eno1": "wan"},
        "nvram": f"{RUN}/drill_VARS.fd",
        "kvm": False,
        "fresh_genid": True,
        "keep_uuid": False,
        "new_uuid": "11111111-2222-4333-8444-555555555555",
        "new_name": "drill-router",
        "loader": "/usr/share/OVMF/OVMF_CODE_4M.fd",
    },
}
NOTES = {
    "bios": {
        "CPU pinning was removed: the target's processors are numbered differently",
        "CPU tuning that names the source's processors was removed",
        "The medium in hda was ejected",
        "Its VNC screen takes a free port instead of 5907",
        "The target has no KVM: the VM is emulated, which is many times slower",
    },
    "uefi-tpm": {
        "Its fixed security label was removed: the target's default applies",
        "Huge pages were removed: the target may have none reserved",
        "Disk sdc is not part of the recovery point and was left out",
        "The network card 52:54:00:aa:bb:01 is connected to lan instead of br-lan",
        "The traffic filter storage-only was removed: it is defined on the source host only",
    },
    "hardware": {
        "NUMA placement was removed: it names the source's nodes",
        "Extra QEMU arguments were removed: they may name things of the source host",
        "Its firmware is /usr/share/OVMF/OVMF_CODE_4M.fd at the target",
        "The network card 52:54:00:cc:00:01 is hardware of the source host (hostdev) and was left out;"
        " map it to a network",
        "The network card 52:54:00:cc:00:02 is connected to lan instead of ovs0",
        "The network card 52:54:00:cc:00:03 is connected to wan instead of eno1",
        "A passed-through host device was left out",
        "A directory shared from the host was left out",
        "A shared memory device was left out",
        "The host's TPM was left out: secrets sealed in it cannot move",
        "A serial port of type tcp is a pseudo-terminal at the target",
        "The target has no KVM: the VM is emulated, which is many times slower",
    },
}


def source(name: str) -> str:
    return (DATA / f"{name}.xml").read_text()


@pytest.mark.parametrize("name", CASES)
def test_target_document(name: str) -> None:
    built = build_target(source(name), **CASES[name])
    expected = DATA / f"{name}.target.xml"
    if os.environ.get("VAPOR_WRITE_EXPECTED"):
        expected.write_text(built.xml)
    assert built.xml == expected.read_text()
    assert set(built.notes) == NOTES[name]


@pytest.mark.parametrize("name", CASES)
def test_building_twice_changes_nothing_more(name: str) -> None:
    """A target's XML becomes a source's after a failover."""
    once = build_target(source(name), **CASES[name])
    again = build_target(once.xml, **CASES[name])
    assert again.xml == once.xml


def test_identity_and_addresses_stay() -> None:
    before, after = (
        etree.fromstring(source("bios")),
        etree.fromstring(build_target(source("bios"), **CASES["bios"]).xml),
    )
    for path in ("./name", "./uuid", "./title", "./os/type", "./devices/disk/serial"):
        assert [n.text for n in after.findall(path)] == [n.text for n in before.findall(path)]
    for path in ("./devices/interface/mac", "./devices/disk/address", "./devices/interface/address", "./os/type"):
        assert [dict(n.attrib) for n in after.findall(path)] == [dict(n.attrib) for n in before.findall(path)]
    assert "libosinfo.org" in etree.tostring(after).decode()


def test_nothing_names_the_source_host() -> None:
    words = (
        "/dev/vg0",
        "dc01-data",
        "pagefile",
        "br-lan",
        "hugepages",
        "web01-snap",
        "192.0.2.",
        "vnet3",
    )
    text = "".join(build_target(source(name), **CASES[name]).xml for name in CASES)
    words += ("/etc/site-a", "/srv/share", "0x41", "interfaceid", "/dev/tpm0", "ceph", "4555", "virtio-disk0")
    assert [word for word in words if word in text] == []
    assert [word for word in words if word not in "".join(source(name) for name in CASES)] == []


def test_no_nvram_means_default_variables_and_a_note() -> None:
    case = CASES["uefi-tpm"] | {"nvram": None}
    built = build_target(source("uefi-tpm"), **case)
    assert "<nvram" not in built.xml
    assert "It starts with empty UEFI variables: boot entries and Secure Boot keys are the defaults" in built.notes


def test_generation_id_is_kept_for_a_planned_migration() -> None:
    kept = build_target(source("uefi-tpm"), **(CASES["uefi-tpm"] | {"fresh_genid": False})).xml
    assert "<genid>6f4c1f7b-6f2e-4d2c-9d0e-2b5a7a4f1c33</genid>" in kept
    assert "<genid/>" in build_target(source("uefi-tpm"), **CASES["uefi-tpm"]).xml


def test_mark_is_read_back_and_replaced() -> None:
    once = build_target(source("uefi-tpm"), **CASES["uefi-tpm"]).xml
    assert read_mark(once) == Mark("p-17", 2, 41)
    later = build_target(once, **(CASES["uefi-tpm"] | {"mark": Mark("p-17", 3)})).xml
    assert read_mark(later) == Mark("p-17", 3)
    assert later.count("urn:vapor-desktop:domain:1") == 1
    assert read_mark(source("bios")) is None


def test_encrypted_memory_is_refused() -> None:
    sev = source("bios").replace(
        "<devices>", "<launchSecurity type='sev'><policy>0x0001</policy></launchSecurity><devices>"
    )
    with pytest.raises(NotReplicable):
        build_target(sev, **CASES["bios"])


@pytest.mark.parametrize(
    "text", ["", "<network/>", "<domain", "<!DOCTYPE d [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><domain>&x;"]
)
def test_what_is_no_domain_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        build_target(text, **CASES["bios"])


def test_facts_of_a_live_domain() -> None:
    facts = parse_domain(source("bios"))
    assert (facts.name, facts.machine, facts.arch, facts.virt_type) == ("web01", "pc-i440fx-7.2", "x86_64", "kvm")
    assert facts.agent_connected
    assert not parse_domain(source("bios").replace("state='connected'", "state='disconnected'")).agent_connected
    assert facts.networks == ("default",)
    assert facts.bridges == ()
    assert facts.nvram_path is None
    vda, hda = facts.disks
    assert (vda.target, vda.source, vda.driver_format, vda.bus) == (
        "vda",
        "/var/lib/libvirt/images/web01-snap.qcow2",
        "qcow2",
        "virtio",
    )
    assert not vda.encrypted
    assert (hda.device, hda.read_only) == ("cdrom", True)


def test_facts_of_a_uefi_domain() -> None:
    facts = parse_domain(source("uefi-tpm"))
    assert facts.nvram_path == "/var/lib/libvirt/qemu/nvram/dc01_VARS.fd"
    assert facts.tpm_dir == "/var/lib/libvirt/swtpm/b1a5a1de-8d4c-4a5f-a8c9-37d4f0d6d7b2"
    assert facts.networks == ("br-lan", "storage")
    assert facts.bridges == ("br-lan",)
    assert [(d.source_kind, d.source) for d in facts.disks[:2]] == [
        ("block", "/dev/vg0/dc01-system"),
        ("volume", "fast/dc01-data.qcow2"),
    ]


def test_firmware_chosen_by_libvirt_has_libvirts_nvram_path() -> None:
    facts = parse_domain(source("hardware"))
    assert facts.firmware == "efi"
    assert facts.nvram_path == "/var/lib/libvirt/qemu/nvram/router_VARS.fd"
    assert facts.has_tpm
    assert facts.tpm_dir is None


def test_what_a_later_libvirt_writes_out_goes_home_to_an_earlier_one() -> None:
    """The same definition, dumped by both: what is made of them differs in the order of devices alone."""

    def made(version: str) -> tuple[list[str], list[str]]:
        xml = (DATA / f"libvirt-{version}.xml").read_text().replace("lan-b", "lan-a")
        disks = {"vda": f"{RUN}/vda.qcow2", "vdb": f"{RUN}/vdb.qcow2"}
        built = build_target(xml, disks=disks, networks={}, nvram=f"{RUN}/nvram.fd", kvm=False, fresh_genid=False)
        root = etree.fromstring(built.xml, etree.XMLParser(remove_blank_text=True))
        devices = root.find("./devices")
        assert devices is not None
        parts = sorted(etree.tostring(device, encoding="unicode") for device in devices)
        root.remove(devices)
        return parts, etree.tostring(root, encoding="unicode").splitlines()

    assert made("11.3") == made("9.0")


def test_a_watchdogs_own_action_stays() -> None:
    xml = (DATA / "libvirt-11.3.xml").read_text().replace("action='reset'", "action='poweroff'")
    built = build_target(xml, disks={}, networks={}, nvram=None, kvm=False, fresh_genid=False)
    assert 'watchdog model="itco" action="poweroff"' in built.xml
