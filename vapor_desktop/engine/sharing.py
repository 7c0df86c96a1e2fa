"""Who does what where several engines meet in one database.

Services act, all of them where they may live on several machines; without one the console that came first acts, and
without that the command. Each protection is one engine's: its claim, a row won by compare-and-set. A claim saves the
effort of colliding; what excludes is the site's lease.
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta

from vapor_desktop.engine.ports import EngineRow, Repository

LAPSED = timedelta(seconds=10)
_RANK = {"service": 0, "console": 1, "command": 2}


def acting(living: Sequence[EngineRow], *, shared: bool) -> tuple[str, ...]:
    """Ids of the engines that act, the leading one first. Ids begin with their start time: the oldest leads."""
    if not living:
        return ()
    best = min(map(_rank, living))
    ids = sorted(e.engine_id for e in living if _rank(e) == best)
    return tuple(ids if shared and best == _RANK["service"] else ids[:1])


def _rank(engine: EngineRow) -> int:
    """A kind that a newer program has thought of comes last."""
    return _RANK.get(engine.kind, len(_RANK))


def proper(protection_id: str, engines: Sequence[str]) -> str | None:
    """Whose it should be: one that comes or goes moves its own share and nothing else (rendezvous hashing)."""

    def weight(engine_id: str) -> bytes:
        return hashlib.blake2b(f"{engine_id}/{protection_id}".encode(), digest_size=8).digest()

    return max(engines, key=weight, default=None)


def lives(engine: EngineRow, now: datetime) -> bool:
    """Does its heart beat, on the database's clock? One of this machine whose process is gone does not."""
    return now - engine.heartbeat_at < LAPSED and not _gone_here(engine)


def _gone_here(engine: EngineRow) -> bool:
    if engine.host != socket.gethostname():
        return False
    try:
        os.kill(engine.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


class Claims:
    """This engine's share. ``refresh`` is called by the engine's loop alone; the rest may be read by anybody."""

    def __init__(self, repository: Repository, engine_id: str) -> None:
        self._repository = repository
        self._me = engine_id
        self._held: Mapping[str, str] = {}
        self.mine: frozenset[str] = frozenset()
        self.lasting: frozenset[str] = frozenset()  # ours, and not to be given back: of these new work begins

    def holder(self, protection_id: str) -> str | None:
        """Whose work it was at the last look."""
        return self._held.get(protection_id)

    def refresh(
        self, protections: Collection[str], engines: Sequence[str], living: Collection[str], busy: Collection[str]
    ) -> None:
        """Claim what is properly ours and nobody living has; give back what is not ours and does not run here.

        ``engines``: those that act. ``living``: all others that live. ``busy``: what this engine is at work on.
        """
        held = self._repository.claims()
        back = [p for p, e in held.items() if e == self._me and p not in busy and proper(p, engines) != self._me]
        if back:
            self._repository.unclaim(back, self._me)
        wanted: dict[str | None, list[str]] = {}
        for p in protections:
            holder = held.get(p)
            if holder != self._me and holder not in living and proper(p, engines) == self._me:
                wanted.setdefault(holder, []).append(p)
        for holder, ids in wanted.items():
            self._repository.claim(ids, self._me, holder)
        if back or wanted:
            held = self._repository.claims()
        self._held = held
        self.mine = frozenset(p for p, e in held.items() if e == self._me)
        self.lasting = frozenset(p for p in self.mine if proper(p, engines) == self._me)
