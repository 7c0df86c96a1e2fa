"""The probe of one bubble network: a process in a network namespace of its own, whose only link is the bubble.

Started by the bubble helper as root, its standard input and output are the connection of whoever asked: when that
ends, so does the process, and with it the kernel removes the namespace and both ends of its cable. It answers DHCP,
tries TCP ports of the bubble's VMs, and tries to reach those whom nothing in the bubble may reach.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Interface
from typing import Any

from vapor_desktop.site import dhcp

_CLONE_NEWNET = 0x40000000
_LEAK_S = 0.7  # on one wire an answer takes milliseconds
_TCP_S = 1.0
CARD = "eth0"
# Nothing of the bubble is answered by the host itself, and nothing of it is passed on [ip-sysctl]: without these
# a Linux host answers for all its addresses on every interface, one without an address too.
SEALS = {
    "ipv4/conf/{}/rp_filter": "1",
    "ipv4/conf/{}/arp_ignore": "8",
    "ipv4/conf/{}/forwarding": "0",
    "ipv6/conf/{}/disable_ipv6": "1",
}


class Failed(Exception):
    """A step of making the probe did not work; the text says which."""


def main(words: Sequence[str]) -> int:
    """``BRIDGE PORT GATEWAY/PREFIX``. The hello on stdout says how the host's side looks."""
    bridge, port, gateway = words
    try:
        hello = _enter(bridge, port, gateway)
    except (Failed, OSError) as error:
        _say({"error": str(error)})
        return 1
    probe = Probe(gateway)
    threading.Thread(target=probe.serve_dhcp, name="dhcp", daemon=True).start()
    _say({"ok": hello})
    for line in sys.stdin:
        try:
            request = json.loads(line)
            _say({"ok": probe.do(request)})
        except (ValueError, KeyError, TypeError, OSError) as error:
            _say({"error": f"{type(error).__name__}: {error}"})
    return 0


