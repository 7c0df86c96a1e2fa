"""Beginning and ending protections."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime

from vapor_desktop.engine import preflight, records, settings
from vapor_desktop.engine.backend import OnCheck
from vapor_desktop.engine.console.desk import VERB_DEADLINE_S, Desk
from vapor_desktop.engine.leaving import checkpoints_at_target, forget_bitmaps
from vapor_desktop.engine.sitewatch import vm_status
from vapor_desktop.model.errors import Conflict, InvalidRequest, NotReplicable, VaporError
from vapor_desktop.model.manifest import Manifest
from vapor_desktop.model.policy import RPO_MAX_S, RPO_MIN_S, Mappings, Policy, Quiesce, Retention, StartGuard
from vapor_desktop.model.sites import Protection
from vapor_desktop.model.states import DrillState, Phase
from vapor_desktop.model.view import Check, ProtectRequest, VmStatus


class ProtectingDesk(Desk):
    """Virtual machines, and which of them are protected."""

    def vms(self, site_id: str) -> Sequence[VmStatus]:
        """All VMs of a site, asked now."""
        site = self._site(site_id)
        return [vm_status(d, site) for d in self._gateway.hypervisor(site).domains()]

    def preflight(self, request: ProtectRequest, on_check: OnCheck) -> Sequence[Check]:
        """Everything that would stop the replica from being made or from starting."""
        return preflight.run(
            self._gateway, self._site(request.source_site), self._site(request.target_site), request, on_check
        )

    def protect(self, request: ProtectRequest) -> Sequence[Protection]:
        """Begin to protect. The engine makes the replica with the first cycle."""
        source, target = self._site(request.source_site), self._site(request.target_site)
        if source.site_id == target.site_id:
            raise InvalidRequest("Source and target must be different sites")
        if not any({a, b} == {source.site_id, target.site_id} for a, b, _r in self._repository.pairs()):
            raise InvalidRequest(f"{source.name} and {target.name} are not paired", fix="Pair them first")
        covered = {p.vm_uuid: p for p in self._repository.protections()}
        policy = policy_of(request)
        settings.check(policy, self._chain_limit(target))
        made = []
        hypervisor = self._gateway.hypervisor(source)
        for vm_uuid in request.vm_uuids:
            if vm_uuid in covered:
                raise Conflict(f"“{covered[vm_uuid].vm_name}” is protected already")
            domain = hypervisor.domain(vm_uuid)
            vm = vm_status(domain, source)
            if not vm.protectable:
                fixes = " ".join(d.fix for d in vm.disks if d.kind == "refused" and d.fix)
                raise NotReplicable(f"“{vm.name}” cannot be protected", why=vm.reason, fix=fixes)
            protection = Protection(
                protection_id=str(uuid.uuid4()),
                vm_uuid=vm_uuid,
                vm_name=domain.name,
                source_site=source.site_id,
                target_site=target.site_id,
                policy=policy,
                mappings=Mappings(networks=dict(request.networks)),
                epoch_number=1,
                epoch_owner=source.site_id,
                created_at=self._clock.now(),
            )
            made.append(self._repository.save_protection(protection))
            self._note("protected", f"“{domain.name}” is protected at {target.name}", protection.protection_id)
        self._changed()
        return made

    def unprotect(self, protection_id: str, *, delete_replica: bool) -> None:
        """Stop protecting; the replica is kept unless asked otherwise.

        First the running cycle ends, whichever engine runs it: what it has made would be left behind otherwise.
        """
        p = self._protection(protection_id)
        if p.drill is not DrillState.NONE:
            raise Conflict(f"There is a drill of “{p.vm_name}” at its target", fix="Stop the drill first")
        records.update(self._repository, protection_id, lambda q: q.model_copy(update={"paused": True}))
        self._ask("cancel", {"protection_id": protection_id, "wait": True}, VERB_DEADLINE_S)
        names = checkpoints_at_target(self._gateway, p, self._repository.site(p.target_site))
        if delete_replica:
            self._ask("delete-replica", {"protection_id": protection_id}, VERB_DEADLINE_S)
        self._forget_bitmaps(p, names)
        self._forget_guard(p)
        self._repository.remove_protection(protection_id)
        self._changed()
        kept = "deleted" if delete_replica else "kept"
        self._note("unprotected", f"“{p.vm_name}” is no longer protected; its replica was {kept}")

    def _forget_bitmaps(self, p: Protection, names: set[str]) -> None:
        """Bitmaps cost the guest a little on every write: remove ours. An unreachable source keeps them."""
        source = self._repository.site(p.source_site)
        if source is None:
            return
        try:
            forget_bitmaps(self._gateway, p, source, self._repository.site(p.target_site), names)
        except VaporError as error:
            self._note("leftover", f"Checkpoints of “{p.vm_name}” stay at {source.name}: {error}")

    def _forget_guard(self, p: Protection) -> None:
        """A VM that is not protected starts when its host wants. An unreachable source goes on asking."""
        try:
            self._engine.worker.guards.release(p)
        except VaporError as error:
            fix = f"run `vapor-site guard override {p.vm_name}` there if it is held"
            self._note("leftover", f"The start guard of “{p.vm_name}” stays armed at its source: {error}; {fix}")

    def adopt_replicas(self, site_id: str) -> Sequence[Protection]:
        """Protections as a target's manifests tell them: for a console that knows only that site."""
        site = self._site(site_id)
        known = {p.vm_uuid for p in self._repository.protections()}
        adopted = []
        for view in self._gateway.api(site).replicas():
            m = view.manifest
            if m.vm_uuid in known or m.target_site != site_id or not view.valid or m.folded:
                continue
            protection = self._repository.save_protection(_from_manifest(m, self._clock.now()))
            records.cache_manifest(self._repository, protection.protection_id, m)
            adopted.append(protection)
        self._engine.plans.watch()
        self._changed()
        return adopted


