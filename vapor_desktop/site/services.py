"""Everything one ``serve`` process holds; the API's endpoints reach it through the request."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from vapor_desktop.hypervisor.connection import LibvirtHypervisor
from vapor_desktop.model.drills import LeakTarget
from vapor_desktop.model.wire import DoctorCheck
from vapor_desktop.site.adopting import Adopting
from vapor_desktop.site.audit import AuditLog
from vapor_desktop.site.doctor import run_checks
from vapor_desktop.site.drill_book import DrillBook
from vapor_desktop.site.drill_keeper import DrillKeeper
from vapor_desktop.site.drills import DrillHypervisor, Drills
from vapor_desktop.site.enrolments import Enrolments
from vapor_desktop.site.guard_book import GuardBook
from vapor_desktop.site.guard_hook import ProvingHypervisor, prove_or_tell, proven
from vapor_desktop.site.guard_keeper import GuardKeeper, KeptHypervisor, peer_name
from vapor_desktop.site.guardian import GuardedHypervisor, Guardian
from vapor_desktop.site.helper_client import HelperClient
from vapor_desktop.site.identity import certificate_sha256, ensure_identity
from vapor_desktop.site.peers import ask_owners
from vapor_desktop.site.plan_book import PlanBook
from vapor_desktop.site.replica import ReplicaStore
from vapor_desktop.site.rpo_alarm import RpoAlarm
from vapor_desktop.site.runbook import Capable, RunbookKeeper, Runbooks
from vapor_desktop.site.seeding import Seeding
from vapor_desktop.site.settings import SiteSettings
from vapor_desktop.site.site_events import EventLog
from vapor_desktop.site.stores import DomainLister, in_use_by, open_store
from vapor_desktop.site.tidying import Tidying
from vapor_desktop.site.tokens import TokenBook
from vapor_desktop.site.tpm import TpmKeeper
from vapor_desktop.site.versions import VersionWatch
from vapor_desktop.site.watches import Watches

CHECKS_AGE_S = 20.0


class HostHypervisor(
    GuardedHypervisor, DomainLister, KeptHypervisor, ProvingHypervisor, Capable, DrillHypervisor, Protocol
):
    """What the service asks of libvirt; ``LibvirtHypervisor`` has it."""

    def versions(self) -> tuple[str, str]: ...
    def close(self) -> None: ...


@dataclass(slots=True)
class Services:
    """Built once by ``build``; ``start`` and ``stop`` rule the threads."""

    settings: SiteSettings
    site_id: str
    certificate_sha256: bytes
    audit: AuditLog
    tokens: TokenBook
    enrolments: Enrolments
    hypervisor: HostHypervisor
    helper: HelperClient
    store: ReplicaStore
    events: EventLog
    guardian: Guardian
    alarm: RpoAlarm
    seeding: Seeding
    adopting: Adopting
    tpm: TpmKeeper
    tidying: Tidying
    guard: GuardBook
    keeper: GuardKeeper
    versions: VersionWatch
    plans: PlanBook
    runbooks: Runbooks
    runbook_keeper: RunbookKeeper
    drills: Drills
    drill_keeper: DrillKeeper
    _checks: tuple[float, tuple[DoctorCheck, ...]] = field(default=(float("-inf"), ()))

    def checks(self) -> tuple[DoctorCheck, ...]:
        """The doctor's findings, at most ``CHECKS_AGE_S`` old."""
        at, found = self._checks
        if time.monotonic() - at > CHECKS_AGE_S:
            found = tuple(run_checks(self.settings, self.hypervisor.versions))
            self._checks = time.monotonic(), found
        return found

    def start(self) -> None:
        """Begin guarding."""
        self.versions.current()
        self.guardian.start()
        self.keeper.start()
        self.alarm.start()
        self.tidying.start()
        self.runbook_keeper.start()
        self.drill_keeper.start()

    def stop(self) -> None:
        """End the threads; watches and leases stay on file."""
        self.drill_keeper.stop()
        self.runbook_keeper.stop()
        self.tidying.stop()
        self.alarm.stop()
        self.keeper.stop()
        self.seeding.stop()
        self.guardian.stop()
        self.events.close()
        self.hypervisor.close()


def build(settings: SiteSettings, hypervisor: HostHypervisor | None = None) -> Services:
    """Everything for these settings; makes the site's identity on first start."""
    identity = ensure_identity(settings)
    libvirt = hypervisor or LibvirtHypervisor(settings.libvirt_uri)
    helper = HelperClient(settings.helper_socket)
    audit = AuditLog(settings.audit_log)
    events = EventLog(settings.events_file, settings.alarm, settings.name)
    store = open_store(settings, in_use_by(libvirt, helper))
    alarm_state = Path(settings.state_dir) / "alarms.json"
    enrolments, guard = Enrolments(settings), GuardBook(settings, audit)
    keeper = GuardKeeper(
        guard,
        libvirt,
        events,
        ask=lambda site, vms, stop: ask_owners(settings, enrolments.peer(site), vms, stop),
        peer_name=lambda site: peer_name(enrolments.peer, site),
        prove=lambda: None if proven(settings) else prove_or_tell(settings, libvirt),
        patience_s=settings.guard_patience_s,
    )
    tpm = TpmKeeper(store, helper)
    runbooks = Runbooks(settings, store, libvirt, tpm, guard, enrolments.peer)

    def peers() -> list[LeakTarget]:
        return [LeakTarget(name=p.name, address=p.address, port=p.port) for p in enrolments.peers()]

    drills = Drills(settings, DrillBook(settings.drills_dir), libvirt, store, tpm, audit, peers)
    return Services(
        settings=settings,
        site_id=identity,
        certificate_sha256=certificate_sha256(settings),
        audit=audit,
        tokens=TokenBook(settings.tokens_file, audit),
        enrolments=enrolments,
        hypervisor=libvirt,
        helper=helper,
        store=store,
        events=events,
        guardian=Guardian(Watches(settings.watches_dir), libvirt, events),
        alarm=RpoAlarm(store.list, events, alarm_state, settings.alarm.every_s),
        seeding=Seeding(store, helper, settings.run_dir),
        tpm=tpm,
        adopting=Adopting(store, helper, libvirt, settings.digests_dir),
        tidying=Tidying(store),
        guard=guard,
        keeper=keeper,
        versions=VersionWatch(libvirt),
        plans=PlanBook(settings.plans_dir),
        runbooks=runbooks,
        runbook_keeper=RunbookKeeper(store, runbooks),
        drills=drills,
        drill_keeper=DrillKeeper(drills, events),
    )
