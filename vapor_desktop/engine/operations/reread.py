"""Reading all disks again after the shutdown of a planned migration: asked for, and priced before the guest is off.

Without it the zero-loss statement rests on a comparison made while the VM ran, and on the delta after it. With it
every block on record is read once more from the stopped disks and compared on both sides; that is downtime.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vapor_desktop.engine.operations.steps import UNDO, Ask, Result, Step, StepContext
from vapor_desktop.engine.operations.switching_off import require_off
from vapor_desktop.model.errors import Conflict, DigestMismatch
from vapor_desktop.model.operations import Choice
from vapor_desktop.model.reprotect import size_text

PRICE = "reread-price"
READ = Choice(key="read", text="Read all again while it is off")
SKIP = Choice(key="skip", text="Do without")


def wanted(args: Mapping[str, Any]) -> bool:
    """Do an operation's arguments ask for it? ``reread``: bool; ``reread_within_s``: up to that nobody is asked."""
    return bool(args.get("reread"))


def _price(ctx: StepContext) -> Result:
    """What the comparison took a moment ago is what it will take again; a person says whether that is worth it."""
    seen = ctx.done["pre-sync"]
    seconds, size = float(seen["compare_s"]), size_text(int(seen["compared_bytes"]))
    within_s, answer = ctx.operation.args.get("reread_within_s"), ctx.answers.get(PRICE)
    if answer == SKIP.key:
        ctx.note("Not read again: its price was too high")
        return {"go": False, "expected_s": seconds}
    if answer != READ.key and not (within_s is not None and seconds <= float(within_s)):
        raise Ask(
            f"Reading all disks of “{ctx.protection.vm_name}” again while it is off makes the downtime about "
            f"{seconds:.0f} s longer: {size}, as long as comparing them has just taken",
            READ,
            SKIP,
            UNDO,
        )
    ctx.note(f"About {seconds:.0f} s for {size}")
    return {"go": True, "expected_s": seconds}


def _read(ctx: StepContext) -> Result:
    """Every block on record, from the stopped disks, with what the replica holds. Raises DigestMismatch."""
    if not ctx.done[PRICE]["go"]:
        return {}
    p, clock = ctx.protection, ctx.tools.clock
    require_off(ctx)
    began = clock.monotonic()
    outcome = ctx.tools.worker.run_in_operation(p.protection_id, ctx.lease(p.target_site), scrub_whole=True)
    seconds = clock.monotonic() - began
    newest = outcome.manifest.newest
    if newest is None or newest.seq != ctx.done["final-sync"]["seq"]:
        raise Conflict(f"The disks of “{p.vm_name}” changed after their last sync, though it is off", fix="Undo")
    if outcome.mismatch or outcome.scrubbed is None:
        raise DigestMismatch(f"Read again, the stopped disks of “{p.vm_name}” differ from their replica")
    require_off(ctx)
    ctx.note(f"{size_text(outcome.scrubbed.checked_bytes)} in {seconds:.1f} s, all equal")
    return {"reread": dict(outcome.scrubbed.checked), "reread_s": round(seconds, 2)}


def with_reread(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """The migration's steps with these two in their places."""
    price = Step(PRICE, "Say what reading all disks again costs", _price)
    read = Step("reread", "Read all disks again and compare them", _read)
    found: list[Step] = []
    for step in steps:
        found.append(step)
        found += {"pre-sync": [price], "final-sync": [read]}.get(step.name, [])
    return tuple(found)
