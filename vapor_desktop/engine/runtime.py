"""The engine: a loop that looks, decides and hands work to threads. No Qt; blocks in ``run`` until ``stop``.

Engines meet only in the database: ``sharing`` says which of them act, and which protection is whose. One that does
not act waits, and takes over when a heart-beat lapses; a console beside a service is a mere viewer. Two that start in
the same instant may both act until the next heart-beat: the sites' leases exclude, this only saves the effort.
"""

from __future__ import annotations

import getpass
import os
import secrets
import socket
import threading
from collections.abc import Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from datetime import datetime, timedelta

import structlog

from vapor_desktop.engine import alerts as alert_rules
from vapor_desktop.engine import drilling, records, scheduler, sharing
from vapor_desktop.engine.commands import Commands
from vapor_desktop.engine.following import Follower
from vapor_desktop.engine.guardian_news import GuardianNews, open_acts
from vapor_desktop.engine.operations.registry import TYPES
from vapor_desktop.engine.operations.runner import OperationRunner
from vapor_desktop.engine.operations.steps import Tools
from vapor_desktop.engine.ports import (
    Clock,
    Command,
    CycleRecord,
    Durable,
    EngineRow,
    LiveRow,
    Repository,
    RpoSample,
    SiteGateway,
)
from vapor_desktop.engine.recovery_plans import RecoveryPlans
from vapor_desktop.engine.sitewatch import SiteWatch
from vapor_desktop.engine.split_watch import TAKEN_OVER, WATCH_S, SplitWatch
from vapor_desktop.engine.status import status
from vapor_desktop.engine.verbs import Recovery
from vapor_desktop.engine.worker import EngineIdentity, ProtectionWorker
from vapor_desktop.model.errors import DomainBusy, VaporError
from vapor_desktop.model.operations import Operation, OperationKind
from vapor_desktop.model.sites import Protection, Site
from vapor_desktop.model.states import Phase
from vapor_desktop.model.view import Alert, ProtectionStatus

log = structlog.get_logger(__name__)

TICK_S = 0.2
BEAT_S = 2.0
LOOK_S = 10.0
INVENTORY_S = 30.0
PLANS_S = 10.0
PER_PAIR = 2
ROWS_KEPT_S = 0.5
CYCLES_KEPT_S = 60.0
PUBLISH_S = 1.0
THIN_S = 3600.0
CANCEL_DEADLINE_S = 60.0
CANCEL_AGAIN_S = 0.5
_SOURCE_LIT = {Phase.INITIAL_SYNC, Phase.PROTECTED, Phase.SYNCING, Phase.COMPARING, Phase.ERROR}
_NO_CYCLES = {
    Phase.FAILING_OVER,
    Phase.PROVISIONAL,
    Phase.FAILED_OVER,
    Phase.MIGRATING,
    Phase.REPROTECTING,
    Phase.SPLIT_BRAIN,
    Phase.SPLIT_BRAIN_RISK,
}


