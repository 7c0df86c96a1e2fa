"""What the guardian watches, durable: one small file per VM, read again when ``serve`` starts."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vapor_desktop.model.wire import WatchFreeze, WatchJob
from vapor_desktop.site.leases import boot_id, boot_time_s, vm_file_name
from vapor_desktop.site.statefile import make_dir, sync_dir, write_json

_log = logging.getLogger("vapor.guardian")

RESTART_GRACE_S = 20.0  # nobody could renew while serve was down


@dataclass(frozen=True, slots=True)
class JobWatch:
    """A watched backup job; ``ends_s`` on the boot-time clock."""

    watch: WatchJob
    ends_s: float


@dataclass(frozen=True, slots=True)
class FreezeWatch:
    """A watched freeze. ``thawed``: the guardian has thawed it, or looked and found nothing frozen."""

    watch: WatchFreeze
    ends_s: float
    thawed: bool = False


@dataclass(frozen=True, slots=True)
class VmWatch:
    """Both watches of one VM."""

    job: JobWatch | None = None
    freeze: FreezeWatch | None = None


class Watches:
    """The watches of all VMs. Thread-safe; only ``serve`` writes them."""

    def __init__(self, directory: Path, now_s: Callable[[], float] = boot_time_s) -> None:
        self._directory = directory
        self._now_s = now_s
        self._lock = threading.Lock()
        self._all: dict[str, VmWatch] = {}

    def load(self) -> None:
        """Read the files of an earlier ``serve``; a damaged one is logged and left."""
        make_dir(self._directory)
        with self._lock:
            for path in sorted(self._directory.glob("*.json")):
                try:
                    self._all[path.stem] = _from_json(json.loads(path.read_bytes()), self._now_s())
                except (ValueError, KeyError, TypeError) as error:
                    _log.error("the watch %s is damaged and left alone: %s", path, error)

    def all(self) -> dict[str, VmWatch]:
        """All of them, by VM UUID; a copy."""
        with self._lock:
            return dict(self._all)

    def get(self, vm_uuid: str) -> VmWatch:
        """The VM's watches."""
        with self._lock:
            return self._all.get(vm_file_name(vm_uuid), VmWatch())

    def change(self, vm_uuid: str, how: Callable[[VmWatch], VmWatch]) -> VmWatch:
        """Change one VM's watches; durable on return. Returns what they were before. Raises OSError (not durable)."""
        vm = vm_file_name(vm_uuid)
        with self._lock:
            old = self._all.get(vm, VmWatch())
            new = how(old)
            if new == old:
                return old
            path = make_dir(self._directory) / f"{vm}.json"
            # Memory first: when the disk is full the guest is guarded all the same, and the caller is told.
            if new == VmWatch():
                self._all.pop(vm, None)
                path.unlink(missing_ok=True)
                sync_dir(self._directory)
            else:
                self._all[vm] = new
                write_json(path, _to_json(new))
            return old


def _to_json(value: VmWatch) -> dict[str, Any]:
    found: dict[str, Any] = {"boot_id": boot_id(), "written_at": datetime.now(UTC).isoformat()}
    if value.job is not None:
        found["job"] = {"watch": value.job.watch.model_dump(mode="json"), "ends_s": value.job.ends_s}
    if value.freeze is not None:
        freeze = value.freeze
        found["freeze"] = {
            "watch": freeze.watch.model_dump(mode="json"),
            "ends_s": freeze.ends_s,
            "thawed": freeze.thawed,
        }
    return found


def _from_json(value: dict[str, Any], now_s: float) -> VmWatch:
    """After a reboot no job and no freeze of the old boot lives: both count as lapsed, and are looked at once."""
    same_boot = value["boot_id"] == boot_id()
    found = VmWatch()
    if "job" in value:
        watch = WatchJob.model_validate(value["job"]["watch"])
        ends_s = max(float(value["job"]["ends_s"]), now_s + min(watch.ttl_s, RESTART_GRACE_S))
        found = replace(found, job=JobWatch(watch, ends_s if same_boot else now_s))
    if "freeze" in value:
        item = value["freeze"]
        ends_s = float(item["ends_s"]) if same_boot else now_s
        watch_freeze = WatchFreeze.model_validate(item["watch"])
        found = replace(found, freeze=FreezeWatch(watch_freeze, ends_s, bool(item["thawed"])))
    return found
