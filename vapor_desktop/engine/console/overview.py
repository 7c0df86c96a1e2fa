"""What is seen at one moment, and what has been: snapshots, points, cycles, events."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from vapor_desktop.engine import holders
from vapor_desktop.engine.console import banners
from vapor_desktop.engine.console.desk import Desk
from vapor_desktop.engine.ports import CycleRecord, Event, PointRow, RpoSample
from vapor_desktop.model.drills import is_copy
from vapor_desktop.model.operations import Operation
from vapor_desktop.model.view import Snapshot

LATEST_OPERATIONS = 20


class OverviewDesk(Desk):
    """Looking. Only the database and memory are touched."""

    def snapshot(self) -> Snapshot:
        """Everything at one moment. Only the database and memory are touched."""
        now = self._clock.now()
        rows = self._engine.statuses()
        sites = list(self._repository.sites())
        pairs = tuple(self._repository.pairs())
        peers: dict[str, list[str]] = {}
        for a, b, _route in pairs:
            peers.setdefault(a, []).append(b)
            peers.setdefault(b, []).append(a)
        covered = {r.protection.vm_uuid for r in rows}
        engines = tuple(holders.engines(self._repository))
        alive = [e for e in engines if e.engine_id != self._engine.identity.engine_id]
        where = "here" if self._engine.active else ("service" if alive else "none")
        alerts = self._engine.alerts()
        site_rows = self._engine.sites.statuses(sites, peers)
        plans = tuple(self._repository.plan_statuses())
        return Snapshot(
            at=now,
            engine=where,
            engine_seen_at=max((e.heartbeat_at for e in alive), default=None) if where != "here" else now,
            sites=site_rows,
            pairs=pairs,
            protections=rows,
            unprotected=tuple(
                vm for vm in self._engine.sites.vms() if vm.vm_uuid not in covered and not is_copy(vm.name)
            ),
            banners=(
                *banners.DEMO[: int(self._demo)],
                *banners.of_protections(rows, where),
                *banners.of_sites(site_rows),
                *banners.of_plans(plans),
            ),
            alerts=alerts,
            tasks=banners.tasks(rows),
            operations=self._latest_operations(),
            plans=plans,
            engines=engines,
            demo=self._demo,
        )

    def _latest_operations(self) -> tuple[Operation, ...]:
        """Every open one, and the last few."""
        latest = self._repository.operations(limit=LATEST_OPERATIONS)
        found = {o.operation_id: o for o in (*self._repository.operations(open_only=True), *latest)}
        return tuple(sorted(found.values(), key=lambda o: o.started_at, reverse=True))

    def points(self, protection_id: str) -> Sequence[PointRow]:
        """Cached recovery points, oldest first."""
        return self._repository.points(protection_id)

    def rpo_samples(self, protection_id: str, since: datetime) -> Sequence[RpoSample]:
        """For the graph."""
        return self._repository.rpo_samples(protection_id, since)

    def cycles(self, protection_id: str, limit: int = 50) -> Sequence[CycleRecord]:
        """Newest first."""
        return self._repository.cycles(protection_id, limit)

    def events(self, protection_id: str | None = None, limit: int = 200) -> Sequence[Event]:
        """Newest first."""
        return self._repository.events(protection_id, limit)
