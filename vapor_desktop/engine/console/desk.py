"""What every desk of the console stands on: the engine's parts, and asking whichever engine lives."""

from __future__ import annotations

import threading

from vapor_desktop.engine import records
from vapor_desktop.engine.ports import Pairing
from vapor_desktop.engine.runtime import Engine
from vapor_desktop.model import retention
from vapor_desktop.model.errors import NotFound, SiteUnreachable, Unexpected, from_wire
from vapor_desktop.model.sites import Protection, Site

VERB_DEADLINE_S = 120.0
TAKEN_WITHIN_S = 30.0


class Desk:
    """One Engine object (active or standing by), looked up and asked."""

    def __init__(self, engine: Engine, pairing: Pairing, *, demo: bool = False) -> None:
        self._engine = engine
        self._repository = engine.repository
        self._gateway = engine.gateway
        self._clock = engine.clock
        self._pairing = pairing
        self._demo = demo

    def _ask(self, verb: str, args: dict[str, object], deadline_s: float) -> dict[str, object]:
        """Ask whichever engine lives, through the database, and wait for its answer."""
        command = self._repository.ask(verb, args, self._engine.identity.name, TAKEN_WITHIN_S)
        self._engine.wake()
        try:
            result, error = self._answer_to(command, verb, deadline_s)
        except BaseException:
            # Nobody waits for it any more: it must not be carried out by an engine that starts tomorrow.
            self._repository.withdraw(command)
            raise
        self._engine.forget_rows()
        if error is not None:
            raise from_wire(error)
        return result or {}

    def _answer_to(
        self, command: int, verb: str, deadline_s: float
    ) -> tuple[dict[str, object] | None, dict[str, object] | None]:
        began = self._clock.monotonic()
        pause = threading.Event()
        while (waited := self._clock.monotonic() - began) < deadline_s:
            answer = self._repository.answer_of(command)
            if answer is not None:
                return answer
            if waited > TAKEN_WITHIN_S and self._repository.withdraw(command):
                raise Unexpected(
                    f"No engine took “{verb}” within {TAKEN_WITHIN_S:.0f} s; it will not be done later either",
                    fix="Start the console or vapor-engine, then ask again",
                )
            pause.wait(0.02)
        raise Unexpected(
            f"“{verb}” has not ended within {deadline_s:.0f} s; it may still be at work", fix="Look at the history"
        )

    def _stop_cycle(self, protection_id: str) -> None:
        """Ask, and do not wait: whoever holds the lease is waited for."""
        self._repository.ask("cancel", {"protection_id": protection_id}, self._engine.identity.name, TAKEN_WITHIN_S)
        self._engine.wake()

    def _chain_limit(self, target: Site) -> int:
        return retention.chain_limit_of(self._gateway.api(target).identity()[0].libvirt_version)

    def _near(self, site_id: str) -> Site:
        """The site, unless the last look found that it does not answer: it is not worth a time-out each time."""
        site = self._site(site_id)
        seen = self._engine.sites.seen(site_id)
        if seen is not None and seen.status.reachable is False:
            raise SiteUnreachable(f"{site.name} does not answer", why=seen.status.error or "")
        return site

    def _changed(self) -> None:
        """What was just done must be in the next snapshot, and may be due now."""
        self._engine.forget_rows()
        self._engine.wake()

    def _note(self, kind: str, text: str, protection_id: str | None = None, *, site_id: str | None = None) -> None:
        records.note(self._repository, self._clock.now(), kind, text, protection_id=protection_id, site_id=site_id)

    def _site(self, site_id: str) -> Site:
        site = self._repository.site(site_id)
        if site is None:
            raise NotFound("That site is not paired with this console")
        return site

    def _protection(self, protection_id: str) -> Protection:
        p = self._repository.protection(protection_id)
        if p is None:
            raise NotFound("That protection does not exist")
        return p
