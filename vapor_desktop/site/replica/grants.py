"""Who may write: the checks of every writing verb."""

from __future__ import annotations

from collections.abc import Callable

from vapor_desktop.model.errors import EpochMoved, ParentMoved
from vapor_desktop.model.manifest import Manifest
from vapor_desktop.model.wire import WriteGrant


def check_grant(manifest: Manifest, grant: WriteGrant, check_lease: Callable[[str, int], None]) -> None:
    """Raises StaleLease, EpochMoved, ParentMoved. The caller holds the replica's lock."""
    check_lease(manifest.vm_uuid, grant.fence)
    if grant.epoch != manifest.epoch:
        raise EpochMoved(
            f"VM {manifest.vm_name} is in epoch {manifest.epoch.number} of site {manifest.epoch.owner}",
            why=f"the request is for epoch {grant.epoch.number} of site {grant.epoch.owner}",
        )
    if grant.source_site != manifest.source_site:
        raise EpochMoved(
            f"VM {manifest.vm_name} is replicated from site {manifest.source_site}",
            why=f"the request comes from site {grant.source_site}",
        )
    newest = manifest.newest.seq if manifest.newest else None
    if grant.parent_seq != newest:
        raise ParentMoved(
            f"The newest recovery point of VM {manifest.vm_name} is {newest}",
            why=f"the request was made for {grant.parent_seq}",
            newest_seq=newest,
        )
