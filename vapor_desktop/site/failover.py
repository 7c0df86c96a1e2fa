"""Break-glass: the emergency failover on the target's own host, with no console and no database.

The same order and the same rules as the engine's operation: lease (taken over) -> epoch and overlays in one
compare-and-set -> TPM -> define with our mark, no autostart -> start -> *observed* running. Each step looks before it
acts; one that broke off is finished by doing it again, here or from a console.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from vapor_desktop.hypervisor.connection import LibvirtHypervisor
from vapor_desktop.model.domain_xml.mark import read_mark
from vapor_desktop.model.domain_xml.parse import parse_domain
from vapor_desktop.model.domain_xml.preflight import Finding, preflight
from vapor_desktop.model.domain_xml.target import TargetDomain, build_target
from vapor_desktop.model.errors import (
    Conflict,
    DomainNotFound,
    HypervisorFailed,
    InvalidRequest,
    NotFound,
    StartFailed,
    VaporError,
)
from vapor_desktop.model.manifest import Epoch, Manifest
from vapor_desktop.model.takeover import check_strangers, choose_point, has_kvm, home_of, mark_of, next_epoch
from vapor_desktop.model.tpm import TpmPlan, plan_tpm
from vapor_desktop.model.wire import GuardRequest, GuardState, LeaseRequest, OwnerWord, PlaceTpm, Run, RunRequest
from vapor_desktop.site import leases
from vapor_desktop.site.audit import AuditLog
from vapor_desktop.site.enrolments import Enrolments
from vapor_desktop.site.guard_book import GuardBook
from vapor_desktop.site.guard_keeper import peer_name
from vapor_desktop.site.helper_client import HelperClient
from vapor_desktop.site.peers import ask_owners
from vapor_desktop.site.replica import ReplicaStore
from vapor_desktop.site.settings import AlarmTargets, SiteSettings
from vapor_desktop.site.site_events import EventLog, event
from vapor_desktop.site.stores import in_use_by, open_store
from vapor_desktop.site.tpm import TpmKeeper

ASK_SOURCE_S = 2.0  # the source has this long to say that the VM runs there; it is never waited for
RUNNING_S = 30.0
LOOK_EVERY_S = 0.05
LEASE_S = 120.0


@dataclass(frozen=True, slots=True)
class Done:
    """What came of it. ``notes``: what a person should know."""

    vm_uuid: str
    vm_name: str
    epoch: int
    seq: int
    running_after_s: float
    source: str  # what was heard of the source
    notes: tuple[str, ...]


def find_replica(store: ReplicaStore, vm: str) -> Manifest:
    """By the VM's name or UUID. Raises NotFound, ManifestInvalid."""
    found = [view for view in store.list() if vm in (view.manifest.vm_uuid, view.manifest.vm_name)]
    if len(found) != 1:
        names = ", ".join(sorted(view.manifest.vm_name for view in store.list())) or "none"
        what = "No replica here is" if not found else "Several replicas here are"
        raise NotFound(f"{what} of a VM called {vm}", fix=f"Replicas here: {names}; give the UUID")
    return store.manifest(found[0].manifest.vm_uuid)


class _Asked:
    """A question to the source that goes on by itself."""

    def __init__(self, settings: SiteSettings, manifest: Manifest) -> None:
        self._settings = settings
        self._vm = manifest.vm_uuid
        self._site = manifest.source_site
        self._word: OwnerWord | VaporError | None = None
        self._stop = threading.Event()
        self.name = peer_name(Enrolments(settings).peer, self._site)
        self._thread = threading.Thread(target=self._ask, name="ask-source", daemon=True)
        self._thread.start()

    def answer(self, timeout_s: float) -> OwnerWord | VaporError | None:
        """What came of it so far; None: nothing in that time."""
        self._thread.join(timeout_s)
        self._stop.set()
        return self._word

    def _ask(self) -> None:
        try:
            peer = Enrolments(self._settings).peer(self._site)
            self._word = ask_owners(self._settings, peer, [self._vm], self._stop)[self._vm]
        except VaporError as error:
            self._word = error


