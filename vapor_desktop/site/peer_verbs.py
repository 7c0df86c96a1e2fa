"""The small verbs of a peer's key: ``ping``, ``owner VM``, ``owners VM…``, ``digest VM [SEQ]``. One JSON line out."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from vapor_desktop.hypervisor.connection import LibvirtHypervisor
from vapor_desktop.model.errors import DomainNotFound, InvalidRequest, NotAllowed, NotFound, VaporError
from vapor_desktop.model.manifest import Epoch, Manifest
from vapor_desktop.model.wire import OwnerWord
from vapor_desktop.site.audit import AuditLog
from vapor_desktop.site.enrolments import find_peer, uuid_text
from vapor_desktop.site.guard_book import GuardBook
from vapor_desktop.site.identity import site_id
from vapor_desktop.site.settings import SiteSettings, load_settings
from vapor_desktop.site.stores import open_store


def main(peer: str, words: Sequence[str]) -> int:
    """Answer one verb; the exit code."""
    try:
        settings = load_settings()
        find_peer(settings, peer)  # a peer that was removed meanwhile gets nothing
        answer = _answer(settings, peer, words)
    except VaporError as error:
        sys.stdout.write(json.dumps({"error": error.to_wire()}, default=str) + "\n")
        return 1
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


def _answer(settings: SiteSettings, peer: str, words: Sequence[str]) -> dict[str, Any]:
    verbs: dict[str, Callable[..., dict[str, Any]]] = {
        "ping": lambda: {"site_id": site_id(settings)},
        "owner": lambda vm: _owner(_manifest(settings, peer, vm)),
        "owners": lambda *vms: {"owners": _owners(settings, peer, vms)},
        "digest": lambda vm, seq="": _digest(settings, peer, vm, seq),
    }
    try:
        return verbs[words[0]](*words[1:])
    except TypeError as error:
        raise InvalidRequest(f"The verb {words[0]!r} does not take these words") from error


def _manifest(settings: SiteSettings, peer: str, vm: str) -> Manifest:
    """The replica's manifest, if this peer is its source. Raises NotFound, NotAllowed."""
    manifest = open_store(settings, tuple).manifest(uuid_text(vm, "the VM"))
    if peer not in (manifest.source_site, manifest.epoch.owner):
        raise NotAllowed("That site is not the source of this VM")
    return manifest


def _owner(manifest: Manifest) -> dict[str, Any]:
    newest = manifest.newest
    return {
        "vm_uuid": manifest.vm_uuid,
        "epoch": manifest.epoch.model_dump(mode="json"),
        "newest_seq": newest.seq if newest else None,
    }


def _owners(settings: SiteSettings, peer: str, vms: Sequence[str]) -> dict[str, Any]:
    """What this site knows of each VM: the start guard of the peer asks before it lets one start."""
    hypervisor = LibvirtHypervisor(settings.libvirt_uri)
    found: dict[str, Any] = {}
    for vm in vms:
        try:
            word = OwnerWord(epoch=_epoch(settings, peer, vm), runs=_runs(hypervisor, vm))
            found[vm] = word.model_dump(mode="json")
        except VaporError as error:
            found[vm] = {"error": json.loads(json.dumps(error.to_wire(), default=str))}
    hypervisor.close()
    return found


def _epoch(settings: SiteSettings, peer: str, vm: str) -> Epoch | None:
    """The highest epoch that the replica's manifest or this site's own guard record has; None: it has neither.

    Raises NotAllowed, ManifestInvalid, and Unexpected for a damaged record: not knowing is no answer.
    """
    known: list[Epoch] = []
    with suppress(NotFound):
        known.append(_manifest(settings, peer, vm).epoch)
    with suppress(NotFound):
        known.append(GuardBook(settings, AuditLog(settings.audit_log)).get(uuid_text(vm, "the VM")).epoch)
    # Of two with one number the other side's is told: the asker must see the tie.
    return max(known, key=lambda epoch: (epoch.number, epoch.owner != peer), default=None)


def _runs(hypervisor: LibvirtHypervisor, vm: str) -> bool | None:
    try:
        return hypervisor.domain(vm).live_id is not None
    except DomainNotFound:
        return False
    except VaporError:
        return None


def _digest(settings: SiteSettings, peer: str, vm: str, seq: str) -> dict[str, Any]:
    manifest = _manifest(settings, peer, vm)
    number = int(seq) if seq.isdecimal() else (manifest.newest.seq if manifest.newest and not seq else None)
    if number is None:
        raise InvalidRequest("There is no such point", why=seq)
    point = open_store(settings, tuple).point(manifest.vm_uuid, number)
    return {"seq": number, "disks": {disk.target: disk.digest for disk in point.disks}}
