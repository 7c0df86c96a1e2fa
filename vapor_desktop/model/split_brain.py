"""Is a VM in two places? Pure: from what both sides' libvirts, guards and the replica say at one moment."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from vapor_desktop.model.manifest import Epoch
from vapor_desktop.model.wire import GuardRecord, GuardState

ON = frozenset({"running", "paused"})


class Verdict(StrEnum):
    """What was found."""

    CLEAR = "clear"
    RISK = "split-brain risk"
    SPLIT = "split brain"
    UNKNOWN = "unknown"  # one side did not tell: nothing is said, and nothing taken back


@dataclass(frozen=True, slots=True)
class Side:
    """One site's word about the VM. ``state``: libvirt's, "undefined" for none of its; None: it did not answer."""

    site_id: str
    name: str
    state: str | None
    guard: GuardRecord | None = None
    fenced: bool = False  # a guard that is proven there refuses to start it now


@dataclass(frozen=True, slots=True)
class Finding:
    """``why``: one sentence for people. ``passing``: about to mend itself, so worth a word only if it stays."""

    verdict: Verdict
    why: str
    passing: bool = False


def judge(source: Side, target: Side, epoch: Epoch, *, committed: bool) -> Finding:
    """Of a VM that the target took over under ``epoch`` (as its manifest tells).

    ``committed``: a person has decided for the target; an old primary that is off and fenced is then no risk.
    """
    if source.state is None or target.state is None:
        silent = source if source.state is None else target
        return Finding(Verdict.UNKNOWN, f"{silent.name} does not tell")
    here, there = source.state in ON, target.state in ON
    if here and there:
        return Finding(Verdict.SPLIT, f"It runs at {source.name} and at {target.name}: both write, and both are kept")
    claim = source.guard if source.guard is not None and source.guard.epoch.owner == source.site_id else None
    if here:
        number = f" under epoch {claim.epoch.number}" if claim else ""
        return Finding(
            Verdict.RISK,
            f"It runs at {source.name}{number}, and {target.name} took it over under epoch {epoch.number}",
        )
    if source.state == "undefined":
        return Finding(Verdict.CLEAR, f"{source.name} does not have it")
    if claim is not None and claim.epoch.number >= epoch.number:
        return Finding(
            Verdict.RISK,
            f"{source.name} claims it under epoch {claim.epoch.number} ({claim.reason}): it may start there any time",
        )
    if not source.fenced:
        why = f"It is off at {source.name}, and nothing keeps it from being started there"
        return Finding(Verdict.RISK, why, passing=committed)
    if committed:
        return Finding(Verdict.CLEAR, f"It is off at {source.name} and kept from starting there")
    return Finding(
        Verdict.RISK,
        f"{source.name} is back; it is off and fenced there. Commit to stay at {target.name}, or resolve",
    )


def overtaken(record: GuardRecord | None, epoch: Epoch) -> Epoch | None:
    """The epoch that the owner's own host has gone on to while the replica did not hear of it; None: they agree."""
    if record is None or record.state is not GuardState.OWN or record.epoch.owner != epoch.owner:
        return None
    return record.epoch if record.epoch.number > epoch.number else None