class BreakGlass:
    """One failover on this host. ``by``: who asks, for leases and logs; ``say``: told line by line what happens."""

    def __init__(
        self, settings: SiteSettings, hypervisor: LibvirtHypervisor, by: str, say: Callable[[str], None]
    ) -> None:
        self._settings = settings
        self._hypervisor = hypervisor
        self._by = by
        self._say = say
        self._audit = AuditLog(settings.audit_log)
        self._helper = HelperClient(settings.helper_socket)
        self._store = open_store(settings, in_use_by(hypervisor, self._helper))
        self._tpm = TpmKeeper(self._store, self._helper)

    def run(self, vm: str, seq: int | None, reason: str, *, even_if_it_runs: bool = False) -> Done:
        """Raises NotFound, Conflict (it runs at the source; a stranger has its name), StartFailed, EpochMoved, …"""
        if not reason.strip():
            raise InvalidRequest("A failover wants a reason", fix="Write why, for those who come after")
        began = time.monotonic()
        manifest = find_replica(self._store, vm)
        self._require_target(manifest)
        asked = _Asked(self._settings, manifest)
        self._check(manifest, choose_point(manifest, seq))
        heard = self._judge_source(manifest, asked, even_if_it_runs)
        self._say(heard)
        fence = self._lease(manifest, reason)
        try:
            run = self._take_over(manifest.vm_uuid, fence, seq, reason)
            self._arm_guard(manifest, fence, run.epoch, reason)
            notes = self._start(manifest, run, fence)
        finally:
            leases.release(self._settings.leases_dir, manifest.vm_uuid, fence)
        seconds = time.monotonic() - began
        self._audit("failover-ended", vm_uuid=manifest.vm_uuid, epoch=run.epoch.number, seq=run.seq, by=self._by)
        where = f"epoch {run.epoch.number}, recovery point {run.seq}"
        told = f"{manifest.vm_name}: {where}, by {self._by}: {reason.strip()}"
        # Only written here: the service reads it and tells the alarm's targets, and consoles read it there.
        log = EventLog(self._settings.events_file, AlarmTargets(), self._settings.name)
        log.add(event(manifest.vm_uuid, "taken-over", told))
        return Done(manifest.vm_uuid, manifest.vm_name, run.epoch.number, run.seq, seconds, heard, notes)

    # --- before anything moves -----------------------------------------------------------------------
    def _require_target(self, manifest: Manifest) -> None:
        epoch, here = manifest.epoch, manifest.target_site
        if epoch.owner == here and str(epoch.number) not in manifest.runs:
            raise Conflict(
                f"“{manifest.vm_name}” is this site's already (epoch {epoch.number}), and not from this replica",
                fix="Start it with virsh",
            )

    def _judge_source(self, manifest: Manifest, asked: _Asked, even_if_it_runs: bool) -> str:
        """What the source said, if it did soon. Raises Conflict when the VM runs there."""
        name, word = asked.name, asked.answer(ASK_SOURCE_S)
        if word is None or isinstance(word, VaporError):
            why = f" ({word.what})" if word else ""
            return f"{name} does not answer{why}: whether the VM runs there is not known"
        if word.runs and not even_if_it_runs:
            raise Conflict(
                f"“{manifest.vm_name}” runs at {name} right now; nothing was changed",
                fix="Shut it down there first. With --even-if-it-runs it will run twice, and one side's data is lost",
            )
        if word.runs is None:
            return f"{name} answers, its libvirt does not: whether the VM runs there is not known"
        return f"{name} answers: the VM {'RUNS THERE AS WELL' if word.runs else 'is off there'}"

    def _check(self, manifest: Manifest, seq: int) -> None:
        """Would it start? Asked before the epoch moves. Raises Conflict, StartFailed."""
        epoch = next_epoch(manifest, manifest.target_site)
        self._look_for_strangers(manifest, epoch)
        carried = self._store.point_domain(manifest.vm_uuid, seq)
        folder = self._store.folder(manifest.vm_uuid)
        images = {disk: f"{folder}/{disk}.qcow2" for disk in carried.disks}
        built = self._build(manifest, carried.domain_xml, images, f"{folder}/nvram.fd" if carried.nvram else None)
        lacks = [finding for finding in self._lacks(built.xml) if finding.blocking]
        if lacks:
            raise StartFailed(
                f"“{manifest.vm_name}” would not start here; nothing was changed",
                why="; ".join(finding.what for finding in lacks),
                fix=" ".join(dict.fromkeys(finding.fix for finding in lacks if finding.fix)),
            )

    def _look_for_strangers(self, manifest: Manifest, epoch: Epoch) -> None:
        hv = self._hypervisor
        check_strangers(
            manifest.vm_uuid,
            manifest.vm_name,
            manifest.protection_id,
            epoch,
            hv.domains(),
            lambda vm: hv.domain_xml(vm, secure=False),
            home_of(manifest),
        )

    def _lacks(self, xml: str) -> list[Finding]:
        facts, hv = parse_domain(xml), self._hypervisor
        try:
            offers: str | None = hv.domain_capabilities_xml(facts.arch, facts.machine, facts.virt_type)
        except HypervisorFailed:
            offers = None
        return preflight(
            xml, networks=hv.networks(), capabilities_xml=hv.capabilities_xml(), domain_capabilities_xml=offers
        )

    # --- acting --------------------------------------------------------------------------------------
    def _lease(self, manifest: Manifest, reason: str) -> int:
        request = LeaseRequest(
            holder=f"break-glass/{manifest.target_site}",
            holder_name=self._by,
            purpose="emergency failover on the host",
            ttl_s=LEASE_S,
            takeover_reason=reason,
        )
        return leases.acquire(self._settings.leases_dir, manifest.vm_uuid, request, self._audit).fence

    def _take_over(self, vm: str, fence: int, seq: int | None, reason: str) -> Run:
        manifest = self._store.manifest(vm)  # the newest of now: a cycle may have published one more
        epoch = next_epoch(manifest, manifest.target_site)
        chosen = _run_point(manifest, epoch) or choose_point(manifest, seq)
        self._audit("take-over", vm_uuid=vm, seq=chosen, epoch=epoch.number, reason=reason, by=self._by)
        run = self._store.run(
            vm, RunRequest(fence=fence, new_epoch=epoch, seq=chosen, reason=reason, provisional=True)
        )
        self._say(f"Overlays on recovery point {run.seq}; this site owns the VM since epoch {run.epoch.number}")
        return run

    def _arm_guard(self, manifest: Manifest, fence: int, epoch: Epoch, reason: str) -> None:
        """A host that guards the VM (it was its own once) is told that it may start it."""
        book = GuardBook(self._settings, self._audit)
        try:
            before = book.get(manifest.vm_uuid)
        except NotFound:
            return
        request = GuardRequest(
            fence=fence,
            epoch=epoch,
            state=GuardState.OWN,
            vm_name=manifest.vm_name,
            peer_site=before.peer_site,
            policy=before.policy,
            boot_id=leases.boot_id(),
            reason=f"failed over on the host: {reason}",
            by=self._by,
        )
        book.arm(manifest.vm_uuid, request)

    def _start(self, manifest: Manifest, run: Run, fence: int) -> tuple[str, ...]:
        hv, vm = self._hypervisor, manifest.vm_uuid
        notes: tuple[str, ...] = ()
        if self._state(vm) != "running":
            notes = self._define(manifest, run, fence)
            if self._state(vm) == "paused":
                hv.resume(vm)
            else:
                hv.start(vm)
        deadline = time.monotonic() + RUNNING_S
        pause = threading.Event()
        while self._state(vm) != "running":
            if time.monotonic() > deadline:
                raise StartFailed(f"“{manifest.vm_name}” was started here but is {self._state(vm)}")
            pause.wait(LOOK_EVERY_S)
        self._look_for_strangers(manifest, run.epoch)
        return notes

    def _define(self, manifest: Manifest, run: Run, fence: int) -> tuple[str, ...]:
        hv, vm = self._hypervisor, manifest.vm_uuid
        plan = self._tpm_plan(vm, run)
        domain = self._build(manifest, run.domain_xml, run.disks, run.nvram, run=run, tpm=plan is None or plan.device)
        notes = [*domain.notes]
        defined_before = self._marked(vm) == mark_of(manifest, run.epoch, run.seq)
        if plan is not None and not plan.place:
            notes.append(plan.note)
        elif plan is not None and not defined_before:  # else the guest may have used it since
            kept = self._tpm.place(vm, run.seq, PlaceTpm(fence=fence, as_uuid=vm)).kept
            notes += [f"Another TPM state lay here; it is kept at {kept}"] if kept else []
        hv.define(domain.xml)
        hv.set_autostart(vm, False)
        return tuple(notes)

    def _tpm_plan(self, vm: str, run: Run) -> TpmPlan | None:
        facts = parse_domain(run.domain_xml)
        return plan_tpm(facts.tpm_obstacle, self._tpm.of_point(vm, run.seq)) if facts.has_tpm else None

    def _build(
        self,
        manifest: Manifest,
        xml: str,
        disks: dict[str, str],
        nvram: str | None,
        *,
        run: Run | None = None,
        tpm: bool = True,
    ) -> TargetDomain:
        return build_target(
            xml,
            disks=disks,
            networks=manifest.mappings.networks,
            nvram=nvram,
            fresh_genid=True,
            kvm=has_kvm(self._hypervisor.capabilities_xml()),
            mark=mark_of(manifest, run.epoch, run.seq) if run else None,
            tpm=tpm,
        )

    def _marked(self, vm: str) -> object:
        try:
            return read_mark(self._hypervisor.domain_xml(vm, secure=False))
        except DomainNotFound:
            return None

    def _state(self, vm: str) -> str:
        try:
            return self._hypervisor.domain(vm).state
        except DomainNotFound:
            return "undefined"


def _run_point(manifest: Manifest, epoch: Epoch) -> int | None:
    """The point of a run that was begun before: another one cannot be chosen any more."""
    if manifest.epoch != epoch:
        return None
    return next((p.seq for p in manifest.points if f"run:{epoch.number}" in p.pins), None)
