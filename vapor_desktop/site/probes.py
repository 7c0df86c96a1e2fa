"""The probes of this service's bubbles: one connection each, opened again when it was cut."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from ipaddress import IPv4Address
from pathlib import Path

from vapor_desktop.model.drills import DrillNet, LeakTarget
from vapor_desktop.model.errors import Unexpected
from vapor_desktop.site.bubble_client import ProbeLink

SSH_PORT = 22


class Probes:
    """Thread-safe."""

    def __init__(self, socket_path: Path, api_port: int) -> None:
        self._path = socket_path
        self._api_port = api_port
        self._lock = threading.Lock()
        self._links: dict[str, ProbeLink] = {}

    def ensure(self, net: DrillNet) -> ProbeLink:
        """The living probe of that network; a dead one is replaced. Raises NotAllowed (no helper), Unexpected."""
        with self._lock:
            link = self._links.get(net.bridge)
            if link is not None and link.alive():
                return link
            if link is not None:
                link.close()
                del self._links[net.bridge]
            link = self._links[net.bridge] = ProbeLink(self._path, net)
            return link

    def close(self, net: DrillNet) -> None:
        """End it. Idempotent."""
        with self._lock:
            link = self._links.pop(net.bridge, None)
        if link is not None:
            link.close()

    def close_all(self) -> None:
        """This service ends: so do its probes."""
        with self._lock:
            links, self._links = list(self._links.values()), {}
        for link in links:
            link.close()

    def outsiders(self, link: ProbeLink) -> list[LeakTarget]:
        """This host itself, by each of its addresses, and its ways out."""
        own = [a for a in link.seen["hosts"] if not IPv4Address(a).is_loopback]
        found = [LeakTarget(name="this host", address=a, port=self._api_port) for a in own]
        found += [LeakTarget(name="this host's gateway", address=a, port=SSH_PORT) for a in _gateways()]
        return found


def addresses_of(device: str) -> list[str]:
    """Addresses that the host has on one of its links."""
    links = json.loads(_ip("address", "show", "dev", device))
    return [str(a["local"]) for link in links for a in link.get("addr_info", ())]


def _gateways() -> Sequence[str]:
    return [str(r["gateway"]) for r in json.loads(_ip("-4", "route", "show", "default")) if "gateway" in r]


def _ip(*words: str) -> str:
    try:
        done = subprocess.run(
            ["ip", "-j", *words], capture_output=True, text=True, timeout=10, check=True, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise Unexpected("The host's addresses cannot be read", why=str(error), fix="Install iproute2") from error
    return done.stdout or "[]"


def usable(targets: Sequence[LeakTarget]) -> list[LeakTarget]:
    """Those that are IPv4 addresses, each once: a name would have to be asked for outside the bubble."""
    found: dict[str, LeakTarget] = {}
    for target in targets:
        with suppress(ValueError):
            found.setdefault(str(IPv4Address(target.address)), target)
    return list(found.values())
