"""What one cycle will do, decided from what was observed: pure, no I/O.

The rules are DESIGN §5 and facts/libvirt §1.7: per disk *delta* when a bitmap is valid, *compare* when
the target has the disk but the bitmap is lost (or the disk cannot have one, or was seeded), *full* otherwise.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from vapor_desktop.model.domains import DomainView
from vapor_desktop.model.eligibility import DiskVerdict
from vapor_desktop.model.errors import DiskShrunk, EpochMoved, NotReplicable
from vapor_desktop.model.manifest import DiskMode, Manifest
from vapor_desktop.model.wire import IncomingView

CHECKPOINT_PREFIX = "vapor-"


@dataclass(frozen=True, slots=True)
class DiskPlan:
    """One disk of a cycle.

    ``from_checkpoint``: whose bitmap tells what changed: since the newest point (mode DELTA), or, in a resumed
    copy of whatever mode, since the moment that the kept incoming belongs to.
    """

    target: str
    size_bytes: int
    mode: DiskMode
    from_checkpoint: str | None
    with_checkpoint: bool  # False where the format cannot hold a bitmap
    why: str


@dataclass(frozen=True, slots=True)
class CyclePlan:
    """One cycle."""

    seq: int
    parent_seq: int | None
    checkpoint: str | None  # name of the new checkpoint; None when no disk can hold one
    disks: tuple[DiskPlan, ...]
    excluded: tuple[str, ...]
    running: bool
    resume_incoming: bool
    discard_incoming: bool
    stale_checkpoints: tuple[str, ...]  # ours, and nobody's any more

    @property
    def may_pause(self) -> bool:
        """Can the copy be left unfinished and taken up by a later job?

        A disk without bitmaps is read whole by every job: a time limit would keep a large one from ever ending.
        """
        return all(d.with_checkpoint for d in self.disks)

    @property
    def mode(self) -> DiskMode:
        """The heaviest mode of any disk: what the cycle is called."""
        order = [DiskMode.DELTA, DiskMode.COMPARE, DiskMode.FULL]
        return max((d.mode for d in self.disks), key=order.index)


def checkpoint_name(protection_id: str, epoch: int, seq: int) -> str:
    """``vapor-<protection>-<epoch>-<seq>-<attempt>``; the attempt makes it never the same twice.

    A second job for the same point (a resumed copy) is another moment and needs a name of its own:
    reused names meet the old bitmap ("Bitmap already exists", facts/libvirt §1.4).
    """
    return f"{CHECKPOINT_PREFIX}{protection_id[:8]}-{epoch}-{seq:06d}-{secrets.token_hex(3)}"


def family(name: str) -> str:
    """What the names of all checkpoints of the same protection begin with."""
    return name[: name.index("-", len(CHECKPOINT_PREFIX)) + 1]


def ours(protection_id: str, name: str) -> bool:
    """Is this a checkpoint of that protection?"""
    return name.startswith(f"{CHECKPOINT_PREFIX}{protection_id[:8]}-")


def plan_cycle(
    *,
    manifest: Manifest,
    incoming: IncomingView | None,
    seeded: Collection[str] = (),
    domain: DomainView,
    verdicts: Sequence[DiskVerdict],
    checkpoints: Sequence[str],
    valid: Callable[[str, Sequence[str]], bool],
) -> CyclePlan:
    """Decide.

    ``valid(checkpoint, disk targets)`` asks whether the bitmaps behind a checkpoint can be trusted; it is
    called for at most two checkpoints. Raises EpochMoved when the VM belongs to another site, NotReplicable
    naming every refused disk with its fix, DiskShrunk.
    """
    if manifest.epoch.owner != manifest.source_site:
        raise EpochMoved(
            f"“{manifest.vm_name}” belongs to another site since epoch {manifest.epoch.number}",
            fix="Reprotect it from the site where it runs now",
        )
    wanted = _wanted(domain, verdicts)
    newest = manifest.newest
    known = dict(newest.files) if newest else {}
    distrust = newest is not None and not newest.verified
    if distrust:  # the scrub found a difference: no bitmap is trusted until a comparison has repaired it
        valid = _never
    for d in wanted:
        old = newest.sizes.get(d.target) if newest else None
        size = domain_size(domain, d.target)
        if old is not None and size < old:
            raise DiskShrunk(
                f"Disk {d.target} of “{domain.name}” shrank from {old} to {size} bytes",
                fix="If this is right, unprotect the VM keeping its replica and protect it again",
            )
    bitmap_disks = [d.target for d in wanted if d.kind == "delta"]
    resume = incoming is not None and _fits(incoming, wanted, domain)
    if incoming is not None and resume:
        held = _held_since(incoming, bitmap_disks, valid)
        resume = bool(held) or incoming.parent_seq is None  # a first copy is worth a comparison, a delta is not
    if incoming is not None and resume:
        disks = tuple(_resumed(d, domain, incoming, held) for d in wanted)
    else:
        base, held, why = _base_of_newest(newest.checkpoint if newest else None, known, bitmap_disks, valid)
        why = "the scrub found a difference" if distrust else why
        disks = tuple(_disk(d, domain, known, base, held, why, seeded) for d in wanted)
    seq = incoming.seq if resume and incoming else manifest.next_seq
    keep = {newest.checkpoint if newest else None, incoming.checkpoint if incoming and resume else None}
    return CyclePlan(
        seq=seq,
        parent_seq=newest.seq if newest else None,
        checkpoint=checkpoint_name(manifest.protection_id, manifest.epoch.number, seq) if bitmap_disks else None,
        disks=disks,
        excluded=tuple(v.target for v in verdicts if v.kind == "excluded"),
        running=domain.live_id is not None,
        resume_incoming=resume,
        discard_incoming=incoming is not None and not resume,
        stale_checkpoints=tuple(c for c in checkpoints if ours(manifest.protection_id, c) and c not in keep),
    )


def _never(_checkpoint: str, _disks: Sequence[str]) -> bool:
    return False


def domain_size(domain: DomainView, target: str) -> int:
    """Virtual size of a disk in bytes. Raises NotReplicable when it cannot be told."""
    size = next((d.size_bytes for d in domain.disks if d.target == target), None)
    if size is None:
        raise NotReplicable(f"The size of disk {target} of “{domain.name}” cannot be read")
    return size


def _wanted(domain: DomainView, verdicts: Sequence[DiskVerdict]) -> list[DiskVerdict]:
    refused = [v for v in verdicts if v.kind == "refused"]
    if refused:
        raise NotReplicable(
            f"“{domain.name}” cannot be replicated",
            why="; ".join(f"{v.target}: {v.reason}" for v in refused),
            fix=" ".join(dict.fromkeys(v.fix for v in refused if v.fix)),
        )
    wanted = [v for v in verdicts if v.kind in {"delta", "compare"}]
    if not wanted:
        raise NotReplicable(f"“{domain.name}” has no disk to replicate")
    return wanted


def _fits(incoming: IncomingView, wanted: Sequence[DiskVerdict], domain: DomainView) -> bool:
    """Is the kept incoming of the same disks and sizes?"""
    if set(incoming.disks) != {d.target for d in wanted}:
        return False
    return all(domain_size(domain, t) == incoming.sizes.get(t) for t in incoming.disks)


def _held_since(
    incoming: IncomingView, bitmap_disks: Sequence[str], valid: Callable[[str, Sequence[str]], bool]
) -> set[str]:
    """The disks whose bitmap tells what changed since the incoming's moment: all that can have one, or none."""
    if incoming.checkpoint is None or not bitmap_disks or not valid(incoming.checkpoint, bitmap_disks):
        return set()
    return set(bitmap_disks)


