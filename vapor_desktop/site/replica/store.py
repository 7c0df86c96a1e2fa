"""The store: all verbs on replicas, each under the replica's lock."""

from __future__ import annotations

from vapor_desktop.site.replica.keeping import ReplicaKeeping
from vapor_desktop.site.replica.points import PointKeeping
from vapor_desktop.site.replica.reading import ReplicaReading
from vapor_desktop.site.replica.receiving import PointReceiving
from vapor_desktop.site.replica.takeover import TakeOver


class ReplicaStore(ReplicaReading, ReplicaKeeping, PointReceiving, PointKeeping, TakeOver):
    """All verbs in one. Options: ``GuardedReplicas``."""
