"""Drills in the window: what is asked before, what is shown while one runs, the verdict, the clean-up."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from fake_backend import migration, status, world

from vapor_desktop.gui.drill_sheet import ports_of
from vapor_desktop.model.drills import DrillCheck, DrillPhase, DrillRecord, DrillVm, Inventory
from vapor_desktop.model.operations import OperationKind, OperationState
from vapor_desktop.model.states import DrillState
from vapor_desktop.model.view import DrillStatus


def record(vm_uuid: str, **more: object) -> DrillRecord:
    now = datetime.now(UTC)
    copy = DrillVm(
        vm_uuid=vm_uuid,
        vm_name="odd",
        protection_id="p-odd",
        seq=41,
        domain_uuid="d",
        domain_name="odd-drill-0a1b2c3d",
        usable_s=21.0,
        checks=(
            DrillCheck(key="boot", title="It boots", state="ok", text="first sign of life after 9.0 s"),
            DrillCheck(key="tcp:443", title="Port 443 accepts", state="failed", text="<no answer>"),
        ),
    )
    isolation = (DrillCheck(key="probes:x", title="Probes reach nobody outside", state="ok", text="3 asked"),)
    values = {"phase": DrillPhase.RUNNING, "vms": (copy,), "isolation": isolation, **more}
    made = DrillRecord(
        drill_id="0a1b2c3d-0000-4000-8000-000000000000",
        reason="to see",
        by="desk",
        created_at=now,
        expires_at=now + timedelta(hours=4),
        boot_id="b",
        before=Inventory(things={}),
    )
    return made.model_copy(update=values)


def drilled(console, state: DrillState, **more: object):  # type: ignore[no-untyped-def]
    """The window on a VM in that state; its drill's record differs by ``more``."""
    row = status("odd", 3.0)
    row = replace(row, protection=row.protection.model_copy(update={"drill": state}))
    console.backend.shot = world(datetime.now(UTC), protections=(row,))
    console.backend.drill_records = [DrillStatus("b", "site-b", record(row.protection.vm_uuid, **more))]
    window = console.shown()
    console.until(lambda: window.vms.model.get("p-odd") is not None)
    window.open_vm("p-odd")
    return window


def test_a_drill_begins_with_its_checks_and_limits(console) -> None:  # type: ignore[no-untyped-def]
    window = drilled(console, DrillState.NONE)
    assert not window.verbs["stop-drill"].isEnabled()
    window.verbs["drill"].trigger()
    sheet = window.commands.dialog
    console.until(lambda: sheet.point.count() == 10)
    assert sheet.point.currentData() is None, "the newest of the moment it begins"
    assert "proven" in sheet.point.itemText(4)
    assert "not started" in sheet.effects.text()
    sheet.ports.setText("22, https")
    assert not sheet.go.isEnabled()
    sheet.ports.setText("22 443,22")
    sheet.point.setCurrentIndex(4)
    sheet.script.setPlainText("test -d /srv\n")
    sheet.hours.setValue(2)
    sheet.disk.setValue(1.5)
    assert (sheet.every.text(), sheet.auto.isEnabled()) == ("never", False)
    sheet.every.setValue(30)
    sheet.auto.setChecked(True)
    sheet.go.click()
    wanted = {"boot_s": 300.0, "agent": True, "tcp_ports": [22, 443], "script": "test -d /srv"}
    args = {"seq": 37, "wanted": wanted, "lasts_s": 7200.0, "disk_limit_bytes": 3 << 29}
    console.until(lambda: console.asked("begin_operation") == [(OperationKind.DRILL, "p-odd", args, "a drill")])
    console.until(lambda: console.asked("schedule_drills") == [("p-odd", 30, True)])
    assert "MainThread" not in console.backend.threads


@pytest.mark.parametrize("passed", [True, False])
def test_a_drill_is_stopped_by_a_verdict(console, passed: bool) -> None:  # type: ignore[no-untyped-def]
    window = drilled(console, DrillState.RUNNING)
    assert not window.verbs["drill"].isEnabled()
    assert "A drill of it is running" in window.detail.sentence.text()
    window.verbs["stop-drill"].trigger()
    sheet = window.commands.dialog
    console.until(lambda: sheet.record is not None)
    found = sheet.found.text()
    for words in ("odd-drill-0a1b2c3d", "#41", "first sign of life", "&lt;no answer&gt;", "Probes reach nobody"):
        assert words in found
    assert not sheet.go.isEnabled(), "no verdict yet"
    assert not sheet.force.isVisible()
    (sheet.passed if passed else sheet.failed).click()
    sheet.note.setText("seen it")
    sheet.go.click()
    args = {"passed": passed, "note": "seen it", "force": False}
    wanted = [(OperationKind.STOP_DRILL, "p-odd", args, "the drill was stopped")]
    console.until(lambda: console.asked("begin_operation") == wanted)


def test_a_drill_whose_checks_still_run_takes_no_verdict_yet(console) -> None:  # type: ignore[no-untyped-def]
    window = drilled(console, DrillState.RUNNING)
    checks = migration(operation_id="d1", kind=OperationKind.DRILL, protection_id="p-odd")
    console.backend.shot = replace(console.backend.shot, operations=(checks,))
    console.until(lambda: window.snapshot.operations == (checks,))
    window.verbs["stop-drill"].trigger()
    sheet = window.commands.dialog
    console.until(lambda: sheet.record is not None)
    sheet.passed.click()
    assert not sheet.go.isEnabled()
    assert "checks still run" in sheet.hint.text()
    over = checks.model_copy(update={"state": OperationState.DONE, "ended_at": datetime.now(UTC)})
    console.backend.shot = replace(console.backend.shot, operations=(over,))
    console.until(sheet.go.isEnabled)


def test_what_is_left_is_named_and_cleaned_up_by_force(console) -> None:  # type: ignore[no-untyped-def]
    trouble = {"phase": DrillPhase.CLEANUP, "trouble": "still there: network vapor-drill-0a1b2c3d-0"}
    window = drilled(console, DrillState.CLEANUP_NEEDED, **trouble)
    cell = window.vms.model.get("p-odd")
    assert cell is not None
    assert "could not be removed" in window.detail.sentence.text()
    window.verbs["stop-drill"].trigger()
    sheet = window.commands.dialog
    console.until(sheet.force.isVisible)
    assert "vapor-drill-0a1b2c3d-0" in sheet.found.text()
    sheet.force.click()
    args = {"passed": None, "note": "", "force": True}
    wanted = [(OperationKind.STOP_DRILL, "p-odd", args, "a forced clean-up")]
    console.until(lambda: console.asked("begin_operation") == wanted)


def test_a_proven_point_shows_its_proof(console) -> None:  # type: ignore[no-untyped-def]
    window = drilled(console, DrillState.NONE)
    page = window.detail
    page.tabs.setCurrentIndex(1)
    console.until(lambda: page.points.rowCount() == 10)
    page.points_table.selectRow(0)
    assert not page.proof.isEnabled(), "never drilled"
    page.points_table.selectRow(4)
    page.proof.click()
    console.until(lambda: "first sign of life came after 21 s" in page.dialog.text.text())
    assert console.asked("point_proof") == [("p-odd", 37)]
    page.dialog.accept()


def test_ports_are_numbers() -> None:
    assert ports_of("") == ()
    assert ports_of("22, 443 22") == (22, 443)
    assert ports_of("0") is None
    assert ports_of("70000") is None
    assert ports_of("ssh") is None
