"""Ways to a place in the window: a VM, a site, a plan, an operation; by a click, the palette, or a vapor:// link."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from vapor_desktop.gui.protection_columns import Chip, Row
from vapor_desktop.model.errors import InvalidRequest
from vapor_desktop.model.view import VmStatus

if TYPE_CHECKING:
    from vapor_desktop.gui.main_window import MainWindow

SCHEME = "vapor"
KINDS = ("vm", "site", "plan", "operation")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")


@dataclass(frozen=True, slots=True)
class Link:
    """``vapor://KIND/ID``: a VM by its libvirt UUID (a protection's id will do), the rest by their id."""

    kind: str
    subject: str

    @classmethod
    def parse(cls, text: str) -> Link:
        """Raises InvalidRequest: a link comes from anywhere, so it may show a place and nothing else."""
        parts = urlsplit(text.strip())
        subject = unquote(parts.path.strip("/"))
        good = parts.scheme == SCHEME and parts.netloc in KINDS and _ID.fullmatch(subject)
        if not good or parts.query or parts.fragment:
            raise InvalidRequest(
                "That is no link into Vapor Desktop",
                why=f"“{text[:80]}” does not read vapor://KIND/ID",
                fix=f"A link names one of {', '.join(KINDS)}, as in vapor://vm/UUID",
            )
        return cls(parts.netloc, subject)

    def __str__(self) -> str:
        return f"{SCHEME}://{self.kind}/{self.subject}"


def follow(window: MainWindow, link: Link) -> bool:
    """Show what the link names; False: nothing of that name is known here."""
    go = {"vm": open_vm, "site": open_site, "plan": open_plan, "operation": open_operation}
    return go[link.kind](window, link.subject)


def open_vm(window: MainWindow, vm: str) -> bool:
    """The page of a protected VM, by UUID or protection; the table on one that is not protected."""
    if window.snapshot is None:
        return False
    for row in window.snapshot.protections:
        if vm in (row.protection.vm_uuid, row.key):
            return window.open_vm(row.key)
    found = next((v for v in window.snapshot.unprotected if v.vm_uuid == vm), None)
    if found is not None:
        show_unprotected(window, found)
    return found is not None


def show_unprotected(window: MainWindow, vm: VmStatus) -> None:
    """The table of what is not protected, on that VM."""
    window.show_chip(Chip.UNPROTECTED)
    if window.snapshot is not None:
        window.vms.table.select(Row.of_vm(vm, window.snapshot.at).key)


def open_site(window: MainWindow, site_id: str) -> bool:
    """The page *Sites* on that one."""
    window.go_to("sites")
    model = window.sites.model
    for at in range(model.rowCount()):
        record = model.record(at)
        if record is not None and record.site.site_id == site_id:
            window.sites.table.selectRow(at)
            return True
    return False


def open_plan(window: MainWindow, plan_id: str) -> bool:
    """The page *Plans* on that one."""
    window.go_to("plans")
    return window.plans.select(plan_id)


def open_operation(window: MainWindow, operation_id: str) -> bool:
    """The page *Activity* on that one, as soon as it is known."""
    window.open_operation(operation_id)
    return window.activity.operations.select(operation_id)
