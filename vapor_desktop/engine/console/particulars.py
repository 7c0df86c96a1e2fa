"""One protection's settings and disks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from vapor_desktop.engine import disks, records, settings
from vapor_desktop.engine.console.desk import Desk
from vapor_desktop.model.errors import InvalidRequest, NotFound, VaporError
from vapor_desktop.model.sites import Protection
from vapor_desktop.model.view import DisksView, ProtectionSettings, SettingsEdit
from vapor_desktop.model.wire import ReplicaView

_T = TypeVar("_T")


class ParticularsDesk(Desk):
    """A protection's settings and disks, as its sites have them now."""

    def settings(self, protection_id: str) -> ProtectionSettings:
        """As the target's manifest has them now; before the replica is made, as they were asked for."""
        p = self._protection(protection_id)
        target = self._site(p.target_site)
        manifest = settings.read(self._gateway.api(target), p)
        policy, mappings = (manifest.policy, manifest.mappings) if manifest else (p.policy, p.mappings)
        seen = next((vm.networks for vm in self._engine.sites.vms() if vm.vm_uuid == p.vm_uuid), ())
        return ProtectionSettings(
            protection_id=protection_id,
            vm_name=p.vm_name,
            target_name=target.name,
            version=manifest.settings_version if manifest else p.settings_version,
            policy=policy,
            mappings=mappings,
            chain_limit=self._chain_limit(target),
            source_networks=tuple(dict.fromkeys((*mappings.networks, *seen))),
            target_networks=tuple(self._gateway.hypervisor(target).networks()),
        )

    def edit(self, protection_id: str, edit: SettingsEdit) -> Protection:
        """Write settings to the target's manifest; the database only follows. A running cycle goes on under them."""
        p = self._protection(protection_id)
        target = self._site(p.target_site)
        settings.check(edit.policy, self._chain_limit(target))
        there = set(self._gateway.hypervisor(target).networks())
        lost = sorted(
            {new for old, new in edit.mappings.networks.items() if p.mappings.networks.get(old) != new} - there
        )
        if lost:
            have = ", ".join(sorted(there)) or "none"
            raise InvalidRequest(f"{target.name} has no network {', '.join(lost)}", fix=f"Networks there: {have}")
        me = self._engine.identity
        change = settings.SettingsChange(self._gateway.api(target), p, me.engine_id, me.name)
        manifest = change.run(edit, lambda: self._stop_cycle(protection_id))
        after = records.update(
            self._repository,
            protection_id,
            lambda q: records.settings_of(manifest)(q).model_copy(update={"not_before": None}),
        )
        self._note("edited", f"Settings changed (version {manifest.settings_version})", protection_id)
        self._changed()
        return after

    def disks(self, protection_id: str) -> DisksView:
        """Each disk. A side that does not answer is said, and its columns are unknown."""
        p = self._protection(protection_id)
        domain, source_trouble = _asked(lambda: self._gateway.hypervisor(self._near(p.source_site)).domain(p.vm_uuid))
        replica, target_trouble = _asked(lambda: self._replica(p))
        newest, lost = None, ""
        if replica is not None and replica.manifest.newest is not None:
            seq, api = replica.manifest.newest.seq, self._gateway.api(self._site(p.target_site))
            newest, lost = _asked(lambda: api.point(p.vm_uuid, seq))
        known = disks.notes(self._repository, protection_id)
        return DisksView(disks.rows(domain, replica, newest, known), source_trouble, target_trouble or lost)

    def _replica(self, p: Protection) -> ReplicaView | None:
        """None: it is not made yet."""
        api = self._gateway.api(self._near(p.target_site))
        try:
            return api.replica(p.vm_uuid)
        except NotFound:
            return None


def _asked(look: Callable[[], _T]) -> tuple[_T | None, str]:
    """What was found, or why it cannot be told."""
    try:
        return look(), ""
    except VaporError as error:
        return None, str(error)
