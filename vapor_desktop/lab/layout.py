"""Names, addresses and paths of one lab. Pure: everything follows from the lab's name, its state
directory and its index (which /28 of the documentation range 198.51.100.0/24 it uses, RFC 5737).
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from vapor_desktop.model.errors import InvalidRequest

DOCUMENTATION_RANGE = IPv4Network("198.51.100.0/24")
SUBNET_BITS = 28
MAX_LABS = 2 ** (SUBNET_BITS - DOCUMENTATION_RANGE.prefixlen)
API_PORT = 7770
SSH_PORT = 22
SITE_NAMES = ("a", "b")
# The account's numbers are the lab's own: it exists only inside the hosts.
VAPOR_UID = 7770
VAPOR_GID = 7770


@dataclass(frozen=True)
class SiteLayout:
    """One host of the lab."""

    lab: LabLayout
    name: str
    ordinal: int

    @property
    def address(self) -> str:
        """The host's address on the link."""
        return str(self.lab.host_address(2 + self.ordinal))

    @property
    def namespace(self) -> str:
        """Its network namespace."""
        return f"vapor-lab-{self.lab.name}-{self.name}"

    @property
    def hostname(self) -> str:
        """What it calls itself."""
        return f"{self.lab.name}-{self.name}"

    @property
    def port_device(self) -> str:
        """Its port on the lab's bridge, in the outer machine's namespace."""
        return f"vl{self.lab.tag}{self.name}"

    @property
    def near_bridge(self) -> str:
        """Where its port is plugged in while its cable is led through a delay line (``wire``)."""
        return f"{self.port_device}w"

    @property
    def near_device(self) -> str:
        """The delay line's end at the host."""
        return f"{self.port_device}n"

    @property
    def far_device(self) -> str:
        """The delay line's end at the lab's bridge."""
        return f"{self.port_device}f"

    @property
    def directory(self) -> Path:
        """What the lab keeps about it."""
        return self.lab.state / self.name

    @property
    def files(self) -> Path:
        """Its private directories, laid out as it sees them (``files/var/lib/libvirt`` …)."""
        return self.directory / "files"

    @property
    def network(self) -> str:
        """Its libvirt network's name: not the same on both sides, as in life."""
        return f"lan-{self.name}"

    @property
    def network_prefix(self) -> str:
        """The first three numbers of that network's /24."""
        return f"192.168.{150 + self.ordinal}"


@dataclass(frozen=True)
class LabLayout:
    """One lab: two hosts on a bridge; the bridge itself carries the console's address."""

    name: str
    state: Path
    index: int = 0

    @property
    def tag(self) -> str:
        """Short and unlikely to collide: device names have 15 characters at most."""
        return hashlib.sha256(self.name.encode()).hexdigest()[:6]

    @property
    def bridge(self) -> str:
        """The bridge in the outer machine's namespace."""
        return f"vl{self.tag}br"

    @property
    def bridge_mac(self) -> str:
        """Its Ethernet address: left to the kernel, it would change with the ports, and the hosts' ARP go stale."""
        return f"02:00:{self.tag[:2]}:{self.tag[2:4]}:{self.tag[4:]}:01"

    @property
    def subnet(self) -> IPv4Network:
        """This lab's /28."""
        return list(DOCUMENTATION_RANGE.subnets(new_prefix=SUBNET_BITS))[self.index]

    @property
    def console_address(self) -> str:
        """The outer machine on the link."""
        return str(self.host_address(1))

    def host_address(self, number: int) -> IPv4Address:
        """The number-th address of the /28."""
        return self.subnet.network_address + number

    @property
    def sites(self) -> dict[str, SiteLayout]:
        """Both hosts by name."""
        return {name: SiteLayout(self, name, ordinal) for ordinal, name in enumerate(SITE_NAMES)}


def checked_name(name: str) -> str:
    """The lab's name, if it can be part of a path, a host name and a namespace. Raises InvalidRequest."""
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,23}", name):
        raise InvalidRequest(
            f"{name!r} is no name for a lab",
            fix="Use up to 24 lower-case letters, digits and hyphens, a letter first",
        )
    return name


def default_state(name: str) -> Path:
    """Where a lab lives. Always the same place: `down` must find what an `up` from another shell left."""
    return Path(f"/var/tmp/vapor-lab-{name}")  # noqa: S108


def default_cache() -> Path:
    """Built images and other releases' roots, kept between labs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vapor-lab"
