"""A refusal names the holder; taking over wants a reason and goes to the site where that holder is."""

from __future__ import annotations

from datetime import UTC, datetime

from conftest import Console
from fake_backend import FakeBackend
from PySide6.QtWidgets import QMessageBox, QPushButton

from vapor_desktop.gui.commands import Commands
from vapor_desktop.gui.take_over import TakeOverDialog
from vapor_desktop.model.errors import LeaseHeld
from vapor_desktop.model.view import LeaseHolder
from vapor_desktop.model.wire import Lease


def test_the_holder_is_shown_and_taken_over_with_a_reason(console: Console, backend: FakeBackend) -> None:
    window = console.shown()
    row = backend.shot.protections[0]
    vm = row.protection.vm_uuid
    now = datetime.now(UTC)
    held = Lease(vm_uuid=vm, holder="e9/drill", holder_name="bert@far", purpose="drill", fence=7, expires_at=now)
    other = held.model_copy(update={"holder": "e1/cycle"})
    backend.holders = (LeaseHolder("s-a", "A", other), LeaseHolder("s-b", "B", held))
    error = LeaseHeld(
        "bert@far holds this VM's lease at this site",
        why="drill since 2026-11-22 22:10:00Z",
        holder="e9/drill",
        holder_name="bert@far",
        vm_uuid=vm,
    )
    commands: Commands = window.commands
    console.until(lambda: commands._snapshot is not None)
    commands.show_failure("Pin", error)
    box = commands.dialog
    assert isinstance(box, QMessageBox)
    assert "bert@far" in box.text()
    assert "Drill since 2026-11-22 22:10:00Z" in box.text()
    next(b for b in box.findChildren(QPushButton) if b.text() == "&Take over…").click()
    dialog = commands.dialog
    assert isinstance(dialog, TakeOverDialog)
    assert not dialog.go.isEnabled()
    dialog.reason.setText("  ")
    assert not dialog.go.isEnabled()
    dialog.reason.setText("bert is on holiday")
    dialog.go.click()

    def told() -> bool:
        return ("take_over_lease", row.key, "s-b", "bert is on holiday") in backend.asked

    console.until(told)
    assert [c for c in backend.asked if c[0] == "take_over_lease"] == [
        ("take_over_lease", row.key, "s-b", "bert is on holiday")
    ]
