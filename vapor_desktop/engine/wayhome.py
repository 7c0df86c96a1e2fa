"""What is known of the way home of a VM that runs at its target: looked at now, at both sides. Changes nothing."""

from __future__ import annotations

from dataclasses import dataclass

from vapor_desktop.engine.offline import OfflineImages
from vapor_desktop.engine.plan import checkpoint_name
from vapor_desktop.engine.ports import Hypervisor, ImageInfo, Mover, SiteGateway
from vapor_desktop.model.domains import DomainView
from vapor_desktop.model.errors import Conflict, DomainNotFound, HypervisorFailed, NotFound, VaporError
from vapor_desktop.model.manifest import Manifest, PointEntry
from vapor_desktop.model.policy import Mappings
from vapor_desktop.model.reprotect import DiskFacts, Original, Price, price
from vapor_desktop.model.sites import Protection, Site
from vapor_desktop.model.states import Phase
from vapor_desktop.model.view import ReprotectPreview
from vapor_desktop.model.wire import AdoptDisk, ReplicaView


@dataclass(frozen=True, slots=True)
class WayHome:
    """``here``: where it runs, the source to be; ``there``: where it came from, the target to be."""

    manifest: Manifest  # of the replica that it runs on
    point: PointEntry  # that it went on from
    running: DomainView
    old: DomainView | None  # None: that libvirt does not know it any more
    checkpoint: str | None  # since its first write here
    originals: dict[str, AdoptDisk]  # what the old side has
    facts: tuple[DiskFacts, ...]

    @property
    def old_runs(self) -> bool:
        """Does it run at the side that it left, too?"""
        return self.old is not None and self.old.live_id is not None

    @property
    def price(self) -> Price:
        """What the first reverse copy costs."""
        return price(self.facts)


def must_be_over(p: Protection) -> None:
    """Raises Conflict unless the VM was migrated, or failed over and committed."""
    if p.phase is Phase.PROVISIONAL or p.commit_ask_at is not None:
        raise _provisional(p)
    if p.phase is Phase.SPLIT_BRAIN:
        raise Conflict(f"“{p.vm_name}” is in two places, and both wrote", fix="Resolve the split brain first")
    if p.phase not in {Phase.FAILED_OVER, Phase.SPLIT_BRAIN_RISK, Phase.REPROTECTING}:
        raise Conflict(
            f"“{p.vm_name}” is {p.phase.value}: there is nothing to reprotect",
            fix="Reprotecting follows a migration or a failover",
        )


def _provisional(p: Protection) -> Conflict:
    return Conflict(f"The failover of “{p.vm_name}” is provisional", fix="Commit it, or roll it back, first")


def run_point(manifest: Manifest) -> PointEntry:
    """The point that the VM went on from in this epoch. Raises Conflict when it does not run on this replica."""
    pin = f"run:{manifest.epoch.number}"
    found = next((p for p in manifest.points if pin in p.pins), None)
    if found is None or manifest.epoch.owner != manifest.target_site:
        raise Conflict(f"“{manifest.vm_name}” does not run on a recovery point of this replica")
    return found


def look(gateway: SiteGateway, p: Protection, here: Site, there: Site) -> WayHome:
    """Raises Conflict, SiteUnreachable, HypervisorUnreachable, DomainNotFound."""
    view = gateway.api(here).replica(p.vm_uuid)
    manifest = view.manifest
    if manifest.provisional:
        raise _provisional(p)
    point = run_point(manifest)
    hypervisor = gateway.hypervisor(here)
    running = hypervisor.domain(p.vm_uuid)
    checkpoint = reverse_checkpoint(hypervisor, p, manifest.epoch.number)
    try:
        old: DomainView | None = gateway.hypervisor(there).domain(p.vm_uuid)
    except DomainNotFound:
        old = None
    originals, states = _originals(gateway, here, there, old, point)
    facts = _facts(hypervisor, gateway.mover(here, there), p, running, view, point, states, checkpoint)
    return WayHome(manifest, point, running, old, checkpoint, originals, facts)


def reverse_checkpoint(hypervisor: Hypervisor, p: Protection, epoch: int) -> str | None:
    """The one that a migration made before it let the VM run."""
    prefix = checkpoint_name(p.protection_id, epoch, 0).rpartition("-")[0]
    return next((n for n in hypervisor.checkpoints(p.vm_uuid) if n.startswith(prefix)), None)


