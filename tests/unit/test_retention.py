from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vapor_desktop.model import retention
from vapor_desktop.model.errors import InvalidRequest
from vapor_desktop.model.manifest import PointEntry
from vapor_desktop.model.policy import Policy, Retention

START = datetime(2026, 3, 1, 0, 7, tzinfo=UTC)
RETENTIONS = st.builds(Retention, newest=st.integers(1, 6), hourly=st.integers(0, 6), daily=st.integers(0, 4))


def entry(seq: int, taken_at: datetime, *pins: str, proven: bool = False, dead: bool = False) -> PointEntry:
    return PointEntry(
        seq=seq,
        taken_at=taken_at,
        current_as_of=taken_at,
        files={"vda": "x"},
        pins=pins,
        proven_at=taken_at if proven else None,
        dead=dead,
    )


def long_run(rule: Retention, rpo_s: float, count: int) -> list[PointEntry]:
    """Points every rpo_s, retention after each."""
    points: list[PointEntry] = []
    for seq in range(1, count + 1):
        points.append(entry(seq, START + timedelta(seconds=rpo_s * seq)))
        gone = set(retention.plan(points, rule, points[-1].taken_at, chain_limit=99))
        points = [p for p in points if p.seq not in gone]
    return points


def test_the_default_after_ten_days_of_quarter_hours() -> None:
    points = long_run(Retention(), 900, 960)
    now = points[-1].taken_at
    assert len(points) == 15
    ages_h = [(now - p.taken_at).total_seconds() / 3600 for p in points]
    assert ages_h[-6:] == [1.25, 1.0, 0.75, 0.5, 0.25, 0]
    hours = [p.taken_at for p in points[3:9]]
    assert [b - a for a, b in pairwise(hours)] == [timedelta(hours=1)] * 5
    assert all(p.taken_at.minute == 52 for p in points[:9])  # the last one of each hour, once it is over
    assert [p.taken_at.hour for p in points[:3]] == [23, 23, 23]


@pytest.mark.parametrize("rpo_s", [300, 900, 1000, 3600, 5400, 43200, 86400])
@pytest.mark.parametrize(
    "rule", [Retention(), Retention(newest=1, hourly=3, daily=2), Retention(newest=4, hourly=0, daily=3)]
)
def test_reach_is_kept(rule: Retention, rpo_s: float) -> None:
    count = min(1500, int(8 * 86400 / rpo_s) + 40)
    points: list[PointEntry] = []
    promise = retention.reach(rule, rpo_s)
    started = None
    for seq in range(1, count + 1):
        points.append(entry(seq, START + timedelta(seconds=rpo_s * seq)))
        gone = set(retention.plan(points, rule, points[-1].taken_at, chain_limit=99))
        points = [p for p in points if p.seq not in gone]
        if len(points) == retention.kept_points(rule):
            started = seq if started is None else started
            assert points[-1].taken_at - points[0].taken_at >= promise
    assert started is not None


def test_reach_of_the_default() -> None:
    assert retention.reach(Retention(), 900) == timedelta(minutes=75, hours=5, days=2)
    assert retention.reach(Retention(newest=3, hourly=0, daily=0), 60) == timedelta(minutes=2)


@given(
    st.lists(st.integers(1, 40_000), min_size=1, max_size=60),
    RETENTIONS,
    st.lists(st.tuples(st.integers(0, 59), st.booleans()), max_size=6),
    st.integers(4, 40),
)
def test_a_plan_obeys_the_rules(gaps: list[int], rule: Retention, marks: list[tuple[int, bool]], limit: int) -> None:
    at, points = START, []
    marked = dict(marks)
    for seq, gap in enumerate(gaps):
        at += timedelta(seconds=gap)
        pins = ("user:x",) if marked.get(seq) is True else ()
        points.append(entry(seq, at, *pins, proven=marked.get(seq) is False))
    dropped = retention.plan(points, rule, at, chain_limit=limit)
    fixed = retention.pinned(points)
    alive = [p.seq for p in points]
    for seq in dropped:  # in that order each drop is one that the store accepts
        above = alive[alive.index(seq) + 1]
        assert not {seq, above} & fixed
        alive.remove(seq)
    assert points[-1].seq in alive
    assert fixed <= set(alive)
    if not dropped:
        return
    if len(points) - len(dropped) + 1 < limit:
        assert set(dropped).isdisjoint(p.seq for p in points[-rule.newest :])
    again = retention.plan([p for p in points if p.seq in alive], rule, at, chain_limit=limit)
    assert len(alive) + 1 <= limit or not again


