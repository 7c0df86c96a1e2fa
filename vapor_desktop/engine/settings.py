"""A protection's settings: read from, and written to, the manifest at its target, which is the truth (DESIGN §4)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from vapor_desktop.engine.lease import HeldLease, interrupting
from vapor_desktop.engine.ports import SiteApi
from vapor_desktop.model import retention
from vapor_desktop.model.errors import EditOutdated, InvalidRequest, NotFound
from vapor_desktop.model.manifest import Epoch, Manifest
from vapor_desktop.model.policy import Policy
from vapor_desktop.model.sites import Protection
from vapor_desktop.model.view import SettingsEdit
from vapor_desktop.model.wire import ReplicaCreate, SettingsWrite, WriteGrant

PATIENCE_S = 3.0
LONGEST_S = 60.0
WINDOWS_MOST = 12
TIMES_MOST = 48


def check(policy: Policy, chain_limit: int) -> None:
    """Raises InvalidRequest for what cannot be kept. (Ranges of single fields are the model's.)"""
    retention.check_fits(policy.retention, chain_limit)
    if len(policy.at_times) > TIMES_MOST:
        raise InvalidRequest(f"{len(policy.at_times)} times of day are too many", fix=f"Give at most {TIMES_MOST}")
    if any(t.tzinfo is not None for t in policy.at_times):
        raise InvalidRequest("Times of day are UTC, written without a zone", fix="Write 18:30")
    if len(policy.bandwidth_windows) > WINDOWS_MOST:
        raise InvalidRequest("These are too many bandwidth windows", fix=f"Give at most {WINDOWS_MOST}")
    for window in policy.bandwidth_windows:
        if window.start == window.end:
            at = window.start.isoformat("minutes")
            raise InvalidRequest(f"A bandwidth window from {at} to {at} is empty", fix="Let it end later")


def read(api: SiteApi, protection: Protection) -> Manifest | None:
    """The manifest; None before the replica is made. Raises what keeps the target from answering."""
    try:
        return api.replica(protection.vm_uuid).manifest
    except NotFound:
        return None


class SettingsChange:
    """One edit, under the target's lease. A running cycle is stopped for it; what it has sent is kept."""

    def __init__(self, api: SiteApi, protection: Protection, holder: str, holder_name: str) -> None:
        self._api = api
        self._p = protection
        self._holder = holder
        self._holder_name = holder_name

    def run(self, edit: SettingsEdit, stop_cycle: Callable[[], None]) -> Manifest:
        """The manifest after it. Raises EditOutdated, LeaseHeld, StaleLease, SiteUnreachable."""
        p = self._p
        before = read(self._api, p)  # who comes too late stops no cycle
        _still(p, edit, before)
        with ExitStack() as held:
            lease = interrupting(
                held,
                lambda: HeldLease(self._api, p.vm_uuid, self._holder, self._holder_name, "edit settings"),
                stop_cycle,
                patience_s=PATIENCE_S,
                longest_s=LONGEST_S,
            )
            manifest = read(self._api, p)
            if manifest is None:
                return self._create(lease, edit)
            newest = manifest.newest
            grant = WriteGrant(
                fence=lease.fence,
                epoch=manifest.epoch,
                source_site=manifest.source_site,
                parent_seq=newest.seq if newest else None,
            )
            return self._api.write_settings(
                p.vm_uuid,
                SettingsWrite(grant=grant, expect_version=edit.version, policy=edit.policy, mappings=edit.mappings),
            )

    def _create(self, lease: HeldLease, edit: SettingsEdit) -> Manifest:
        """Edited before its first cycle: the replica is made with the new settings."""
        p = self._p
        epoch = Epoch(number=p.epoch_number, owner=p.source_site)
        return self._api.create_replica(
            p.vm_uuid,
            ReplicaCreate(
                grant=WriteGrant(fence=lease.fence, epoch=epoch, source_site=p.source_site, parent_seq=None),
                protection_id=p.protection_id,
                vm_name=p.vm_name,
                target_site=p.target_site,
                policy=edit.policy,
                mappings=edit.mappings,
            ),
        )


def _still(p: Protection, edit: SettingsEdit, manifest: Manifest | None) -> None:
    found = manifest.settings_version if manifest else p.settings_version
    same = manifest is not None and (manifest.policy, manifest.mappings) == (edit.policy, edit.mappings)
    if edit.version != found and not same:
        raise EditOutdated(
            f"The settings of {p.vm_name} were changed meanwhile",
            why=f"they are at version {found}, the edit was made on version {edit.version}",
            expected=edit.version,
            found=found,
        )
