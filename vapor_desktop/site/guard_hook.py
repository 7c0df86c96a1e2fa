"""libvirt's hook of the start guard: put in place, and proven by a throw-away VM that it refuses.

libvirt looks for hooks when its daemon starts or is told to reload [facts/lab], so a file in place proves nothing.
"""

from __future__ import annotations

import hashlib
import os
import platform
import secrets
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol
from uuid import uuid4

from vapor_desktop.model.errors import HypervisorFailed, NotAllowed, VaporError
from vapor_desktop.model.manifest import Epoch
from vapor_desktop.model.wire import DoctorCheck, GuardRecord, GuardState
from vapor_desktop.site import qemu_hook
from vapor_desktop.site.guard_book import PROOF_NAME
from vapor_desktop.site.settings import SiteSettings
from vapor_desktop.site.statefile import make_dir, read_json, write_atomic, write_json

RELOAD = "systemctl reload libvirtd (virtqemud where libvirt is modular), or SIGHUP to the daemon"
DAEMONS = ("libvirtd.service", "virtqemud.service")
PROOF_XML = """<domain type='qemu'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <memory unit='MiB'>16</memory>
  <vcpu>1</vcpu>
  <os><type arch='{arch}'>hvm</type></os>
</domain>"""


class ProvingHypervisor(Protocol):
    """What the proof needs of libvirt; ``LibvirtHypervisor`` has it."""

    def try_start(self, xml: str) -> str | None: ...


def hook_text(guard_dir: Path) -> str:
    """The hook for records in that directory."""
    text = Path(qemu_hook.__file__).read_text()
    return text.replace(f'GUARD_DIR = "{qemu_hook.GUARD_DIR}"', f"GUARD_DIR = {str(guard_dir)!r}", 1)


def hook_path(settings: SiteSettings) -> Path:
    """Where libvirt looks for it."""
    return settings.libvirt_hook_dir / "vapor"


def install(settings: SiteSettings) -> Path:
    """Write the hook, whole or not at all, for root alone to change. Raises NotAllowed (not root), OSError."""
    if os.geteuid() != 0:
        raise NotAllowed("libvirt's hooks belong to root", fix="Run it as root")
    path = hook_path(settings)
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    write_atomic(path, hook_text(settings.guard_dir).encode(), 0o755)
    return path


def reload_libvirt() -> str | None:
    """Make libvirt look for hooks, where systemd rules it; the unit that was told, None where there is none."""
    systemctl = shutil.which("systemctl")
    for unit in DAEMONS if systemctl and Path("/run/systemd/system").is_dir() else ():
        if subprocess.run([str(systemctl), "-q", "is-active", unit], check=False).returncode == 0:
            subprocess.run([str(systemctl), "reload", unit], check=True)
            return unit
    return None


def fingerprint(settings: SiteSettings) -> str | None:
    """Of the installed hook; None when it is not there, not executable, or writable by others than root."""
    path = hook_path(settings)
    try:
        status = path.stat()
        content = path.read_bytes()
    except OSError:
        return None
    loose = status.st_uid != 0 or status.st_mode & 0o022
    return None if loose or not status.st_mode & 0o100 else hashlib.sha256(content).hexdigest()


def proven(settings: SiteSettings) -> bool:
    """Whether the hook that is installed now was seen to refuse."""
    proof = read_json(settings.guard_proof)
    print_now = fingerprint(settings)
    return print_now is not None and isinstance(proof, dict) and proof.get("sha256") == print_now


def prove(settings: SiteSettings, hypervisor: ProvingHypervisor) -> bool:
    """Try to start a VM that the records refuse; keeps the proof, or takes an old one away.

    The VM has no disk, is not defined, would start paused and be destroyed at once. Raises HypervisorFailed when
    libvirt fails otherwise (then nothing is known), HypervisorUnreachable, OSError.
    """
    print_now = fingerprint(settings)
    refused = print_now is not None and _refused(settings, hypervisor)
    if refused:
        at = datetime.now(UTC).isoformat()
        make_dir(settings.guard_proof.parent)
        write_json(settings.guard_proof, {"sha256": print_now, "proven_at": at})
    else:
        settings.guard_proof.unlink(missing_ok=True)
    return refused


def _refused(settings: SiteSettings, hypervisor: ProvingHypervisor) -> bool:
    directory = make_dir(settings.guard_dir)
    vm, word = str(uuid4()), secrets.token_hex(8)
    record = GuardRecord(
        vm_uuid=vm,
        vm_name=f"{PROOF_NAME}{vm[:8]}",
        epoch=Epoch(number=1, owner="nobody"),
        this_site="here",
        peer_site="nobody",
        state=GuardState.OTHERS,
        reason=f"proof {word}",
        changed_at=datetime.now(UTC),
        changed_by="doctor",
    )
    path = directory / f"{vm}.json"
    write_atomic(path, record.model_dump_json().encode())
    try:
        said = hypervisor.try_start(PROOF_XML.format(name=record.vm_name, uuid=vm, arch=platform.machine()))
    finally:
        path.unlink()
    return said is not None and word in said  # our own words came back: it was this hook, by this record


def check(settings: SiteSettings) -> DoctorCheck:
    """The doctor's line, by what was proven last."""
    path = hook_path(settings)
    if proven(settings):
        return DoctorCheck(name="start guard", ok=True, found=f"{path} was seen to refuse a VM")
    if fingerprint(settings) is None:
        fix = "As root: `vapor-site guard install`"
        return DoctorCheck(name="start guard", ok=False, found=f"off: {path} is not installed", fix=fix)
    found = f"off: {path} is there, and libvirt was not seen to ask it"
    return DoctorCheck(name="start guard", ok=False, found=found, fix=f"{RELOAD}; then `vapor-site doctor`")


def prove_or_tell(settings: SiteSettings, hypervisor: ProvingHypervisor) -> str | None:
    """``prove`` for callers that only report: why nothing could be proven, None when it was tried."""
    try:
        prove(settings, hypervisor)
    except OSError as error:  # the state directory is full, or not this account's
        return f"{error.filename}: {error.strerror}"
    except VaporError as error:
        detail = error.why if isinstance(error, HypervisorFailed) else ""
        return f"{error.what}: {detail}" if detail else str(error)
    return None
