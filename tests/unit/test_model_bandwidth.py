"""Bandwidth windows: which limit holds when, over midnight too."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vapor_desktop.model.bandwidth import limit_at, until_change_s
from vapor_desktop.model.errors import InvalidRequest
from vapor_desktop.model.policy import BandwidthWindow, Policy
from vapor_desktop.model.times import times_of_day, times_text

MB = 1_000_000
OFFICE = BandwidthWindow(start=time(8), end=time(18), bandwidth_bytes_s=MB)
NIGHT = BandwidthWindow(start=time(22), end=time(5), bandwidth_bytes_s=None)
POLICY = Policy(bandwidth_bytes_s=5 * MB, bandwidth_windows=(OFFICE, NIGHT))


def at(hour: int, minute: int = 0) -> datetime:
    return datetime(2026, 3, 4, hour, minute, tzinfo=UTC)


@pytest.mark.parametrize(
    ("hour", "limit"),
    [(7, 5 * MB), (8, MB), (17, MB), (18, 5 * MB), (21, 5 * MB), (22, None), (0, None), (4, None), (5, 5 * MB)],
)
def test_the_window_that_holds_overrides(hour: int, limit: int | None) -> None:
    assert limit_at(POLICY, at(hour)) == limit


def test_windows_are_utc_whatever_the_clock_shows() -> None:
    local = at(8).astimezone(timezone(timedelta(hours=9)))
    assert limit_at(POLICY, local) == MB


def test_of_two_windows_the_first_listed_holds() -> None:
    both = (OFFICE, BandwidthWindow(start=time(0), end=time(12), bandwidth_bytes_s=3 * MB))
    policy = Policy(bandwidth_windows=both)
    assert limit_at(policy, at(9)) == MB
    assert limit_at(policy, at(7)) == 3 * MB


def test_no_window_never_changes() -> None:
    assert until_change_s(Policy(), at(3)) is None
    assert until_change_s(POLICY, at(7, 30)) == 1800
    assert until_change_s(POLICY, at(8)) == 10 * 3600
    assert until_change_s(POLICY, at(23)) == 6 * 3600


@given(st.datetimes(timezones=st.just(UTC)))
def test_until_the_change_the_limit_holds(now: datetime) -> None:
    now = now.replace(year=2026, month=3, day=4)
    wait_s = until_change_s(POLICY, now)
    assert wait_s is not None
    assert 0 < wait_s <= 86400
    for share in (0.01, 0.5, 0.99):
        assert limit_at(POLICY, now + timedelta(seconds=wait_s * share)) == limit_at(POLICY, now)


def test_times_as_people_write_them() -> None:
    assert times_of_day("18:30, 06:00;06:00 23:59") == (time(6), time(18, 30), time(23, 59))
    assert times_text(times_of_day("18:30 6:00:30".replace("6:00", "06:00"))) == "06:00:30, 18:30"
    for wrong in ("25:00", "noon", "06:00+02:00"):
        with pytest.raises(InvalidRequest):
            times_of_day(f"06:00 {wrong}")
