"""Which disks can be replicated, and what is said about the others."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vapor_desktop.model.domains import DiskView, DomainView
from vapor_desktop.model.eligibility import DiskVerdict, judge

QCOW2 = DiskView(
    "vda", "disk", "file", "/images/a.qcow2", "qcow2", 1 << 30, 1 << 20, bus="virtio", qcow2_compat="1.1"
)


def verdict(disk: DiskView, snapshots: tuple[str, ...] = ()) -> DiskVerdict:
    domain = DomainView(
        vm_uuid="u",
        name="vm",
        state="running",
        pause_reason=None,
        persistent=True,
        autostart=False,
        disks=(disk,),
        networks=(),
        internal_snapshots=snapshots,
        has_tpm=False,
        nvram_path=None,
        tpm_dir=None,
        managed_save=False,
        machine="pc-q35-7.2",
        agent_connected=False,
        live_id=1,
    )
    (found,) = judge(domain)
    return found


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, "delta"),
        ({"qcow2_compat": None}, "delta"),
        ({"source_kind": "block", "source": "/dev/vg/lv"}, "delta"),
        ({"has_data_file": True}, "delta"),
        ({"driver_format": "raw"}, "compare"),
        ({"driver_format": "raw", "source_kind": "block"}, "compare"),
        ({"driver_format": "raw", "source_kind": "network"}, "compare"),
        ({"device": "cdrom", "driver_format": "raw"}, "excluded"),
        ({"device": "floppy"}, "excluded"),
        ({"read_only": True}, "excluded"),
        ({"transient": True}, "excluded"),
        ({"source_kind": "none", "source": None}, "excluded"),
        ({"qcow2_compat": "0.10"}, "refused"),
        ({"encrypted": True}, "refused"),
        ({"shareable": True}, "refused"),
        ({"device": "lun", "driver_format": "raw"}, "refused"),
        ({"source_kind": "vhostuser", "source": "/run/vhost.sock", "driver_format": "raw"}, "refused"),
        ({"source_kind": "nvme", "driver_format": "raw"}, "refused"),
        ({"bus": "sd"}, "refused"),
        ({"driver_format": "vmdk"}, "refused"),
    ],
)
def test_kind(changes: dict[str, object], kind: str) -> None:
    found = verdict(replace(QCOW2, **changes))  # type: ignore[arg-type]
    assert found.kind == kind
    assert (found.reason == "") == (changes in ({}, {"qcow2_compat": None}) or kind == "delta")
    if kind == "refused":
        assert found.fix


def test_fix_of_qcow2_v2_is_a_command_that_can_be_pasted() -> None:
    assert verdict(replace(QCOW2, qcow2_compat="0.10")).fix.endswith(
        "qemu-img amend -f qcow2 -o compat=1.1 /images/a.qcow2"
    )


def test_internal_snapshots_are_replicated_with_a_warning() -> None:
    found = verdict(QCOW2, ("before-upgrade",))
    assert found.kind == "delta"
    assert "keeps it from starting" in found.reason
    assert found.fix
