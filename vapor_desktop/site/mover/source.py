"""Opening a disk's source: a live export, or a stopped VM's image through the root helper."""

from __future__ import annotations

from contextlib import ExitStack

from vapor_desktop.model.errors import InvalidRequest
from vapor_desktop.model.wire import DiskTransfer
from vapor_desktop.site.helper_client import HelperClient
from vapor_desktop.site.mover.nbd_source import Export


def open_export(disk: DiskTransfer, helper: HelperClient, stack: ExitStack) -> Export:
    """The disk's export, closed (and a helper's export ended) with ``stack``.

    Raises TransferInterrupted when nothing serves it, InvalidRequest when its size is not the one said.
    """
    path = disk.source.path
    if disk.source.kind == "offline":
        path = stack.enter_context(
            helper.offline_export(path, disk.source.image_format, disk.source.bitmap, disk.source.export)
        )
    export = Export(path, disk.source.export)
    stack.callback(export.close)
    if export.size_bytes != disk.size_bytes:
        raise InvalidRequest(
            f"Disk {disk.target} has another size than was said", said=disk.size_bytes, is_now=export.size_bytes
        )
    return export
