"""A starting guest's agent: no job is begun before it is there, and it is awaited once and not for ever."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from test_engine_plan import domain  # type: ignore[import-not-found]

from vapor_desktop.engine import agent_arrival
from vapor_desktop.engine.agent_arrival import AWAIT_S, AgentArrivals
from vapor_desktop.model.domains import DomainView

LOOK_S = 0.5  # of the guest's clock


class Ticks:
    """A clock that goes on with every look that the waiting makes."""

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
        self.clock.at += LOOK_S
        return replace(self.view, agent_connected=self.clock.at >= self.connects_at)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_arrival, "_LOOK_EVERY_S", 0.0)


def waits(arrivals: AgentArrivals, guest: Guest) -> float:
    """Seconds that a job is held back by."""
    began = guest.clock.at
    arrivals.before_job(guest, guest.view, lambda: False)  # type: ignore[arg-type]
    return guest.clock.at - began


@pytest.mark.parametrize("changes", [{"agent_channel": False}, {"agent_connected": True}, {"live_id": None}])
def test_no_channel_a_connected_agent_or_a_vm_that_is_off_is_not_waited_for(changes: dict[str, object]) -> None:
    view = replace(domain(), **{"live_id": 7, "agent_channel": True, "agent_connected": False, **changes})
    assert AgentArrivals(Ticks()).awaited_s(view) == 0


def test_no_job_is_begun_before_the_agent_is_there() -> None:
    clock = Ticks()
    arrivals, guest = AgentArrivals(clock), Guest(clock, connects_at=110.0)
    assert waits(arrivals, guest) == 10.0


def test_an_agent_that_does_not_come_is_waited_for_once_and_not_for_ever() -> None:
    clock = Ticks()
    arrivals, guest = AgentArrivals(clock), Guest(clock, connects_at=1e9)
    assert AWAIT_S <= waits(arrivals, guest) <= AWAIT_S + LOOK_S
    assert waits(arrivals, guest) == 0


def test_the_time_counts_from_the_first_sight_whoever_saw_it() -> None:
    clock = Ticks()
    arrivals, guest = AgentArrivals(clock), Guest(clock, connects_at=1e9)
    assert arrivals.awaited_s(guest.view) == AWAIT_S
    clock.at += AWAIT_S - 5
    assert 5 <= waits(arrivals, guest) <= 5 + LOOK_S


def test_it_begins_anew_with_every_start_of_the_vm_and_every_going_of_its_agent() -> None:
    clock = Ticks()
    arrivals, guest = AgentArrivals(clock), Guest(clock, connects_at=1e9)
    waits(arrivals, guest)
    assert arrivals.awaited_s(replace(guest.view, live_id=8)) == AWAIT_S
    clock.at += AWAIT_S
    assert arrivals.awaited_s(replace(guest.view, live_id=8)) == 0
    assert arrivals.awaited_s(replace(guest.view, live_id=8, agent_connected=True)) == 0
    assert arrivals.awaited_s(replace(guest.view, live_id=8)) == AWAIT_S


def test_a_cancelled_cycle_waits_no_longer() -> None:
    clock = Ticks()
    arrivals, guest = AgentArrivals(clock), Guest(clock, connects_at=1e9)
    arrivals.before_job(guest, guest.view, lambda: clock.at >= 103)  # type: ignore[arg-type]
    assert clock.at == 103
