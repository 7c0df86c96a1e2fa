"""The start guard's records on this host: one small file per VM, whole or not at all, which libvirt's hook reads.

Written by ``serve`` and by the admin's verbs, as the account ``vapor`` (which may use libvirt, and so is root's
equal here); the hook only reads. Every change is in the audit log before it is made.
"""

from __future__ import annotations

import getpass
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from vapor_desktop.model import guard
from vapor_desktop.model.errors import NotFound, Unexpected
from vapor_desktop.model.manifest import Epoch
from vapor_desktop.model.wire import GuardRecord, GuardRelease, GuardRequest
from vapor_desktop.site import leases
from vapor_desktop.site.audit import AuditLog
from vapor_desktop.site.identity import site_id
from vapor_desktop.site.settings import SiteSettings
from vapor_desktop.site.statefile import locked, make_dir, sync_dir, write_atomic

_log = logging.getLogger("vapor.guard")

PROOF_NAME = "vapor-guard-proof-"  # the doctor's throw-away VM: no VM of anybody

Change = Callable[[GuardRecord], GuardRecord]


class GuardBook:
    """All records of this host. Safe across processes."""

    def __init__(self, settings: SiteSettings, audit: AuditLog) -> None:
        self._settings = settings
        self._directory = settings.guard_dir
        self._audit = audit
        self._known: dict[str, tuple[tuple[int, int], GuardRecord]] = {}  # each write makes a new file

    # --- reading -------------------------------------------------------------------------------------
    def all(self) -> list[GuardRecord]:
        """Every readable record, by name; a damaged one is logged (its VM is held by the hook)."""
        found = []
        for path in sorted(self._directory.glob("*.json")):
            try:
                status = path.stat()
                known = self._known.get(path.name)
                if known is None or known[0] != (status.st_ino, status.st_mtime_ns):
                    known = (status.st_ino, status.st_mtime_ns), _read(path)
                    self._known[path.name] = known
                found.append(known[1])
            except (FileNotFoundError, NotFound):
                continue  # taken away meanwhile
            except Unexpected as error:
                _log.error("%s", error)
        found = [record for record in found if not record.vm_name.startswith(PROOF_NAME)]
        return sorted(found, key=lambda record: (record.vm_name, record.vm_uuid))

    def get(self, vm_uuid: str) -> GuardRecord:
        """Raises NotFound, Unexpected (damaged)."""
        return _read(self._path(vm_uuid))

    def changed(self, vm_uuid: str) -> tuple[int, int] | None:
        """Something that differs after every change of the record; None while there is none. No more than a look."""
        try:
            found = (self._directory / f"{vm_uuid}.json").stat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns

    def find(self, vm: str) -> GuardRecord:
        """By UUID or by name. Raises NotFound, also for a name that two VMs have."""
        found = [record for record in self.all() if vm in (record.vm_uuid, record.vm_name)]
        if len(found) != 1:
            what = "No VM" if not found else "More than one VM"
            raise NotFound(f"{what} of the start guard is called {vm}", fix="Look with `vapor-site guard list`")
        return found[0]

    # --- writing -------------------------------------------------------------------------------------
    def arm(self, vm_uuid: str, request: GuardRequest) -> GuardRecord:
        """Raises StaleLease, EpochMoved, Conflict, InvalidRequest. Idempotent."""
        vm = leases.vm_file_name(vm_uuid)
        path = self._path(vm)
        with locked(path):
            leases.check(self._settings.leases_dir, vm, request.fence)
            before = _read(path) if path.exists() else None
            after = guard.armed(
                before,
                vm,
                request,
                this_site=site_id(self._settings),
                boot_id=leases.boot_id(),
                at=datetime.now(UTC),
            )
            self._store(path, before, after, "guard-arm")
            return after

    def disarm(self, vm_uuid: str, release: GuardRelease) -> GuardRecord | None:
        """Take the record away; what it was, None when there was none. Raises StaleLease, EpochMoved, Conflict."""
        vm = leases.vm_file_name(vm_uuid)
        path = self._path(vm)
        with locked(path):
            leases.check(self._settings.leases_dir, vm, release.fence)
            if not path.exists():
                return None
            before = _read(path)
            guard.check_release(before, release.epoch)
            self._audit("guard-disarm", vm_uuid=vm, reason=release.reason, by=release.by, epoch=before.epoch.number)
            path.unlink()
            sync_dir(self._directory)
            return before

    def override(self, vm_uuid: str, reason: str, highest: Epoch | None) -> GuardRecord:
        """A person on this host takes the VM under the next epoch. Raises NotFound."""

        def change(before: GuardRecord) -> GuardRecord:
            by = f"{getpass.getuser()} on this host"
            at = datetime.now(UTC)
            return guard.overridden(before, highest=highest, boot_id=leases.boot_id(), at=at, by=by, reason=reason)

        return self.change(vm_uuid, change, "guard-override")[1]

    def change(self, vm_uuid: str, how: Change, act: str) -> tuple[GuardRecord, GuardRecord]:
        """(before, after) of one change. Raises NotFound."""
        path = self._path(vm_uuid)
        with locked(path):
            before = _read(path)
            after = how(before)
            self._store(path, before, after, act)
            return before, after

    def _store(self, path: Path, before: GuardRecord | None, after: GuardRecord, act: str) -> None:
        if after == before:
            return
        self._audit(act, before=before and before.model_dump(mode="json"), after=after.model_dump(mode="json"))
        write_atomic(path, after.model_dump_json(indent=1).encode() + b"\n")

    def _path(self, vm_uuid: str) -> Path:
        return make_dir(self._directory) / f"{leases.vm_file_name(vm_uuid)}.json"


def _read(path: Path) -> GuardRecord:
    try:
        return GuardRecord.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise NotFound("The start guard has no record of this VM on this host", vm_uuid=path.stem) from error
    except ValidationError as error:
        raise Unexpected(
            f"The guard record {path} is damaged; its VM is not started here",
            why=str(error.errors(include_input=False, include_url=False)[0]["msg"]),
            fix="Find out who owns the VM, then remove the file or restore it",
        ) from error
