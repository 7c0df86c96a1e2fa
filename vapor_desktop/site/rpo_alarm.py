"""The target's own alarm: tells when a replica is older than promised, engine or no engine.

Once per episode: ``rpo-alarm`` when now - current_as_of (both on this site's clock) passes the policy's
target age, ``rpo-recovered`` when it is within again. Episodes survive a restart.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from vapor_desktop.model.errors import VaporError
from vapor_desktop.model.wire import ReplicaView
from vapor_desktop.site.site_events import EventLog, event
from vapor_desktop.site.statefile import make_dir, read_json, write_json

_INVALID = "invalid:"  # before a VM's UUID: its manifest cannot be read; no age is judged then
_log = logging.getLogger("vapor.alarm")


class RpoAlarm:
    """A thread that looks at all replicas of this site every ``every_s`` seconds."""

    def __init__(
        self,
        replicas: Callable[[], Sequence[ReplicaView]],
        events: EventLog,
        state: Path,
        every_s: float,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._replicas = replicas
        self._events = events
        self._state = state
        self._every_s = every_s
        self._now = now
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rpo-alarm", daemon=True)
        make_dir(state.parent)
        self._late: set[str] = set(read_json(state) or [])

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End and wait."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.look()
            except (VaporError, OSError) as error:
                _log.error("the replicas' ages could not be read: %s", error)
            self._stop.wait(self._every_s)

    def look(self) -> None:
        """Judge every readable replica whose source still owns the VM; a broken manifest is an alarm of its own."""
        late = set(self._late)
        views = self._replicas()
        for view in views:
            manifest = view.manifest
            self._judge_manifest(late, view)
            if not view.valid or manifest.newest is None:
                continue
            if manifest.epoch.owner != manifest.source_site:  # taken over here: nothing is due any more
                late.discard(manifest.vm_uuid)
                continue
            age_s = (self._now() - manifest.newest.current_as_of).total_seconds()
            self._judge(late, manifest.vm_uuid, manifest.vm_name, age_s, manifest.policy.rpo_target_s)
        late &= {name for view in views for name in (view.manifest.vm_uuid, _INVALID + view.manifest.vm_uuid)}
        if late != self._late:
            write_json(self._state, sorted(late))
            self._late = late

    def _judge_manifest(self, late: set[str], view: ReplicaView) -> None:
        vm, name, key = view.manifest.vm_uuid, view.manifest.vm_name, _INVALID + view.manifest.vm_uuid
        if not view.valid and key not in late:
            late.add(key)
            why = (view.trouble or {}).get("what", "its manifest is damaged")
            self._events.add(event(vm, "rpo-alarm", f"The replica of {name or vm} is read-only: {why}"))
        elif view.valid and key in late:
            late.discard(key)
            self._events.add(event(vm, "rpo-recovered", f"The replica of {name} is whole again"))

    def _judge(self, late: set[str], vm: str, name: str, age_s: float, target_s: int) -> None:
        if age_s > target_s and vm not in late:
            late.add(vm)
            self._events.add(event(vm, "rpo-alarm", f"{name} is {age_s:.0f} s old here, promised are {target_s} s"))
        elif age_s <= target_s and vm in late:
            late.discard(vm)
            self._events.add(event(vm, "rpo-recovered", f"{name} is {age_s:.0f} s old here, within {target_s} s"))
