"""The runbooks of this host: one per replica, beside it, written again after every change of what it says.

``RunbookKeeper`` is a thread of ``serve``: receivers and the API's workers change manifests in processes and threads
of their own, so it looks at the files rather than being told.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from vapor_desktop.model import guard, runbook
from vapor_desktop.model.domain_xml.parse import parse_domain
from vapor_desktop.model.domain_xml.target import TargetDomain, build_target
from vapor_desktop.model.errors import ManifestInvalid, NotFound, ParentMoved, Unexpected, VaporError
from vapor_desktop.model.manifest import Epoch, Manifest, PointEntry
from vapor_desktop.model.takeover import choose_point, has_kvm, mark_of
from vapor_desktop.model.tpm import TpmPlan, plan_tpm
from vapor_desktop.model.wire import EnrolPeer, GuardRecord, Runbook
from vapor_desktop.site.guard_book import GuardBook
from vapor_desktop.site.leases import boot_id
from vapor_desktop.site.replica import ReplicaStore
from vapor_desktop.site.replica.runbooks import TEXT, xml_name
from vapor_desktop.site.settings import SiteSettings
from vapor_desktop.site.tpm import TpmKeeper

_log = logging.getLogger("vapor.runbook")

TICK_S = 1.0
AGAIN_S = 10.0  # after a failure


class Capable(Protocol):
    """What ``LibvirtHypervisor`` offers here."""

    def capabilities_xml(self) -> str: ...


class Runbooks:
    """Makes the text and the definition, fresh. ``peer``: an enrolled peer by its site, or NotFound."""

    def __init__(
        self,
        settings: SiteSettings,
        store: ReplicaStore,
        hypervisor: Capable,
        tpm: TpmKeeper,
        guards: GuardBook,
        peer: Callable[[str], EnrolPeer],
    ) -> None:
        self._settings = settings
        self._store = store
        self._hypervisor = hypervisor
        self._tpm = tpm
        self._guards = guards
        self._peer = peer

    def write(self, vm: str, seq: int | None = None) -> Runbook:
        """The runbook for that point (None: the newest, which is the one that is kept beside the replica).

        Raises NotFound, ManifestInvalid, HypervisorUnreachable.
        """
        for _ in range(20):
            manifest = self._store.manifest(vm)
            try:
                return self._write(manifest, seq)
            except ParentMoved:
                continue
        raise Unexpected(f"The replica of “{manifest.vm_name}” changed all the time while its runbook was written")

    def _write(self, manifest: Manifest, wanted: int | None) -> Runbook:
        vm, folder = manifest.vm_uuid, self._store.folder(manifest.vm_uuid)
        entry, running = _chosen(manifest, wanted)
        domain, plan, disks, nvram = None, None, dict[str, str](), None
        if entry is not None:
            disks, nvram = self._images(manifest, entry, folder, running)
            domain, plan = self._domain(manifest, entry, disks, nvram, running)
        epoch = manifest.epoch.number + (0 if running else 1)
        name = xml_name(epoch, entry.seq, domain.xml) if entry is not None and domain is not None else ""
        peer = self._known(manifest.source_site)
        facts = runbook.Facts(
            manifest=manifest,
            written_at=datetime.now(UTC),
            here=self._settings.name,
            source=peer.name if peer else f"site {manifest.source_site}",
            source_address=peer.address if peer else None,
            libvirt_uri=self._settings.libvirt_uri,
            folder=str(folder),
            point=entry,
            points=tuple(p for p in manifest.points if not p.dead),
            xml_path=str(folder / "runbook" / name),
            disks=disks,
            nvram=nvram,
            tpm_root=str(self._settings.helper_tpm_root) if plan is not None and plan.place else None,
            networks=parse_networks(domain.xml) if domain else (),
            notes=(*(domain.notes if domain else ()), *((plan.note,) if plan and plan.note else ())),
            refused=self._refused(vm),
            taken=running,
        )
        text = runbook.write(facts)
        self._store.keep_runbook(manifest, text if wanted is None else None, name, domain.xml if domain else "")
        return Runbook(
            vm_uuid=vm,
            vm_name=manifest.vm_name,
            seq=entry.seq if entry else None,
            written_at=facts.written_at,
            path=str(folder / "runbook" / TEXT),
            domain_path=facts.xml_path if name else "",
            text=text,
        )

    def _images(
        self, manifest: Manifest, entry: PointEntry, folder: Path, running: bool
    ) -> tuple[dict[str, str], str | None]:
        """Disks and varstore that the definition names."""
        if running:
            found = manifest.runs[str(manifest.epoch.number)]
            disks = {target: str(folder / path) for target, path in found.items()}
            varstore = next(Path(path).parent for path in disks.values()) / "nvram.fd"
            return disks, str(varstore) if varstore.exists() else None
        home = folder / "run" / runbook.by_hand(manifest.epoch.number + 1, entry.seq)
        nvram = self._store.point(manifest.vm_uuid, entry.seq).nvram
        disks = {target: str(home / f"{target}.qcow2") for target in entry.files}
        return disks, str(home / "nvram.fd") if nvram else None

    def _domain(
        self, manifest: Manifest, entry: PointEntry, disks: dict[str, str], nvram: str | None, running: bool
    ) -> tuple[TargetDomain, TpmPlan | None]:
        vm = manifest.vm_uuid
        source_xml = self._store.point_domain(vm, entry.seq).domain_xml
        facts = parse_domain(source_xml)
        plan = plan_tpm(facts.tpm_obstacle, self._tpm.of_point(vm, entry.seq)) if facts.has_tpm else None
        epoch = manifest.epoch if running else Epoch(number=manifest.epoch.number + 1, owner=manifest.target_site)
        domain = build_target(
            source_xml,
            disks=disks,
            networks=manifest.mappings.networks,
            nvram=nvram,
            fresh_genid=True,
            kvm=has_kvm(self._hypervisor.capabilities_xml()),
            mark=mark_of(manifest, epoch, entry.seq),
            tpm=plan is None or plan.device,
        )
        return domain, plan

    def _known(self, site: str) -> EnrolPeer | None:
        try:
            return self._peer(site)
        except VaporError:  # not paired any more, or no UUID of ours: the text says the UUID then
            return None

    def guard_record(self, vm: str) -> GuardRecord | None:
        """This host's start guard of the VM; None when it has none."""
        try:
            return self._guards.get(vm)
        except NotFound:
            return None

    def guard_changed(self, vm: str) -> object:
        """Something that differs after every change of it."""
        return self._guards.changed(vm)

    def _refused(self, vm: str) -> str:
        try:
            record = self.guard_record(vm)
        except Unexpected as error:
            return error.what
        return (guard.refusal(record, boot_id()) if record else None) or ""