def _resumed(verdict: DiskVerdict, domain: DomainView, incoming: IncomingView, held: set[str]) -> DiskPlan:
    """DESIGN §5 Resume (b): what changed since the incoming's moment, and all that it has not received.

    Without a bitmap the disk is compared with what is there: nothing that has arrived travels twice.
    """
    target, has_bitmap = verdict.target, verdict.kind == "delta"
    size = domain_size(domain, target)
    if target in held:
        return DiskPlan(target, size, incoming.disks[target], incoming.checkpoint, has_bitmap, "resumed")
    why = "resumed, bitmap lost" if has_bitmap else verdict.reason
    return DiskPlan(target, size, DiskMode.COMPARE, None, has_bitmap, why)


def _base_of_newest(
    checkpoint: str | None,
    known: dict[str, str],
    bitmap_disks: Sequence[str],
    valid: Callable[[str, Sequence[str]], bool],
) -> tuple[str | None, set[str], str]:
    """The newest point's checkpoint and the disks whose bitmaps hold; else the reason they do not."""
    candidates = [t for t in bitmap_disks if t in known]
    if checkpoint is None:
        return None, set(), "the newest point has no bitmap"
    if not candidates:
        return None, set(), "no disk of the newest point has a bitmap"
    if valid(checkpoint, candidates):
        return checkpoint, set(candidates), "bitmap valid"
    held = {t for t in candidates if len(candidates) > 1 and valid(checkpoint, [t])}
    return (checkpoint if held else None), held, "bitmap lost"


def _disk(
    verdict: DiskVerdict,
    domain: DomainView,
    known: dict[str, str],
    base: str | None,
    base_disks: set[str],
    why: str,
    seeded: Collection[str],
) -> DiskPlan:
    size = domain_size(domain, verdict.target)
    has_bitmap = verdict.kind == "delta"
    if has_bitmap and base is not None and verdict.target in base_disks:
        return DiskPlan(verdict.target, size, DiskMode.DELTA, base, True, "bitmap valid")
    if verdict.target in known:
        reason = why if has_bitmap else verdict.reason
        return DiskPlan(verdict.target, size, DiskMode.COMPARE, None, has_bitmap, reason)
    if verdict.target in seeded:
        return DiskPlan(verdict.target, size, DiskMode.COMPARE, None, has_bitmap, "seeded")
    return DiskPlan(
        verdict.target, size, DiskMode.FULL, None, has_bitmap, "first copy" if not known else "disk added"
    )
