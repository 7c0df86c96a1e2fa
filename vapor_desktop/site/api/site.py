"""``/hello``, ``/identity``, ``/health``, ``/storage``, ``/ssh``: what this site is and has."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime

from fastapi import APIRouter

import vapor_desktop
from vapor_desktop.model.policy import Value
from vapor_desktop.model.wire import API_VERSION, MOVER_PROTOCOL, Health, Identity, SshInfo, StorageRoot, TpmSupport
from vapor_desktop.site.api.auth import Site, Viewer
from vapor_desktop.site.guard_hook import proven
from vapor_desktop.site.identity import host_keys, user_public_key
from vapor_desktop.site.leases import boot_id
from vapor_desktop.site.statefile import make_dir

router = APIRouter(tags=["site"])


class Hello(Value):
    """GET /hello: pairing's first look, without a token."""

    product: str
    api_version: int


@router.get("/hello")
def hello() -> Hello:
    """That this is a vapor-site, its API version, and nothing more."""
    return Hello(product="vapor-site", api_version=API_VERSION)


@router.get("/identity")
def identity(_caller: Viewer, site: Site) -> Identity:
    """Who this site is; ``now`` is taken last, so a console measures the clock well."""
    libvirt, qemu = site.versions.current()
    settings = site.settings
    return Identity(
        site_id=site.site_id,
        name=settings.name,
        version=vapor_desktop.__version__,
        api_version=API_VERSION,
        mover_protocol=MOVER_PROTOCOL,
        libvirt_version=libvirt,
        qemu_version=qemu,
        boot_id=boot_id(),
        replica_root=str(settings.replica_roots[0]),
        scratch_dir=str(settings.scratch_dir),
        scratch_reserve_bytes=settings.scratch_reserve_bytes,
        guard_proven=proven(settings),
        now=datetime.now(UTC),
    )


@router.get("/health")
def health(_caller: Viewer, site: Site) -> Health:
    """The doctor's findings, at most 20 s old."""
    checks = site.checks()
    return Health(
        ok=all(check.ok for check in checks),
        libvirt=site.versions.current()[0] is not None,
        helper=site.helper.ping(),
        guard_proven=proven(site.settings),  # unproven is shown as off
        checks=checks,
    )


@router.get("/storage")
def storage(_caller: Viewer, site: Site) -> list[StorageRoot]:
    """Free space of every replica root."""
    found = []
    for root in site.settings.replica_roots:
        room = shutil.disk_usage(make_dir(root, 0o770))
        found.append(
            StorageRoot(
                path=str(root),
                total_bytes=room.total,
                free_bytes=room.free,
                reserve_bytes=site.settings.replica_reserve_bytes,
            )
        )
    return found


@router.get("/tpm")
def tpm_support(_caller: Viewer, site: Site) -> TpmSupport:
    """Could the state of a VM's TPM be put in place here?"""
    return site.tpm.support()


@router.get("/ssh")
def ssh(_caller: Viewer, site: Site) -> SshInfo:
    """How to reach and recognise this site's sshd, and the key with which it reaches peers."""
    settings = site.settings
    return SshInfo(
        port=settings.ssh_port,
        user=settings.user,
        host_keys=host_keys(settings),
        user_key=user_public_key(settings),
    )