@given(RETENTIONS, st.integers(60, 50_000), st.integers(1, 120))
def test_without_pins_the_count_is_bounded(rule: Retention, rpo_s: int, count: int) -> None:
    assert len(long_run(rule, rpo_s, count)) <= retention.kept_points(rule)


def test_an_overfull_chain_gives_up_its_oldest() -> None:
    points = [entry(seq, START + timedelta(minutes=seq)) for seq in range(1, 11)]
    assert retention.plan(points, Retention(newest=10), START, chain_limit=8) == [1, 2, 3]
    points[1] = entry(2, START, "drill:7")
    assert retention.plan(points, Retention(newest=10), START, chain_limit=8) == [3, 4, 5]
    assert retention.plan(points, Retention(newest=10), START, [1, 3, 5, 7, 9], chain_limit=4) == []


def test_what_the_site_refuses_to_drop_stays_and_its_neighbours_go() -> None:
    points = [entry(seq, START + timedelta(minutes=seq)) for seq in range(1, 11)]
    rule = Retention(newest=2, hourly=0, daily=0)
    assert retention.plan(points, rule, START, refused={4, 5}) == [1, 2, 3, 6, 7, 8]
    assert retention.plan(points, Retention(newest=10), START, refused={1, 2}, chain_limit=8) == [3, 4, 5]


def test_points_from_the_future_count_as_of_now() -> None:
    points = [entry(seq, START + timedelta(days=400 + seq)) for seq in range(1, 20)]
    dropped = retention.plan(points, Retention(newest=2, hourly=3, daily=3), START)
    assert dropped == list(range(1, 18))  # one hour and one day, both told by the newest


def test_dead_points_are_not_there() -> None:
    points = [entry(seq, START + timedelta(minutes=seq), dead=seq == 1) for seq in range(1, 5)]
    assert retention.plan(points, Retention(newest=2, hourly=0, daily=0), START) == [2]
    assert retention.pinned([entry(1, START, "user:x", dead=True)]) == set()


def test_what_does_not_fit_is_refused() -> None:
    retention.check_fits(Retention(), 16)
    with pytest.raises(InvalidRequest, match="do not fit"):
        retention.check_fits(Retention(daily=4), 16)
    retention.check_fits(Retention(daily=4), 32)


@pytest.mark.parametrize(
    ("version", "limit"),
    [(9_000_000, 32), (10_007_000, 32), (10_008_000, 16), (11_010_000, 16), (12_000_000, 32), (None, 16)],
)
def test_chain_limit(version: int | None, limit: int) -> None:
    assert retention.chain_limit(version) == limit


def test_the_chain_limit_of_what_a_site_tells() -> None:
    for version, limit in (("9.0.0", 32), ("10.8.0", 16), ("11.3.0", 16), ("12.0.1", 32), (None, 16), ("new", 16)):
        assert retention.chain_limit_of(version) == limit, version


def test_points_at_times_of_day_are_as_far_apart_as_the_longest_gap() -> None:
    assert retention.longest_gap_s([time(6)]) == 86400
    assert retention.longest_gap_s([time(6), time(18, 30)]) == 12 * 3600 + 1800
    assert retention.longest_gap_s([time(23), time(1), time(12)]) == 11 * 3600
    assert retention.interval_s(Policy(rpo_target_s=60)) == 60
    assert retention.interval_s(Policy(rpo_target_s=60, at_times=(time(0), time(12)))) == 43200
