"""Trying to reach a source before a failover: each way once, side by side, and never longer than a short deadline."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from vapor_desktop.engine.ports import SiteGateway
from vapor_desktop.model.errors import DomainNotFound, VaporError
from vapor_desktop.model.sites import Site

DEADLINE_S = 3.0


@dataclass(frozen=True, slots=True)
class Reached:
    """``tried``: one line per way. ``answers``: any way led there. ``state``: libvirt's word for the VM, if it told.

    ``unsent_bytes``: written since ``checkpoint``, by its bitmap; None: not told.
    """

    tried: tuple[str, ...]
    answers: bool
    state: str | None
    unsent_bytes: int | None


def reach(gateway: SiteGateway, site: Site, vm_uuid: str, checkpoint: str | None = None) -> Reached:
    """Ask the site's service and its libvirt now. What has not answered by the deadline is left behind."""
    states: list[str] = []
    dirty: list[int] = []

    def service() -> str:
        gateway.api(site).identity()
        return "answers"

    def hypervisor() -> str:
        try:
            states.append(gateway.hypervisor(site).domain(vm_uuid).state)
        except DomainNotFound:
            states.append("undefined")
        if states[-1] == "running" and checkpoint is not None:
            found = gateway.hypervisor(site).bitmaps_dirty(vm_uuid, checkpoint)
            dirty.extend([found] if found is not None else [])
        return f"answers; the VM is {states[-1]} there"

    ways = {"service": service, "libvirt": hypervisor}
    said: dict[str, str] = {}
    good: list[str] = []
    threads = [threading.Thread(target=_try, args=(name, way, said, good), daemon=True) for name, way in ways.items()]
    for thread in threads:
        thread.start()
    waited = threading.Event()
    for thread in threads:
        thread.join(DEADLINE_S / len(threads) if waited.is_set() else DEADLINE_S)
        if thread.is_alive():
            waited.set()
    told = dict(said)
    silent = f"no answer within {DEADLINE_S:.0f} s"
    tried = tuple(f"{site.name}'s {name}: {told.get(name, silent)}" for name in ways)
    return Reached(tried, bool(good), states[-1] if states else None, dirty[-1] if dirty else None)


def _try(name: str, way: Callable[[], str], said: dict[str, str], good: list[str]) -> None:
    try:
        said[name] = way()
        good.append(name)
    except VaporError as error:
        said[name] = str(error)
