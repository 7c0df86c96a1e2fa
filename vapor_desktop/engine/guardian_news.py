"""What the sites did by themselves, brought to a person: history, alerts. Each event is told once per database."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from vapor_desktop.engine import records
from vapor_desktop.engine.ports import Clock, Repository, SiteGateway
from vapor_desktop.model.errors import VaporError
from vapor_desktop.model.sites import Protection, Site
from vapor_desktop.model.states import Severity
from vapor_desktop.model.view import Alert, ProtectionStatus
from vapor_desktop.model.wire import GuardianEvent

log = structlog.get_logger(__name__)

RECENT = timedelta(hours=1)  # how far back an engine that has just started looks for what is still open
_WORDS = {
    "job-ended": "ended the backup job",
    "thawed": "thawed the guest",
    "resumed": "let the guest run again",
    "rpo-alarm": "raised its alarm",
    "rpo-recovered": "took its alarm back",
    "guard-held": "does not start the VM",
    "guard-released": "may start the VM now",
    "guard-risk": "started the VM without its peer's word: split-brain risk",
    "guard-started": "started the VM",
    "guard-override": "was given the VM by a person on the host",
    "guard-failed": "could not start the VM",
    "taken-over": "took the VM over, by a person on its host",
    "drill-ended": "ended the drill",
    "drill-paused": "paused the drill",
    "drill-stuck": "could not clean up after the drill",
}
_QUIET = {"rpo-recovered", "guard-released", "guard-started"}
_ALERTING = {"job-ended", "thawed", "resumed"}  # an alarm about the age is the engine's own alert already


@dataclass(frozen=True, slots=True)
class Act:
    """Something that a guardian did to a protected VM; ``at`` on our clock."""

    at: datetime
    title: str
    text: str


class GuardianNews:
    """``read`` blocks and is called from workers, after a look at the site; the rest only reads memory."""

    def __init__(self, repository: Repository, gateway: SiteGateway, clock: Clock) -> None:
        self._repository = repository
        self._gateway = gateway
        self._clock = clock
        self._lock = threading.Lock()
        self._acts: dict[str, Act] = {}
        self._read_to: dict[str, datetime] = {}
        self.on_override: Callable[[Protection], None] = lambda _p: None  # a person on a host took the VM

    def acts(self) -> dict[str, Act]:
        """The last act of a guardian on each protection's VM, by protection id."""
        with self._lock:
            return dict(self._acts)

    def read(self, site: Site) -> None:
        """Everything new at the site. What cannot be read now is read by the next look."""
        key = f"guardian-told/{site.site_id}"
        stored = self._repository.setting(key)
        told = datetime.fromisoformat(stored) if stored else site.paired_at
        row = self._repository.clock(site.site_id)
        offset = timedelta(seconds=row[0] if row else 0.0)
        since = self._read_to.get(site.site_id, min(told, self._clock.now() + offset - RECENT))
        try:
            events = self._gateway.api(site).guardian_events(since)
        except VaporError as error:  # the look itself has said what is wrong with the site
            log.info("the guardian's events are read later", site=site.name, error=str(error))
            return
        protections = self._repository.protections()
        for event in (e for e in events if e.at > since):
            protection = _concerned(protections, event, site)
            if protection is not None and event.what == "guard-override":
                self.on_override(protection)
            if event.at > told:
                self._tell(site, event, protection)
                self._repository.set_setting(key, event.at.isoformat())
            if protection is not None and event.what in _ALERTING:
                title = f"{site.name} {_WORDS[event.what]}: {protection.vm_name}"
                with self._lock:
                    self._acts[protection.protection_id] = Act(event.at - offset, title, event.why)
            self._read_to[site.site_id] = event.at

    def _tell(self, site: Site, event: GuardianEvent, protection: Protection | None) -> None:
        records.note(
            self._repository,
            self._clock.now(),
            f"guardian-{event.what}",
            f"{site.name} {_WORDS[event.what]}: {event.why}",
            severity=Severity.OK if event.what in _QUIET else Severity.WARNING,
            protection_id=protection.protection_id if protection else None,
            site_id=site.site_id,
        )


def _concerned(protections: Iterable[Protection], event: GuardianEvent, site: Site) -> Protection | None:
    """Jobs and freezes are at the source, the alarm of an old replica is at the target, a start guard at either."""
    for p in protections:
        where = {p.source_site} if event.what in _ALERTING else {p.source_site, p.target_site}
        if p.vm_uuid == event.vm_uuid and site.site_id in where:
            return p
    return None


def open_acts(rows: Iterable[ProtectionStatus], acts: dict[str, Act], now: datetime) -> list[Alert]:
    """Alerts for what no newer proof of the replica has made past. Pure."""
    found = []
    for row in rows:
        act = acts.get(row.key)
        as_of = None if row.rpo_now_s is None else now - timedelta(seconds=row.rpo_now_s)
        if act is not None and (as_of is None or as_of < act.at):
            found.append(Alert(f"guardian:{row.key}", now, None, Severity.WARNING, act.title, act.text, row.key))
    return found
