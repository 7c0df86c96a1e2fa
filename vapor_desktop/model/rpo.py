"""RPO arithmetic on one clock. Unknown is ``None``: never 0, never green."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from vapor_desktop.model.states import RpoHealth

AT_RISK_RATIO = 0.8
# A point "from the future" by less than this is measurement noise of the clocks' offsets.
CLOCK_NOISE_S = 2.0
# A site's clock that is off by more than this is told. Ages are right all the same: the offset is measured.
CLOCK_TELLS_S = 30.0


@dataclass(frozen=True, slots=True)
class ClockOffset:
    """A site's clock minus ours, measured by one request: half the round trip bounds the error.

    offset_s: add to our time to get the site's. error_s: +- bound.
    """

    offset_s: float
    error_s: float

    @classmethod
    def measure(cls, sent: datetime, site_said: datetime, received: datetime) -> ClockOffset:
        """From our clock before and after, and the site's clock in between (all aware, UTC)."""
        half = (received - sent) / 2
        return cls((site_said - (sent + half)).total_seconds(), half.total_seconds())


def rpo_now_s(now: datetime, current_as_of: datetime | None, target_offset: ClockOffset | None) -> float | None:
    """Seconds of data that would be lost now.

    now: our clock; current_as_of: of the newest point, on the *target's* clock: the one clock that is
    still there when the source is dark, and that the target's own alarm uses. None when there is no
    point, when the target's offset was never measured, or when the point is from the future by more
    than the clocks' noise (a clock problem is not "0").
    """
    if current_as_of is None or target_offset is None:
        return None
    age = (now + timedelta(seconds=target_offset.offset_s) - current_as_of).total_seconds()
    if age < -(CLOCK_NOISE_S + target_offset.error_s):
        return None
    return max(age, 0.0)


def health(rpo_s: float | None, target_s: float, has_point: bool) -> RpoHealth:
    """RPO now against its target."""
    if not has_point:
        return RpoHealth.NO_POINT
    if rpo_s is None:
        return RpoHealth.UNKNOWN
    if rpo_s > target_s:
        return RpoHealth.BREACHED
    return RpoHealth.AT_RISK if rpo_s >= AT_RISK_RATIO * target_s else RpoHealth.WITHIN


def attainable_rpo_s(cycle_duration_s: float) -> float:
    """The smallest RPO target that back-to-back cycles of this length can hold.

    A point is already one cycle old when it is complete, and the next completes one cycle later.
    """
    return 2 * cycle_duration_s
