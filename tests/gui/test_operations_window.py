"""Migration and operations in the window: the sheet, live steps, questions, undo."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from fake_backend import status, world

from vapor_desktop.model.operations import OperationKind
from vapor_desktop.model.states import Phase


def test_migration_needs_the_exact_name_and_a_reason_and_begins(console) -> None:  # type: ignore[no-untyped-def]
    window = console.shown()
    window.open_vm("p-db01")
    window.verbs["migrate"].trigger()
    sheet = window.commands.dialog
    console.until(lambda: len(sheet.plan) == 5)
    steps = sheet.steps.text()
    assert steps.index("Shut it down") < steps.index("Let it run at the target") < steps.index("no undo after this")
    assert steps.index("no undo after this") < steps.index("Tell the source whose it is")
    assert "from site-a to site-b" in sheet.headline.text()
    assert sheet.cancel.isDefault()
    sheet.name.setText("db01")
    assert not sheet.go.isEnabled(), "no reason yet"
    sheet.reason.setText("new rack")
    for wrong in ("DB01", "db0", "db01 ", ""):
        sheet.name.setText(wrong)
        assert not sheet.go.isEnabled(), wrong
    sheet.name.setText("db01")
    sheet.deadline.setValue(45)
    sheet.go.click()
    wanted = [(OperationKind.MIGRATION, "p-db01", {"shutdown_s": 45.0}, "new rack")]
    console.until(lambda: console.asked("begin_operation") == wanted)
    assert "MainThread" not in console.backend.threads


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"phase": Phase.FAILED_OVER}, "has failed over"),
        ({"phase": Phase.MIGRATING}, "is in the phase migrating"),
        ({"phase": Phase.SOURCE_UNREACHABLE}, "site-a does not answer"),
        ({"point_count": 0}, "has no recovery point yet"),
    ],
)
def test_migrate_says_why_not(console, more: dict[str, object], why: str) -> None:  # type: ignore[no-untyped-def]
    console.backend.shot = world(datetime.now(UTC), protections=(status("odd", None, **more),))
    window = console.shown()
    console.until(lambda: window.vms.model.get("p-odd") is not None)
    window.open_vm("p-odd")
    assert not window.verbs["migrate"].isEnabled()
    assert why in window.verbs["migrate"].toolTip()
