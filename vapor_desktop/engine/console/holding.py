"""Who is at work: engines, and the leases they hold."""

from __future__ import annotations

from collections.abc import Sequence

from vapor_desktop.engine import holders
from vapor_desktop.engine.console.desk import Desk
from vapor_desktop.model.view import EngineView, LeaseHolder


class HoldingDesk(Desk):
    """Engines and leases."""

    def engines(self) -> Sequence[EngineView]:
        """Those that live."""
        return holders.engines(self._repository)

    def leases(self, protection_id: str) -> Sequence[LeaseHolder]:
        """Of the VM, at each of its sites, asked now."""
        return holders.leases(self._repository, self._gateway, self._protection(protection_id))

    def take_over_lease(self, protection_id: str, site_id: str, reason: str) -> str:
        """End the lease that somebody holds there; who it was."""
        p, site, me = self._protection(protection_id), self._site(site_id), self._engine.identity.name
        was = holders.take_over(self._gateway, site, p.vm_uuid, me, reason)
        self._note("lease-taken-over", f"The lease at {site.name} was taken over from {was}: {reason}", protection_id)
        return was
