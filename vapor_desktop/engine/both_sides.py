"""What a VM wrote at both sites since the point that the target took over: bytes and the time of the last write.

Nothing is changed. What cannot be told is said, never guessed: it is for a person who must choose.
"""

from __future__ import annotations

from datetime import UTC, datetime

from vapor_desktop.engine.ports import Hypervisor, Mover, SiteGateway
from vapor_desktop.model.domains import DomainView
from vapor_desktop.model.errors import DomainNotFound, NotFound, VaporError
from vapor_desktop.model.manifest import Manifest, PointEntry
from vapor_desktop.model.sites import Protection, Site
from vapor_desktop.model.view import BothSides, SideView
from vapor_desktop.model.wire import ReplicaView


def compare(gateway: SiteGateway, p: Protection, source: Site, target: Site) -> BothSides:
    """Asked of both sites now. Raises SiteUnreachable, HypervisorUnreachable: nobody chooses with one side dark."""
    view = gateway.api(target).replica(p.vm_uuid)
    manifest = view.manifest
    common = common_point(manifest)
    at_source = _source_side(gateway, p, source, target, common)
    at_target = _target_side(gateway, p, target, view)
    return BothSides(
        protection_id=p.protection_id,
        vm_name=p.vm_name,
        common_seq=common.seq if common else None,
        common_at=common.current_as_of if common else None,
        source=at_source,
        target=at_target,
    )


def common_point(manifest: Manifest) -> PointEntry | None:
    """What both sides had: the point that the present run stands on."""
    pin = f"run:{manifest.epoch.number}"
    return next((e for e in manifest.points if pin in e.pins), None)


def _source_side(
    gateway: SiteGateway, p: Protection, source: Site, target: Site, common: PointEntry | None
) -> SideView:
    hypervisor = gateway.hypervisor(source)
    domain = _domain(hypervisor, p.vm_uuid)
    try:
        record = gateway.api(source).guard(p.vm_uuid)
    except NotFound:
        record = None
    changed, note = _dirty(hypervisor, domain, common)
    written = _last_write(gateway.mover(source, target), domain)
    return SideView(
        site_id=source.site_id,
        site_name=source.name,
        state=domain.state if domain else "undefined",
        epoch=record.epoch.number if record and record.epoch.owner == source.site_id else None,
        changed_bytes=changed,
        changed_by_disk={},
        last_write_at=written,
        note=note,
    )


def _target_side(gateway: SiteGateway, p: Protection, target: Site, view: ReplicaView) -> SideView:
    domain = _domain(gateway.hypervisor(target), p.vm_uuid)
    number = str(view.manifest.epoch.number)
    wrote = view.run_bytes.get(number, {})
    return SideView(
        site_id=target.site_id,
        site_name=target.name,
        state=domain.state if domain else "undefined",
        epoch=view.manifest.epoch.number,
        changed_bytes=sum(wrote.values()) if wrote else None,
        changed_by_disk=wrote,
        last_write_at=view.run_written_at.get(number),
        note="" if wrote else "it never ran there",
    )


def _domain(hypervisor: Hypervisor, vm_uuid: str) -> DomainView | None:
    try:
        return hypervisor.domain(vm_uuid)
    except DomainNotFound:
        return None


def _dirty(hypervisor: Hypervisor, domain: DomainView | None, common: PointEntry | None) -> tuple[int | None, str]:
    """Bytes by the bitmap of the common point's checkpoint; None and why."""
    if domain is None:
        return None, "it is not defined there"
    if common is None or common.checkpoint is None:
        return None, "no bitmap tells what was written there"
    try:
        found = hypervisor.bitmaps_dirty(domain.vm_uuid, common.checkpoint)
    except VaporError as error:
        return None, f"its bitmap does not tell: {error.what}"
    if found is None:
        return None, "its bitmap went with the crash, or it is off: only a compare will tell"
    return found, ""


def _last_write(mover: Mover, domain: DomainView | None) -> datetime | None:
    """Of its disk images; None where the host does not tell."""
    found: list[datetime] = []
    for disk in domain.disks if domain else ():
        if disk.device != "disk" or disk.source is None or disk.source_kind != "file" or disk.read_only:
            continue
        try:
            stamp = mover.image_info(disk.source).stamp
        except VaporError:
            continue  # it is one more hint: the bytes and the state are told without it
        written_ns = stamp.rsplit(":", 1)[-1]
        if written_ns.isdecimal():
            found.append(datetime.fromtimestamp(int(written_ns) / 1e9, UTC))
    return max(found, default=None)
