"""Recovery plans in the window: the tick and why not, the editor, the sheet, the live tree, the report."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fake_backend import PLAN_STEPS, migration, world

from vapor_desktop.gui.plan_draft import Draft
from vapor_desktop.model.errors import EditOutdated, InvalidRequest
from vapor_desktop.model.operations import (
    Choice,
    Operation,
    OperationKind,
    OperationState,
    Question,
    StepRow,
    StepState,
)
from vapor_desktop.model.plans import Address, CheckKind, Plan, PlanMode, PlanStatus, PlanVm, Problem, Tier, WaitFor

SHOP = "00000000-0000-4000-8000-000000000001"


def vm_uuid(console: Any, name: str) -> str:
    return str(next(r.protection.vm_uuid for r in console.backend.shot.protections if r.protection.vm_name == name))


def shop(console: Any, **more: Any) -> PlanStatus:
    db = PlanVm(vm_uuid=vm_uuid(console, "db01"), name="db01", checks=(WaitFor(kind=CheckKind.AGENT),))
    web = PlanVm(vm_uuid=vm_uuid(console, "web01"), name="web01")
    tiers = (Tier(name="data", vms=(db,)), Tier(vms=(web,), pause="Is the DNS moved?"))
    plan = Plan(plan_id=SHOP, name="Shop", version=4, tiers=tiers, changed_at=datetime.now(UTC))
    values: dict[str, Any] = {
        "plan": plan, "ready": True, "problems": (), "checked_at": datetime.now(UTC), "targets": ("site-b",),
    }  # fmt: skip
    return PlanStatus(**(values | more))


def show(console: Any, *plans: PlanStatus, operations: tuple[Operation, ...] = ()) -> Any:
    console.backend.shot = replace(console.backend.shot, plans=plans, operations=operations)
    window = console.shown()
    window.go(4)
    console.until(lambda: window.plans.model.rowCount() == len(plans))
    return window


def run_of(*rows: StepRow, **more: Any) -> Operation:
    values: dict[str, Any] = {
        "operation_id": "run-1", "kind": OperationKind.PLAN, "protection_id": "", "vm_uuid": SHOP, "vm_name": "Shop",
        "args": {"mode": "failover"}, "asked_by": "anna", "reason": "a fire", "engine_id": "e",
        "started_at": datetime.now(UTC), "seen_at": datetime.now(UTC), "steps": rows or PLAN_STEPS, "version": 1,
    }  # fmt: skip
    return Operation(**(values | more))


def test_a_plan_without_its_tick_says_which_vm_and_which_thing(console) -> None:  # type: ignore[no-untyped-def]
    problem = Problem("u", "web01", "site-b has no network dmz", "Map it to one of the networks there")
    window = show(console, shop(console, ready=False, problems=(problem,)))
    page = window.plans
    cells = [page.model.index(0, n).data() for n in range(7)]
    assert cells == ["Shop", "not ready", "2", "2", "site-b", "never", "web01: site-b has no network dmz"]
    assert "Map it to one of the networks there" in page.about.text()
    assert window.navigation.item(4).text() == "Plans  (1)"
    show(console, shop(console))
    console.until(lambda: page.model.index(0, 1).data() == "ready")


def test_running_needs_a_reason_and_the_name_unless_it_is_a_drill(console) -> None:  # type: ignore[no-untyped-def]
    window = show(console, shop(console))
    window.plans.run.click()
    sheet = window.plan_commands.dialog
    console.until(lambda: len(sheet.steps_read) == 7)
    assert "would run twice" in sheet.effects.text()
    assert sheet.steps.text().index("Tier 1: data") < sheet.steps.text().index("db01")
    assert sheet.cancel.isDefault()
    sheet.name.setText("Shop")
    assert not sheet.go.isEnabled(), "no reason yet"
    sheet.reason.setText("a fire")
    for wrong in ("shop", "Sho", "Shop ", ""):
        sheet.name.setText(wrong)
        assert not sheet.go.isEnabled(), wrong
    sheet.mode_box.setCurrentIndex(2)
    console.until(sheet.go.isEnabled)
    assert "Nothing that runs is touched" in sheet.effects.text()
    sheet.mode_box.setCurrentIndex(1)
    console.until(lambda: len(sheet.steps_read) == 7)
    assert not sheet.go.isEnabled()
    sheet.name.setText("Shop")
    sheet.go.click()
    console.until(lambda: console.asked("run_plan") == [(SHOP, PlanMode.MIGRATION, "a fire")])
    assert "MainThread" not in console.backend.threads


def test_a_run_is_a_live_tree_down_to_the_steps_of_each_vm(console) -> None:  # type: ignore[no-untyped-def]
    done = StepState.DONE
    rows = (
        PLAN_STEPS[0].model_copy(update={"state": done}),
        PLAN_STEPS[1].model_copy(update={"state": StepState.RUNNING}),
        PLAN_STEPS[2].model_copy(update={"state": StepState.RUNNING, "operation_id": "op-1", "note": "waiting"}),
        *PLAN_STEPS[3:],
    )
    child = migration(1, datetime.now(UTC), version=1)
    window = show(console, shop(console), operations=(run_of(*rows), child))
    page = window.plans
    console.until(lambda: len(page.tree.lines()) > 7)
    lines = page.tree.lines()
    assert lines[:5] == [
        (0, "Look whether all of it can run", "done", ""),
        (0, "Tier 1: data", "running", ""),
        (1, "db01", "running", "waiting"),
        (2, "Look whether it would start at the target", "done", ""),
        (2, "Sync while it runs, and compare both sides", "running", "reading vda"),
    ]
    assert [line[:2] for line in lines[-3:]] == [(0, "Tier 2"), (1, "web01"), (0, "Look what runs")]
    assert not page.run.isEnabled()
    later = run_of(*rows, version=2), migration(2, datetime.now(UTC), version=2)
    show(console, shop(console), operations=later)
    console.until(lambda: page.tree.lines()[4][2] == "done")


def test_what_a_run_or_a_vm_of_it_asks_is_answered_there(console) -> None:  # type: ignore[no-untyped-def]
    choices = (Choice(key="go", text="Go on"), Choice(key="stop", text="Leave it as it is"))
    asked = Question(question_id="pause-2/0", text="Is the DNS moved?", choices=choices, asked_at=datetime.now(UTC))
    run = run_of(state=OperationState.WAITING, question=asked)
    window = show(console, shop(console), operations=(run,))
    page = window.plans
    console.until(page.question.isVisible)
    assert "Is the DNS moved?" in page.question.text.text()
    assert [b.text() for b in page.question.choices] == ["Go on", "Leave it as it is"]
    page.question.choices[0].click()
    console.until(lambda: console.asked("answer_question") == [("run-1", "pause-2/0", "go")])
    # Now one of its VMs' own operations asks.
    rows = (*PLAN_STEPS[:2], PLAN_STEPS[2].model_copy(update={"operation_id": "op-1"}), *PLAN_STEPS[3:])
    force = Question(
        question_id="shut-down/0", text="It did not shut down", choices=choices, asked_at=datetime.now(UTC)
    )
    child = migration(2, datetime.now(UTC), version=9, question=force, state=OperationState.WAITING)
    show(console, shop(console), operations=(run_of(*rows, version=2), child))
    console.until(lambda: "It did not shut down" in page.question.text.text())
    page.question.choices[1].click()
    console.until(lambda: console.asked("answer_question")[1:] == [("op-1", "shut-down/0", "stop")])


def test_stopping_is_confirmed_first(console) -> None:  # type: ignore[no-untyped-def]
    window = show(console, shop(console), operations=(run_of(),))
    console.until(window.plans.stop.isVisible)
    for press in ("&Let it go on", "&Stop it"):
        window.plans.stop.click()
        box = window.plan_commands.dialog
        assert "what is up is seen as done" in box.text()
        assert console.asked("cancel_operation") == []
        next(b for b in box.buttons() if b.text() == press).click()
    console.until(lambda: console.asked("cancel_operation") == [("run-1",)])


def test_the_report_tells_per_vm_what_was_seen(console) -> None:  # type: ignore[no-untyped-def]
    now = datetime.now(UTC)
    report = [
        {"vm": "db01", "vm_uuid": "u-db", "state": "up", "seconds": 2.31, "how": "emergency failover done",
         "now": "running", "target": "site-b", "checks": [{"check": "agent answers", "seconds": 1.0}]},
        {"vm": "web01", "vm_uuid": "u-web", "state": "skipped", "seconds": 0.4, "now": "undefined",
         "problem": "“web01” did not start"},
    ]  # fmt: skip
    run = run_of(
        state=OperationState.DONE, ended_at=now + timedelta(seconds=9), result={"report": report, "seconds": 9.0}
    )
    window = show(console, shop(console), operations=(run,))
    page = window.plans
    console.until(lambda: page.report.rowCount() == 2)
    rows = [[page.report.index(r, c).data() for c in range(7)] for r in range(2)]
    assert rows[0] == ["db01", "up", "2.3 s", "running", "site-b", "agent answers", "emergency failover done"]
    assert rows[1] == ["web01", "left out", "0.4 s", "undefined", "—", "", "“web01” did not start"]
    assert "done" in page.headline.text()
    assert page.run.isEnabled()


def test_a_plan_is_made_in_the_editor(console) -> None:  # type: ignore[no-untyped-def]
    window = show(console)
    window.plans.new.click()
    editor = window.plan_commands.dialog
    assert not editor.save.isEnabled()
    editor.name.setText("Shop")
    for name in ("db01", "web01"):
        editor.add_box.setCurrentText(name)
        editor.add_vm.click()
    assert editor.save.isEnabled()
    # web01 goes down into a tier of its own, which has a name and a pause.
    editor.add_tier.click()
    assert "Tier 2 has no VM" in editor.state.text()
    editor.tier_name.setText("front")
    editor.tier_name.textEdited.emit("front")
    editor.pause.setText("Is the DNS moved?")
    editor.pause.textEdited.emit("")
    editor.tree.setCurrentItem(editor.tree.topLevelItem(0).child(1))
    editor.down.click()
    form = editor.vm_form
    console.until(lambda: "lan-a" in form.networks.choices)
    form.networks.choices["lan-a"].setCurrentText("dmz")
    form.agent.click()
    form.ports.setText("443, 99999")
    form.ports.textEdited.emit("")
    assert "“99999” is no port" in editor.state.text()
    assert not editor.save.isEnabled()
    form.ports.setText("443")
    form.ports.textEdited.emit("")
    form.address.setText("198.51.100.7/24")
    form.address.textEdited.emit("")
    editor.save.click()
    console.until(lambda: len(console.asked("save_plan")) == 1)
    [(plan,)] = console.asked("save_plan")
    assert [(t.name, t.pause, [v.name for v in t.vms]) for t in plan.tiers] == [
        ("", "", ["db01"]),
        ("front", "Is the DNS moved?", ["web01"]),
    ]
    web = plan.tiers[1].vms[0]
    assert [c.words for c in web.checks] == ["agent answers", "port 443"]
    assert web.networks == {"lan-a": "dmz"}
    assert web.addresses == (Address(address="198.51.100.7/24"),)
    assert (plan.plan_id, plan.version) == ("", 0)


def test_an_edit_keeps_what_the_editor_does_not_show_and_a_refusal_loses_nothing(console) -> None:  # type: ignore[no-untyped-def]
    status = shop(console)
    window = show(console, status)
    window.plans.edit.click()
    editor = window.plan_commands.dialog
    assert editor.plan().tiers == status.plan.tiers
    editor.name.setText("Shop 2")
    console.backend.fail["save_plan"] = EditOutdated("The recovery plan “Shop” was changed since it was read")
    editor.save.click()
    console.until(lambda: "changed since it was read" in editor.state.text())
    assert editor.isVisible()
    assert editor.name.text() == "Shop 2"
    [(plan,)] = console.asked("save_plan")
    assert (plan.plan_id, plan.version, plan.name) == (SHOP, 4, "Shop 2")


def test_deleting_wants_the_name(console) -> None:  # type: ignore[no-untyped-def]
    window = show(console, shop(console))
    window.plans.delete.click()
    dialog = window.plan_commands.dialog
    assert not dialog.go.isEnabled()
    dialog.name.setText("Shop")
    dialog.go.click()
    console.until(lambda: console.asked("delete_plan") == [(SHOP, 4)])


def test_a_draft_moves_vms_over_the_edges_of_tiers() -> None:
    def names(draft: Draft) -> list[list[str]]:
        return [[v.name for v in t.vms] for t in draft.tiers]

    draft = Draft((Tier(vms=(PlanVm(vm_uuid="a", name="a"), PlanVm(vm_uuid="b", name="b"))),))
    assert draft.move((0, 1), 1) == (0, 1), "there is no tier below"
    draft.add_tier()
    assert draft.move((0, 1), 1) == (1, 0)
    assert names(draft) == [["a"], ["b"]]
    assert draft.move((1, 0), -1) == (0, 1)
    assert draft.move((0, 1), -1) == (0, 0)
    assert names(draft) == [["b", "a"], []]
    assert draft.move((1, None), -1) == (0, None)
    with pytest.raises(InvalidRequest, match="Tier 1 has no VM"):
        draft.plan("x", "", 0, 4, 120.0, datetime.now(UTC))
    assert draft.remove((0, None)) == (0, None)
    assert draft.plan("x", "", 0, 4, 120.0, datetime.now(UTC)).tiers[0].vms[0].name == "b"
    assert world().plans == ()
