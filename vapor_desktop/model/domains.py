"""What libvirt tells of a domain, and what a backup job is made of: plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class DiskView:
    """A disk of a domain as libvirt tells it. Sizes in bytes; None where unknown (stopped and unreadable)."""

    target: str
    device: str  # disk | cdrom | floppy | lun
    source_kind: str  # file | block | network | volume | none
    source: str | None
    driver_format: str
    size_bytes: int | None
    allocated_bytes: int | None
    read_only: bool = False
    shareable: bool = False
    transient: bool = False
    encrypted: bool = False
    has_data_file: bool = False
    bus: str = ""  # virtio | scsi | sata | sd | …
    qcow2_compat: str | None = None  # "0.10" (v2) | "1.1" (v3); None where nothing tells it


@dataclass(frozen=True, slots=True)
class DomainView:
    """A domain as libvirt tells it, at one moment."""

    vm_uuid: str
    name: str
    state: str  # running | paused | shutoff | crashed | other
    pause_reason: str | None
    persistent: bool
    autostart: bool
    disks: tuple[DiskView, ...]
    networks: tuple[str, ...]  # source networks and bridges
    internal_snapshots: tuple[str, ...]
    has_tpm: bool
    nvram_path: str | None
    tpm_dir: str | None
    managed_save: bool
    machine: str
    agent_connected: bool
    live_id: int | None  # domain id while it runs
    agent_channel: bool = False  # is there a way for a guest agent to connect by?
    tpm_obstacle: str = ""  # why its TPM's state cannot be brought to another host; "" = nothing against it


def paused_by_scratch(view: DomainView, errors: Mapping[str, str], *, scratch_low: bool) -> bool:
    """Was the guest stopped by the full scratch of a job of ours, and by nothing else? [facts/libvirt 0.1]

    ``errors``: its disks' errors, read before it was resumed; ``scratch_low``: as it was while the job was open,
    for the end of a job frees its scratch. Both the guardian and the engine resume a guest only on this word.
    """
    stopped = view.state == "paused" and view.pause_reason == "ioerror"
    return stopped and scratch_low and "no-space" in errors.values()


@dataclass(frozen=True, slots=True)
class BackupDisk:
    """One disk of a backup job."""

    target: str
    scratch_path: str
    incremental_from: str | None  # checkpoint name; None = full
    with_checkpoint: bool  # False for raw disks
    export: str


GUEST_THAWED = "thawed"  # an error's detail: False when a begin that failed may have left the guest frozen


@dataclass(frozen=True, slots=True)
class BackupJob:
    """An open pull-mode backup job."""

    vm_uuid: str
    socket_path: str
    bitmaps: dict[str, str]  # disk target -> exportbitmap name (incremental disks only)
    checkpoint: str | None
    frozen: bool  # the guest's file systems were frozen at the moment, and thawed after
    begun_at: datetime  # our clock, between freeze and thaw
    frozen_s: float = 0.0  # at most this long: from asking for the freeze to the thaw's answer; 0 without a freeze
    thawed: bool = True  # the guest is certainly not frozen by this begin: it answered the thaw, or was not asked


@dataclass(frozen=True, slots=True)
class AgentRun:
    """A script that was run in a guest by its agent. ``code`` None: it had not ended in time."""

    code: int | None
    out: str
    err: str
