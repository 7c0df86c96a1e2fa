"""Drills on record: written before the first thing of a drill is made, kept until the last one is gone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from vapor_desktop.model.drills import DrillRecord
from vapor_desktop.model.errors import Conflict, NotFound, Unexpected
from vapor_desktop.site.leases import vm_file_name
from vapor_desktop.site.statefile import make_dir, read_json, write_atomic, write_json

KEEP_ENDED = 20


class DrillBook:
    """``drills/ID.json``. One process writes it: ``serve``."""

    def __init__(self, directory: Path) -> None:
        self._directory = make_dir(directory)
        self._lock = threading.Lock()

    def add(self, record: DrillRecord) -> DrillRecord:
        """Raises Conflict when there is one of that id."""
        with self._lock:
            path = self._path(record.drill_id)
            if path.exists():
                raise Conflict("There is a drill of that id already")
            self._prune()
            write_json(path, record.model_dump(mode="json"))
        return record

    def one(self, drill_id: str) -> DrillRecord:
        """Raises NotFound, Unexpected (damaged)."""
        raw = read_json(self._path(drill_id))
        if raw is None:
            raise NotFound("There is no such drill at this site")
        try:
            return DrillRecord.model_validate(raw)
        except ValidationError as error:
            raise Unexpected(f"The record of drill {drill_id} does not fit", why=str(error)) from error

    def all(self) -> list[DrillRecord]:
        """Oldest first, the last ended ones too."""
        found = [self.one(path.stem) for path in self._directory.glob("*.json")]
        return sorted(found, key=lambda r: r.created_at)

    def change(self, drill_id: str, change: Callable[[DrillRecord], DrillRecord]) -> DrillRecord:
        """Read, change, write, as one. Raises NotFound."""
        with self._lock:
            before = self.one(drill_id)
            after = change(before)
            if after != before:
                write_json(self._path(drill_id), after.model_dump(mode="json"))
        return after

    # --- pictures ----------------------------------------------------------------------------------
    def keep_picture(self, drill_id: str, vm_uuid: str, png: bytes) -> None:
        """The last one of that VM's screen."""
        write_atomic(self._picture(drill_id, vm_uuid), png)

    def picture(self, drill_id: str, vm_uuid: str) -> bytes | None:
        """None: none was taken."""
        path = self._picture(drill_id, vm_uuid)
        return path.read_bytes() if path.exists() else None

    def _picture(self, drill_id: str, vm_uuid: str) -> Path:
        return self._directory / f"{vm_file_name(drill_id)}.{vm_file_name(vm_uuid)}.png"

    def _path(self, drill_id: str) -> Path:
        return self._directory / f"{vm_file_name(drill_id)}.json"

    def _prune(self) -> None:
        ended = [r for r in self.all() if not r.open]
        for record in ended[: max(0, len(ended) - KEEP_ENDED)]:
            for vm in record.vms:
                self._picture(record.drill_id, vm.vm_uuid).unlink(missing_ok=True)
            self._path(record.drill_id).unlink()
