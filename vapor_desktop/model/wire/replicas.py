"""Replicas: making one, its settings, how it stands."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from vapor_desktop.model.manifest import DiskMode, Manifest
from vapor_desktop.model.policy import Mappings, Policy, Value
from vapor_desktop.model.wire.leases import WriteGrant


class ReplicaCreate(Value):
    """PUT /replicas/{vm}: make the replica. Of one that exists only the VM's name is written: its policy and
    mappings are the truth, and change by SettingsWrite alone."""

    grant: WriteGrant
    protection_id: str
    vm_name: str
    target_site: str
    policy: Policy
    mappings: Mappings


class SettingsWrite(Value):
    """PUT /replicas/{vm}/settings: another policy and other mappings.

    ``expect_version``: the ``settings_version`` that the edit was made on; EDIT-OUTDATED when it has moved.
    """

    grant: WriteGrant
    expect_version: int
    policy: Policy
    mappings: Mappings


class IncomingView(Value):
    """An unfinished point: what a resume needs. ``received`` counts durable bytes of a disk."""

    seq: int
    parent_seq: int | None
    checkpoint: str | None  # the checkpoint whose moment the incoming data belongs to
    disks: dict[str, DiskMode]
    sizes: dict[str, int]
    received_bytes: dict[str, int]
    complete_first_copy: bool = False


class ReplicaView(Value):
    """GET /replicas/{vm}."""

    manifest: Manifest
    root: str
    used_bytes: int
    incoming: IncomingView | None
    files_in_chain: int
    disk_bytes: dict[str, int] = {}  # disk target -> bytes that its points and its unfinished copy take up
    run_bytes: dict[str, dict[str, int]] = {}  # epoch -> disk -> bytes that its run has written
    run_written_at: dict[str, datetime] = {}  # epoch -> when its overlays were last written, on this site's clock
    seeded: tuple[str, ...] = ()  # disks whose first copy stands on an image that was at the target already
    valid: bool
    trouble: dict[str, Any] | None = None
