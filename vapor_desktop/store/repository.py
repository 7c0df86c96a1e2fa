"""The database as the engine sees it: ``engine.ports.Repository`` on SQLAlchemy."""

from __future__ import annotations

from datetime import datetime, timedelta

from vapor_desktop.store.coordination import CoordinationStore
from vapor_desktop.store.database import Database
from vapor_desktop.store.history import HistoryStore
from vapor_desktop.store.inventory import InventoryStore
from vapor_desktop.store.operations import OperationStore
from vapor_desktop.store.plans import PlanStore
from vapor_desktop.store.samples import SampleStore

ENGINES_KEPT = timedelta(days=1)


class SqlRepository(InventoryStore, HistoryStore, SampleStore, CoordinationStore, OperationStore, PlanStore):
    """Opens ``url`` (``sqlite:////path``, ``postgresql+psycopg://…``), migrates it, and answers.

    Every call is one short transaction; safe to use from several threads and processes. Raises
    DatabaseTrouble, NotFound, Conflict.
    """

    def __init__(self, url: str) -> None:
        self._db = Database(url)

    def thin(self, now: datetime) -> None:
        """Roll up and forget what is old. Idempotent."""
        self.thin_samples(now)
        self.thin_history(now)
        self.forget_engines(now - ENGINES_KEPT)

    def describe(self) -> str:
        """Which database, its version and the revision of our schema in it; nothing of where it is."""
        return self._db.describe()

    def close(self) -> None:
        """Give back all connections."""
        self._db.close()