def _originals(
    gateway: SiteGateway, here: Site, there: Site, old: DomainView | None, point: PointEntry
) -> tuple[dict[str, AdoptDisk], dict[str, Original]]:
    found: dict[str, AdoptDisk] = {}
    states = dict.fromkeys(point.files, Original.MISSING)
    for disk in old.disks if old else ():
        usable = disk.device == "disk" and disk.source_kind == "file" and disk.driver_format == "qcow2"
        if disk.target not in states or not usable or disk.source is None:
            continue
        info = _image(gateway, here, there, disk.source)
        if info is None or info.virtual_size_bytes > point.sizes[disk.target]:
            continue
        expected = point.images.get(disk.target, "")
        same = bool(expected) and info.stamp == expected and old is not None and old.live_id is None
        states[disk.target] = Original.PROVEN if same else Original.DIVERGED
        found[disk.target] = AdoptDisk(path=disk.source, size_bytes=point.sizes[disk.target], expect_stamp=expected)
    return found, states


def _image(gateway: SiteGateway, here: Site, there: Site, path: str) -> ImageInfo | None:
    try:
        return gateway.mover(there, here).image_info(path)
    except NotFound:
        return None


def _facts(
    hypervisor: Hypervisor,
    mover: Mover,
    p: Protection,
    running: DomainView,
    view: ReplicaView,
    point: PointEntry,
    states: dict[str, Original],
    checkpoint: str | None,
) -> tuple[DiskFacts, ...]:
    valid, dirty = False, None
    disks = sorted(point.files)
    if checkpoint is not None and running.live_id is None:
        valid = OfflineImages(mover, running).bitmap_valid(checkpoint, disks)
    elif checkpoint is not None:
        try:
            valid = hypervisor.checkpoint_valid(p.vm_uuid, checkpoint, disks)
            dirty = hypervisor.bitmaps_dirty(p.vm_uuid, checkpoint) if valid else None
        except HypervisorFailed:
            valid = False
    # libvirt tells the sum; it is shown as a sum again.
    share = {d: dirty if n == 0 else 0 for n, d in enumerate(disks)} if dirty is not None else {}
    here = {d.target: d for d in running.disks}
    return tuple(
        DiskFacts(
            target=disk,
            size_bytes=max(point.sizes[disk], here[disk].size_bytes or 0) if disk in here else point.sizes[disk],
            original=states[disk],
            bitmap=valid,
            dirty_bytes=share.get(disk),
            written_bytes=here[disk].allocated_bytes if disk in here else None,
        )
        for disk in disks
    )


def inverse(mappings: Mappings) -> Mappings:
    """The way back for each network; of two that went to one, the first. The root is the site's default."""
    back: dict[str, str] = {}
    for old, new in mappings.networks.items():
        back.setdefault(new, old)
    return Mappings(networks=back)


def preview(gateway: SiteGateway, p: Protection, here: Site, there: Site) -> ReprotectPreview:
    """What the sheet states before the button."""
    must_be_over(p)
    try:
        home = look(gateway, p, here, there)
    except VaporError as error:
        return ReprotectPreview(p.protection_id, p.vm_name, here.name, there.name, blockers=(str(error),))
    cost = home.price
    return ReprotectPreview(
        protection_id=p.protection_id,
        vm_name=p.vm_name,
        source_name=here.name,
        target_name=there.name,
        method=cost.method.value,
        price=cost.text,
        why=cost.why,
        read_bytes=cost.read_bytes,
        send_bytes=cost.send_bytes,
        old_runs=home.old_runs,
        effects=effects(p, home, here.name, there.name),
    )


def effects(p: Protection, home: WayHome, here: str, there: str) -> tuple[str, ...]:
    """What will happen, sentence by sentence."""
    told = [f"“{p.vm_name}” goes on running at {here}, and is protected to {there} from now on."]
    if home.old_runs:
        told.append(f"It runs at {there} too: you are asked to switch it off there first.")
    told.append(f"{there} does not start it any more; its autostart is off there.")
    if home.originals:
        told.append(f"Its original disks at {there} stay where they are, and only what differs is sent.")
    if any(f.original is Original.DIVERGED for f in home.facts):
        told.append(
            f"What {there} wrote after the failover is kept as a recovery point of its own until you let it go."
        )
    if any(f.original is Original.MISSING for f in home.facts):
        told.append(f"Disks that {there} has lost are copied whole, into its replica store.")
    told.append(
        f"Once the first recovery point is at {there}, the VM becomes flat again at {here}: "
        f"the {len([q for q in home.manifest.points if not q.dead])} recovery points there of before go."
    )
    return tuple(told)
