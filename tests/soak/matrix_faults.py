"""Faults of a site, and that a VM never runs at both sites."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from matrix_scenes import NAME

from vapor_desktop.lab.lab import Lab, Site
from vapor_desktop.lab.processes import LabFailed, wait_until

REPLICAS = "/var/lib/libvirt/images/vapor"
FILL = f"{REPLICAS}/.fill-of-the-matrix"
LASTS_S = 6.0
LOOK_EVERY_S = 0.4

KILL, LIBVIRTD, LINK, DISK = "engine killed", "target's libvirtd killed", "link cut", "target's disk full"
NONE = "none"
FAULTS = (KILL, LIBVIRTD, LINK, DISK)


def _libvirtd(lab: Lab) -> None:
    os.kill(lab.sites["b"].pid_of("libvirtd"), signal.SIGKILL)


def _libvirtd_again(lab: Lab) -> None:
    if not lab.sites["b"].runs("libvirtd"):
        lab.sites["b"].start_libvirt()


def _fill(lab: Lab) -> None:
    """As far as it goes: all that is free, however fast that gets less."""
    b = lab.sites["b"]

    def full() -> bool:
        free = int(b.exec(["df", "--output=avail", "-B1", REPLICAS]).stdout.split()[1])
        words = ["fallocate", "-l", str(max(free - 65536, 4096)), FILL]
        return b.exec(words, check=False).returncode == 0

    wait_until(full, "a full disk", timeout_s=10, every_s=0.05)


def _empty(lab: Lab) -> None:
    """As the operator does who has made room: what had stopped for want of it goes on."""
    b = lab.sites["b"]
    b.exec(["rm", "-f", FILL])
    for name in b.virsh("list", "--state-paused", "--name").split():
        if "I/O error" in b.virsh("domstate", name, "--reason"):
            b.virsh("resume", name)


HOW: dict[str, tuple[Callable[[Lab], None], Callable[[Lab], None]]] = {
    LIBVIRTD: (_libvirtd, _libvirtd_again),
    LINK: (lambda lab: lab.cut_link("b"), lambda lab: lab.mend_link()),
    DISK: (_fill, _empty),
}


class Fault:
    """One fault of the target at the first beginning of a step, mended by itself after ``LASTS_S``."""

    def __init__(self, lab: Lab, what: str, step: str) -> None:
        self._lab = lab
        self._begin, self._end = HOW[what]
        self._step = step
        self.came = threading.Event()
        self.mended = threading.Event()
        self.trouble: list[str] = []
        self._timer = threading.Timer(LASTS_S, self._mend)

    def observe(self, _operation: str, step: str, moment: str) -> None:
        """The runner's observer."""
        if (step, moment) == (self._step, "begin") and not self.came.is_set():
            self.came.set()
            try:
                self._begin(self._lab)
            except LabFailed as error:
                self.trouble.append(f"the fault could not be made: {error}")
            self._timer.start()

    def _mend(self) -> None:
        try:
            self._end(self._lab)
        except LabFailed as error:
            self.trouble.append(f"the fault could not be mended: {error}")
        self.mended.set()

    def close(self) -> None:
        """Nothing of it stays."""
        self._timer.cancel()
        self._end(self._lab)


class NeverBoth:
    """Looks all the time; ``seen`` tells when the VM ran at both sites."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.looks = 0
        self.seen = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(LOOK_EVERY_S):
            states = [runs(site) for site in self._lab.sites.values()]
            self.looks += None not in states
            self.seen += states == [True, True]


def runs(site: Site) -> bool | None:
    """Does the VM run there? None: libvirt does not answer."""
    done = site.exec(["virsh", "-q", "-c", "qemu:///system", "list", "--name", "--state-running"], check=False)
    return NAME in done.stdout.split() if done.returncode == 0 else None
