"""One row, from records and one reading of the clock: what a skewed clock at the target does to it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from vapor_desktop.engine.ports import CycleRecord, PointRow, PointSummary
from vapor_desktop.engine.status import status
from vapor_desktop.model.policy import Policy
from vapor_desktop.model.sites import Protection
from vapor_desktop.model.states import Phase, RpoHealth
from vapor_desktop.model.view import ProtectionStatus

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


def row(*, offset_s: float, as_of: datetime, cycle_began: datetime | None = None) -> ProtectionStatus:
    protection = Protection(
        protection_id="p",
        vm_uuid="u",
        vm_name="web",
        source_site="A",
        target_site="B",
        policy=Policy(rpo_target_s=60),
        epoch_owner="A",
        phase=Phase.PROTECTED,
        created_at=NOW,
    )
    point = PointRow("p", 1, as_of, as_of, "crash", 1, (), True, None)
    cycles = [CycleRecord("p", cycle_began, 1.0, "point", 1, 1, 1, "delta")] if cycle_began else []
    return status(
        protection,
        now=NOW,
        points=PointSummary(point, 1, as_of),
        cycles=cycles,
        live=None,
        target_clock=(offset_s, 0.01, NOW),
        site_names={},
        route="direct",
    )


@pytest.mark.parametrize("offset_s", [-90.0, 0.0, 90.0, 3600.0])
def test_age_and_next_cycle_do_not_depend_on_the_targets_clock(offset_s: float) -> None:
    taken = NOW - timedelta(seconds=20)
    found = row(offset_s=offset_s, as_of=taken + timedelta(seconds=offset_s), cycle_began=taken)
    assert found.rpo_now_s == pytest.approx(20)
    assert found.rpo_health is RpoHealth.WITHIN
    assert found.next_due_at == row(offset_s=0.0, as_of=taken, cycle_began=taken).next_due_at


def test_a_clock_set_back_makes_the_age_unknown_and_delays_no_cycle() -> None:
    """The point was stamped while the clock was an hour ahead; it is right now."""
    began = NOW - timedelta(seconds=20)
    found = row(offset_s=0.0, as_of=began + timedelta(hours=1), cycle_began=began)
    assert found.rpo_now_s is None
    assert found.rpo_health is RpoHealth.UNKNOWN
    assert found.next_due_at is not None
    assert found.next_due_at <= NOW + timedelta(seconds=60)
    assert row(offset_s=0.0, as_of=began + timedelta(hours=1)).next_due_at == NOW
