"""State of a protection = phase x RPO x verification x drill; one table of legal transitions, one door."""

from __future__ import annotations

from enum import IntEnum, StrEnum

from vapor_desktop.model.errors import IllegalTransition


class Phase(StrEnum):
    """What is being done with a VM's protection. The text is what UI, CLI and docs show."""

    INITIAL_SYNC = "initial sync"
    PROTECTED = "protected"
    SYNCING = "syncing"
    COMPARING = "comparing"
    PAUSED = "paused"
    ERROR = "error"
    SOURCE_UNREACHABLE = "source unreachable"
    MIGRATING = "migrating"
    FAILING_OVER = "failing over"
    PROVISIONAL = "provisional"
    FAILED_OVER = "failed over"
    REPROTECTING = "reprotecting"
    SPLIT_BRAIN_RISK = "split-brain risk"
    SPLIT_BRAIN = "split brain"


class RpoHealth(StrEnum):
    """RPO now against its target."""

    WITHIN = "within target"
    AT_RISK = "at risk"  # >= 80 % of the target
    BREACHED = "breached"
    NO_POINT = "no recovery point"
    UNKNOWN = "unknown"


class Verification(StrEnum):
    """Has a drill proven it."""

    NEVER = "never drilled"
    PASSED = "drill passed"
    FAILED = "drill failed"
    OVERDUE = "drill overdue"


class DrillState(StrEnum):
    """A drill on this VM's replica."""

    NONE = "none"
    RUNNING = "running"
    CLEANUP_NEEDED = "cleanup needed"


class Severity(IntEnum):
    """Worst sorts last here; views sort descending."""

    IDLE = 0
    OK = 1
    PROGRESS = 2
    WARNING = 3
    CRITICAL = 4


_RUNNING = {Phase.INITIAL_SYNC, Phase.SYNCING, Phase.COMPARING}
_SOURCE_SIDE = _RUNNING | {Phase.PROTECTED, Phase.PAUSED, Phase.ERROR, Phase.SOURCE_UNREACHABLE}

# from -> the phases it may become. A phase may always "become" itself.
LEGAL: dict[Phase, frozenset[Phase]] = {
    **{
        p: frozenset(_SOURCE_SIDE | {Phase.MIGRATING, Phase.FAILING_OVER, Phase.SPLIT_BRAIN_RISK})
        for p in _SOURCE_SIDE
    },
    Phase.MIGRATING: frozenset(
        {Phase.PROTECTED, Phase.ERROR, Phase.FAILED_OVER, Phase.REPROTECTING, Phase.FAILING_OVER}
    ),
    Phase.FAILING_OVER: frozenset(
        {
            Phase.PROVISIONAL,
            Phase.FAILED_OVER,
            Phase.ERROR,
            Phase.SOURCE_UNREACHABLE,
            Phase.PROTECTED,
            Phase.PAUSED,
        }
    ),
    Phase.PROVISIONAL: frozenset({Phase.FAILED_OVER, Phase.FAILING_OVER, Phase.SPLIT_BRAIN_RISK, Phase.SPLIT_BRAIN}),
    Phase.FAILED_OVER: frozenset({Phase.REPROTECTING, Phase.FAILING_OVER, Phase.SPLIT_BRAIN_RISK, Phase.SPLIT_BRAIN}),
    Phase.REPROTECTING: frozenset(_SOURCE_SIDE | {Phase.FAILED_OVER, Phase.SPLIT_BRAIN_RISK, Phase.SPLIT_BRAIN}),
    Phase.SPLIT_BRAIN_RISK: frozenset(
        {
            Phase.SPLIT_BRAIN,
            Phase.FAILED_OVER,
            Phase.PROVISIONAL,
            Phase.FAILING_OVER,
            Phase.REPROTECTING,
            Phase.PROTECTED,
        }
    ),
    Phase.SPLIT_BRAIN: frozenset({Phase.SPLIT_BRAIN_RISK, Phase.FAILED_OVER, Phase.REPROTECTING, Phase.PROTECTED}),
}


def move(now: Phase, to: Phase) -> Phase:
    """The one door: ``to`` if legal from ``now``.

    Raises IllegalTransition, naming both.
    """
    if to is now or to in LEGAL[now]:
        return to
    raise IllegalTransition(f"A protection cannot go from “{now}” to “{to}”")


_PHASE_SEVERITY = {
    Phase.PROTECTED: Severity.OK,
    Phase.PAUSED: Severity.WARNING,
    Phase.ERROR: Severity.CRITICAL,
    Phase.SOURCE_UNREACHABLE: Severity.CRITICAL,
    Phase.PROVISIONAL: Severity.WARNING,
    Phase.FAILED_OVER: Severity.WARNING,
    Phase.SPLIT_BRAIN_RISK: Severity.CRITICAL,
    Phase.SPLIT_BRAIN: Severity.CRITICAL,
}
_RPO_SEVERITY = {
    RpoHealth.WITHIN: Severity.OK,
    RpoHealth.AT_RISK: Severity.WARNING,
    RpoHealth.BREACHED: Severity.CRITICAL,
    RpoHealth.NO_POINT: Severity.WARNING,
    RpoHealth.UNKNOWN: Severity.WARNING,
}
_OVER = {Phase.PROVISIONAL, Phase.FAILED_OVER, Phase.SPLIT_BRAIN_RISK, Phase.SPLIT_BRAIN}


def severity(phase: Phase, rpo: RpoHealth) -> Severity:
    """How bad it is. Unknown is never OK. After a failover the phase alone speaks."""
    own = _PHASE_SEVERITY.get(phase, Severity.PROGRESS)
    if phase in _OVER:
        return own
    if phase is Phase.INITIAL_SYNC and rpo is RpoHealth.NO_POINT:
        return Severity.PROGRESS
    if own is Severity.PROGRESS and rpo is RpoHealth.WITHIN:
        return Severity.PROGRESS
    return max(own, _RPO_SEVERITY[rpo])