def policy_of(request: ProtectRequest) -> Policy:
    """The policy that a request asks for. Raises InvalidRequest naming the limit."""
    _check_rpo(request.rpo_target_s)
    return Policy(
        rpo_target_s=request.rpo_target_s,
        retention=Retention(newest=request.newest, hourly=request.hourly, daily=request.daily),
        bandwidth_bytes_s=request.bandwidth_bytes_s,
        quiesce=Quiesce(request.quiesce),
        bandwidth_windows=request.bandwidth_windows,
        at_times=request.at_times,
        streams=request.streams,
        priority=request.priority,
        start_guard=StartGuard(request.start_guard),
    )


def _check_rpo(rpo_target_s: int) -> None:
    if not RPO_MIN_S <= rpo_target_s <= RPO_MAX_S:
        raise InvalidRequest(
            f"An RPO target of {rpo_target_s} s is not possible", fix=f"Choose {RPO_MIN_S} s to {RPO_MAX_S // 3600} h"
        )


def _from_manifest(m: Manifest, now: datetime) -> Protection:
    return Protection(
        protection_id=m.protection_id,
        vm_uuid=m.vm_uuid,
        vm_name=m.vm_name,
        source_site=m.source_site,
        target_site=m.target_site,
        policy=m.policy,
        mappings=m.mappings,
        settings_version=m.settings_version,
        epoch_number=m.epoch.number,
        epoch_owner=m.epoch.owner,
        phase=_phase_of(m),
        commit_ask_at=now if _phase_of(m) is Phase.PROVISIONAL else None,
        created_at=now,
    )


def _phase_of(m: Manifest) -> Phase:
    if m.epoch.owner != m.target_site:
        return Phase.SOURCE_UNREACHABLE
    return Phase.PROVISIONAL if m.provisional == m.epoch.number else Phase.FAILED_OVER
