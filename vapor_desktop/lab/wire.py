"""A host's cable led through a ``delay_line`` process, where the kernel has no netem.

Plain: host eth0 = port -> the lab's bridge. Led through: port -> near bridge -> TAP *near* = process = TAP *far* ->
the lab's bridge. The TAPs are not persistent, so they go when the process goes, however it ends; then the host hears
nobody until ``remove`` plugs it straight in again. Whose process it is tells the kernel (``iff:`` in its fdinfo):
there is no file about it.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from vapor_desktop.lab.layout import SiteLayout
from vapor_desktop.lab.processes import LabFailed, alive, kill, run, wait_until

TUN = "/dev/net/tun"
# linux/if_tun.h
TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6 = 0x01, 0x02, 0x04
# Frames the kernel keeps while the process is not scheduled; 1000 would drop under one TCP burst.
QUEUE_FRAMES = 20_000
PROGRAM = "vapor_desktop.lab.delay_line"
UNITS_NS = {"us": 1_000, "usec": 1_000, "ms": 1_000_000, "msec": 1_000_000, "s": 10**9, "sec": 10**9}


@dataclass(frozen=True)
class Line:
    """What a line does to the frames that its host sends."""

    delay_ns: int = 0
    loss: float = 0.0  # a share, 0 to 1

    @classmethod
    def parse(cls, delay: str | None, loss: str | None) -> Line:
        """From tc's words: ``20ms``, ``0.5%``. Raises LabFailed."""
        return cls(_delay_ns(delay) if delay else 0, _share(loss) if loss else 0.0)

    def __str__(self) -> str:
        words = [f"delay {self.delay_ns / 1e6:g}ms"] if self.delay_ns else []
        words += [f"loss {self.loss * 100:g}%"] if self.loss else []
        return " ".join(words)


def _delay_ns(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([a-z]*)", text)
    if match is None or match[2] not in UNITS_NS:
        raise LabFailed(f"{text!r} is no delay", fix="For example 20ms")
    return round(float(match[1]) * UNITS_NS[match[2]])


def _share(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)%", text)
    if match is None or float(match[1]) > 100:
        raise LabFailed(f"{text!r} is no loss", fix="For example 0.5%")
    return float(match[1]) / 100


def lay(site: SiteLayout, line: Line) -> None:
    """Lead the host's cable through a new line; there must be none. Raises LabFailed, and then leaves none."""
    taps: list[int] = []
    try:
        # A frame that may be lost has to be one of the wire's, not 64 KiB of segments at once.
        taps.append(_tap(site.near_device, 0 if line.loss else TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6))
        taps.append(_tap(site.far_device, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6))
        _start(site, taps, line)
        # It must not answer ARP in the console's name.
        run(["ip", "link", "add", site.near_bridge, "arp", "off", "type", "bridge", "mcast_snooping", "0"])
        _silence(site.near_bridge)
        run(["ip", "link", "set", site.near_bridge, "up"])
        for device, bridge in ((site.near_device, site.near_bridge), (site.far_device, site.lab.bridge)):
            _silence(device)
            run(["ip", "link", "set", device, "txqueuelen", str(QUEUE_FRAMES), "master", bridge, "up"])
        run(["ip", "link", "set", site.port_device, "master", site.near_bridge])
    except BaseException:
        for tap in taps:
            os.close(tap)
        taps.clear()
        remove(site)
        raise
    finally:
        for tap in taps:
            os.close(tap)


def _tap(name: str, offload: int) -> int:
    """A new TAP device that lives as long as this descriptor or a copy of it."""
    try:
        tap = os.open(TUN, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise LabFailed(
            "This kernel has neither netem nor TAP devices, so it cannot delay or lose packets",
            why=f"{TUN}: {error.strerror}",
            fix="modprobe sch_netem, or modprobe tun",
        ) from error
    try:
        fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
        fcntl.ioctl(tap, TUNSETOFFLOAD, offload)
    except OSError as error:
        os.close(tap)
        raise LabFailed(f"The TAP device {name} was not made", why=str(error)) from error
    return tap


def _start(site: SiteLayout, taps: list[int], line: Line) -> None:
    words = [site.namespace, *map(str, taps), str(line.delay_ns), repr(line.loss)]
    with (site.directory / "delay_line.log").open("ab") as log:
        subprocess.run(
            ["setsid", "--fork", sys.executable, "-m", PROGRAM, *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=taps,
            cwd="/",
            env={"PATH": os.environ.get("PATH", os.defpath), "PYTHONPATH": str(Path(__file__).parents[2])},
            check=True,
        )


def _silence(device: str) -> None:
    """No IPv6 address of its own, where the kernel has IPv6: the link carries the hosts' frames only."""
    setting = Path(f"/proc/sys/net/ipv6/conf/{device}/disable_ipv6")
    if setting.exists():
        setting.write_text("1")


def remove(site: SiteLayout) -> None:
    """Plug the host straight into the lab's bridge; no process and no device of the line is left. Idempotent."""
    links = _links()
    ours = {site.near_bridge, site.near_device, site.far_device} & set(links)
    if not ours:
        return
    if site.port_device in links and site.lab.bridge in links:
        run(["ip", "link", "set", site.port_device, "master", site.lab.bridge])
    runners = processes(site)
    for pid in runners:
        kill(pid)
    wait_until(lambda: not any(alive(pid) for pid in runners), "The end of the delay line", timeout_s=10)
    for device in ours & set(_links()):
        # A TAP goes with its last descriptor, which may be this very moment.
        run(["ip", "link", "delete", device], check=False)
    left = ours & set(_links())
    if left:
        raise LabFailed(f"Devices of the delay line of host {site.name} are left: {', '.join(sorted(left))}")


def observed(site: SiteLayout) -> str:
    """The line in the host's cable in words; empty: it is plugged straight in."""
    if _links().get(site.port_device) != site.near_bridge:
        return ""
    for pid in processes(site):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if PROGRAM in words:
            delay_ns, loss = words[words.index(PROGRAM) + 4 :][:2]
            return f"delay line {Line(int(delay_ns), float(loss))}"
    return "delay line dead"


def processes(site: SiteLayout) -> list[int]:
    """Who holds the line's TAP devices."""
    wanted = {f"iff:\t{name}" for name in (site.near_device, site.far_device)}
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and _holds(entry, wanted)]


def _holds(process: Path, wanted: set[str]) -> bool:
    try:
        for entry in (process / "fd").iterdir():
            if str(entry.readlink()) != TUN:
                continue
            if wanted & set((process / "fdinfo" / entry.name).read_text().splitlines()):
                return True
    except (FileNotFoundError, ProcessLookupError):  # it, or its descriptor, has just ended
        return False
    except PermissionError:  # in a container: a process of the machine outside
        return False
    return False


def _links() -> dict[str, str]:
    """Devices of the outer machine and the bridge each is in (empty: none)."""
    return {link["ifname"]: link.get("master", "") for link in json.loads(run(["ip", "-j", "link"]).stdout)}
