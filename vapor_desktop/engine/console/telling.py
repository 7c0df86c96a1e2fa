"""What the program says of itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from vapor_desktop.engine import about
from vapor_desktop.engine.console.desk import Desk
from vapor_desktop.model.about import About

Facts = Callable[[], Mapping[str, str]]


class TellingDesk(Desk):
    """Versions and licences."""

    _facts: Facts | None = None

    def know(self, facts: Facts) -> None:
        """What only adapters know of themselves, told by the composition root; asked each time."""
        self._facts = facts

    def about(self) -> About:
        """Versions, and the licences of what is used."""
        return about.about({} if self._facts is None else self._facts())
