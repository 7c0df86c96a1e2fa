"""Emergency failover: needs the target alone and never waits for the source.

Order: the target's lease (taken over if need be) -> the epoch and the overlays in one compare-and-set at the
site -> define, autostart off -> start -> *observed* running. Each step looks before it acts, so a broken
failover is finished by doing it again.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from vapor_desktop.engine.lease import HeldLease
from vapor_desktop.engine.ports import Clock, Hypervisor, SiteApi
from vapor_desktop.model import rpo
from vapor_desktop.model.domain_xml.mark import Mark
from vapor_desktop.model.domain_xml.target import TargetDomain, build_target
from vapor_desktop.model.errors import InvalidRequest, NotFound, StartFailed, VaporError
from vapor_desktop.model.manifest import Epoch, Manifest
from vapor_desktop.model.sites import Protection
from vapor_desktop.model.view import FailoverPoint
from vapor_desktop.model.wire import Run, RunRequest

START_DEADLINE_S = 30.0


@dataclass(frozen=True, slots=True)
class FailedOver:
    """What is true after a failover."""

    seq: int
    epoch: Epoch
    running_after_s: float
    notes: tuple[str, ...]


def points_of(manifest: Manifest, clock: Clock, target_offset: rpo.ClockOffset | None) -> tuple[FailoverPoint, ...]:
    """The points one can fail over to, newest first."""
    now = clock.now()
    rows = [
        FailoverPoint(
            seq=p.seq,
            taken_at=p.taken_at,
            current_as_of=p.current_as_of,
            age_s=rpo.rpo_now_s(now, p.current_as_of, target_offset),
            consistency=p.consistency.value,
            proven_at=p.proven_at,
            verified=p.verified,
            note="" if p.verified else "its data did not match its digests",
        )
        for p in manifest.points
        if not p.dead
    ]
    return tuple(reversed(rows))


class Failover:
    """One emergency failover of one VM."""

    def __init__(
        self,
        api: SiteApi,
        hypervisor: Hypervisor,
        clock: Clock,
        protection: Protection,
        holder: str,
        holder_name: str,
    ) -> None:
        self._api = api
        self._hv = hypervisor
        self._clock = clock
        self._p = protection
        self._holder = holder
        self._holder_name = holder_name

    def run(self, seq: int | None, reason: str) -> FailedOver:
        """Bring the VM up at the target from point ``seq`` (None: the newest).

        Raises InvalidRequest (no reason), NotFound (no such point), StartFailed, and whatever the site says.
        """
        if not reason.strip():
            raise InvalidRequest("An emergency failover wants a reason", fix="Write why, for those who come after")
        began = self._clock.monotonic()
        with HeldLease(
            self._api, self._p.vm_uuid, self._holder, self._holder_name, "emergency failover", takeover=reason
        ) as lease:
            manifest = self._api.replica(self._p.vm_uuid).manifest
            chosen = _choose(manifest, seq)
            epoch = self._epoch(manifest)
            request = RunRequest(fence=lease.fence, new_epoch=epoch, seq=chosen, reason=reason)
            run = self._api.run(self._p.vm_uuid, request)
            target = self._domain(run)
            self._define_and_start(target)
        return FailedOver(run.seq, run.epoch, self._clock.monotonic() - began, target.notes)

    def _epoch(self, manifest: Manifest) -> Epoch:
        """The next epoch, or the one this very failover already took before it broke off."""
        if manifest.epoch.owner == self._p.target_site and str(manifest.epoch.number) in manifest.runs:
            return manifest.epoch
        return Epoch(number=manifest.epoch.number + 1, owner=self._p.target_site)

    def _domain(self, run: Run) -> TargetDomain:
        return build_target(
            run.domain_xml,
            disks=run.disks,
            networks=self._p.mappings.networks,
            nvram=run.nvram,
            fresh_genid=True,
            kvm=has_kvm(self._hv.capabilities_xml()),
            mark=Mark(self._p.protection_id, run.epoch.number, run.seq),
        )

    def _define_and_start(self, target: TargetDomain) -> None:
        hv, vm = self._hv, self._p.vm_uuid
        try:
            state = hv.domain(vm).state
        except VaporError as error:
            if error.code != "VM-NOT-FOUND":
                raise
            state = "undefined"
        if state != "running":
            hv.define(target.xml)
            hv.set_autostart(vm, False)
            hv.start(vm)
        wait = threading.Event()
        deadline = self._clock.monotonic() + START_DEADLINE_S
        while (state := hv.domain(vm).state) != "running":
            if self._clock.monotonic() > deadline:
                raise StartFailed(f"“{self._p.vm_name}” was started at the target but is {state}")
            wait.wait(0.05)


def _choose(manifest: Manifest, seq: int | None) -> int:
    if seq is not None:
        if manifest.entry(seq) is None:
            raise NotFound(f"There is no recovery point {seq} of “{manifest.vm_name}”")
        return seq
    newest = manifest.newest
    if newest is None:
        raise NotFound(
            f"“{manifest.vm_name}” has no complete recovery point", fix="Nothing can be failed over to yet"
        )
    return newest.seq


def has_kvm(capabilities_xml: str) -> bool:
    """Does the host offer KVM? From libvirt's capabilities."""
    return "<domain type='kvm'" in capabilities_xml or '<domain type="kvm"' in capabilities_xml


def effects(protection: Protection, source: str, target: str, networks: Sequence[str]) -> tuple[str, ...]:
    """What will happen, sentence by sentence, for the sheet before the button."""
    where = ", ".join(networks) or "none"
    return (
        f"“{protection.vm_name}” starts at {target} on a new overlay; no recovery point is changed.",
        f"Its networks at {target}: {where}. Autostart stays off.",
        f"{target} becomes its owner (epoch {protection.epoch_number + 1}); replication from {source} stops.",
        f"What was written at {source} after the chosen point is not at {target}.",
        f"If “{protection.vm_name}” still runs at {source}, it will run twice: switch it off there first.",
    )
