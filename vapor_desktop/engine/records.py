"""Reading and writing the engine's records in small, retried steps."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from vapor_desktop.engine.ports import Event, PointRow, Repository
from vapor_desktop.model.errors import Conflict, NotFound
from vapor_desktop.model.manifest import Epoch, Manifest
from vapor_desktop.model.policy import Mappings, Policy
from vapor_desktop.model.sites import Protection
from vapor_desktop.model.states import DrillState, Phase, Severity, move

Change = Callable[[Protection], Protection]


def update(repository: Repository, protection_id: str, change: Change) -> Protection:
    """Read, change, write by compare-and-set; again when somebody else was faster.

    Raises NotFound when the protection is gone.
    """
    while True:
        now = repository.protection(protection_id)
        if now is None:
            raise NotFound("That protection does not exist any more")
        wanted = change(now)
        if wanted == now:
            return now
        try:
            return repository.save_protection(wanted, expect_version=now.version)
        except Conflict:
            continue


def to_phase(phase: Phase) -> Change:
    """A change that moves to ``phase`` through the one door."""
    return lambda p: p.model_copy(update={"phase": move(p.phase, phase)})


# While one of these stands, a cycle that ends late says nothing about the phase.
_OPERATIONS = frozenset(
    {
        Phase.MIGRATING,
        Phase.FAILING_OVER,
        Phase.PROVISIONAL,
        Phase.FAILED_OVER,
        Phase.REPROTECTING,
        Phase.SPLIT_BRAIN,
        Phase.SPLIT_BRAIN_RISK,
    }
)


def to_cycle_phase(phase: Phase) -> Change:
    """What a cycle has to say; an operation that took the VM over meanwhile speaks louder."""
    return lambda p: p if p.phase in _OPERATIONS else to_phase(phase)(p)


def cache_manifest(repository: Repository, protection_id: str, manifest: Manifest) -> None:
    """The database is a cache of the manifest: copy the points, and the settings unless newer ones are known."""
    rows = [
        PointRow(
            protection_id=protection_id,
            seq=p.seq,
            taken_at=p.taken_at,
            current_as_of=p.current_as_of,
            consistency=p.consistency.value,
            bytes_sent=p.bytes_sent,
            pins=p.pins,
            verified=p.verified,
            proven_at=p.proven_at,
        )
        for p in manifest.points
        if not p.dead
    ]
    repository.replace_points(protection_id, rows)
    if repository.protection(protection_id) is not None:
        update(repository, protection_id, settings_of(manifest))
        proven = max((p.proven_at for p in manifest.points if p.proven_at is not None), default=None)
        update(repository, protection_id, lambda q: _drilled(q, proven))


def settings_of(manifest: Manifest) -> Change:
    """A change to the manifest's policy and mappings. An answer that was overtaken on its way changes nothing."""

    def change(p: Protection) -> Protection:
        if manifest.settings_version < p.settings_version and manifest.target_site == p.target_site:
            return p
        settings = {
            "policy": manifest.policy,
            "mappings": manifest.mappings,
            "settings_version": manifest.settings_version,
        }
        return p.model_copy(update=settings)

    return change


def _drilled(p: Protection, proven: datetime | None) -> Protection:
    """The newest proven point is kept by itself, so an older word than ours is none."""
    if proven is None or (p.drilled_at is not None and p.drilled_at >= proven):
        return p
    return p.model_copy(update={"drilled_at": proven})


def drill(state: DrillState) -> Change:
    """A change to what is known of drills on its replica."""
    return lambda p: p.model_copy(update={"drill": state})


def note(
    repository: Repository,
    at: datetime,
    kind: str,
    text: str,
    *,
    severity: Severity = Severity.OK,
    protection_id: str | None = None,
    site_id: str | None = None,
) -> None:
    """One line of history."""
    repository.add_event(Event(at, kind, protection_id, site_id, int(severity), text))


def failed_over(epoch_number: int, owner: str) -> Change:
    """A change to *failed over*, under the epoch that says so."""

    def change(p: Protection) -> Protection:
        phase = (
            move(move(p.phase, Phase.FAILING_OVER), Phase.FAILED_OVER)
            if p.phase is not Phase.FAILED_OVER
            else p.phase
        )
        update = {"phase": phase, "epoch_number": epoch_number, "epoch_owner": owner, "commit_ask_at": None}
        return p.model_copy(update=update)

    return change


def turned(ends: tuple[str, str], settings: tuple[Policy, Mappings, int], epoch: Epoch) -> Change:
    """A change to the other direction: its ends (from, to), settings with their version, and epoch."""
    update = {
        "source_site": ends[0],
        "target_site": ends[1],
        "policy": settings[0],
        "mappings": settings[1],
        "settings_version": settings[2],
        "epoch_number": epoch.number,
        "epoch_owner": epoch.owner,
        "failures": 0,
        "not_before": None,
        "last_error": None,
        "last_error_code": None,
    }
    return lambda p: p.model_copy(update=update)


def taken_over(manifest: Manifest, now: datetime) -> Change:
    """A change to what the target's manifest says of a VM that the target owns."""
    epoch = manifest.epoch
    if manifest.provisional == epoch.number:
        return provisional(epoch.number, epoch.owner, now)
    return failed_over(epoch.number, epoch.owner)


def provisional(epoch_number: int, owner: str, ask_at: datetime) -> Change:
    """A change to *provisional*: it runs at the target until a person commits it or rolls it back."""

    def change(p: Protection) -> Protection:
        phase = move(move(p.phase, Phase.FAILING_OVER), Phase.PROVISIONAL)
        update = {"phase": phase, "epoch_number": epoch_number, "epoch_owner": owner, "commit_ask_at": ask_at}
        return p.model_copy(update={**update, "last_error": None, "last_error_code": None})

    return change
