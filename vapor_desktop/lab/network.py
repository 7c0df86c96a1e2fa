"""The lab's link: a bridge in the outer namespace, one veth per host; cutting, mending, shaping."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Interface
from pathlib import Path

from vapor_desktop.lab import wire
from vapor_desktop.lab.layout import DOCUMENTATION_RANGE, MAX_LABS, LabLayout, SiteLayout
from vapor_desktop.lab.processes import LabFailed, run

DEVICE = "eth0"  # of every host, inside its namespace


@contextmanager
def choosing() -> Iterator[int]:
    """A free index, kept from other labs until the block ends (by then a device has the address)."""
    with Path("/run/vapor-lab-subnet.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield free_index()


def free_index() -> int:
    """The first /28 of the documentation range that no device of this machine uses."""
    used = set()
    for device in json.loads(run(["ip", "-j", "-4", "address"]).stdout):
        for address in device.get("addr_info", ()):
            local = IPv4Interface(f"{address['local']}/28")
            if local.ip in DOCUMENTATION_RANGE:
                used.add(local.network)
    for index, subnet in enumerate(DOCUMENTATION_RANGE.subnets(new_prefix=28)):
        if subnet not in used:
            return index
    raise LabFailed(f"All {MAX_LABS} subnets of {DOCUMENTATION_RANGE} are in use", fix="End a lab with `down`")


def create(layout: LabLayout) -> None:
    """Bridge, namespaces, veths and addresses."""
    prefix = layout.subnet.prefixlen
    run(["ip", "link", "add", layout.bridge, "address", layout.bridge_mac, "type", "bridge"])
    run(["ip", "address", "add", f"{layout.console_address}/{prefix}", "dev", layout.bridge])
    run(["ip", "link", "set", layout.bridge, "up"])
    for site in layout.sites.values():
        run(["ip", "netns", "add", site.namespace])
        run(
            ["ip", "link", "add", site.port_device, "type", "veth", "peer", "name", DEVICE, "netns", site.namespace],
        )
        run(["ip", "link", "set", site.port_device, "master", layout.bridge, "up"])
        inside = ["ip", "-n", site.namespace]
        run([*inside, "link", "set", "lo", "up"])
        run([*inside, "address", "add", f"{site.address}/{prefix}", "dev", DEVICE])
        run([*inside, "link", "set", DEVICE, "up"])


def remove(layout: LabLayout) -> None:
    """Whatever of it exists; the hosts' processes must be gone already."""
    for site in layout.sites.values():
        wire.remove(site)
    names = {link["ifname"] for link in json.loads(run(["ip", "-j", "link"]).stdout)}
    for device in [*(site.port_device for site in layout.sites.values()), layout.bridge]:
        if device in names:
            run(["ip", "link", "delete", device])
    known = {entry["name"] for entry in json.loads(run(["ip", "-j", "netns"]).stdout or "[]")}
    for site in layout.sites.values():
        if site.namespace in known:
            run(["ip", "netns", "delete", site.namespace])


def set_port(site: SiteLayout, *, up: bool) -> None:
    """Plug the host's cable in or out: up or down for everybody."""
    run(["ip", "link", "set", site.port_device, "up" if up else "down"])


def _filter(site: SiteLayout, *words: str) -> bool:
    done = run(["ip", "netns", "exec", site.namespace, "iptables", "-w", *words], check=False)
    return done.returncode == 0


def cut_between(layout: LabLayout) -> None:
    """The sites no longer hear each other, silently (a black hole); the console still reaches both."""
    for site in layout.sites.values():
        for peer in layout.sites.values():
            rule = ["INPUT", "-s", peer.address, "-j", "DROP"]
            if peer != site and not _filter(site, "-C", *rule) and not _filter(site, "-I", *rule):
                raise LabFailed(f"The rule that cuts {site.name} from {peer.name} was refused")


def mend_between(layout: LabLayout) -> None:
    """Undo ``cut_between``."""
    for site in layout.sites.values():
        for peer in layout.sites.values():
            rule = ["INPUT", "-s", peer.address, "-j", "DROP"]
            while peer != site and _filter(site, "-C", *rule):
                _filter(site, "-D", *rule)


@dataclass(frozen=True)
class LinkState:
    """What a host's link does now."""

    port_up: bool
    hears_peer: bool
    shape: str  # tc's words, and the delay line's; empty: unshaped


def state(layout: LabLayout, site: SiteLayout) -> LinkState:
    """As observed, not as ordered."""
    ports = json.loads(run(["ip", "-j", "link", "show", "dev", site.port_device]).stdout)
    peers = [peer for peer in layout.sites.values() if peer != site]
    dropped = any(_filter(site, "-C", "INPUT", "-s", peer.address, "-j", "DROP") for peer in peers)
    queue = run(["tc", "-n", site.namespace, "qdisc", "show", "dev", DEVICE]).stdout.strip()
    shaped = [queue] if "netem" in queue or "tbf" in queue else []
    line = wire.observed(site)
    return LinkState("UP" in ports[0]["flags"], not dropped, "; ".join(shaped + ([line] if line else [])))


def shape(site: SiteLayout, *, rate: str | None, delay: str | None, loss: str | None) -> None:
    """Shape what this host sends (so a round trip between two shaped hosts has twice the delay).

    Values as ``tc`` takes them: rate ``100mbit``, delay ``20ms``, loss ``0.5%``. All None: unshaped.
    Kernels without netem do the rate by tbf, and delay and loss by a process (``wire``). Raises LabFailed.
    """
    line = wire.Line.parse(delay, loss)
    device = ["dev", DEVICE, "root"]
    run(["tc", "-n", site.namespace, "qdisc", "delete", *device], check=False)
    wire.remove(site)
    add = ["tc", "-n", site.namespace, "qdisc", "add", *device]
    words = []
    for name, value in (("rate", rate), ("delay", delay), ("loss", loss)):
        if value:
            words += [name, value]
    # netem's own queue of 1000 packets would drop on long fat links, which is not what was asked for.
    if not words or run([*add, "netem", "limit", "50000", *words], check=False).returncode == 0:
        return
    if rate:
        run([*add, "tbf", "rate", rate, "burst", "128k", "latency", "200ms"])
    if delay or loss:
        wire.lay(site, line)


def forget_guests_links(site: SiteLayout) -> None:
    """Devices and rules that a power cut would have taken with it: bridges, taps, iptables."""
    for link in json.loads(run(["ip", "-n", site.namespace, "-j", "link"]).stdout):
        if link["ifname"] not in {"lo", DEVICE}:
            run(["ip", "-n", site.namespace, "link", "delete", link["ifname"]], check=False)
    for table in ("filter", "nat", "mangle"):
        for words in (["-F"], ["-X"]):
            _filter(site, "-t", table, *words)
