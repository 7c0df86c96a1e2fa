"""The Backend: what a console or vaporctl asks, answered from the database, the sites, and the living engine."""

from __future__ import annotations

from vapor_desktop.engine.console.holding import HoldingDesk
from vapor_desktop.engine.console.overview import OverviewDesk
from vapor_desktop.engine.console.planning import PlanningDesk
from vapor_desktop.engine.console.protecting import ProtectingDesk
from vapor_desktop.engine.console.recovering import RecoveringDesk
from vapor_desktop.engine.console.replicating import ReplicatingDesk
from vapor_desktop.engine.console.sites import SitesDesk
from vapor_desktop.engine.console.telling import TellingDesk


class EngineBackend(
    OverviewDesk, SitesDesk, ProtectingDesk, ReplicatingDesk, RecoveringDesk, PlanningDesk, HoldingDesk, TellingDesk
):
    """Implements ``engine.backend.Backend``: all desks in one, over one Engine object."""
