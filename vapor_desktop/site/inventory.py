"""What is on this host that a drill could leave behind: looked at before its first thing and after its last."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from vapor_desktop.model.domains import DomainView
from vapor_desktop.model.drills import Inventory
from vapor_desktop.model.manifest import Manifest

# What tells one process from another: a VM's UUID, a bubble's bridge.
_TELLING = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|vdb[0-9a-f]{8}[0-9a-z]")
_PROGRAMS = ("qemu-system", "swtpm", "bubble_probe", "dnsmasq")
LOGS = (Path("/var/log/libvirt/qemu"), Path("/var/log/swtpm/libvirt/qemu"))
DNSMASQ = Path("/var/lib/libvirt/dnsmasq")


def take(
    domains: Iterable[DomainView],
    networks: Sequence[str],
    manifests: Iterable[Manifest],
    roots: Iterable[Path],
    tpm_root: Path,
    uuids: Iterable[str],
) -> Inventory:
    """Look now. ``uuids``: of VMs whose TPM's state is looked for (its directory cannot be listed)."""
    pins = (f"{m.vm_uuid} point {p.seq} {pin}" for m in manifests for p in m.points for pin in p.pins)
    files = (str(path) for root in roots for path in root.glob("*/drill/*/*"))
    things = {
        "domain": (f"{d.name} {d.vm_uuid}" for d in domains),
        "network": networks,
        "link": _names(Path("/sys/class/net")),
        "process": _processes(),
        "file": files,
        "TPM state": (uuid for uuid in uuids if _there(tpm_root / uuid)),
        "log": (str(directory / name) for directory in LOGS for name in _names(directory)),
        "DHCP lease": _names(DNSMASQ),
        "pin": (pin for pin in pins if "drill:" in pin),
    }
    return Inventory(things={kind: tuple(sorted(names)) for kind, names in things.items()})


def ports_of(bridge: str) -> list[str]:
    """What is plugged into a bridge, as the kernel says."""
    return _names(Path("/sys/class/net") / bridge / "brif")


def _names(directory: Path) -> list[str]:
    with suppress(FileNotFoundError, NotADirectoryError, PermissionError):  # what we may not list is not ours to keep
        return sorted(path.name for path in directory.iterdir())
    return []


def _there(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError:
        return False


def _processes() -> set[str]:
    found = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            program = next((p for p in _PROGRAMS if any(p in word for word in words[:5])), None)
            telling = sorted(set(_TELLING.findall(" ".join(words))))
            if program is not None and telling:
                found.add(f"{program} {' '.join(telling)}")
    return found