class RunbookKeeper:
    """The thread. Public: ``tick``, which looks at every replica once."""

    def __init__(self, store: ReplicaStore, runbooks: Runbooks, tick_s: float = TICK_S) -> None:
        self._store = store
        self._runbooks = runbooks
        self._tick_s = tick_s
        self._seen: dict[str, object] = {}
        self._written: dict[str, object] = {}
        self._not_before: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="runbook", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the replica at hand, and wait."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.tick()
            except OSError as error:
                _log.error("the runbooks cannot be kept: %s", error)
            self._stop.wait(self._tick_s)

    def tick(self) -> None:
        """Write again what is not true any more."""
        for vm in self._store.vms():
            if self._stop.is_set():
                return
            try:
                self._keep(vm)
            except (NotFound, ManifestInvalid):  # deleted, or damaged: what it was is still the best there is
                continue
            except (VaporError, OSError) as error:
                _log.warning("the runbook of VM %s is written again in %.0f s: %s", vm, AGAIN_S, error)
                self._not_before[vm] = time.monotonic() + AGAIN_S

    def _keep(self, vm: str) -> None:
        seen = (self._store.changed(vm), self._runbooks.guard_changed(vm))
        if seen == self._seen.get(vm) or time.monotonic() < self._not_before.get(vm, 0.0):
            return
        says = (_matters(self._store.manifest(vm)), seen[1])
        if says != self._written.get(vm):
            self._runbooks.write(vm)
            self._written[vm] = says
        self._seen[vm] = seen


def parse_networks(xml: str) -> tuple[str, ...]:
    """The libvirt networks that a definition names."""
    facts = parse_domain(xml)
    return tuple(name for name in facts.networks if name not in facts.bridges)


def _chosen(manifest: Manifest, wanted: int | None) -> tuple[PointEntry | None, bool]:
    """(the point, does this site run the VM on it): of a VM that was taken over, the run's own point."""
    epoch = manifest.epoch
    if wanted is None and epoch.owner == manifest.target_site and str(epoch.number) in manifest.runs:
        pin = f"run:{epoch.number}"
        return next((p for p in manifest.points if pin in p.pins), None), True
    if wanted is None and manifest.newest is None:
        return None, False
    return manifest.entry(choose_point(manifest, wanted)), False


def _matters(manifest: Manifest) -> Manifest:
    """The manifest without what idle cycles advance: the text tells its age itself."""
    points = tuple(p.model_copy(update={"current_as_of": p.taken_at, "images": {}}) for p in manifest.points)
    return manifest.model_copy(update={"points": points, "generation": 1, "checksum": ""})
