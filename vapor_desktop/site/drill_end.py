"""The end of a drill: everything on its record goes, and it is looked whether anything is left.

Every step can be done again, and looks before it acts; so a stop that was cut goes on where it was.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime

from vapor_desktop.model.drills import DrillEnd, DrillPhase, DrillRecord, DrillStop, DrillVm, Inventory
from vapor_desktop.model.errors import Conflict, DomainNotFound, NotFound, VaporError
from vapor_desktop.site.bubble_client import forget_logs
from vapor_desktop.site.drills import Drills
from vapor_desktop.site.picture import to_png

_log = logging.getLogger("vapor.drill")

SETTLE_S, LOOK_S = 8.0, 0.2


def stop(drills: Drills, drill_id: str, request: DrillStop) -> DrillRecord:
    """End it. Idempotent: of an ended one the record is answered. Raises what keeps it from being cleaned up.

    ``force``: what fails is told in the record and does not hold up the rest.
    """
    with drills.lock(drill_id):
        record = drills.book.one(drill_id)
        if not record.open:
            return record
        asked = _verdict(record.stop, request)
        if asked != record.stop:
            record = drills.book.change(drill_id, lambda r: r.model_copy(update={"stop": asked}))
        if asked.passed:
            _prove(drills, record, asked)
        trouble = _remove(drills, record, force=request.force)
        after = _after(drills, record)
        left = after.ours(record.names())
        if left or trouble:
            text = "; ".join([*trouble, *(f"still there: {thing}" for thing in left)])
            update = {"phase": DrillPhase.CLEANUP, "trouble": text}
            drills.book.change(drill_id, lambda r: r.model_copy(update=update))
            raise Conflict(
                "Not everything of the drill is gone", why=text, fix="Mend what is named, then clean up again"
            )
        end = _end(record, asked, after)
        return drills.book.change(drill_id, lambda r: _ended(r, end))


def _verdict(before: DrillStop | None, now: DrillStop) -> DrillStop:
    """A verdict that was given once stands; who only cleans up gives none."""
    if before is None or before.passed is None:
        return now
    return before.model_copy(update={"force": now.force})


def take_picture(drills: Drills, drill_id: str, vm: DrillVm) -> bytes | None:
    """Of the copy's screen now, kept with the record; the last one when it has none to show any more."""
    try:
        _kind, raw = drills.hypervisor.bubbles.screenshot(vm.domain_uuid)
        png = to_png(raw)
    except VaporError as error:
        _log.info("no picture of %s: %s", vm.domain_name, error)
        return drills.book.picture(drill_id, vm.vm_uuid)
    drills.book.keep_picture(drill_id, vm.vm_uuid, png)
    return png


def _prove(drills: Drills, record: DrillRecord, asked: DrillStop) -> None:
    """Before anything is removed: it is the VM that ran whose point is proven. Idempotent."""
    for vm in record.vms:
        if vm.started_at is None:
            continue
        now = datetime.now(UTC)
        report = {
            "drill_id": record.drill_id,
            "at": now.isoformat(),
            "boot_s": vm.boot_s,
            "usable_s": vm.usable_s,
            "note": asked.note,
            "by": asked.by,
            "checks": [c.model_dump(mode="json") for c in vm.checks],
        }
        png = drills.book.picture(record.drill_id, vm.vm_uuid) or take_picture(drills, record.drill_id, vm)
        with suppress(NotFound):  # its replica was taken away by force meanwhile: there is nothing to prove
            drills.store.prove(vm.vm_uuid, vm.seq, now, json.dumps(report, indent=1).encode(), png)


def _remove(drills: Drills, record: DrillRecord, *, force: bool) -> list[str]:
    """VMs, then their files, then probes and networks. What failed, with ``force``."""
    trouble: list[str] = []

    def do(step: Callable[[], None]) -> None:
        try:
            step()
        except VaporError as error:
            if not force:
                _told(drills, record.drill_id, error)
                raise
            trouble.append(str(error))

    for vm in record.vms:
        do(lambda vm=vm: _remove_vm(drills, vm))  # type: ignore[misc]
        do(lambda vm=vm: drills.store.close_drill(vm.vm_uuid, record.drill_id, force=force))  # type: ignore[misc]
    for net in record.nets:
        drills.probes.close(net)
        do(lambda net=net: drills.hypervisor.bubbles.destroy_network(net.network))  # type: ignore[misc]
    if record.vms:
        do(lambda: forget_logs(drills.settings.bubble_socket, [v.domain_name for v in record.vms]))
    return trouble


def _ended(record: DrillRecord, end: DrillEnd) -> DrillRecord:
    return record.model_copy(update={"phase": DrillPhase.ENDED, "trouble": "", "end": end})


def _told(drills: Drills, drill_id: str, error: VaporError) -> None:
    update = {"phase": DrillPhase.CLEANUP, "trouble": str(error)}
    drills.book.change(drill_id, lambda r: r.model_copy(update=update))


def _remove_vm(drills: Drills, vm: DrillVm) -> None:
    try:
        drills.hypervisor.destroy(vm.domain_uuid)
        drills.hypervisor.bubbles.undefine_copy(vm.domain_uuid)
    except DomainNotFound:
        return


def _after(drills: Drills, record: DrillRecord) -> Inventory:
    """Looked at until nothing of the drill is there: a process or a cable may end a moment later."""
    uuids = [v.domain_uuid for v in record.vms]
    deadline = time.monotonic() + SETTLE_S
    while True:
        found = drills.inventory(uuids)
        if not found.ours(record.names()) or time.monotonic() > deadline:
            return found
        time.sleep(LOOK_S)  # nobody tells the end of another's process


def _end(record: DrillRecord, asked: DrillStop, after: Inventory) -> DrillEnd:
    proven = {v.vm_uuid: v.seq for v in record.vms if asked.passed and v.started_at is not None}
    return DrillEnd(
        at=datetime.now(UTC),
        why=asked.why,
        passed=asked.passed,
        note=asked.note,
        by=asked.by,
        before=record.before,
        after=after,
        appeared=after.beyond(record.before),
        gone=record.before.beyond(after),
        proven=proven,
    )
