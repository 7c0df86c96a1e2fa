"""The mover's control channel: JSON lines on `vapor-site mover`, run over SSH by the engine."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from vapor_desktop.model.manifest import Consistency, DiskMode, Manifest
from vapor_desktop.model.policy import Value
from vapor_desktop.model.wire.leases import WriteGrant


class NbdSource(Value):
    """Where ``send`` reads a disk: a live export on a unix socket, or a stopped VM's image."""

    kind: Literal["live", "offline"]
    path: str  # socket path, or image path
    export: str  # export name
    bitmap: str | None  # live: the exportbitmap; offline: the persistent bitmap. None: no bitmap to read
    image_format: str = "qcow2"


class DiskTransfer(Value):
    """One disk of one transfer."""

    target: str
    size_bytes: int
    mode: DiskMode
    source: NbdSource
    # Of a stopped VM's image when it was last proven equal. Moved with an empty bitmap: the disk is compared.
    known_stamp: str = ""


class PointDraft(Value):
    """What the source knows of the point; the receiver adds digests, sizes and its own clock."""

    protection_id: str
    vm_name: str
    checkpoint: str | None
    taken_at: datetime
    consistency: Consistency
    domain_xml: str
    nvram_path: str | None = None  # on the source; read through the root helper
    tpm_dir: str | None = None
    without_disks: tuple[str, ...] = ()
    frozen_s: float = 0.0  # how long the guest's file systems were held, at most
    images: dict[str, str] = {}  # disk target -> stamp of a stopped VM's image
    config: str = ""  # ``configuration_digest`` of ``domain_xml``; the mover adds NVRAM and TPM. "": not told


class Transfer(Value):
    """Verb ``transfer``: make point ``seq`` at the peer from these disks, publish it, answer Transferred.

    ``resume_incoming``: keep what the receiver holds of an incoming whose own checkpoint still
    validates: it then wants this delta united with everything it has not received.
    """

    vm_uuid: str
    peer_site: str
    grant: WriteGrant
    seq: int
    disks: tuple[DiskTransfer, ...]
    draft: PointDraft
    bandwidth_bytes_s: int | None = None
    streams: int = 1
    resume_incoming: bool = False
    complete: bool = True  # False: a first copy made of several jobs; keep it incoming, do not publish
    deadline_s: float | None = None  # stop cleanly after this long and keep the incoming
    skip_if_empty: bool = False  # nothing dirty on any disk: open no incoming, publish nothing, answer empty
    known_config: str = ""  # the newest point's ``PointEntry.config``; another one now is a change too


class Transferred(Value):
    """Answer of ``transfer``. ``published`` False: the incoming was kept (deadline or first part)."""

    published: bool
    seq: int
    data_bytes: int
    zero_bytes: int
    wire_bytes: int
    read_bytes: int
    duration_s: float
    manifest: Manifest | None
    empty: bool = False  # nothing had changed; no point was made
    images: dict[str, str] = {}  # disk target -> stamp of a stopped VM's image as it was read
    compared: tuple[str, ...] = ()  # disks that were to be sent by their changes, and were read whole instead


class Progress(Value):
    """Event ``progress``, once a second."""

    done_bytes: int
    total_bytes: int
    rate_bytes_s: float
    disk: str
    wire_bytes: int


class ScrubSlice(Value):
    """Verb ``scrub``: compare a slice of every disk's digests, source export against the newest point."""

    vm_uuid: str
    peer_site: str
    grant: WriteGrant
    disks: tuple[DiskTransfer, ...]
    budget_bytes: int
    whole: bool = False  # from the beginning of the first disk, wherever the last slice ended


class Scrubbed(Value):
    """Answer of ``scrub``. Blocks are 64 KiB block numbers."""

    checked_bytes: int
    checked: dict[str, int] = {}  # disk -> bytes of it that were compared
    source_mismatch: dict[str, tuple[int, ...]]  # the source differs from what the target recorded
    target_mismatch: dict[str, tuple[int, ...]]  # the target's data differs from its own record
    wrapped: bool  # a whole pass over all disks is complete
    reached_bytes: dict[str, int] = {}  # disk -> how far this pass has come
    passed_at: dict[str, datetime] = {}  # disk -> when it was last read to its end (the source's clock)
