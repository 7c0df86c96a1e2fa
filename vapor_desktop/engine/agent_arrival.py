"""A guest's agent that comes while a backup job runs: libvirt must get the chance to notice it.

Tried with libvirt 9.0: the event that says "the agent has opened its port" waits for the domain's job lock, gives up
after 30 s, and is never told again: the agent stays "not connected" until it is restarted in the guest, for
everybody. A VM that has just been started is therefore read by short jobs with a pause between them until its agent
is there. One whose agent never comes (none is installed) is treated so for its first minutes only.
"""

from __future__ import annotations

import threading

from vapor_desktop.engine.ports import Clock, Hypervisor
from vapor_desktop.model.domains import DomainView

# libvirt's event waits 30 s for the job (VIR_DOMAIN_JOB_WAIT_TIME); a job also opens and ends outside of the limit.
JOB_S = 15.0
# Between two such jobs: with none at all the event does not get its turn (tried: 0 s lost, 1 s served).
PAUSE_S = 2.0
# For so long after it was first seen without its agent, a VM may still be on the way.
WINDOW_S = 120.0
# A disk without bitmaps is read whole by one job: that one is begun with the agent, or after so long without.
WHOLE_S = 60.0
_LOOK_EVERY_S = 0.25


class AgentArrivals:
    """Which VMs' agents are still awaited. Safe from several threads."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._first_seen: dict[str, tuple[int, float]] = {}

    def waited_s(self, domain: DomainView) -> float | None:
        """Seconds since this start of the VM was first seen without its agent; None when none is awaited."""
        now = self._clock.monotonic()
        with self._lock:
            if domain.live_id is None or domain.agent_connected or not domain.agent_channel:
                self._first_seen.pop(domain.vm_uuid, None)
                return None
            live_id, since = self._first_seen.get(domain.vm_uuid, (None, now))
            if live_id != domain.live_id:
                since = now
            self._first_seen[domain.vm_uuid] = (domain.live_id, since)
            return now - since if now - since < WINDOW_S else None

    def before_job(self, hypervisor: Hypervisor, domain: DomainView, *, may_pause: bool) -> float | None:
        """Give a starting guest's agent its time. The longest that the job may last in seconds; None: no limit.

        Raises what looking at the domain raises.
        """
        waited_s = self.waited_s(domain)
        if waited_s is None:
            return None
        longest_s = PAUSE_S if may_pause else WHOLE_S - waited_s
        until, turn = self._clock.monotonic() + longest_s, threading.Event()
        while self._clock.monotonic() < until:
            turn.wait(_LOOK_EVERY_S)
            if self.waited_s(hypervisor.domain(domain.vm_uuid)) is None:
                return None
        return JOB_S if may_pause else None
