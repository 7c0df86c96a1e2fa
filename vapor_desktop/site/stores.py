"""Opening this site's replica store, and what the host's domains refer to (never merged, never deleted)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

from vapor_desktop.model.domains import DomainView
from vapor_desktop.model.errors import NotAllowed, NotFound
from vapor_desktop.site.helper_client import HelperClient
from vapor_desktop.site.identity import site_id
from vapor_desktop.site.leases import checker
from vapor_desktop.site.replica import ReplicaStore, qcow2
from vapor_desktop.site.settings import SiteSettings


class DomainLister(Protocol):
    """What ``LibvirtHypervisor`` offers here."""

    def domains(self) -> Iterable[DomainView]: ...


def open_store(settings: SiteSettings, in_use: Callable[[], Iterable[Path]]) -> ReplicaStore:
    """The store over the configured roots, its verbs guarded by this site's leases."""
    return ReplicaStore(
        settings.replica_roots,
        site_id(settings),
        checker(settings.leases_dir),
        settings.replica_reserve_bytes,
        in_use,
    )


def in_use_by(hypervisor: DomainLister, helper: HelperClient) -> Callable[[], list[Path]]:
    """A function that names every file that any domain of this host reads, by its whole backing chain.

    It raises HypervisorUnreachable when libvirt does not answer, and NotAllowed when an image can be read
    neither by us nor by the root helper: what cannot be looked at counts as a reason not to merge.
    """

    def look() -> list[Path]:
        found: dict[Path, None] = {}
        for domain in hypervisor.domains():
            for disk in domain.disks:
                if disk.source is not None and disk.source_kind in ("file", "volume", "block"):
                    found.update(dict.fromkeys(chain_of(Path(disk.source), disk.source_kind, helper)))
        return list(found)

    return look


def chain_of(image: Path, kind: str, helper: HelperClient) -> Iterator[Path]:
    """The image and every local file below it. A device that cannot be read is taken as a chain of one."""
    seen: set[Path] = set()
    while image not in seen:
        seen.add(image)
        yield image
        try:
            header = qcow2.read_header(Path(os.path.realpath(image)))
        except FileNotFoundError:
            return
        except PermissionError:
            if kind == "block":
                return
            try:
                yield from (Path(name) for name in helper.image_info(str(image))["chain"])
            except NotFound:
                return
            return
        except OSError as error:  # a stale mount, a symlink's loop: what it refers to cannot be known
            raise NotAllowed(
                "An image of a VM on this host cannot be looked at; nothing is merged or deleted meanwhile",
                why=f"{image}: {error.strerror}",
                fix="Mend its storage, or undefine the VM that names it",
            ) from error
        below = qcow2.backing_path(image, header.backing) if header and header.backing else None
        if below is None:
            return
        image = below
