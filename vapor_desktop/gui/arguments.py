"""What ``vapor-desktop`` was started with. Pure; a second start hands its own to the first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from vapor_desktop.gui.routes import SCHEME

MOST_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class Arguments:
    """``link``: a vapor:// text, not yet judged; "" for none. ``unknown``: what was not understood."""

    new_instance: bool = False
    tray: bool = False
    link: str = ""
    unknown: tuple[str, ...] = ()

    @classmethod
    def of(cls, argv: Sequence[str]) -> Arguments:
        """From the words after the program's name; those of the composition root are left to it."""
        links = [word for word in argv if word.startswith(f"{SCHEME}:")]
        known = {"--new-instance", "--tray", "--demo", "--engine", *links}
        unknown = tuple(word for word in argv if word not in known)
        return cls("--new-instance" in argv, "--tray" in argv, links[-1] if links else "", unknown)


@dataclass(frozen=True, slots=True)
class Call:
    """What a second start tells the first. ``token``: lets the first's window come to the front."""

    argv: tuple[str, ...] = ()
    token: str = ""

    def line(self) -> bytes:
        """One line of JSON."""
        return json.dumps({"argv": list(self.argv), "token": self.token}).encode() + b"\n"

    @classmethod
    def parse(cls, line: bytes) -> Call:
        """Anything that is no call means: show yourself."""
        try:
            found = json.loads(line)
            words, token = found["argv"], found["token"]
        except (ValueError, KeyError, TypeError):
            return cls()
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            return cls()
        return cls(tuple(words), token if isinstance(token, str) else "")
