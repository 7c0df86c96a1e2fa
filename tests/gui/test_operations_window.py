"""Migration and operations in the window: the sheet, live steps, questions, undo."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from fake_backend import migration, status, world

from vapor_desktop.model.operations import Choice, Operation, OperationKind, OperationState, Question
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
    sheet.reread.click()
    assert not sheet.go.isEnabled(), "other steps are asked for"
    console.until(sheet.go.isEnabled)
    assert console.asked("operation_steps")[-1] == (OperationKind.MIGRATION, {"shutdown_s": 45.0, "reread": True})
    sheet.go.click()
    wanted = [(OperationKind.MIGRATION, "p-db01", {"shutdown_s": 45.0, "reread": True}, "new rack")]
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


def shows(console, *operations: Operation) -> None:  # type: ignore[no-untyped-def]
    console.backend.shot = replace(console.backend.shot, operations=operations)


def asking(**more: object) -> Operation:
    now = datetime.now(UTC)
    choices = (Choice(key="wait", text="Wait longer"), Choice(key="undo", text="Undo all of it"))
    asked = Question(question_id="shut-down/0", text="It did not shut down", choices=choices, asked_at=now)
    return migration(2, now, version=3, state=OperationState.WAITING, question=asked, **more)


def test_an_operation_is_seen_live(console) -> None:  # type: ignore[no-untyped-def]
    shows(console, migration(1, datetime.now(UTC), version=1))
    window = console.shown()
    window.open_operation("op-1")
    tab = window.activity.operations
    assert window.pages.currentWidget() is window.activity
    console.until(lambda: tab.steps.rowCount() == 5)
    cells = [tab.model.index(0, n).data() for n in (0, 1, 2, 5)]
    assert cells == ["Planned migration", "db01", "running", "new rack"]

    def column(n: int) -> list[str]:
        return [tab.steps.index(row, n).data() for row in range(5)]

    assert column(1) == ["done", "running", "pending", "pending", "pending"]
    assert column(2)[0] == "4 s"
    assert column(3) == ["", "", "", "no undo after this", ""]
    assert column(4)[1] == "reading vda"
    shows(console, migration(3, datetime.now(UTC), version=2))
    console.until(lambda: column(1) == ["done", "done", "done", "running", "pending"])
    assert tab.undo.isEnabled()
    shows(console, migration(4, datetime.now(UTC), version=3))
    console.until(lambda: not tab.undo.isEnabled())
    assert "point of no return" in tab.undo.toolTip()


def test_a_begun_migration_is_shown_as_soon_as_it_is_known(console) -> None:  # type: ignore[no-untyped-def]
    window = console.shown()
    window.commands.begun.emit("op-1")
    assert window.pages.currentWidget() is window.activity
    newer = migration(0, datetime.now(UTC), operation_id="op-2")
    shows(console, newer, migration(1))
    tab = window.activity.operations
    console.until(lambda: tab.table.chosen_row() == 1)
    assert tab.model.record(1).operation_id == "op-1"


def test_a_question_is_a_banner_and_is_answered_by_its_button(console) -> None:  # type: ignore[no-untyped-def]
    shows(console, asking())
    window = console.shown()
    console.until(lambda: window.banners.texts() == ["db01: planned migration asks: It did not shut down"])
    window.banners.acted.emit(window.banners._banners[0])
    tab = window.activity.operations
    assert window.pages.currentWidget() is window.activity
    assert tab.asked.isVisible()
    assert "It did not shut down" in tab.question.text()
    assert [button.text() for button in tab.choices] == ["Wait longer", "Undo all of it"]
    tab.choices[0].click()
    assert not any(button.isEnabled() for button in tab.choices)
    console.until(lambda: console.asked("answer_question") == [("op-1", "shut-down/0", "wait")])
    shows(console, asking(answers={"shut-down/0": "wait"}))
    console.until(lambda: window.banners.texts() == [])
    assert not tab.asked.isVisible()


def test_undo_is_confirmed_first(console) -> None:  # type: ignore[no-untyped-def]
    shows(console, migration(1, datetime.now(UTC)))
    window = console.shown()
    window.open_operation("op-1")
    tab = window.activity.operations
    console.until(tab.undo.isEnabled)
    for press in ("&Let it go on", "&Undo it"):
        tab.undo.click()
        box = window.commands.dialog
        assert "Undo the planned migration of db01" in box.text()
        assert console.asked("cancel_operation") == []
        next(b for b in box.buttons() if b.text() == press).click()
    console.until(lambda: console.asked("cancel_operation") == [("op-1",)])
    assert "MainThread" not in console.backend.threads


def test_reprotect_tells_its_price_first_and_begins(console) -> None:  # type: ignore[no-untyped-def]
    console.backend.shot = world(datetime.now(UTC), protections=(status("over", None, phase=Phase.FAILED_OVER),))
    window = console.shown()
    console.until(lambda: window.vms.model.get("p-over") is not None)
    window.open_vm("p-over")
    window.verbs["reprotect"].trigger()
    sheet = window.commands.dialog
    sheet.reason.setText("site-a is mended")
    console.until(lambda: sheet.preview is not None)
    assert "bitmap: 1.2 GiB" in sheet.price.text()
    assert "noted every write" in sheet.price.text()
    assert "goes on running at site-b" in sheet.effects.text()
    assert sheet.cancel.isDefault()
    sheet.reason.setText(" ")
    assert not sheet.go.isEnabled(), "no reason yet"
    sheet.reason.setText("site-a is mended")
    sheet.go.click()
    wanted = [(OperationKind.REPROTECT, "p-over", {}, "site-a is mended")]
    console.until(lambda: console.asked("begin_operation") == wanted)


@pytest.mark.parametrize(
    ("phase", "why"),
    [(Phase.PROTECTED, "has not gone over"), (Phase.PROVISIONAL, "commit it, or roll it back, first")],
)
def test_reprotect_says_why_not(console, phase: Phase, why: str) -> None:  # type: ignore[no-untyped-def]
    console.backend.shot = world(datetime.now(UTC), protections=(status("odd", None, phase=phase),))
    window = console.shown()
    console.until(lambda: window.vms.model.get("p-odd") is not None)
    window.open_vm("p-odd")
    assert not window.verbs["reprotect"].isEnabled()
    assert why in window.verbs["reprotect"].toolTip()
