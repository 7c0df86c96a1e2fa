"""One worker's way out: the frames of a disk, over one of the transfer's channels."""

from __future__ import annotations

from dataclasses import dataclass

from vapor_desktop.model.extents import Extent
from vapor_desktop.site.mover import protocol
from vapor_desktop.site.mover.compressor import Compressor
from vapor_desktop.site.mover.digests import zero_digest
from vapor_desktop.site.mover.peer import PeerSession
from vapor_desktop.site.mover.protocol import FLAG_ZSTD, Kind
from vapor_desktop.site.mover.throttle import Throttle


@dataclass(frozen=True, slots=True)
class Outlet:
    """Sends ranges of disk ``disk``. Each call raises what the receiver said, or TransferInterrupted."""

    disk: int
    channel: PeerSession
    compressor: Compressor
    throttle: Throttle | None

    def data(self, there: Extent, content: memoryview, digests: bytes) -> None:
        """Content with the digests of its blocks, compressed where that is worth it."""
        packed = self.compressor.squeeze(content, insist=zero_digest() in digests)
        payload: bytes | memoryview = content if packed is None else packed
        head = protocol.encode(
            Kind.DATA,
            digests,
            flags=0 if packed is None else FLAG_ZSTD,
            disk=self.disk,
            offset=there.offset,
            length=there.length,
            payload_bytes=len(payload),
        )
        self.channel.send(head, payload, self.throttle)

    def zero(self, there: Extent) -> None:
        """It reads as zeroes."""
        self.channel.send(protocol.encode(Kind.ZERO, disk=self.disk, offset=there.offset, length=there.length))

    def same(self, there: Extent, digests: bytes) -> None:
        """It is what the receiver has."""
        frame = protocol.encode(Kind.SAME, digests, disk=self.disk, offset=there.offset, length=there.length)
        self.channel.send(frame, None, self.throttle)
