"""Deadlines, limits, back-off, alerts' episodes: pure, with time in our hands."""

from __future__ import annotations

import random
from datetime import UTC, datetime, time, timedelta

from hypothesis import given
from hypothesis import strategies as st

from vapor_desktop.engine import alerts
from vapor_desktop.engine.scheduler import Candidate, backoff_s, choose, due_at, expected_duration_s
from vapor_desktop.model.errors import Fate
from vapor_desktop.model.policy import Policy
from vapor_desktop.model.states import Severity
from vapor_desktop.model.view import Alert

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


def test_without_a_point_it_is_due_now() -> None:
    assert due_at(Policy(), None, 5, NOW) == NOW


@given(st.integers(5, 86400), st.floats(0.1, 600))
def test_a_cycle_started_when_due_ends_before_the_target_if_that_is_possible(target: int, expected: float) -> None:
    due = due_at(Policy(rpo_target_s=target), NOW, expected, NOW)
    done_age = (due - NOW).total_seconds() + expected
    if 1.25 * expected <= 0.75 * target:
        assert done_age <= target
    else:
        assert due == NOW  # back to back


def test_fixed_times_of_day_and_one_catch_up_after_a_long_sleep() -> None:
    policy = Policy(at_times=(time(18, 0), time(6, 0)))
    assert due_at(policy, NOW, 5, NOW) == datetime(2026, 11, 22, 18, tzinfo=UTC)
    three_days_ago = NOW - timedelta(days=3)
    assert due_at(policy, three_days_ago, 5, NOW) <= NOW  # overdue once, not six times
    assert due_at(policy, NOW, 5, NOW) > NOW


def candidate(name: str, due: int, deadline: int, pair: str = "B", priority: int = 5) -> Candidate:
    return Candidate(name, ("A", pair), NOW + timedelta(seconds=due), NOW + timedelta(seconds=deadline), priority)


def test_oldest_deadline_first_within_the_limit_of_each_pair() -> None:
    chosen = choose(
        [
            candidate("c", -1, 30),
            candidate("a", -1, 10),
            candidate("b", -1, 20),
            candidate("x", -1, 99, "C"),
            candidate("later", 5, 1),
        ],
        [("A", "B")],
        NOW,
        2,
    )
    assert [c.protection_id for c in chosen] == ["a", "x"]


def test_backoff_doubles_is_capped_and_jitters() -> None:
    rng = random.Random(1)
    waits = [backoff_s(n, Fate.RETRY, rng) for n in range(1, 30)]
    assert waits[0] < 3
    assert max(waits) <= 300 * 1.25
    assert backoff_s(1, Fate.OPERATOR, rng) > 20
    assert len({round(backoff_s(5, Fate.RETRY, rng), 3) for _ in range(20)}) > 10


def test_expected_duration_believes_a_recent_slow_cycle() -> None:
    assert expected_duration_s([]) > 0
    assert expected_duration_s([1.0, 9.0, 1.0, 1.0, 1.0]) == 9.0
    assert expected_duration_s([1.0, 1.0, 1.0, 1.0, 9.0]) == 1.0


def alert(key: str = "rpo:1") -> Alert:
    return Alert(key, NOW, None, Severity.CRITICAL, "t", "b")


def test_one_episode_per_cause_opened_once_closed_once() -> None:
    first = alerts.episodes({}, [alert()], [], NOW)
    again = alerts.episodes(
        first, [Alert("rpo:1", NOW + timedelta(seconds=9), None, Severity.CRITICAL, "t", "b2")], [], NOW
    )
    assert again["rpo:1"].opened_at == NOW
    assert again["rpo:1"].body == "b2"
    closed = alerts.episodes(again, [], [], NOW + timedelta(seconds=20))
    assert closed["rpo:1"].closed_at == NOW + timedelta(seconds=20)
    still = alerts.episodes(closed, [], [], NOW + timedelta(seconds=40))
    assert still["rpo:1"].closed_at == NOW + timedelta(seconds=20)
    reopened = alerts.episodes(
        still, [Alert("rpo:1", NOW + timedelta(seconds=60), None, Severity.CRITICAL, "t", "b")], [], NOW
    )
    assert reopened["rpo:1"].closed_at is None
    assert reopened["rpo:1"].opened_at == NOW + timedelta(seconds=60)


def test_failing_to_look_never_clears_an_alert() -> None:
    held = alerts.episodes({"rpo:1": alert()}, [], ["rpo:1"], NOW + timedelta(hours=1))
    assert held["rpo:1"].closed_at is None
