"""Images that lie at the target already, as bases of first copies."""

from __future__ import annotations

from typing import Any, Literal

from vapor_desktop.model.policy import Value
from vapor_desktop.model.wire.leases import WriteGrant

ImageFormat = Literal["qcow2", "raw"]


class SeedImage(Value):
    """An image at the target, below its image roots (``helper_image_roots``).

    ``disk_bytes``: the disk's size at the source, where known; a larger image is refused.
    """

    path: str
    format: ImageFormat
    disk_bytes: int | None = None


class SeedRequest(Value):
    """POST /replicas/{vm}/seed: begin to copy these images, as bases of the disks' first copies."""

    grant: WriteGrant
    disks: dict[str, SeedImage]


class SeedState(Value):
    """GET /replicas/{vm}/seed: how far it is. ``error``: why the last one stopped."""

    running: bool
    disk: str = ""
    done_bytes: int = 0
    total_bytes: int = 0
    error: dict[str, Any] | None = None
