"""Leases: who may act on one VM on this site, with fencing numbers that rise for ever.

Plain functions over one small file per VM, because the API server and every ``receive`` process must
agree without asking each other. The file outlives its lease: the fencing number in it is never lowered
and never used again, not after release, expiry or restart. A damaged file is an error, not number 1.

Expiry is measured on the boot-time clock while the host stays up, so a step of the wall clock neither
ends a lease nor stretches it; after a reboot the wall-clock time counts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any
from uuid import UUID

from vapor_desktop.model.errors import InvalidRequest, LeaseHeld, NotFound, StaleLease, Unexpected
from vapor_desktop.model.wire import Lease, LeaseRequest
from vapor_desktop.site.statefile import locked, make_dir, write_json

Audit = Callable[..., None]


def vm_file_name(vm_uuid: str) -> str:
    """The canonical UUID text, safe as a file name. Raises InvalidRequest for anything else."""
    try:
        return str(UUID(vm_uuid))
    except ValueError as error:
        raise InvalidRequest(f"{vm_uuid!r} is not a VM's UUID") from error


def acquire(directory: Path, vm_uuid: str, request: LeaseRequest, audit: Audit) -> Lease:
    """Grant the VM's lease under the next fencing number.

    A living lease of another holder: LeaseHeld naming it, unless ``takeover_reason`` is given; that is
    written to the audit log first. The same holder asking again gets a new number too (its older
    processes are fenced off).
    """
    path = _path(directory, vm_uuid)
    with locked(path):
        state = _load(path)
        living = _living(state)
        if living is not None and living.holder != request.holder:
            if not request.takeover_reason or request.takeover_from not in {None, living.holder}:
                since = f" since {living.since:%Y-%m-%d %H:%M:%S}Z" if living.since else ""
                raise LeaseHeld(
                    f"{living.holder_name} holds this VM's lease at this site",
                    why=f"{living.purpose}{since}",
                    fix="Wait until it is done, or take the lease over with a reason",
                    holder=living.holder,
                    holder_name=living.holder_name,
                    purpose=living.purpose,
                    expires_at=living.expires_at.isoformat(),
                    since=living.since.isoformat() if living.since else None,
                    vm_uuid=living.vm_uuid,
                )
            audit(
                "lease-takeover",
                vm_uuid=vm_file_name(vm_uuid),
                old_holder=living.holder,
                old_holder_name=living.holder_name,
                holder=request.holder,
                holder_name=request.holder_name,
                reason=request.takeover_reason,
            )
        fence = int(state["fence"]) + 1
        kept = living is not None and living.holder == request.holder
        lease = Lease(
            vm_uuid=vm_file_name(vm_uuid),
            holder=request.holder,
            holder_name=request.holder_name,
            purpose=request.purpose,
            fence=fence,
            expires_at=_after(request.ttl_s),
            since=living.since if kept and living is not None else datetime.now(UTC),
        )
        _store(path, fence, lease, request.ttl_s)
        return lease


def renew(directory: Path, vm_uuid: str, fence: int, ttl_s: float) -> Lease:
    """Prolong the lease of that number. Raises StaleLease when it ended or another took it."""
    path = _path(directory, vm_uuid)
    with locked(path):
        state = _load(path)
        lease = _require(state, fence).model_copy(update={"expires_at": _after(ttl_s)})
        _store(path, int(state["fence"]), lease, ttl_s)
        return lease


def release(directory: Path, vm_uuid: str, fence: int) -> None:
    """Give the lease back. Releasing one that has already ended is no error; the number stays used."""
    path = _path(directory, vm_uuid)
    with locked(path):
        state = _load(path)
        if state["lease"] is not None and state["lease"]["fence"] == fence:
            _store(path, int(state["fence"]), None, 0)


def current(directory: Path, vm_uuid: str) -> Lease:
    """The living lease. Raises NotFound when nobody holds one."""
    lease = _living(_load(_path(directory, vm_uuid)))
    if lease is None:
        raise NotFound("Nobody holds a lease of this VM at this site")
    return lease


def check(directory: Path, vm_uuid: str, fence: int) -> Lease:
    """Pass only the newest, living fencing number; call it before every write. Well under 1 ms.

    Raises StaleLease otherwise. Reads without a lock: the file is replaced whole.
    """
    return _require(_load(_path(directory, vm_uuid)), fence)


def checker(directory: Path) -> Callable[[str, int], None]:
    """``check`` bound to a directory, for code that takes it as a parameter."""

    def bound(vm_uuid: str, fence: int) -> None:
        check(directory, vm_uuid, fence)

    return bound


@cache
def boot_id() -> str:
    """The kernel's id of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def boot_time_s() -> float:
    """Seconds since boot, suspend included; never steps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _path(directory: Path, vm_uuid: str) -> Path:
    return make_dir(directory) / f"{vm_file_name(vm_uuid)}.json"


def _after(ttl_s: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=ttl_s)


def _load(path: Path) -> dict[str, Any]:
    try:
        state = json.loads(path.read_bytes())
        return {"fence": int(state["fence"]), "lease": state["lease"], "ends": state["ends"]}
    except FileNotFoundError:
        return {"fence": 0, "lease": None, "ends": None}
    except (ValueError, KeyError, TypeError) as error:
        raise Unexpected(
            f"The lease file {path} is damaged; no lease is granted for this VM",
            why=str(error),
            fix='Write {"fence": N, "lease": null, "ends": null} into it with N above any number that was granted',
        ) from error


def _store(path: Path, fence: int, lease: Lease | None, ttl_s: float) -> None:
    ends = None if lease is None else {"boot_id": boot_id(), "boot_time_s": boot_time_s() + ttl_s}
    write_json(path, {"fence": fence, "lease": lease and lease.model_dump(mode="json"), "ends": ends})


def _living(state: dict[str, Any]) -> Lease | None:
    if state["lease"] is None:
        return None
    lease = Lease.model_validate(state["lease"])
    ends = state["ends"]
    if ends["boot_id"] == boot_id():
        return lease if boot_time_s() < ends["boot_time_s"] else None
    return lease if datetime.now(UTC) < lease.expires_at else None


def _require(state: dict[str, Any], fence: int) -> Lease:
    lease = _living(state)
    if lease is not None and lease.fence == fence:
        return lease
    newest = int(state["fence"])
    if fence != newest:
        raise StaleLease(
            f"Lease number {fence} is not the newest of this VM at this site",
            why=f"number {newest} was granted" + (f" to {lease.holder_name}" if lease else ""),
            fix="Read the VM's state again and acquire the lease anew",
            fence=fence,
            newest=newest,
        )
    raise StaleLease(f"Lease number {fence} has ended", fix="Acquire the lease anew", fence=fence, newest=newest)
