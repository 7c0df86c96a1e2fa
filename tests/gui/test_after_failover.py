"""The sheets of and after a failover: several at once, commit, roll back, resolve."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from fake_backend import protection, status, world

from vapor_desktop.gui.protection_columns import Row
from vapor_desktop.model.operations import OperationKind
from vapor_desktop.model.states import Phase


def opened(console, phase: Phase):  # type: ignore[no-untyped-def]
    now = datetime.now(UTC)
    asked_at = now if phase is Phase.PROVISIONAL else None
    row = status("odd", None, protection=protection("odd", phase=phase, commit_ask_at=asked_at, epoch_number=2))
    console.backend.shot = world(now, protections=(row,))
    window = console.shown()
    console.until(lambda: window.vms.model.get("p-odd") is not None)
    window.open_vm("p-odd")
    return window


def sheet_of(console, window, verb: str):  # type: ignore[no-untyped-def]
    assert window.verbs[verb].isEnabled()
    window.verbs[verb].trigger()
    sheet = window.commands.dialog
    console.until(lambda: sheet.decision is not None)
    return sheet


@pytest.mark.parametrize(
    ("phase", "possible"),
    [
        (Phase.PROVISIONAL, {"commit", "roll-back"}),
        (Phase.SPLIT_BRAIN, {"resolve"}),
        (Phase.SPLIT_BRAIN_RISK, {"resolve"}),
        (Phase.FAILED_OVER, set()),
        (Phase.PROTECTED, set()),
    ],
)
def test_a_decision_is_there_while_it_is_open(console, phase: Phase, possible: set[str]) -> None:  # type: ignore[no-untyped-def]
    window = opened(console, phase)
    found = {key for key in ("commit", "roll-back", "resolve") if window.verbs[key].isEnabled()}
    assert found == possible


def test_a_commit_tells_what_it_ends_and_wants_a_reason(console) -> None:  # type: ignore[no-untyped-def]
    sheet = sheet_of(console, opened(console, Phase.PROVISIONAL), "commit")
    assert "cannot be rolled back any more" in sheet.effects.text()
    assert "before the roll back" in sheet.facts.text()
    assert not sheet.go.isEnabled()
    sheet.reason.setText("it works")
    sheet.go.click()
    wanted = [(OperationKind.COMMIT, "p-odd", {"force": False}, "it works")]
    console.until(lambda: console.asked("begin_operation") == wanted)


def test_a_roll_back_needs_the_name_and_says_what_is_kept(console) -> None:  # type: ignore[no-untyped-def]
    sheet = sheet_of(console, opened(console, Phase.PROVISIONAL), "roll-back")
    assert "is kept as the run of epoch 2" in sheet.effects.text()
    assert sheet.choice.count() > 1
    sheet.choice.setCurrentIndex(1)
    chosen = int(sheet.chosen)
    assert f"from recovery point {chosen}" in sheet.effects.text()
    sheet.reason.setText("the last one is bad")
    assert not sheet.go.isEnabled()
    sheet.name.setText("odd")
    sheet.force.setChecked(True)
    sheet.go.click()
    wanted = [(OperationKind.ROLLBACK, "p-odd", {"seq": chosen, "force": True}, "the last one is bad")]
    console.until(lambda: console.asked("begin_operation") == wanted)


def test_a_resolver_compares_before_it_asks(console) -> None:  # type: ignore[no-untyped-def]
    sheet = sheet_of(console, opened(console, Phase.SPLIT_BRAIN), "resolve")
    assert "site-b: running, epoch 2. It has written 5.0 MiB" in sheet.facts.text()
    assert "unknown number of bytes" in sheet.facts.text()
    assert "At site-a it is shut off" in sheet.effects.text()
    sheet.choice.setCurrentIndex(1)
    assert "At site-b it is shut off" in sheet.effects.text()
    sheet.reason.setText("a has the orders")
    sheet.name.setText("odd")
    sheet.go.click()
    wanted = [(OperationKind.RESOLVE, "p-odd", {"winner": "source", "force": False}, "a has the orders")]
    console.until(lambda: console.asked("begin_operation") == wanted)


def test_what_is_kept_is_let_go_by_its_name(console) -> None:  # type: ignore[no-untyped-def]
    window = opened(console, Phase.PROVISIONAL)
    window.detail.kept.click()
    sheet = window.detail.sheet
    console.until(lambda: sheet.decision is not None)
    assert "in the run of epoch 2 is deleted, for ever" in sheet.effects.text()
    sheet.reason.setText("looked through")
    assert not sheet.go.isEnabled()
    sheet.name.setText("odd")
    sheet.go.click()
    console.until(lambda: console.asked("let_go") == [("p-odd", 2, "looked through")])


def test_several_fail_over_with_one_confirmation(console) -> None:  # type: ignore[no-untyped-def]
    window = console.shown()
    console.until(lambda: window.vms.model.get("p-db01") is not None)
    rows = [Row.of_protection(r, console.backend.shot.at) for r in console.backend.shot.protections[:3]]
    window.verbs.use(rows)
    sheet = sheet_of(console, window, "failover")
    assert sheet.facts.text().count("Newest complete point: 41") == 3
    sheet.reason.setText("site-a is dark")
    for wrong in ("web01", "fail over 2", "fail over"):
        sheet.name.setText(wrong)
        assert not sheet.go.isEnabled()
    sheet.name.setText("fail over 3")
    sheet.go.click()
    wanted = {(row.key, None, "site-a is dark", "leave") for row in rows}
    console.until(lambda: set(console.asked("failover")) == wanted)
    tasks = [t.title for t in window.commands._context.errands.tasks()]
    assert sum(title.startswith("Fail over ") for title in tasks) == 3
