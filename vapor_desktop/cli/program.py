"""How a verb gets its engine: the living one through the database, or one for the length of the command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vapor_desktop import app
from vapor_desktop.engine.console import EngineBackend
from vapor_desktop.model.errors import InvalidRequest, NotFound
from vapor_desktop.model.sites import Site
from vapor_desktop.model.view import ProtectionStatus

STANDBY_WAIT_S = 0.5


@contextmanager
def reading() -> Iterator[EngineBackend]:
    """For verbs that only read or talk to sites themselves: no engine is started."""
    program = app.build("command")
    try:
        yield program.backend
    finally:
        program.close()


@contextmanager
def acting() -> Iterator[EngineBackend]:
    """For verbs that an engine must carry out: ours runs along, and acts only if no other lives."""
    with app.running_engine("command") as program:
        program.engine.wait_active(STANDBY_WAIT_S)
        yield program.backend


def find_site(backend: EngineBackend, text: str) -> Site:
    """By name, UUID, or the beginning of one. Raises NotFound, InvalidRequest when ambiguous."""
    sites = [s.site for s in backend.snapshot().sites]
    exact = [s for s in sites if text in {s.name, s.site_id}]
    found = exact or [s for s in sites if s.site_id.startswith(text) or s.name.casefold() == text.casefold()]
    if not found:
        names = ", ".join(sorted(s.name for s in sites)) or "none"
        raise NotFound(f"No paired site is called “{text}”", fix=f"Paired sites: {names}")
    if len(found) > 1:
        raise InvalidRequest(f"“{text}” names several sites", fix="Give the UUID")
    return found[0]


def find_protection(backend: EngineBackend, text: str) -> ProtectionStatus:
    """By VM name, VM UUID, protection id, or the beginning of one."""
    rows = backend.snapshot().protections
    exact = [r for r in rows if text in {r.protection.vm_name, r.protection.vm_uuid, r.key}]
    found = exact or [r for r in rows if r.protection.vm_uuid.startswith(text) or r.key.startswith(text)]
    if not found:
        names = ", ".join(sorted(r.protection.vm_name for r in rows)) or "none"
        raise NotFound(f"No protected VM is called “{text}”", fix=f"Protected VMs: {names}")
    if len(found) > 1:
        raise InvalidRequest(f"“{text}” names several VMs", fix="Give the UUID")
    return found[0]
