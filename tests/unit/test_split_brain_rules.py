"""Is a VM in two places? What both sides say, and the phase that it comes to."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from vapor_desktop.engine.split_watch import phase_after
from vapor_desktop.model.manifest import Epoch
from vapor_desktop.model.policy import Policy
from vapor_desktop.model.sites import Protection
from vapor_desktop.model.split_brain import Finding, Side, Verdict, judge, overtaken
from vapor_desktop.model.states import Phase
from vapor_desktop.model.wire import GuardRecord, GuardState

A, B = "id-a", "id-b"
NOW = datetime(2026, 11, 22, tzinfo=UTC)
TAKEN = Epoch(number=2, owner=B)


def record(number: int, owner: str, state: GuardState) -> GuardRecord:
    return GuardRecord(
        vm_uuid="u", vm_name="web", epoch=Epoch(number=number, owner=owner), this_site=A, peer_site=B, state=state,
        reason="because", changed_at=NOW, changed_by="me",
    )  # fmt: skip


FENCED = record(2, B, GuardState.OTHERS)
LATE = record(1, A, GuardState.OWN)
CLAIMED = record(3, A, GuardState.OWN)


@pytest.mark.parametrize(
    ("at_source", "guard", "fenced", "at_target", "committed", "verdict"),
    [
        ("running", CLAIMED, False, "running", True, Verdict.SPLIT),
        ("paused", None, False, "running", False, Verdict.SPLIT),
        ("running", CLAIMED, False, "shutoff", False, Verdict.RISK),
        ("running", None, False, "undefined", True, Verdict.RISK),
        ("shutoff", FENCED, True, "running", False, Verdict.RISK),  # back, fenced, off: a person has not decided
        ("shutoff", FENCED, True, "running", True, Verdict.CLEAR),
        ("shutoff", LATE, True, "running", True, Verdict.CLEAR),  # held since its boot: it cannot start either
        ("shutoff", LATE, False, "running", True, Verdict.RISK),
        ("shutoff", CLAIMED, True, "running", True, Verdict.RISK),  # an override: it may start at any time
        ("shutoff", None, False, "running", True, Verdict.RISK),
        ("undefined", None, False, "running", False, Verdict.CLEAR),
        (None, FENCED, True, "running", True, Verdict.UNKNOWN),
        ("running", FENCED, True, None, True, Verdict.UNKNOWN),
    ],
)
def test_what_both_sides_say(
    at_source: str | None,
    guard: GuardRecord | None,
    fenced: bool,
    at_target: str | None,
    committed: bool,
    verdict: Verdict,
) -> None:
    source, target = Side(A, "site-a", at_source, guard, fenced), Side(B, "site-b", at_target)
    found = judge(source, target, TAKEN, committed=committed)
    assert found.verdict is verdict
    assert found.why


@pytest.mark.parametrize(
    ("phase", "provisional", "verdict", "after"),
    [
        (Phase.PROVISIONAL, True, Verdict.SPLIT, Phase.SPLIT_BRAIN),
        (Phase.FAILED_OVER, False, Verdict.RISK, Phase.SPLIT_BRAIN_RISK),
        (Phase.SPLIT_BRAIN_RISK, True, Verdict.CLEAR, Phase.PROVISIONAL),
        (Phase.SPLIT_BRAIN_RISK, False, Verdict.CLEAR, Phase.FAILED_OVER),
        (Phase.SPLIT_BRAIN_RISK, False, Verdict.UNKNOWN, None),
        (Phase.SPLIT_BRAIN, False, Verdict.CLEAR, None),  # both have written: only the resolver ends it
        (Phase.SPLIT_BRAIN, False, Verdict.RISK, None),
        (Phase.SPLIT_BRAIN, False, Verdict.SPLIT, None),
        (Phase.FAILED_OVER, False, Verdict.CLEAR, None),
        (Phase.PROTECTED, False, Verdict.SPLIT, Phase.SPLIT_BRAIN),
        (Phase.PROTECTED, False, Verdict.RISK, None),
    ],
)
def test_the_phase_that_it_comes_to(phase: Phase, provisional: bool, verdict: Verdict, after: Phase | None) -> None:
    protection = Protection(
        protection_id="p", vm_uuid="u", vm_name="web", source_site=A, target_site=B, policy=Policy(), epoch_owner=B,
        epoch_number=2, phase=phase, created_at=NOW, commit_ask_at=NOW if provisional else None,
    )  # fmt: skip
    assert phase_after(protection, Finding(verdict, "why")) is after


def test_a_replica_is_behind_only_its_own_owner() -> None:
    assert overtaken(CLAIMED, Epoch(number=2, owner=A)) == Epoch(number=3, owner=A)
    assert overtaken(CLAIMED, Epoch(number=3, owner=A)) is None
    assert overtaken(CLAIMED, TAKEN) is None  # another's: that is a split brain, and a person's to decide
    assert overtaken(None, TAKEN) is None
