"""A stopped VM's image while it is read: nobody is kept from starting the VM, and nothing torn is published.

The export takes no lock (``force-share``), so QEMU may open the image for writing at any moment. What was read is
of one moment only if the image had no writer when the reading began and has not been written since.
"""

from __future__ import annotations

from vapor_desktop.model.errors import TransferInterrupted
from vapor_desktop.site.helper_client import HelperClient


class StoppedImage:
    """Made before its export is opened. ``known``: the stamp that it must have, "" for any."""

    def __init__(self, helper: HelperClient, target: str, path: str, known: str = "") -> None:
        """Raises TransferInterrupted when somebody has the image open for writing, or its stamp is another."""
        self.target = target
        self.path = path
        self._helper = helper
        self.stamp = known or self._look()
        if known:
            self.check()

    def check(self) -> None:
        """Raises TransferInterrupted when the image was written since, or may be by now."""
        if self._look() != self.stamp:
            raise TransferInterrupted(
                f"Disk {self.target} was written meanwhile",
                why=f"{self.path} changed",
                fix="It is read again by itself",
            )

    def _look(self) -> str:
        stamp, has_writer = self._helper.image_stamp(self.path)
        if has_writer:
            raise TransferInterrupted(
                f"Disk {self.target} is in use: its VM was started",
                why=f"{self.path} is open for writing",
                fix="It is read again by itself, as a running VM's",
            )
        return stamp
