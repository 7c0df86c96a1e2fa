"""The start guard's own thread: after a boot it asks the peers who owns each guarded VM, and acts on what they say.

It lets start, or holds and tells; starts once what autostart wanted (libvirt's own autostart came too early and was
refused by the hook); switches autostart off for a VM that is not this site's, and gives it back when it is again.
It never stops a VM. ``prove`` tries the hook unless it is proven: why that could not be done, or None.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Protocol

from vapor_desktop.model import guard
from vapor_desktop.model.domains import DomainView
from vapor_desktop.model.errors import DomainNotFound, HypervisorUnreachable, NotFound, VaporError
from vapor_desktop.model.wire import EnrolPeer, GuardRecord, GuardState, OwnerWord
from vapor_desktop.site.guard_book import GuardBook
from vapor_desktop.site.leases import boot_id
from vapor_desktop.site.site_events import EventLog, event

_log = logging.getLogger("vapor.guard")

TICK_S = 1.0
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0  # between two questions to a peer while something waits for its answer
RECHECK_S = 300.0  # else: a link that was cut while the VM was taken over there
PROVE_S = 600.0  # an unproven hook is tried when we start, and then now and then
PROVE_AGAIN_S = 5.0  # where it could not be tried: libvirt may be starting too. Doubled with every try, up to PROVE_S

Asker = Callable[[str, Sequence[str], threading.Event], Mapping[str, OwnerWord | VaporError]]


class KeptHypervisor(Protocol):
    """What the keeper needs of libvirt; ``LibvirtHypervisor`` has it."""

    def domain(self, vm_uuid: str) -> DomainView: ...
    def start(self, vm_uuid: str, *, paused: bool = False) -> None: ...
    def set_autostart(self, vm_uuid: str, on: bool) -> None: ...


@dataclass(slots=True)
class _Peer:
    """How asking one peer goes. Times on the monotonic clock."""

    asked_at: float = float("-inf")
    wait_s: float = FIRST_WAIT_S
    silent_since: float | None = None


class GuardKeeper:
    """``patience_s``: how long a silent peer is asked before the policy *start* lets a VM start."""

    def __init__(
        self,
        book: GuardBook,
        hypervisor: KeptHypervisor,
        events: EventLog,
        ask: Asker,
        peer_name: Callable[[str], str],
        prove: Callable[[], str | None],
        patience_s: float,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._book = book
        self._hypervisor = hypervisor
        self._events = events
        self._ask_peer = ask
        self._peer_name = peer_name
        self._prove = prove
        self._patience_s = patience_s
        self._now_s = now_s
        self._peers: dict[str, _Peer] = defaultdict(_Peer)
        self._settled: dict[str, GuardRecord] = {}
        self._settling = threading.Lock()  # the API and the thread: one start, one event
        self._prove_at, self._prove_wait_s = float("-inf"), PROVE_AGAIN_S
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="guard", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; a question to a peer is broken off."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.tick()
                self.prove_when_due()
            except (VaporError, OSError) as error:
                _log.error("the guard records cannot be kept: %s", error)
            self._stop.wait(TICK_S)

    def prove_when_due(self) -> None:
        """Try the hook; soon again while it cannot be tried, for an unproven guard is shown as off."""
        if self._now_s() < self._prove_at:
            return
        trouble = self._prove()
        wait_s = PROVE_S if trouble is None else self._prove_wait_s
        self._prove_wait_s = PROVE_AGAIN_S if trouble is None else min(2 * self._prove_wait_s, PROVE_S)
        self._prove_at = self._now_s() + wait_s
        if trouble is not None:
            _log.warning("whether libvirt asks the start guard's hook could not be proven: %s", trouble)

    def tick(self) -> None:
        """Act on every record that changed; ask the peers that are due."""
        self._events.catch_up()
        by_peer: dict[str, list[GuardRecord]] = defaultdict(list)
        for record in self._book.all():
            if self._settled.get(record.vm_uuid) != record:
                self.settle(record.vm_uuid)
            if record.state is not GuardState.OTHERS:
                by_peer[record.peer_site].append(record)
        for site, records in by_peer.items():
            if not self._stop.is_set() and self._due(site, records):
                self._ask(site, records)

    # --- asking --------------------------------------------------------------------------------------
    def _due(self, site: str, records: Sequence[GuardRecord]) -> bool:
        peer = self._peers[site]
        soon = any(guard.unsettled(record, boot_id()) for record in records)
        return self._now_s() - peer.asked_at >= (peer.wait_s if soon else RECHECK_S)

    def _ask(self, site: str, records: Sequence[GuardRecord]) -> None:
        peer, name = self._peers[site], self._peer_name(site)
        peer.asked_at = self._now_s()
        try:
            words = self._ask_peer(site, [record.vm_uuid for record in records], self._stop)
            peer.silent_since = None
        except VaporError as error:
            if self._stop.is_set():
                return
            words = dict.fromkeys((record.vm_uuid for record in records), error)
            peer.silent_since = peer.asked_at if peer.silent_since is None else peer.silent_since
        peer.wait_s = min(peer.wait_s * 2, LONGEST_WAIT_S)
        patient = peer.silent_since is None or self._now_s() - peer.silent_since < self._patience_s
        after = [self._take(record.vm_uuid, words[record.vm_uuid], name, patient) for record in records]
        if not any(record is not None and guard.unsettled(record, boot_id()) for record in after):
            peer.wait_s = FIRST_WAIT_S

    def _take(self, vm: str, word: OwnerWord | VaporError, peer: str, patient: bool) -> GuardRecord | None:
        """Change the record by the answer, tell, act; None when it was taken away meanwhile."""

        def change(record: GuardRecord) -> GuardRecord:
            at = datetime.now(UTC)
            if isinstance(word, VaporError):
                return guard.unheard(record, peer=peer, why=word.what, boot_id=boot_id(), at=at, patient=patient)
            return guard.heard(record, word, peer=peer, boot_id=boot_id(), at=at)

        try:
            before, after = self._book.change(vm, change, "guard-asked")
        except NotFound:
            return None
        what = guard.told(before, after, boot_id())
        if what is not None:
            self._events.add(event(vm, what, f"{after.vm_name}: {after.reason}"))
        return self.settle(vm) if after != before else after

    # --- acting --------------------------------------------------------------------------------------
    def settle(self, vm_uuid: str) -> GuardRecord:
        """Make libvirt's autostart fit the record, and start what is due; the record after it.

        What libvirt does not do now is tried again at the next tick. Raises NotFound when there is no record.
        """
        with self._settling:
            record = self._book.get(vm_uuid)
            try:
                record = self._settle(record, self._hypervisor.domain(record.vm_uuid))
            except DomainNotFound:
                _log.info("VM %s is guarded and not defined here", record.vm_uuid)
            except VaporError as error:
                _log.warning("the autostart of VM %s is not settled: %s", record.vm_uuid, error)
                return record
            self._settled[record.vm_uuid] = record
            return record

    def _settle(self, record: GuardRecord, domain: DomainView) -> GuardRecord:
        vm = record.vm_uuid
        if record.state is not GuardState.OWN:
            if not domain.autostart or not domain.persistent:
                return record
            record = self._mark(vm, was_autostart=True)  # first: what is owed back must not be forgotten
            self._hypervisor.set_autostart(vm, False)
            return record
        autostart = domain.autostart
        if record.was_autostart:
            self._hypervisor.set_autostart(vm, True)
            autostart = True
            record = self._mark(vm, was_autostart=False)
        if record.start_due and guard.may_start(record, boot_id()):
            if autostart and domain.live_id is None:
                self._start(record)
            record = self._mark(vm, start_due=False)
        return record

    def _start(self, record: GuardRecord) -> None:
        try:
            self._hypervisor.start(record.vm_uuid)
        except HypervisorUnreachable:
            raise
        except VaporError as error:
            self._events.add(event(record.vm_uuid, "guard-failed", f"{record.vm_name} did not start: {error}"))
            return
        why = f"{record.vm_name} was started, as its autostart wants: {record.reason}"
        self._events.add(event(record.vm_uuid, "guard-started", why))

    def _mark(self, vm: str, **change: bool) -> GuardRecord:
        return self._book.change(vm, partial(_with, change=change), "guard-autostart")[1]


def _with(record: GuardRecord, change: Mapping[str, bool]) -> GuardRecord:
    return record.model_copy(update=change)


def peer_name(find: Callable[[str], EnrolPeer], site: str) -> str:
    """The enrolled name of a peer, its UUID when it is not enrolled (any more)."""
    try:
        return find(site).name
    except NotFound:
        return f"site {site}"
