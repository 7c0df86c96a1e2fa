"""Taking a VM over at the target, as rules: which point, which epoch, is the name free."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from vapor_desktop.model.domain_xml.mark import Mark, read_mark
from vapor_desktop.model.domains import DomainView
from vapor_desktop.model.errors import Conflict, NotFound
from vapor_desktop.model.manifest import Epoch, Manifest


def choose_point(manifest: Manifest, wanted: int | None) -> int:
    """The point's number; None wants the newest. Raises NotFound."""
    if wanted is not None:
        if manifest.entry(wanted) is None:
            raise NotFound(f"There is no recovery point {wanted} of “{manifest.vm_name}”")
        return wanted
    newest = manifest.newest
    if newest is None:
        raise NotFound(
            f"“{manifest.vm_name}” has no complete recovery point", fix="Nothing can be failed over to yet"
        )
    return newest.seq


def next_epoch(manifest: Manifest, target: str) -> Epoch:
    """The next epoch, or the one this very failover already took before it broke off."""
    if manifest.epoch.owner == target and str(manifest.epoch.number) in manifest.runs:
        return manifest.epoch
    return Epoch(number=manifest.epoch.number + 1, owner=target)


def check_strangers(
    vm_uuid: str,
    vm_name: str,
    protection_id: str,
    epoch: Epoch,
    domains: Iterable[DomainView],
    xml_of: Callable[[str], str],
    home: frozenset[str] = frozenset(),
) -> None:
    """Raises Conflict for a domain of the target that has the VM's name or UUID and is not this take-over's.

    ``xml_of``: a domain's definition by its UUID. ``home``: original disks that the replica stands on; the VM that
    has them, off, is the one that comes home.
    """
    for domain in domains:
        if domain.vm_uuid == vm_uuid:
            mark = read_mark(xml_of(vm_uuid))
            at_home = domain.live_id is None and any(d.source in home for d in domain.disks)
            ours = at_home or (mark is not None and mark.protection_id == protection_id)
            if not ours or (domain.live_id is not None and mark is not None and mark.epoch != epoch.number):
                raise Conflict(
                    f"The target has a VM of that UUID that is not this failover's: “{domain.name}” ({domain.state})",
                    fix="Shut it down and undefine it there, if it is not the one you want to keep",
                )
        elif domain.name == vm_name:
            raise Conflict(
                f"The target has another VM named “{domain.name}”",
                fix="Rename that one (virsh domrename) and try again",
            )


def home_of(manifest: Manifest) -> frozenset[str]:
    """Paths of the original disks that a replica stands on, where its VM once came from this site."""
    return frozenset(base.path for base in manifest.adopted.values())


def has_kvm(capabilities_xml: str) -> bool:
    """Does the host offer KVM? From libvirt's capabilities."""
    return "<domain type='kvm'" in capabilities_xml or '<domain type="kvm"' in capabilities_xml


def mark_of(manifest: Manifest, epoch: Epoch, seq: int) -> Mark:
    """What a domain that was defined for a run on that point carries."""
    return Mark(manifest.protection_id, epoch.number, seq)
