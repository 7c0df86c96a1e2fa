"""Backup and checkpoint documents, and where their socket goes."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from lxml import etree

from vapor_desktop.hypervisor import backup_xml
from vapor_desktop.model.domains import BackupDisk
from vapor_desktop.model.errors import InvalidRequest

DIR = PurePosixPath("/var/lib/libvirt/qemu/domain-3-vm1")
FULL = BackupDisk("vdb", "/scratch/vdb.7", None, True, "vdb")
DELTA = BackupDisk("vda", "/scratch/vda.7", "vapor-p-1-6", True, "vda")


def test_delta_and_full_disks_in_one_job() -> None:
    xml = backup_xml.backup_xml(f"{DIR}/vapor-7.sock", [DELTA, FULL], ["sda"])
    assert xml == (
        '<domainbackup mode="pull">'
        '<server transport="unix" socket="/var/lib/libvirt/qemu/domain-3-vm1/vapor-7.sock"/>'
        "<disks>"
        '<disk name="vda" backup="yes" type="file" exportname="vda" backupmode="incremental"'
        ' incremental="vapor-p-1-6" exportbitmap="vapor-vda"><scratch file="/scratch/vda.7"/></disk>'
        '<disk name="vdb" backup="yes" type="file" exportname="vdb" backupmode="full">'
        '<scratch file="/scratch/vdb.7"/></disk>'
        '<disk name="sda" backup="no"/>'
        "</disks></domainbackup>"
    )
    assert backup_xml.backup_facts(xml) == (f"{DIR}/vapor-7.sock", ("vda", "vdb"))
    assert backup_xml.bitmaps([DELTA, FULL]) == {"vda": "vapor-vda"}


def test_checkpoint_and_its_redefinition() -> None:
    plain = etree.fromstring(backup_xml.checkpoint_xml("vapor-p-1-7", ["vda"], without=["sda"]))
    assert [dict(d.attrib) for d in plain.findall("./disks/disk")] == [
        {"name": "vda", "checkpoint": "bitmap"},
        {"name": "sda", "checkpoint": "no"},
    ]
    again = backup_xml.checkpoint_xml("vapor-p-1-7", ["vda"], created_s=1795354927, parent="vapor-p-1-6")
    assert etree.fromstring(again).find("./disks/disk").get("bitmap") == "vapor-p-1-7"  # type: ignore[union-attr]
    assert backup_xml.checkpoint_facts(again) == ({"vda": None}, 1795354927, "vapor-p-1-6")


def test_dirty_sizes_are_read() -> None:
    xml = (
        "<domaincheckpoint><name>c</name><creationTime>5</creationTime><disks>"
        "<disk name='vda' checkpoint='bitmap' bitmap='c' size='31916032'/><disk name='sda' checkpoint='no'/>"
        "</disks></domaincheckpoint>"
    )
    assert backup_xml.checkpoint_facts(xml) == ({"vda": 31916032}, 5, "")


@pytest.mark.parametrize(
    ("name", "live_xml", "expected"),
    [
        ("vm1", "", "domain-3-vm1"),
        ("a-name-longer-than-twenty", "", "domain-3-a-name-longer-than-t"),
        ("ünïcödé-näme-ïs-long-enough", "", "domain-3-ünïcödé-näme-ïs-long"),
        # the daemon's own cut, where it shows, wins over ours
        (
            "ünïcödé-vm",
            "<source path='/var/lib/libvirt/qemu/channel/target/domain-3-ünïc/org.qemu'/>",
            "domain-3-ünïc",
        ),
        # newer layout
        ("vm1", "<source path='/run/libvirt/qemu/channel/3-vm1/org.qemu.guest_agent.0'/>", "domain-3-vm1"),
        # another domain's disk path does not fool it
        ("vm1", "<source file='/images/domain-3-other/a.qcow2'/>", "domain-3-vm1"),
    ],
)
def test_domain_directory(name: str, live_xml: str, expected: str) -> None:
    assert str(backup_xml.domain_dir(live_xml, 3, name)) == f"/var/lib/libvirt/qemu/{expected}"


def test_socket_names_are_ours_and_fit() -> None:
    assert backup_xml.socket_path(DIR, "vapor-7.sock") == f"{DIR}/vapor-7.sock"
    for bad in ("backup.sock", "vapor-/../x", "vapor-" + "x" * 80):
        with pytest.raises(InvalidRequest):
            backup_xml.socket_path(DIR, bad)
    assert backup_xml.is_ours("/x/vapor-1.sock")
    assert not backup_xml.is_ours("/vapor-x/other.sock")
