"""The table of legal transitions and how bad a state looks."""

from __future__ import annotations

from itertools import product

import pytest

from vapor_desktop.model.errors import IllegalTransition
from vapor_desktop.model.states import LEGAL, Phase, RpoHealth, Severity, move, severity

OVER = {Phase.PROVISIONAL, Phase.FAILED_OVER}


@pytest.mark.parametrize("now", Phase)
def test_the_door_opens_exactly_where_the_table_says(now: Phase) -> None:
    for to in Phase:
        if to is now or to in LEGAL[now]:
            assert move(now, to) is to
        else:
            with pytest.raises(IllegalTransition) as caught:
                move(now, to)
            assert str(now) in caught.value.what
            assert str(to) in caught.value.what


@pytest.mark.parametrize(
    ("now", "to"),
    [
        (Phase.FAILED_OVER, Phase.SYNCING),  # the old direction is over until a reprotect
        (Phase.FAILED_OVER, Phase.PROTECTED),
        (Phase.PROVISIONAL, Phase.PROTECTED),
        (Phase.PROVISIONAL, Phase.REPROTECTING),  # commit comes first
        (Phase.SPLIT_BRAIN, Phase.SYNCING),
        (Phase.PAUSED, Phase.FAILED_OVER),  # not without failing over
        (Phase.PROTECTED, Phase.PROVISIONAL),
    ],
)
def test_what_must_never_happen_by_itself(now: Phase, to: Phase) -> None:
    with pytest.raises(IllegalTransition):
        move(now, to)


def _reachable(start: Phase) -> set[Phase]:
    seen, todo = {start}, [start]
    while todo:
        for phase in LEGAL[todo.pop()] - seen:
            seen.add(phase)
            todo.append(phase)
    return seen


@pytest.mark.parametrize("start", Phase)
def test_no_phase_is_a_dead_end_and_every_phase_can_be_reached(start: Phase) -> None:
    assert set(LEGAL) == set(Phase)
    assert Phase.PROTECTED in _reachable(start)
    assert start in _reachable(Phase.INITIAL_SYNC)


def test_green_means_protected_and_within_target_and_nothing_else() -> None:
    green = {(p, r) for p, r in product(Phase, RpoHealth) if severity(p, r) is Severity.OK}
    assert green == {(Phase.PROTECTED, RpoHealth.WITHIN)}


@pytest.mark.parametrize("phase", Phase)
def test_unknown_and_breached_are_never_hidden_by_the_phase(phase: Phase) -> None:
    if phase in OVER:  # the old replica's age says nothing any more
        assert {severity(phase, rpo) for rpo in RpoHealth} == {Severity.WARNING}
    else:
        assert severity(phase, RpoHealth.UNKNOWN) >= Severity.WARNING
        assert severity(phase, RpoHealth.BREACHED) is Severity.CRITICAL


def test_a_first_copy_without_a_point_is_work_in_progress_and_not_an_alarm() -> None:
    assert severity(Phase.INITIAL_SYNC, RpoHealth.NO_POINT) is Severity.PROGRESS
    assert severity(Phase.SYNCING, RpoHealth.NO_POINT) is Severity.WARNING
    assert severity(Phase.SYNCING, RpoHealth.WITHIN) is Severity.PROGRESS


@pytest.mark.parametrize("phase", [Phase.SPLIT_BRAIN, Phase.SPLIT_BRAIN_RISK, Phase.SOURCE_UNREACHABLE, Phase.ERROR])
def test_the_worst_stays_the_worst_however_fresh_the_point(phase: Phase) -> None:
    assert severity(phase, RpoHealth.WITHIN) is Severity.CRITICAL
