"""After every start of the service: each replica's leftovers of a power cut or a kill are finished or taken back.

A merge that was cut goes on, a deletion that was begun is completed, files that no point and no receiver names
go. Receivers that live meanwhile are left alone (``ReplicaStore.reconcile``).
"""

from __future__ import annotations

import logging
import threading

from vapor_desktop.model.errors import ManifestInvalid, NotFound, VaporError
from vapor_desktop.site.replica import ReplicaStore

_log = logging.getLogger("vapor.tidying")

AGAIN_S = 10.0  # libvirt may start after us: what its VMs use must be known before anything is deleted


class Tidying:
    """A thread that ends when every replica has been looked at."""

    def __init__(self, store: ReplicaStore, again_s: float = AGAIN_S) -> None:
        self._store = store
        self._again_s = again_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tidying", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the replica at hand, and wait."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        waiting = self._store.vms()
        while waiting and not self._stop.is_set():
            waiting = [vm for vm in waiting if not (self._stop.is_set() or self._tidied(vm))]
            if waiting:
                self._stop.wait(self._again_s)

    def _tidied(self, vm: str) -> bool:
        try:
            self._store.reconcile(vm)
        except NotFound:  # its deletion has just been completed
            return True
        except ManifestInvalid as error:  # nothing is touched until a person has it rebuilt
            _log.error("the replica of VM %s is left as it is: %s", vm, error)
            return True
        except (VaporError, OSError) as error:
            _log.warning("the replica of VM %s is looked at again in %.0f s: %s", vm, self._again_s, error)
            return False
        return True
