"""*Edit protection…*, *Seed first copy…* and the tab *Disks*: what they show, ask for and refuse."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, time, timedelta

import pytest
from fake_backend import RAW, disk_status
from PySide6.QtCore import QTime
from PySide6.QtWidgets import QTimeEdit

from vapor_desktop.gui.disks_tab import disk_severity, how, verified
from vapor_desktop.gui.edit_dialog import EditDialog
from vapor_desktop.gui.policy_editor import PolicyEditor, next_runs
from vapor_desktop.gui.seed_dialog import SeedDialog
from vapor_desktop.gui.theme import Theme
from vapor_desktop.model.errors import EditOutdated, LeaseHeld
from vapor_desktop.model.policy import BandwidthWindow, Mappings, Policy, Quiesce, Retention, StartGuard
from vapor_desktop.model.states import Severity
from vapor_desktop.model.view import DisksView, SettingsEdit
from vapor_desktop.model.wire import SeedState

FULL = Policy(
    rpo_target_s=7200, at_times=(time(6), time(18, 30)), retention=Retention(newest=3, hourly=2, daily=1),
    quiesce=Quiesce.NEVER, bandwidth_bytes_s=512 << 10, start_guard=StartGuard.START, priority=8, scrub_days=3,
    bandwidth_windows=(
        BandwidthWindow(start=time(8), end=time(18), bandwidth_bytes_s=1_000_000),
        BandwidthWindow(start=time(22), end=time(5, 30)),
    ),
)  # fmt: skip


@pytest.fixture
def dialog(console) -> EditDialog:  # type: ignore[no-untyped-def]
    window = console.shown()
    console.backend.policies["p-web01"] = (FULL, Mappings(networks={"lan-a": "lan0"}, replica_root="/r"))
    window.go(1)
    window.vms.table.select("p-web01")
    window.verbs["edit"].trigger()
    found = window.commands.dialog
    assert isinstance(found, EditDialog)
    console.until(lambda: found.settings is not None)
    return found


def test_a_form_that_nobody_touched_says_the_very_same(dialog: EditDialog, theme: Theme) -> None:
    """Also what the form cannot show: priority, scrub days, a rate that is no round MiB, a replica root."""
    assert dialog.edit() == SettingsEdit(3, FULL, Mappings(networks={"lan-a": "lan0"}, replica_root="/r"))
    assert not dialog.save.isEnabled()
    dialog.reject()
    editor = PolicyEditor(theme)
    for policy in (Policy(), FULL, Policy(bandwidth_bytes_s=70_001, at_times=(time(1, 2, 3),))):
        editor.show_policy(policy)
        assert editor.policy(policy) == policy


def test_each_field_is_written_on_the_version_that_was_read(console, dialog: EditDialog) -> None:  # type: ignore[no-untyped-def]
    editor = dialog.editor
    editor.rpo.set_seconds(600)
    editor.continuous.click()
    editor.keep["daily"].setValue(5)
    editor.limit.box.setValue(20)
    editor.windows.table.setCurrentCell(1, 0)
    editor.windows.drop.click()
    end = editor.windows.table.cellWidget(0, 1)
    assert isinstance(end, QTimeEdit)
    end.setTime(QTime(17, 0))
    dialog.networks.choices["lan-a"].setCurrentText("dmz")
    assert "running cycle is stopped" in dialog.state.text()
    dialog.save.click()
    console.until(lambda: bool(console.asked("edit")))
    key, edit = console.asked("edit")[0]
    window = BandwidthWindow(start=time(8), end=time(17), bandwidth_bytes_s=1_000_000)
    wanted = FULL.model_copy(
        update={
            "rpo_target_s": 600, "at_times": (), "retention": Retention(newest=3, hourly=2, daily=5),
            "bandwidth_bytes_s": 20 << 20, "bandwidth_windows": (window,),
        }
    )  # fmt: skip
    assert (key, edit) == ("p-web01", SettingsEdit(3, wanted, Mappings(networks={"lan-a": "dmz"}, replica_root="/r")))


def test_what_somebody_else_changed_is_not_overwritten(console, dialog: EditDialog) -> None:  # type: ignore[no-untyped-def]
    console.backend.fail["edit"] = EditOutdated("The settings of web01 were changed meanwhile", why="version 4")
    dialog.editor.rpo.set_seconds(60)
    dialog.save.click()
    console.until(lambda: "changed meanwhile" in dialog.state.text())
    assert "Nothing was changed" in dialog.state.text()
    assert dialog.editor.rpo.seconds() == 60, "what was typed is still there"
    assert not dialog.save.isEnabled()
    theirs = Policy(rpo_target_s=120)
    console.backend.policies["p-web01"] = (theirs, Mappings(networks={"lan-a": "lan0"}))
    console.backend.version = 4
    del console.backend.fail["edit"]
    assert dialog.again.isVisible()
    dialog.again.click()
    console.until(lambda: dialog.settings is not None)
    assert dialog.editor.rpo.seconds() == 120
    dialog.editor.rpo.set_seconds(60)
    dialog.save.click()
    console.until(lambda: len(console.asked("edit")) == 2)
    assert console.asked("edit")[1][1].version == 4


def test_a_refusal_keeps_the_dialog_and_lets_one_try_again(console, dialog: EditDialog) -> None:  # type: ignore[no-untyped-def]
    console.backend.fail["edit"] = LeaseHeld("anna@desk holds this VM's lease", fix="Wait until it is done")
    dialog.editor.rpo.set_seconds(60)
    dialog.save.click()
    console.until(lambda: "anna@desk" in dialog.state.text())
    assert dialog.save.isEnabled()
    assert not dialog.again.isVisible()
    dialog.reject()


def test_a_retention_that_does_not_fit_cannot_be_saved(console, dialog: EditDialog) -> None:  # type: ignore[no-untyped-def]
    hint = dialog.editor._keep_hint
    assert "6 points of at most 31 that fit at site-b" in hint.text()
    dialog.editor.keep["newest"].setValue(24)
    dialog.editor.keep["daily"].setValue(24)
    assert "50 recovery points and the one being received do not fit" in hint.text()
    assert not dialog.save.isEnabled()
    dialog.editor.keep["daily"].setValue(5)
    assert dialog.save.isEnabled()
    dialog.editor.show_limit(16, "site-b")
    assert "at most 15" in hint.text()
    assert not dialog.save.isEnabled()
    dialog.reject()


def test_times_of_day_are_judged_while_they_are_typed(dialog: EditDialog) -> None:
    editor = dialog.editor
    hint = editor._rpo_hint
    assert "Up to 12 h 30 min lie between them" in hint.text(), "06:00 and 18:30 against a target of 2 h"
    editor.times.setText("06:00 26:00")
    assert "26:00” is not a time of day" in hint.text()
    assert dialog.edit() is None
    assert not dialog.save.isEnabled()
    editor.times.setText("")
    assert editor.problem() == "Write at least one time of day"
    editor.times.setText(", ".join(f"{hour:02}:00" for hour in range(0, 24, 2)))
    assert "breached" not in hint.text()
    assert dialog.save.isEnabled()
    editor.windows.add.click()
    start = editor.windows.table.cellWidget(2, 0)
    assert isinstance(start, QTimeEdit)
    start.setTime(QTime(18, 0))
    assert not dialog.save.isEnabled()
    dialog.reject()


def test_the_next_runs_go_over_midnight() -> None:
    now = datetime(2026, 3, 4, 19, tzinfo=UTC)
    assert [run[:13] for run in next_runs((time(6), time(18, 30)), now)] == [
        "Thu 06:00 UTC",
        "Thu 18:30 UTC",
        "Fri 06:00 UTC",
    ]
    assert next_runs((), now) == []


def test_an_unreadable_target_is_said_and_asked_again(console) -> None:  # type: ignore[no-untyped-def]
    window = console.shown()
    console.backend.fail["settings"] = LeaseHeld("site-b does not answer")
    window.go(1)
    window.vms.table.select("p-web01")
    window.verbs["edit"].trigger()
    dialog = window.commands.dialog
    console.until(lambda: "site-b does not answer" in dialog.state.text())
    assert not dialog.tabs.isEnabled()
    assert not dialog.save.isEnabled()
    console.backend.fail.clear()
    dialog.again.click()
    console.until(dialog.tabs.isEnabled)
    dialog.reject()


def test_seed_asks_for_the_images_of_disks_without_points(console) -> None:  # type: ignore[no-untyped-def]
    window = console.shown()
    console.backend.disk_view = DisksView(
        (
            disk_status("vda"),
            disk_status("vdb", **(RAW | {"in_point": False})),
            disk_status("sda", kind="excluded", reason="A cdrom"),
        )
    )
    console.backend.seeding = [SeedState(running=True, disk="vdb", done_bytes=3, total_bytes=9)]
    window.open_vm("p-web01")
    window.verbs["seed"].trigger()
    dialog = window.commands.dialog
    assert isinstance(dialog, SeedDialog)
    console.until(lambda: dialog.disks.rowCount() == 2)
    assert dialog.disks.item(0, 2).text() == "has recovery points already"
    assert not dialog.go.isEnabled()
    dialog.path_of("vdb").setText("images/b.raw")
    assert "not absolute" in dialog.state.text()
    assert not dialog.go.isEnabled()
    dialog.path_of("vdb").setText("/images/b.raw")
    dialog._format.setCurrentText("raw")
    dialog.go.click()
    console.until(lambda: console.asked("seed") == [("p-web01", {"vdb": "/images/b.raw"}, "raw")])
    console.until(lambda: window.panel.model.record(0).outcome == "done")
    task = window.panel.model.record(0)
    assert task.title == "Seed the first copy of web01"
    assert (task.progress.done_bytes, task.progress.total_bytes) == (3, 9)


def test_disks_are_asked_for_while_they_are_seen_only(console) -> None:  # type: ignore[no-untyped-def]
    window = console.shown()
    window.open_vm("p-web01")
    assert console.asked("disks") == []
    tab = window.detail.disks
    window.detail.tabs.setCurrentWidget(tab)
    console.until(lambda: tab.model.rowCount() == 2)
    assert "Convert it to qcow2" in tab.notes.text()
    view = console.backend.disk_view
    console.backend.disk_view = replace(view, disks=view.disks[:1], source_trouble="site-a does not answer")
    tab._timer.setInterval(50)
    console.until(lambda: tab.model.rowCount() == 1)
    assert "site-a does not answer" in tab.notes.text()
    window.detail.tabs.setCurrentIndex(0)
    asked = len(console.asked("disks"))
    seen = len(console.asked("snapshot"))
    console.until(lambda: len(console.asked("snapshot")) > seen + 3)
    assert len(console.asked("disks")) <= asked + 1


def test_a_disk_in_words() -> None:
    now = datetime.now(UTC)
    vda = disk_status("vda", scrub_passed_at=now - timedelta(hours=2), scrub_reached_bytes=5 << 30)
    assert how(vda) == "by delta: bitmap valid"
    assert verified(vda, now).endswith("next pass 25 %")
    assert disk_severity(vda) is Severity.OK
    new = disk_status(
        "vdb",
        in_point=False,
        last_mode="",
        last_why="",
        scrub_reached_bytes=None,
        scrub_passed_at=None,
        verified=None,
    )
    assert how(new) == "first copy is to come, then by delta"
    assert how(replace(new, seeded=True)) == "first copy from a seed is to come, then by delta"
    assert how(replace(new, received_bytes=3 << 30)) == "first copy, 3.0 GiB received"
    assert verified(new, now) == "—"
    assert disk_severity(new) is Severity.WARNING
    assert verified(replace(vda, verified=False), now) == "mismatch found"
    assert disk_severity(replace(vda, verified=False)) is Severity.CRITICAL
    dark = replace(vda, kind="", reason="", last_mode="", format="", source=None)
    assert how(dark) == "—"


def test_the_settings_tab_says_what_is_promised(console) -> None:  # type: ignore[no-untyped-def]
    window = console.shown()
    rows = list(console.backend.shot.protections)
    rows[0] = replace(rows[0], protection=rows[0].protection.model_copy(update={"policy": FULL}))
    console.backend.shot = replace(console.backend.shot, protections=tuple(rows))
    window.open_vm("p-web01")
    said = window.detail.settings.labels
    console.until(lambda: "06:00, 18:30 UTC" in said["target"].text())
    assert "08:00 to 18:00 UTC" in said["transfer"].text()
    assert "both sides" in said["guard"].text()


def test_the_wizard_asks_for_fixed_times(console) -> None:  # type: ignore[no-untyped-def]
    window = console.shown()
    window.commands.protect()
    wizard = window.commands.dialog
    page = wizard.policy
    assert page.isComplete()
    page.editor.fixed.click()
    assert not page.isComplete()
    page.editor.times.setText("18:30, 06:00")
    page.editor.windows.add.click()
    assert page.isComplete()
    request = wizard.request()
    assert request.at_times == (time(6), time(18, 30))
    assert request.bandwidth_windows == (BandwidthWindow(start=time(8), end=time(18), bandwidth_bytes_s=10 << 20),)
    wizard.summary.initializePage()
    assert wizard.summary.command.toPlainText().endswith("--at 06:00 --at 18:30 --window 08:00-18:00=10485760")
    wizard.reject()
