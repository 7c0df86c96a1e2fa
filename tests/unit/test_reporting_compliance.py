"""RPO compliance of a range: within, breached and unknown are all of it, and unknown is never within."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vapor_desktop.engine.ports import RpoSample
from vapor_desktop.engine.reporting.compliance import Compliance, Held, Stretch, compliance, stretches
from vapor_desktop.model.errors import InvalidRequest

T0 = datetime(2026, 11, 20, 8, 0, tzinfo=UTC)
TARGET = 300.0  # sampled each 15 s; 45 s without a sample: nobody looked


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def sample(seconds: float, rpo_s: float | None, over_s: float = 0.0) -> RpoSample:
    return RpoSample(at(seconds), rpo_s, TARGET, over_s)


def seconds(found: Compliance) -> tuple[float, float, float]:
    return tuple(t.total_seconds() for t in (found.within, found.breached, found.unknown))  # type: ignore[return-value]


def test_a_breach_begins_when_the_age_reaches_the_target_and_ends_with_the_next_good_look() -> None:
    # A point as of T0-200: 300 s old at T0+100. A new one is seen at T0+165.
    seen = [sample(s, 200.0 + s) for s in range(0, 165, 15)] + [sample(s, s - 160.0) for s in range(165, 300, 15)]
    found = compliance(seen, at(0), at(300))
    assert seconds(found) == (235.0, 65.0, 0.0)
    assert found.worst_s == 350.0
    assert found.breaches == (Stretch(at(100), at(165), Held.BREACHED, 350.0, TARGET),)


def test_nothing_seen_is_wholly_unknown() -> None:
    found = compliance([], at(0), at(60))
    assert seconds(found) == (0.0, 0.0, 60.0)
    assert found.worst_s is None
    assert found.breaches == ()


def test_an_unknown_sample_and_a_hole_are_unknown() -> None:
    seen = [sample(0, 10.0), sample(15, None), sample(30, 40.0), sample(45, 55.0), sample(1000, 20.0)]
    # 0-15 and 30-60 (the sample before the hole speaks for its own 15 s), 1000-1010.
    assert seconds(compliance(seen, at(0), at(1010))) == (55.0, 0.0, 955.0)


def test_a_target_reached_between_two_good_looks_is_not_told_as_within() -> None:
    found = compliance([sample(0, 295.0), sample(15, 5.0)], at(0), at(30))
    assert seconds(found) == (20.0, 0.0, 10.0)


def test_what_was_seen_before_the_range_speaks_into_it() -> None:
    found = compliance([sample(-5, 400.0), sample(10, 3.0)], at(0), at(20))
    assert seconds(found) == (10.0, 10.0, 0.0)
    assert found.worst_s == 400.0
    assert found.breaches[0].start == at(0)


def test_thinned_samples_stand_for_their_whole_stretch() -> None:
    seen = [sample(0, 100.0, 300.0), sample(300, 900.0, 300.0), sample(600, None, 300.0)]
    found = compliance(seen, at(0), at(900))
    assert seconds(found) == (300.0, 300.0, 300.0)
    assert [(b.start, b.end, b.worst_s) for b in found.breaches] == [(at(300), at(600), 900.0)]


def test_a_thinned_stretch_with_an_unknown_part_is_never_within() -> None:
    good = [sample(0, 100.0, 300.0), sample(150, None, 150.0), sample(300, 10.0, 300.0)]
    assert seconds(compliance(good, at(0), at(600))) == (300.0, 0.0, 300.0)
    bad = [sample(0, 500.0, 300.0), sample(150, None, 150.0)]
    found = compliance(bad, at(0), at(300))
    assert seconds(found) == (0.0, 150.0, 150.0)
    assert found.worst_s == 500.0


def test_an_empty_range_is_refused() -> None:
    with pytest.raises(InvalidRequest):
        compliance([], at(5), at(5))


SAMPLES = st.lists(
    st.builds(
        lambda ms, rpo, target, over: RpoSample(T0 + timedelta(milliseconds=ms), rpo, target, over),
        st.integers(-3_600_000, 8_000_000),
        st.none() | st.floats(0, 2000),
        st.sampled_from([5.0, 60.0, 900.0]),
        st.sampled_from([0.0, 0.0, 150.0, 300.0, 3600.0]),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(SAMPLES, st.integers(1, 7_200_000_000))
def test_the_three_times_are_exactly_the_range(seen: list[RpoSample], length_us: int) -> None:
    end = T0 + timedelta(microseconds=length_us)
    parts = list(stretches(seen, T0, end))
    assert parts[0].start == T0
    assert parts[-1].end == end
    assert all(a.end == b.start for a, b in pairwise(parts))
    found = compliance(seen, T0, end)
    assert found.within + found.breached + found.unknown == found.length == timedelta(microseconds=length_us)
    assert sum((b.end - b.start for b in found.breaches), timedelta()) == found.breached


@settings(max_examples=100, deadline=None)
@given(SAMPLES, st.integers(0, 39))
def test_an_unknown_in_place_of_a_value_never_makes_it_better(seen: list[RpoSample], which: int) -> None:
    end = T0 + timedelta(hours=2)
    raw = [RpoSample(s.at, s.rpo_s, 60.0) for s in {s.at: s for s in seen}.values()]
    less = [RpoSample(s.at, None, 60.0) if n == which else s for n, s in enumerate(raw)]
    assert compliance(less, T0, end).within <= compliance(raw, T0, end).within
