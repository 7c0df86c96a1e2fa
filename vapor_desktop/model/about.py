"""What a program says of itself: versions and licences."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Component:
    """A library in use. ``licence``: its SPDX expression or its own words; "" when it names none."""

    name: str
    version: str
    licence: str


@dataclass(frozen=True, slots=True)
class About:
    """``versions``: (what, which), the program first. ``components``: by name."""

    versions: tuple[tuple[str, str], ...]
    components: tuple[Component, ...]

    def lines(self) -> list[str]:
        """For a ticket."""
        return [f"{what}: {which}" for what, which in self.versions]
