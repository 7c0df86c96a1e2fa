"""A guest's agent that comes while a backup job runs is lost, and no job of that host ends for the next 30 s.

Tried with libvirt 9.0, every time, with jobs of 1 s and of 12 s: the event that says "the agent has opened its port"
wants a job that a backup job does not let pass. It waits 30 s in libvirtd's only event worker, gives up, and is never
told again: the agent stays "not connected" until it is restarted in the guest, for everybody. Meanwhile no backup
job of the host can end, for that needs the same worker. So none is begun while an agent may be on its way.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

from vapor_desktop.engine.ports import Clock, Hypervisor
from vapor_desktop.model.domains import DomainView

log = structlog.get_logger(__name__)

# For so long after a VM was first seen without its agent, the agent may still be on its way: a point that is due then
# is later by no more than this. One whose agent does not come (none is installed) is not waited for again.
AWAIT_S = 60.0
_LOOK_EVERY_S = 0.25
TOLD_S = 1.0


class AgentArrivals:
    """Which VMs' agents are still awaited. Safe from several threads."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._first_seen: dict[str, tuple[int, float]] = {}

    def awaited_s(self, domain: DomainView) -> float:
        """How much longer the agent of the VM, as seen just now, is to be awaited in seconds; 0: no longer.

        Counted from the first sight of this start of the VM, or of its agent's going, whoever saw it.
        """
        now = self._clock.monotonic()
        with self._lock:
            if domain.live_id is None or domain.agent_connected or not domain.agent_channel:
                self._first_seen.pop(domain.vm_uuid, None)
                return 0.0
            live_id, since = self._first_seen.get(domain.vm_uuid, (None, now))
            if live_id != domain.live_id:
                since = now
            self._first_seen[domain.vm_uuid] = (domain.live_id, since)
            return max(0.0, AWAIT_S - (now - since))

    def before_job(self, hypervisor: Hypervisor, domain: DomainView, cancelled: Callable[[], bool]) -> None:
        """Wait for a starting guest's agent, at most ``awaited_s``, or until ``cancelled``.

        Raises what looking at the domain raises.
        """
        turn, began = threading.Event(), self._clock.monotonic()
        while self.awaited_s(domain) > 0 and not cancelled():
            turn.wait(_LOOK_EVERY_S)
            domain = hypervisor.domain(domain.vm_uuid)
        waited_s = self._clock.monotonic() - began
        if waited_s > TOLD_S:
            log.info(
                "waited for the guest agent", vm=domain.name, seconds=round(waited_s, 1), came=domain.agent_connected
            )
