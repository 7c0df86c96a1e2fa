"""``/guardian``: what the engine asks this host to watch, and what the guardian did by itself."""

from __future__ import annotations

from datetime import UTC, datetime

from fastapi import APIRouter

from vapor_desktop.model.errors import NotFound
from vapor_desktop.model.policy import Value
from vapor_desktop.model.wire import GuardianEvent, ScratchSpace, WatchFreeze, WatchJob
from vapor_desktop.site.api.auth import Operator, Site, Viewer
from vapor_desktop.site.guardian import free_bytes

router = APIRouter(prefix="/guardian", tags=["guardian"])


class InTime(Value):
    """DELETE …/freeze: False when the dead-man had already thawed."""

    in_time: bool


@router.get("/scratch")
def scratch(_caller: Viewer, site: Site) -> ScratchSpace:
    """What is free for the scratch files of backup jobs."""
    path = site.settings.scratch_dir
    try:
        free = free_bytes(path)
    except OSError as error:
        raise NotFound(
            "The scratch directory cannot be looked at",
            why=f"{path}: {error.strerror}",
            fix="Make it as `vapor-site doctor` says, or set scratch_dir",
        ) from error
    return ScratchSpace(
        path=str(path),
        free_bytes=free,
        reserve_bytes=site.settings.scratch_reserve_bytes,
        at=datetime.now(UTC),
    )


@router.get("/events")
def events(_caller: Viewer, site: Site, since: datetime | None = None) -> list[GuardianEvent]:
    """What the guardian did, oldest first; ``since`` without a zone is UTC."""
    if since is not None and since.tzinfo is None:
        since = since.replace(tzinfo=UTC)
    return site.events.since(since)


@router.put("/{vm}/job", status_code=204)
def watch_job(vm: str, body: WatchJob, _caller: Operator, site: Site) -> None:
    """Watch the VM's backup job, or renew."""
    site.guardian.watch_job(vm, body)


@router.delete("/{vm}/job", status_code=204)
def unwatch_job(vm: str, _caller: Operator, site: Site) -> None:
    """The job was ended."""
    site.guardian.unwatch_job(vm)


@router.put("/{vm}/freeze", status_code=204)
def watch_freeze(vm: str, body: WatchFreeze, _caller: Operator, site: Site) -> None:
    """Arm the dead-man thaw."""
    site.guardian.watch_freeze(vm, body)


@router.delete("/{vm}/freeze")
def unwatch_freeze(vm: str, _caller: Operator, site: Site) -> InTime:
    """Disarm it."""
    return InTime(in_time=site.guardian.unwatch_freeze(vm))
