"""The way home: adopting the original disks, folding a run down."""

from __future__ import annotations

from datetime import datetime

from vapor_desktop.model.manifest import Consistency, Epoch, Manifest
from vapor_desktop.model.policy import Mappings, Policy, Value


class AdoptDisk(Value):
    """An original disk at this site, off since its VM runs elsewhere. qcow2 files only.

    ``expect_stamp``: the image's stamp when it was last proven to hold the point that the VM went on from; "": never.
    """

    path: str
    size_bytes: int
    expect_stamp: str = ""


class AdoptRequest(Value):
    """POST /replicas/{vm}/adopt, at the site that the VM came from: it becomes the target of the reverse direction.

    Every disk as it was proven: the base is point ``seq`` itself, and ``checkpoint`` (at the new source) tells what
    changed since. Any other state becomes a point of its own, ``next_seq``, pinned as ``kept_as``, with no
    checkpoint: the first cycle compares. Idempotent for the same epoch. The caller holds this site's lease.
    """

    fence: int
    protection_id: str
    vm_name: str
    source_site: str
    epoch: Epoch
    policy: Policy
    mappings: Mappings
    settings_version: int = 1
    seq: int
    next_seq: int
    taken_at: datetime
    current_as_of: datetime
    checkpoint: str | None
    consistency: Consistency
    domain_xml: str
    disks: dict[str, AdoptDisk]
    kept_as: str
    reason: str


class Adopted(Value):
    """What came of it. ``missing``: disks without an image here, copied whole. ``diverged``: not as proven."""

    manifest: Manifest
    missing: tuple[str, ...] = ()
    diverged: tuple[str, ...] = ()


class FoldRequest(Value):
    """POST /replicas/{vm}/fold, at the site where the VM runs and is the source now; twice: before and ``done``."""

    fence: int
    epoch: Epoch
    done: bool = False


class FoldPlan(Value):
    """Disk target -> (file it runs on, file that its content goes down into); equal where it is flat already."""

    disks: dict[str, tuple[str, str]]
    manifest: Manifest
