"""What every page needs, handed down explicitly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vapor_desktop.engine.backend import Backend
    from vapor_desktop.gui.bridge import Bridge
    from vapor_desktop.gui.errands import Errands
    from vapor_desktop.gui.layout_store import Memory
    from vapor_desktop.gui.theme import Theme


@dataclass(frozen=True, slots=True)
class Context:
    """The window's collaborators."""

    bridge: Bridge
    errands: Errands
    theme: Theme
    memory: Memory

    @property
    def backend(self) -> Backend:
        """To be called inside ``bridge.ask`` or ``errands.run`` only (``normalise_url`` excepted)."""
        return self.bridge.backend
