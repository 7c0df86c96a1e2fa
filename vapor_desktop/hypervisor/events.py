"""The one libvirt event loop of a process: close callbacks, keepalive and domain events need it.

[facts/libvirt 3.4] It must be registered before the first connection and never be stopped.
"""

from __future__ import annotations

import logging
import threading
import time

import libvirt

_log = logging.getLogger(__name__)
_lock = threading.Lock()
_started = False


def ensure_event_loop() -> None:
    """Start the loop once per process, and keep libvirt from printing errors to stderr."""
    global _started
    with _lock:
        if _started:
            return
        libvirt.registerErrorHandler(_silent, None)
        libvirt.virEventRegisterDefaultImpl()
        threading.Thread(target=_run, name="libvirt-events", daemon=True).start()
        _started = True


def _silent(_context: object, _error: object) -> None:
    """Every libvirt error also raises; printing it as well would only fill stderr."""


def _run() -> None:
    while True:
        try:
            libvirt.virEventRunDefaultImpl()
        except libvirt.libvirtError as error:  # poll(2) itself failed: connections are useless without it
            _log.error("libvirt's event loop failed: %s", error)
            time.sleep(1)