def _say(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def _run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=10, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise Failed(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def _enter(bridge: str, port: str, gateway: str) -> dict[str, Any]:
    """Seal the bridge, make our namespace and the cable between the two."""
    if "bridge" not in {link.get("linkinfo", {}).get("info_kind") for link in _links("-d", "link", "show", bridge)}:
        raise Failed(f"{bridge} is no bridge")
    for name, value in SEALS.items():
        with open(f"/proc/sys/net/{name.format(bridge)}", "w") as setting:  # noqa: PTH123 - as the kernel shows it
            setting.write(value)
    own = f"/proc/{os.getpid()}/ns/net"
    host = os.open(own, os.O_RDONLY | os.O_CLOEXEC)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) != 0:
        raise Failed(f"unshare: {os.strerror(ctypes.get_errno())}")
    there = ["nsenter", f"--net=/proc/{os.getpid()}/fd/{host}", "--"]
    # A probe whose helper was killed may not be quite gone yet: its cable goes with it.
    subprocess.run([*there, "ip", "link", "delete", port], capture_output=True, check=False)
    _run(*there, "ip", "link", "add", port, "type", "veth", "peer", "name", CARD, "netns", str(os.getpid()))
    _run(*there, "ip", "link", "set", port, "master", bridge, "up")
    ports = sorted(link["ifname"] for link in json.loads(_run(*there, "ip", "-j", "link", "show", "master", bridge)))
    found = json.loads(_run(*there, "ip", "-j", "address", "show", bridge))
    addresses = [a["local"] for link in found for a in link.get("addr_info", ())]
    everywhere = json.loads(_run(*there, "ip", "-j", "address"))
    os.close(host)
    _write("ipv4/ip_forward", "0")
    _run("ip", "link", "set", "lo", "up")
    _run("ip", "address", "add", gateway, "dev", CARD)
    _run("ip", "link", "set", CARD, "up")
    # Whoever is asked for is asked for on the bubble's wire, whatever the address.
    _run("ip", "route", "add", "default", "dev", CARD)
    hosts = [a["local"] for link in everywhere for a in link.get("addr_info", ()) if a.get("family") == "inet"]
    mine = [link["ifname"] for link in _links("link")]
    return {"ports": ports, "addresses": addresses, "hosts": hosts, "links": sorted(mine)}


def _links(*words: str) -> list[dict[str, Any]]:
    return list(json.loads(_run("ip", "-j", *words)))


def _write(name: str, value: str) -> None:
    with open(f"/proc/sys/net/{name}", "w") as setting:  # noqa: PTH123
        setting.write(value)


class Probe:
    """In its namespace."""

    def __init__(self, gateway: str) -> None:
        self._gateway = gateway
        self._hosts: dict[str, str] = {}
        self._leases: dict[str, str] = {}

    def do(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """One request. Raises KeyError for an unknown one."""
        kind = request["ask"]
        if kind == "hosts":
            self._hosts = {str(mac).lower(): str(address) for mac, address in request["hosts"].items()}
            return {}
        if kind == "leases":
            return {"leases": self._leases}
        if kind == "tcp":
            state, text = tcp(str(request["address"]), int(request["port"]), _TCP_S)
            return {"open": state, "text": text}
        if kind == "leaks":
            return {"answers": leaks(request["targets"])}
        raise KeyError(kind)

    def serve_dhcp(self) -> None:
        """Until the process ends."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            link.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            link.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, CARD.encode())
            link.bind(("0.0.0.0", dhcp.SERVER_PORT))  # noqa: S104 - of a namespace that has one link
            while True:
                made = dhcp.answer(link.recv(4096), self._gateway, self._hosts)
                if made is None:
                    continue
                if made.settled:
                    self._leases = {**self._leases, made.mac: made.address}
                try:
                    link.sendto(made.packet, ("255.255.255.255", dhcp.CLIENT_PORT))
                except OSError as error:  # the cable went with the bridge: we are about to end
                    sys.stderr.write(f"DHCP: {error}\n")


def tcp(address: str, port: int, timeout_s: float) -> tuple[bool, str]:
    """(does it accept, the kernel's word)."""
    try:
        with socket.create_connection((address, port), timeout=timeout_s):
            return True, "open"
    except TimeoutError:
        return False, "no answer"
    except OSError as error:
        return False, os.strerror(error.errno) if error.errno else str(error)


def leaks(targets: Sequence[Mapping[str, Any]]) -> list[str]:
    """One text per target: "" when nothing at all came back, else what did."""
    attempts = []
    for target in targets:
        link = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        link.setblocking(False)
        number = link.connect_ex((str(target["address"]), int(target["port"])))
        attempts.append((link, number))
    end = time.monotonic() + _LEAK_S
    said: dict[int, int] = {}
    while len(said) < len(attempts) and (left := end - time.monotonic()) > 0:
        waiting = {link.fileno(): n for n, (link, _) in enumerate(attempts) if n not in said}
        _, writable, _ = select.select([], list(waiting), [], left)
        for descriptor in writable:
            n = waiting[descriptor]
            said[n] = attempts[n][0].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    found = []
    for n, (link, _) in enumerate(attempts):
        link.close()
        heard = _neighbour(str(targets[n]["address"]))
        code = said.get(n, errno.ETIMEDOUT)
        if code == 0:
            found.append("it accepted a connection")
        elif code == errno.ECONNREFUSED:
            found.append("it refused a connection, so it is reached")
        else:
            found.append(f"it answered on the wire ({heard})" if heard else "")
    return found


def _neighbour(address: str) -> str:
    """The Ethernet address that answered for it, "" when nobody did."""
    for entry in json.loads(_run("ip", "-j", "neighbour", "show", address, "dev", CARD) or "[]"):
        if entry.get("lladdr"):
            return str(entry["lladdr"])
    return ""


def address_of(gateway: str) -> str:
    """The probe's own."""
    return str(IPv4Interface(gateway).ip)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
