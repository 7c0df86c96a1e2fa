"""A starting guest's agent: awaited for its first minutes, with short jobs and pauses, and for no longer."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from test_engine_plan import domain  # type: ignore[import-not-found]

from vapor_desktop.engine import agent_arrival
from vapor_desktop.engine.agent_arrival import JOB_S, PAUSE_S, WHOLE_S, WINDOW_S, AgentArrivals
from vapor_desktop.model.domains import DomainView


class Ticks:
    """A clock that goes on by a second with every look at it that the waiting makes."""

    def __init__(self) -> None:
        self.at = 100.0

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.at)

    def monotonic(self) -> float:
        return self.at


class Guest:
    """Its agent connects at a moment."""

    def __init__(self, clock: Ticks, connects_at: float) -> None:
        self.clock, self.connects_at = clock, connects_at
        self.view = replace(domain(), live_id=7, agent_channel=True, agent_connected=False)

    def domain(self, _vm_uuid: str) -> DomainView:
        self.clock.at += 0.5
        return replace(self.view, agent_connected=self.clock.at >= self.connects_at)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_arrival, "_LOOK_EVERY_S", 0.0)


def test_no_channel_or_a_connected_agent_needs_no_care() -> None:
    arrivals = AgentArrivals(Ticks())
    for changes in ({"agent_channel": False}, {"agent_connected": True}, {"live_id": None}):
        view = replace(domain(), **{"live_id": 7, "agent_channel": True, "agent_connected": False, **changes})
        assert arrivals.waited_s(view) is None


def test_jobs_are_short_until_the_agent_is_there() -> None:
    clock = Ticks()
    arrivals, guest = AgentArrivals(clock), Guest(clock, connects_at=110.0)
    assert arrivals.before_job(guest, guest.view, may_pause=True) == JOB_S  # type: ignore[arg-type]
    assert 100 + PAUSE_S <= clock.at <= 100 + PAUSE_S + 1
    clock.at = 109.0
    assert arrivals.before_job(guest, guest.view, may_pause=True) is None  # type: ignore[arg-type]
    assert clock.at == 110.0


def test_a_job_that_cannot_pause_waits_for_the_agent_but_not_for_ever() -> None:
    clock = Ticks()
    arrivals, guest = AgentArrivals(clock), Guest(clock, connects_at=1e9)
    assert arrivals.before_job(guest, guest.view, may_pause=False) is None  # type: ignore[arg-type]
    assert 100 + WHOLE_S <= clock.at <= 100 + WHOLE_S + 1
    began = clock.at
    assert arrivals.before_job(guest, guest.view, may_pause=False) is None  # type: ignore[arg-type]
    assert clock.at <= began + 1


def test_the_window_begins_anew_with_every_start_of_the_vm() -> None:
    clock = Ticks()
    arrivals, guest = AgentArrivals(clock), Guest(clock, connects_at=1e9)
    assert arrivals.waited_s(guest.view) == 0
    clock.at += WINDOW_S
    assert arrivals.waited_s(guest.view) is None
    assert arrivals.waited_s(replace(guest.view, live_id=8)) == 0
