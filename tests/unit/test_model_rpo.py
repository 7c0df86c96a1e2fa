"""RPO arithmetic: one clock, and unknown is not zero."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vapor_desktop.model.rpo import CLOCK_NOISE_S, ClockOffset, attainable_rpo_s, health, rpo_now_s
from vapor_desktop.model.states import RpoHealth

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
EXACT = ClockOffset(0.0, 0.0)
seconds = st.floats(min_value=0, max_value=120, allow_nan=False)
skews = st.floats(min_value=-1e6, max_value=1e6, allow_nan=False)


def _after(s: float) -> datetime:
    return NOON + timedelta(seconds=s)


@given(skew=skews, there=seconds, back=seconds)
def test_the_true_offset_lies_within_the_measured_bound(skew: float, there: float, back: float) -> None:
    measured = ClockOffset.measure(NOON, _after(there + skew), _after(there + back))
    assert abs(measured.offset_s - skew) <= measured.error_s + 1e-5  # microseconds of datetime


@given(skew=skews, age=st.floats(min_value=0, max_value=1e6))
def test_a_skewed_target_clock_changes_nothing(skew: float, age: float) -> None:
    now = rpo_now_s(NOON, _after(skew - age), ClockOffset(skew, 0.0))
    assert now == pytest.approx(age, abs=1e-4)


def test_unknown_is_none_and_never_zero() -> None:
    assert rpo_now_s(NOON, None, EXACT) is None
    assert rpo_now_s(NOON, _after(-5), None) is None
    assert rpo_now_s(NOON, _after(CLOCK_NOISE_S + 0.1), EXACT) is None


@given(error=seconds, ahead=st.floats(min_value=0, max_value=1))
def test_a_point_from_the_future_within_the_noise_is_fresh(error: float, ahead: float) -> None:
    offset = ClockOffset(0.0, error)
    assert rpo_now_s(NOON, _after(ahead * (CLOCK_NOISE_S + error) - 1e-4), offset) == pytest.approx(0.0, abs=2e-4)
    assert rpo_now_s(NOON, _after(CLOCK_NOISE_S + error + 0.001), offset) is None


@pytest.mark.parametrize(
    ("rpo_s", "expected"),
    [
        (0.0, RpoHealth.WITHIN),
        (79.9, RpoHealth.WITHIN),
        (80.0, RpoHealth.AT_RISK),
        (100.0, RpoHealth.AT_RISK),
        (100.1, RpoHealth.BREACHED),
        (None, RpoHealth.UNKNOWN),
    ],
)
def test_health_at_its_edges(rpo_s: float | None, expected: RpoHealth) -> None:
    assert health(rpo_s, 100.0, has_point=True) is expected
    assert health(rpo_s, 100.0, has_point=False) is RpoHealth.NO_POINT


@given(length=st.floats(min_value=0.05, max_value=3600))
def test_back_to_back_cycles_just_hold_the_attainable_target(length: float) -> None:
    oldest = max(
        rpo_now_s(_after((k + 1) * length), _after((k - 1) * length), EXACT) or 0.0 for k in range(1, 6)
    )  # just before the next point is complete
    target = attainable_rpo_s(length)
    assert oldest == pytest.approx(target, rel=1e-3)
    assert health(oldest * 0.999, target, has_point=True) is not RpoHealth.BREACHED