class Engine:
    """The brain of one process."""

    def __init__(
        self,
        repository: Repository,
        gateway: SiteGateway,
        clock: Clock,
        identity: EngineIdentity,
        durable: Durable,
        *,
        workers: int = 6,
    ) -> None:
        self.repository = repository
        self.gateway = gateway
        self.clock = clock
        self.identity = identity
        self.sites = SiteWatch(repository, gateway, clock)
        self.news = GuardianNews(repository, gateway, clock)
        self.worker = ProtectionWorker(repository, gateway, self.sites, clock, identity)
        self.news.on_override = self.worker.guards.forget
        self.recovery = Recovery(repository, gateway, self.sites, clock, identity)
        tools = Tools(repository, gateway, self.sites, clock, identity, self.worker, self._has_lapsed)
        self.operations = OperationRunner(tools, durable, TYPES)
        self.plans = RecoveryPlans(repository, gateway, clock, identity, self._answers)
        self._commands = Commands(self)
        self._plans_looked_at = float("-inf")
        self._plan_look: Future[None] | None = None
        self.splits = SplitWatch(repository, gateway, self.sites, clock)
        self.follower = Follower(repository, gateway, self.sites, clock)
        self._split_looked_at = float("-inf")
        self._split_look: Future[None] | None = None
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="engine")
        self._looks = ThreadPoolExecutor(4, thread_name_prefix="look")
        # Of their own: a failover never waits behind first copies.
        self._verbs = ThreadPoolExecutor(8, thread_name_prefix="verb")
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._active = threading.Event()
        self._running: dict[str, tuple[Future[object], datetime, tuple[str, str]]] = {}
        self._asked: set[str] = set()  # sync now
        self._looking: dict[str, Future[None]] = {}
        self._telling: Future[None] | None = None
        self._looked_at: dict[str, float] = {}
        self._inventory_at: dict[str, float] = {}
        self._beat_at = float("-inf")
        self._adopted_at = float("-inf")
        self._claims = sharing.Claims(repository, identity.engine_id)
        self._acting: tuple[str, ...] = ()
        self._living: frozenset[str] = frozenset()  # the others
        self._lapsed: frozenset[str] = frozenset()  # engines of this database that ended without saying so
        self.worker.lapsed = self._has_lapsed
        self._alerts: dict[str, Alert] = {}
        self._sampled_at: dict[str, datetime] = {}
        self._lock = threading.Lock()
        self._rows_lock = threading.Lock()
        self._rows: tuple[ProtectionStatus, ...] = ()
        self._rows_at = float("-inf")
        self._rows_stale = threading.Event()
        self._cycles: dict[str, tuple[float, Sequence[CycleRecord]]] = {}
        self._published_at = float("-inf")
        self._thinned_at = float("-inf")
        self._drill_look_at = float("-inf")
        self._shared_at = float("-inf")
        self._shared: frozenset[str] = frozenset()

    # --- life ----------------------------------------------------------------------------------------
    @property
    def active(self) -> bool:
        """Is this an engine that acts?"""
        return self._active.is_set()

    @property
    def leads(self) -> bool:
        """Is it the one of those that act that does what is to be done once: alerts, samples, the sites' news?"""
        return self._acting[:1] == (self.identity.engine_id,)

    def wait_active(self, timeout_s: float) -> bool:
        """Wait until this engine acts."""
        return self._active.wait(timeout_s)

    def run(self) -> None:
        """Block until ``stop``. Errors of single steps are recorded; the loop goes on."""
        try:
            while not self._stop.is_set():
                try:
                    self._tick()
                except VaporError as error:
                    log.warning("engine tick failed", code=error.code, error=str(error))
                self._wake.wait(TICK_S)
                self._wake.clear()
        finally:
            self._leave()

    def stop(self) -> None:
        """Ask the loop to end; running cycles are cancelled at their next chunk."""
        self._stop.set()
        self._wake.set()

    def wake(self) -> None:
        """Look now rather than at the next tick."""
        self._wake.set()

    def _leave(self) -> None:
        for protection_id in list(self._running):
            self.worker.cancel(protection_id)
        self.operations.close()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._looks.shutdown(wait=True, cancel_futures=True)
        self._verbs.shutdown(wait=True, cancel_futures=True)
        self.repository.drop_engine(self.identity.engine_id)

    # --- one tick --------------------------------------------------------------------------------------
    def _tick(self) -> None:
        self._beat()
        self._look_at_sites()
        self._reap()
        if self.clock.monotonic() - self._adopted_at >= BEAT_S:
            self._adopted_at = self.clock.monotonic()
            self.operations.touch()
            if self.active:
                self.operations.adopt(self._living, self._may_adopt)
        if not self.active and not self._claims.mine:
            return
        rows = self.statuses()
        self._take_commands()
        if self.active:
            self._share(rows)
            self._start_due({r.key: r for r in rows if r.key in self._claims.lasting})
        if self.leads:
            self._look_at_plans()
            self._begin_scheduled_drill(rows)
            self._look_for_splits(rows)
        if self.clock.monotonic() - self._published_at >= PUBLISH_S:
            self._published_at = self.clock.monotonic()
            self._publish(rows)
        if self.leads and self.clock.monotonic() - self._thinned_at >= THIN_S:
            self._thinned_at = self.clock.monotonic()
            self._looks.submit(self.repository.thin, self.clock.now())

    def _answers(self, site_id: str) -> bool:
        seen = self.sites.seen(site_id)
        return seen is None or seen.status.reachable is not False

    def _look_for_splits(self, rows: Sequence[ProtectionStatus]) -> None:
        busy = self._split_look is not None and not self._split_look.done()
        if busy or self.clock.monotonic() - self._split_looked_at < WATCH_S:
            return
        self._split_looked_at = self.clock.monotonic()
        self._split_look = self._looks.submit(self._watch_splits, [r.protection for r in rows])

    def _watch_splits(self, protections: Sequence[Protection]) -> None:
        try:
            if self.follower.round(protections) or self.splits.round(protections):
                self.forget_rows()
                self.wake()
        except VaporError as error:
            log.warning("split brains were not looked for", code=error.code, error=str(error))

    def _look_at_plans(self) -> None:
        busy = self._plan_look is not None and not self._plan_look.done()
        if busy or self.clock.monotonic() - self._plans_looked_at < PLANS_S:
            return
        self._plans_looked_at = self.clock.monotonic()
        self._plan_look = self._looks.submit(self._watch_plans)

    def _watch_plans(self) -> None:
        try:
            self.plans.watch()
        except VaporError as error:
            log.warning("the recovery plans were not looked at", code=error.code, error=str(error))

    def _beat(self) -> None:
        now_mono = self.clock.monotonic()
        if now_mono - self._beat_at < BEAT_S:
            return
        self._beat_at = now_mono
        me, now = self.identity.engine_id, self.repository.time()
        # Be seen first, then look: of two that start together at least one sees the other.
        mine = EngineRow(me, socket.gethostname(), os.getpid(), self.identity.kind, now)
        self.repository.beat(mine)
        others = [e for e in self.repository.engines() if e.engine_id != me]
        living = [e for e in others if sharing.lives(e, now)]
        self._living = frozenset(e.engine_id for e in living)
        self._lapsed = frozenset(e.engine_id for e in others) - self._living
        led = self.leads
        self._acting = sharing.acting([*living, mine], shared=self.repository.shared())
        if self.leads and not led:
            with self._lock:  # episodes go on where the engine before this one left them
                self._alerts = self.repository.alerts()
        if me not in self._acting:
            self._active.clear()
        elif not self.active:
            log.info("engine is active", engine=me, kind=self.identity.kind)
            self._active.set()
        self._share(self.statuses() if self.active else ())

    def _share(self, rows: Sequence[ProtectionStatus]) -> None:
        """See to the claims: with every heart-beat, and at once when a protection is new."""
        keys = frozenset(r.key for r in rows)
        if self._shared_at == self._beat_at and keys <= self._shared:
            return
        self._shared_at, self._shared = self._beat_at, keys
        before = self._claims.mine
        self._claims.refresh(keys, self._acting, self._living, {*self._running, *self.operations.protections()})
        if self._claims.mine != before:
            log.info("claims", mine=len(self._claims.mine), engines=len(self._acting))
            self.forget_rows()

    def _has_lapsed(self, engine_id: str) -> bool:
        return engine_id in self._lapsed

    def _may_adopt(self, operation: Operation) -> bool:
        """Who has the VM's cycles has its operations; the leading engine has what is nobody's."""
        holder = self._claims.holder(operation.protection_id)
        return self.leads if holder is None else holder == self.identity.engine_id

    def _look_at_sites(self) -> None:
        now = self.clock.monotonic()
        for site in self.repository.sites():
            busy = self._looking.get(site.site_id)
            if busy is not None and not busy.done():
                continue
            if now - self._looked_at.get(site.site_id, float("-inf")) < LOOK_S:
                continue
            inventory = now - self._inventory_at.get(site.site_id, float("-inf")) >= INVENTORY_S
            self._looked_at[site.site_id] = now
            if inventory:
                self._inventory_at[site.site_id] = now
            self._looking[site.site_id] = self._looks.submit(self._look, site, inventory)

    def _look(self, site: Site, inventory: bool) -> None:
        before = self.sites.seen(site.site_id)
        self.sites.look(site, inventory=inventory)
        after = self.sites.seen(site.site_id)
        if after is None or not self.active:
            return
        if after.status.reachable and self.leads:
            self.news.read(site)
            if drilling.read(self.repository, self.gateway, site):
                self.forget_rows()
        if after.status.reachable is False and not after.status.refuses:
            self._source_dark(site.site_id)
        elif after.status.reachable and before is not None and before.status.reachable is False:
            self.retry_soon({site.site_id})

    def _source_dark(self, site_id: str) -> None:
        """Said at once, not only when a cycle that hangs on the dead connection has given up."""

        def change(p: Protection) -> Protection:
            lit = p.phase in _SOURCE_LIT and not p.paused
            return records.to_phase(Phase.SOURCE_UNREACHABLE)(p) if lit else p

        for p in self.repository.protections():
            if p.source_site == site_id and p.protection_id in self._claims.mine:
                records.update(self.repository, p.protection_id, change)
        self.forget_rows()

    def retry_soon(self, sites: Set[str]) -> None:
        """Something about these sites was mended: whatever waits because of them is tried now."""

        def change(p: Protection) -> Protection:
            if p.phase is Phase.SOURCE_UNREACHABLE and p.source_site in sites:
                there = self.repository.points(p.protection_id)
                p = records.to_phase(Phase.PROTECTED if there else Phase.INITIAL_SYNC)(p)
            return p.model_copy(update={"not_before": None})

        for p in self.repository.protections():
            if {p.source_site, p.target_site} & sites:
                records.update(self.repository, p.protection_id, change)
        self.forget_rows()
        self.wake()

    def _tell_lost(self, rows: Sequence[ProtectionStatus]) -> None:
        """The hosts that lost a VM to a failover hear of it; one at a time, and once each."""
        if self._telling is not None and not self._telling.done():
            return
        lost = [r.protection for r in rows if r.protection.phase in TAKEN_OVER]
        if lost:
            self._telling = self._looks.submit(self.worker.guards.tell_lost, lost)

    def _reap(self) -> None:
        for protection_id, (future, _since, _pair) in list(self._running.items()):
            if not future.done():
                continue
            del self._running[protection_id]
            error = future.exception()
            if error is not None:  # a bug of ours: it must be seen, and must not stop the others
                log.error("cycle crashed", protection=protection_id, error=repr(error), exc_info=error)
                self.worker.crashed(protection_id, error)

    def _begin_scheduled_drill(self, rows: Sequence[ProtectionStatus]) -> None:
        """One at a time; what keeps it from beginning is tried again a day later."""
        if self.clock.monotonic() < self._drill_look_at:
            return
        self._drill_look_at = self.clock.monotonic() + drilling.SCHEDULE_S
        protections = [r.protection for r in rows if r.protection.policy.drill_auto]
        if not protections:
            return
        pointed = {r.key for r in rows if r.point_count}
        p = drilling.next_scheduled(protections, pointed, self.repository.operations(limit=500), self.clock.now())
        if p is not None:
            reason = f"no drill passed within {p.policy.drill_days} days"
            args = {"scheduled": True}
            self._verbs.submit(
                self.operations.begin, OperationKind.DRILL, p.protection_id, args, reason, self.identity.name
            )

    def _start_due(self, rows: Mapping[str, ProtectionStatus]) -> None:
        now = self.clock.now()
        known = {s.site_id for s in self.repository.sites()}
        candidates = []
        for row in rows.values():
            p = row.protection
            if not {p.source_site, p.target_site} <= known:
                continue  # adopted from a target alone: there is no source to read from here
            asked = p.protection_id in self._asked
            if p.protection_id in self._running or p.phase in _NO_CYCLES or (p.paused and not asked):
                continue
            due = now if asked else row.next_due_at
            if due is None:
                continue
            target = timedelta(seconds=p.policy.rpo_target_s)
            age = row.rpo_now_s  # not the point's time: each target has its own clock
            deadline = now - timedelta(seconds=age) + target if age is not None else p.created_at + target
            pair = (p.source_site, p.target_site)
            candidates.append(scheduler.Candidate(p.protection_id, pair, due, deadline, p.policy.priority))
        busy = [pair for _f, _s, pair in self._running.values()]
        for c in scheduler.choose(candidates, busy, now, PER_PAIR):
            asked = c.protection_id in self._asked
            self._asked.discard(c.protection_id)
            future = self._pool.submit(self._run_cycle, c.protection_id, asked)
            self._running[c.protection_id] = (future, now, c.pair)

    def _run_cycle(self, protection_id: str, asked: bool) -> object:
        try:
            return self.worker.run(protection_id, asked=asked)
        finally:
            self._cycles.pop(protection_id, None)
            self.forget_rows()
            self.wake()

    # --- what viewers see --------------------------------------------------------------------------------
    def statuses(self) -> tuple[ProtectionStatus, ...]:
        """All rows, at most half a second old: the loop and the window ask for the same ones."""
        with self._rows_lock:
            if self._rows_stale.is_set() or self.clock.monotonic() - self._rows_at > ROWS_KEPT_S:
                self._rows_stale.clear()  # before reading: what changes meanwhile makes these rows stale again
                self._rows = self._make_rows()
                self._rows_at = self.clock.monotonic()
            return self._rows

    def forget_rows(self) -> None:
        """Something changed that must be seen at once."""
        self._rows_stale.set()

    def _recent_cycles(self, protection_id: str) -> Sequence[CycleRecord]:
        """The last cycles, read again when ours ended one, else now and then (another engine may write)."""
        known = self._cycles.get(protection_id)
        if known is None or self.clock.monotonic() - known[0] > CYCLES_KEPT_S:
            known = (self.clock.monotonic(), self.repository.cycles(protection_id, 12))
            self._cycles[protection_id] = known
        return known[1]

    def _make_rows(self) -> tuple[ProtectionStatus, ...]:
        repository, now = self.repository, self.clock.now()
        points = repository.point_summaries()
        clocks = {s.site_id: repository.clock(s.site_id) for s in repository.sites()}
        names = {s.site_id: s.name for s in repository.sites()}
        routes = {frozenset((a, b)): route for a, b, route in repository.pairs()}
        live = repository.live()
        rows = []
        for p in repository.protections():
            row = status(
                p,
                now=now,
                points=points.get(p.protection_id),
                cycles=self._recent_cycles(p.protection_id),
                live=live.get(p.protection_id),
                target_clock=clocks.get(p.target_site),
                site_names=names,
                route=routes.get(frozenset((p.source_site, p.target_site)), "direct"),
            )
            # What runs here is known here; the database's word is about others' work, and a second old.
            if p.protection_id in self._claims.mine:
                running = self._running.get(p.protection_id)
                began = running[1] if running is not None and not running[0].done() else None
                row = replace(row, progress=self.worker.progress(p.protection_id), cycle_started_at=began)
            rows.append(row)
        return tuple(rows)

    def alerts(self) -> tuple[Alert, ...]:
        """Open and lately closed episodes: the leading engine's, whichever process it lives in."""
        if not self.leads:
            return tuple(self.repository.alerts().values())
        with self._lock:
            return tuple(self._alerts.values())

    def _publish(self, rows: tuple[ProtectionStatus, ...]) -> None:
        now = self.clock.now()
        power = {vm.vm_uuid: vm.state for vm in self.sites.vms()}
        self.repository.save_live(
            [
                LiveRow(
                    r.key,
                    now,
                    r.progress,
                    r.cycle_started_at,
                    r.next_due_at,
                    power.get(r.protection.vm_uuid, r.source_power),
                )
                for r in rows
                if r.key in self._claims.mine
            ]
        )
        self._tell_lost([r for r in rows if r.key in self._claims.mine])
        if not self.leads:
            return
        site_rows = self.sites.statuses(list(self.repository.sites()), {})
        current = [*alert_rules.conditions(rows, site_rows, now), *open_acts(rows, self.news.acts(), now)]
        before = self._alerts
        after = alert_rules.episodes(before, current, alert_rules.undecided(rows), now)
        with self._lock:
            self._alerts = after
        if after != before:
            self.repository.save_alerts(after)
        samples = []
        for r in rows:
            every = timedelta(seconds=min(max(r.protection.policy.rpo_target_s / 20, 1.0), 60.0))
            last = self._sampled_at.get(r.key)
            if last is None or now - last >= every:
                self._sampled_at[r.key] = now
                samples.append((r.key, RpoSample(now, r.rpo_now_s, float(r.protection.policy.rpo_target_s))))
        if samples:
            self.repository.add_rpo_samples(samples)

    # --- commands ----------------------------------------------------------------------------------------
    def _take_commands(self) -> None:
        while (command := self.repository.take_command(self.identity.engine_id, self._may_take)) is not None:
            self._verbs.submit(self._commands.execute, command)

    def _may_take(self, command: Command) -> bool:
        """What is about a protection is for the engine whose it is; the rest for any that acts."""
        key = command.args.get("protection_id")
        holder = self._claims.holder(str(key))
        if holder == self.identity.engine_id:
            return self.active or command.verb != "sync"  # what only finishes its work here begins no cycle
        if key is None or holder is None:
            # One that is not claimed yet will be in a moment: then its engine takes the command.
            return self.active and key not in self._shared
        return False

    def sync(self, protection_id: str) -> None:
        """A cycle as soon as there is room for one, whatever is due."""
        p = self.repository.protection(protection_id)
        if p is not None and p.not_before is not None:
            records.update(self.repository, protection_id, lambda q: q.model_copy(update={"not_before": None}))
        self._asked.add(protection_id)
        self.forget_rows()
        self.wake()

    def cancel(self, protection_id: str) -> None:
        """Only one that is queued or runs: the next one was not meant."""
        if protection_id in self._running:
            self.worker.cancel(protection_id)

    def cancel_and_wait(self, protection_id: str) -> None:
        """Until it has ended, and none that was asked for begins. Raises DomainBusy when it does not end."""
        self._asked.discard(protection_id)
        self.cancel(protection_id)
        deadline = self.clock.monotonic() + CANCEL_DEADLINE_S
        while (running := self._running.get(protection_id)) is not None:
            wait([running[0]], timeout=CANCEL_AGAIN_S)
            if running[0].done():
                break
            if self.clock.monotonic() > deadline:
                why = f"it was cancelled {CANCEL_DEADLINE_S:.0f} s ago"
                raise DomainBusy("The running cycle did not end", why=why, fix="Try again")
            self.cancel(protection_id)  # one that had only been queued forgets it when it begins


def new_identity(kind: str, clock: Clock) -> EngineIdentity:
    """A unique id that sorts by start time, and a name for people."""
    stamp = clock.now().strftime("%Y%m%dT%H%M%S%f")
    name = f"{getpass.getuser()}@{socket.gethostname()}"
    return EngineIdentity(f"{stamp}-{secrets.token_hex(4)}", name, kind)
