"""The JSON that opens and commits a transfer, as both ends of a session mean it."""

from __future__ import annotations

from vapor_desktop.model.manifest import DiskMode
from vapor_desktop.model.policy import Value
from vapor_desktop.model.wire import PointDraft, WriteGrant


class OpenDisk(Value):
    """A disk in OPEN."""

    target: str
    size_bytes: int
    mode: DiskMode


class Open(Value):
    """OPEN's JSON."""

    vm_uuid: str
    grant: WriteGrant
    seq: int
    disks: tuple[OpenDisk, ...]
    checkpoint: str | None
    resume: bool
    streams: int = 1
    moved: bool = False  # the source may have been written since, though the checkpoint is the same


class Commit(Value):
    """COMMIT's JSON."""

    draft: PointDraft
    duration_s: float
    wire_bytes: int
