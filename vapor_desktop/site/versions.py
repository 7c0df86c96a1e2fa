"""The host's libvirt and QEMU versions, asked aside: a libvirtd that just started takes seconds to answer.

It probes every emulator first (7.7 s measured on two cores); who asks a site for its identity, perhaps only for its
clock, must not wait for that.
"""

from __future__ import annotations

import threading
import time
from typing import Protocol

from vapor_desktop.model.errors import VaporError

PATIENCE_S = 0.5
FRESH_S = 15.0


class _Asked(Protocol):
    def versions(self) -> tuple[str, str]: ...


class VersionWatch:
    """``current`` never takes longer than ``PATIENCE_S``; None means: libvirt has not answered (yet)."""

    def __init__(self, hypervisor: _Asked) -> None:
        self._hypervisor = hypervisor
        self._lock = threading.Lock()
        self._asking: threading.Thread | None = None
        self._known: tuple[str | None, str | None] = (None, None)
        self._known_at = float("-inf")

    def current(self) -> tuple[str | None, str | None]:
        """(libvirt, QEMU) as "9.0.0", at most ``FRESH_S`` old if libvirt answers at all."""
        with self._lock:
            if time.monotonic() - self._known_at < FRESH_S:
                return self._known
            if self._asking is None or not self._asking.is_alive():
                self._asking = threading.Thread(target=self._ask, name="versions", daemon=True)
                self._asking.start()
            asking = self._asking
        asking.join(PATIENCE_S)
        with self._lock:
            return self._known

    def _ask(self) -> None:
        try:
            known: tuple[str | None, str | None] = self._hypervisor.versions()
        except VaporError:
            known = (None, None)
        with self._lock:
            self._known = known
            # An absent libvirt is asked again at the next look.
            self._known_at = time.monotonic() if known[0] is not None else float("-inf")
