"""What an end of protection takes away at the source: our checkpoints and bitmaps, wherever they are."""

from __future__ import annotations

from vapor_desktop.engine.offline import OfflineImages
from vapor_desktop.engine.plan import ours
from vapor_desktop.engine.ports import SiteGateway
from vapor_desktop.model.errors import DomainNotFound, VaporError
from vapor_desktop.model.sites import Protection, Site


def checkpoints_at_target(gateway: SiteGateway, protection: Protection, target: Site | None) -> set[str]:
    """Names that the replica knows: a bitmap made while the VM was off is in no list of libvirt's.

    An unreachable target knows none; what libvirt lists is found all the same.
    """
    if target is None:
        return set()
    try:
        view = gateway.api(target).replica(protection.vm_uuid)
    except VaporError:
        return set()
    names = {point.checkpoint for point in view.manifest.points}
    names.add(view.incoming.checkpoint if view.incoming else None)
    return {name for name in names if name is not None and ours(protection.protection_id, name)}


def forget_bitmaps(
    gateway: SiteGateway, protection: Protection, source: Site, target: Site | None, names: set[str]
) -> None:
    """Remove every checkpoint and bitmap of ours. No cycle may run.

    Of a VM that is off libvirt forgets only the metadata: its bitmaps lie in the images [facts/libvirt 1.5], and
    are removed there through the root helper. A VM that is gone has none.
    """
    hypervisor = gateway.hypervisor(source)
    try:
        domain = hypervisor.domain(protection.vm_uuid)
    except DomainNotFound:
        return
    known = {n for n in hypervisor.checkpoints(protection.vm_uuid) if ours(protection.protection_id, n)}
    for name in sorted(known | names):
        hypervisor.delete_checkpoint(protection.vm_uuid, name)
    if domain.live_id is None:
        OfflineImages(gateway.mover(source, target or source), domain).remove_bitmaps(protection.protection_id)
