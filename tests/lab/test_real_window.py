"""The main job as a person does it: the real window on two real hosts, from nothing to a failover.

One story in the order of the file. The window's engine runs in its QThread; the desktop around it (session bus,
keyring, notification server) is the test's own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from desk import COMMIT, FINISH, NEXT, Desk, Stillness
from PySide6.QtCore import Qt
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QComboBox

from vapor_desktop.gui.decision_sheet import DecisionSheet
from vapor_desktop.gui.failover_sheet import FailoverSheet
from vapor_desktop.gui.pair_wizard import PairWizard
from vapor_desktop.gui.protect_wizard import ProtectWizard
from vapor_desktop.lab import guests
from vapor_desktop.lab.keyring_session import KeyringSession
from vapor_desktop.lab.lab import Lab
from vapor_desktop.lab.stage import remove_guests

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]
NAME = "desk"
RATE = 5  # diary records a second
TARGET_S = 10
STILL_S = 0.1
DARK_S = 15


@pytest.fixture(scope="module")
def desk(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A new user's console; one guest runs at site A, and nothing is paired or protected."""
    remove_guests(lab)
    home = tmp_path_factory.mktemp("desk")
    guests.add(lab.sites["a"], guests.GuestSpec(NAME, rate=RATE, scratch=1), lab.cache)
    with KeyringSession(home):
        made = Desk(home)
        try:
            yield made
        finally:
            made.close()
            del os.environ["VAPOR_DATABASE_URL"]
            remove_guests(lab)


@pytest.fixture(autouse=True)
def no_error_uncaught(desk: Desk) -> Iterator[None]:
    yield
    assert desk.uncaught == []


def ctl(*words: str) -> object:
    """vaporctl on the same database, while the window hosts the engine: it reads beside it."""
    command = [sys.executable, "-m", "vapor_desktop.cli.main", *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return json.loads(done.stdout.splitlines()[-1])


def test_it_opens_with_nothing(desk: Desk) -> None:
    desk.until(lambda: desk.window.snapshot is not None and desk.window.snapshot.engine == "here", "the engine")
    assert desk.window.isVisible()
    assert desk.window.status_line.worst_text.text() == "Nothing is protected"
    assert desk.window.status_line.engine.text() == "Engine: in this window"
    desk.window.go(2)
    assert "No site is paired yet" in desk.window.sites.about.text()
    desk.window.verbs["protect"].trigger()
    assert "needs two paired sites" in desk.window.commands.dialog.text()
    desk.window.commands.dialog.close()


def test_pair_two_sites_by_url_and_token(desk: Desk, lab: Lab) -> None:
    a, b = lab.sites["a"], lab.sites["b"]
    QTest.mouseClick(desk.window.sites.pair, Qt.MouseButton.LeftButton)
    wizard = desk.window.commands.dialog
    assert isinstance(wizard, PairWizard)
    tokens = [site.token_new() for site in (a, b)]
    for n, (url, token) in enumerate(((f"{a.api_url}/api/v1", tokens[0]), (b.address, tokens[1]))):
        QTest.keyClicks(wizard.address.urls[n], url)
        wizard.address.tokens[n].setText(token)
    assert [hint.text() for hint in wizard.address.hints] == [f"→ {site.api_url}/api/v1" for site in (a, b)]
    desk.press(wizard, NEXT)
    desk.until(lambda: all(card.probe for card in wizard.identity.cards), "both certificates")
    assert not wizard.button(COMMIT).isEnabled(), "no token leaves before both certificates were confirmed"
    for card, site in zip(wizard.identity.cards, (a, b), strict=True):
        printed = site.exec(["vapor-site", "fingerprint"], user="vapor").stdout.strip()
        assert card.fingerprint.text().replace("\n", "") == printed
        card.confirm.click()
        assert card.confirm.isChecked()
    seen: set[str] = set()

    def ended() -> bool:
        seen.update(wizard.run.checks.states().values())
        return bool(wizard.run.problem.text())

    desk.press(wizard, COMMIT)
    desk.until(ended, "the pairing", 90)
    assert wizard.run.done, wizard.run.problem.text()
    shown = list(wizard.run.checks.checks.values())
    assert "site-a and site-b are paired. They reach each other directly." in wizard.run.problem.text(), shown
    assert "running" in seen, "the checks report themselves while they run"
    assert [c for c in shown if c.state not in {"ok", "warning"}] == []
    assert wizard.address.tokens[0].text() == ""
    desk.press(wizard, FINISH)
    model = desk.window.sites.model
    desk.until(lambda: model.rowCount() == 2, "both sites on their page")
    desk.until(lambda: desk.site("site-a", "Paired with") == "site-b (direct)", "the pair")
    desk.until(lambda: {desk.site(n, "State") for n in ("site-a", "site-b")} == {"reachable"}, "both reachable")


def test_protect_a_running_vm_and_see_its_points_come(desk: Desk, lab: Lab) -> None:
    a, b = lab.sites["a"], lab.sites["b"]
    desk.until(lambda: "VAPOR-DIARY " in a.serial(NAME), "the guest's boot", 90)
    desk.window.go(1)
    desk.window.verbs["protect"].trigger()
    wizard = desk.window.commands.dialog
    assert isinstance(wizard, ProtectWizard)
    table = wizard.vms.table
    desk.until(lambda: table.rowCount() > 0, "the VMs of the first site")
    [at] = [n for n in range(table.rowCount()) if table.item(n, 0).text() == NAME]
    assert table.item(at, 1).text() == "running"
    table.item(at, 0).setCheckState(Qt.CheckState.Checked)
    desk.press(wizard, NEXT)
    desk.until(lambda: wizard.target.table.rowCount() == 1, "the networks")
    assert not wizard.target.isComplete(), "lan-a does not exist at the target"
    box = wizard.target.table.cellWidget(0, 1)
    assert isinstance(box, QComboBox)
    box.setCurrentText(b.network)
    desk.press(wizard, NEXT)
    wizard.policy.editor.rpo.unit.setCurrentText("seconds")
    wizard.policy.editor.rpo.value.setValue(TARGET_S)
    desk.press(wizard, NEXT)
    desk.until(wizard.check.isComplete, "the checks")
    assert "failed" not in wizard.check.checks.states().values()
    desk.press(wizard, NEXT)
    assert f"--map {a.network}={b.network}" in wizard.summary.command.toPlainText()
    desk.press(wizard, FINISH)

    stages: list[str] = []

    def note() -> None:
        for text in [desk.cell(r.protection.vm_name, "status") for r in desk.statuses()]:
            if not stages or stages[-1] != text:
                stages.append(text)

    def points(count: int) -> bool:
        note()
        return any(r.point_count >= count for r in desk.statuses())

    desk.until(lambda: points(1), "the first recovery point", 90)
    assert stages[0] == "Initial sync"
    desk.until(lambda: points(3), "two more points by themselves", 60)
    desk.until(lambda: desk.cell(NAME, "status") == "Protected", "Protected", 30)
    assert desk.cell(NAME, "rpo_target") == "10 s"
    assert desk.cell(NAME, "route") == "site-a → site-b"
    assert desk.cell(NAME, "points").startswith(str(desk.status(NAME).point_count))


def test_the_detail_shows_the_rpo(desk: Desk) -> None:
    desk.choose(NAME)
    desk.window.verbs["open"].trigger()
    detail = desk.window.detail
    assert detail.isVisible()
    graph = detail.rpo.graph
    desk.until(lambda: graph.series.samples >= 5, "samples in the graph")
    known = graph.series.values[graph.series.values == graph.series.values]
    assert 0 < known.max() < 60
    assert set(graph.series.targets.tolist()) == {float(TARGET_S)}
    desk.until(lambda: "Highest" in detail.rpo.summary.text(), "the graph in a sentence")


def test_sync_now_makes_a_point(desk: Desk) -> None:
    desk.choose(NAME)
    desk.until(desk.window.verbs["sync"].isEnabled, "the gap between cycles")
    before = desk.status(NAME).last_seq or 0
    asked = time.monotonic()
    desk.window.verbs["sync"].trigger()
    desk.until(lambda: (desk.status(NAME).last_seq or 0) > before, "the point asked for", 30)
    assert time.monotonic() - asked < 0.75 * TARGET_S, "by itself it would have come as late as this"
    assert desk.context.errands.tasks()[0].outcome == "done"


def test_pause_and_resume(desk: Desk, lab: Lab) -> None:
    """While it is paused nothing moves: then window, vaporctl and the target's manifest must tell the same points."""
    desk.choose(NAME)
    desk.window.verbs["pause"].trigger()
    desk.until(lambda: desk.status(NAME).protection.paused, "paused")
    desk.until(lambda: desk.status(NAME).cycle_started_at is None, "the end of the cycle", 30)
    assert desk.cell(NAME, "status").startswith("Paused")
    assert desk.cell(NAME, "next_run") == "paused"
    desk.until(lambda: not desk.window.verbs["pause"].isEnabled(), "Pause is of no use now")
    desk.window.verbs["open"].trigger()
    detail = desk.window.detail
    detail.tabs.setCurrentIndex(1)
    status = desk.status(NAME)
    desk.until(lambda: detail.points.rowCount() == status.point_count, "the points in the detail")
    shown = [
        (p.seq, p.taken_at, p.current_as_of) for n in range(status.point_count) if (p := detail.points.record(n))
    ]
    told = ctl("points", NAME)
    assert isinstance(told, list)
    assert [s for s, _t, _c in shown] == [p["seq"] for p in told]
    file = lab.sites["b"].path(f"/var/lib/libvirt/images/vapor/{status.protection.vm_uuid}/manifest.json")
    kept = [p for p in json.loads(file.read_text())["points"] if not p["dead"]]
    assert sorted(s for s, _t, _c in shown) == [p["seq"] for p in kept]
    at = {p["seq"]: (p["taken_at"], p["current_as_of"]) for p in kept}
    assert {s: (_wire(t), _wire(c)) for s, t, c in shown} == {s: (_iso(t), _iso(c)) for s, (t, c) in at.items()}

    desk.choose(NAME)
    desk.window.verbs["resume"].trigger()
    desk.until(lambda: (desk.status(NAME).last_seq or 0) > (status.last_seq or 0), "a point after Resume", 30)
    assert not desk.cell(NAME, "status").startswith("Paused")


def _wire(moment: object) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%S.%f}"


def _iso(text: str) -> str:
    from datetime import datetime

    return _wire(datetime.fromisoformat(text))


def test_a_dark_source_is_told_once_and_the_window_stays_alive(desk: Desk, lab: Lab, capsys) -> None:  # type: ignore[no-untyped-def]
    desk.choose(NAME)
    desk.window.verbs["open"].trigger()
    desk.window.detail.tabs.setCurrentIndex(0)
    desk.until(lambda: desk.status(NAME).rpo_health.value == "within target", "a good state")
    desk.desktop.shown.clear()
    still = Stillness()
    # Another process pulls the plug: nothing of that work is on this process's account.
    cut = subprocess.Popen([sys.executable, "-m", "vapor_desktop.lab.main", "--name", lab.name, "kill-site", "a"])
    desk.until(lambda: cut.poll() is not None, "the power cut")
    assert cut.returncode == 0
    dark_since = time.monotonic()
    ages: list[float | None] = []

    def unreachable() -> bool:
        ages.append(desk.status(NAME).rpo_now_s)
        return desk.cell(NAME, "status").startswith("Source unreachable")

    desk.until(unreachable, "source unreachable", 60)
    noticed_s = time.monotonic() - dark_since
    desk.until(lambda: unreachable() and time.monotonic() - dark_since > DARK_S, "more darkness", 90)
    desk.until(lambda: bool(desk.notices(f"RPO breached: {NAME}")), "the notification", 30)
    desk.until(lambda: bool(desk.notices("site-a is unreachable")), "the other notification", 30)
    desk.live(3)  # would anything be told a second time?
    gaps = still.end()
    told = ", ".join(f"{gap * 1e3:.0f} ms ({starved * 1e3:.0f} ms of it without a CPU)" for gap, starved in gaps[:3])
    with capsys.disabled():
        print(
            f"\nsource dark: noticed after {noticed_s:.1f} s; longest of {len(gaps)} gaps of the GUI thread: {told}"
        )
    known = [age for age in ages if age is not None]
    assert known[-1] >= DARK_S
    assert all(b >= a - 0.001 for a, b in zip(known[-50:], known[-49:], strict=False)), "it only rises"
    assert "breached" in desk.cell(NAME, "status")
    assert "breached" in desk.window.detail.sentence.text()
    assert [n.title for n in desk.desktop.shown if "Recovered" in n.title] == []
    assert len(desk.notices(f"RPO breached: {NAME}")) == 1
    assert len(desk.notices("site-a is unreachable")) == 1
    assert "beyond the RPO target" in desk.shell.tray.status.text()
    assert any(line.startswith(f"{NAME}: RPO breached") for _key, line in desk.shell.tray._attention)
    assert any("site-a" in banner.text for banner in desk.window.snapshot.banners)  # type: ignore[union-attr]
    # Two shared cores: what no thread of ours could help is compared, and printed; nothing else is forgiven.
    assert [(gap, starved) for gap, starved in gaps if gap >= STILL_S and gap - starved >= STILL_S] == []
    assert gaps[len(gaps) // 100][0] < STILL_S, "starved or not, one beat in a hundred"


def test_fail_over_from_the_sheet(desk: Desk, lab: Lab) -> None:
    a, b = lab.sites["a"], lab.sites["b"]
    desk.choose(NAME)
    desk.window.verbs["failover"].trigger()
    sheet = desk.window.commands.dialog
    assert isinstance(sheet, FailoverSheet)
    desk.until(lambda: sheet.preview is not None, "the preview")
    preview = sheet.preview
    assert preview is not None
    assert "does not answer" in sheet.source.text()
    newest = preview.points[0]
    status = desk.status(NAME)
    assert newest.seq == status.last_seq
    assert newest.age_s is not None
    assert abs(newest.age_s - (status.rpo_now_s or 0)) < 5
    assert "old.</b> Everything written after" in sheet.loss.text()
    QTest.keyClicks(sheet.reason, "site a is dark")
    QTest.keyClicks(sheet.name, NAME.upper())
    assert not sheet.go.isEnabled()
    assert "exactly" in sheet.hint.text()
    QTest.mouseClick(sheet.go, Qt.MouseButton.LeftButton)
    assert sheet.isVisible(), "a wrong name starts nothing"
    sheet.name.clear()
    QTest.keyClicks(sheet.name, NAME)
    assert sheet.go.isEnabled()
    QTest.mouseClick(sheet.go, Qt.MouseButton.LeftButton)
    desk.until(lambda: desk.context.errands.tasks()[0].outcome is not None, "the failover", 60)
    assert desk.context.errands.tasks()[0].outcome == "done", desk.context.errands.tasks()[0].detail
    desk.until(lambda: desk.cell(NAME, "status").startswith("Provisional"), "Provisional")
    assert desk.cell(NAME, "rpo_now") == "—"
    assert b.virsh("domstate", NAME) == "running"
    assert b.virsh("domiflist", NAME).split()[2] == b.network

    booted = b.wait_boot(NAME, timeout_s=90)
    assert (booted.gaps, booted.torn) == (0, 0)
    # The disks at A are as the power cut left them: what is missing at B is what was written after the point.
    left = a.diary(NAME) if a.runs("libvirtd") else guests.read_diary(a, guests.GuestSpec(NAME).files)
    assert 0 < booted.last <= left.last
    assert desk.notices(f"Recovered: RPO breached: {NAME}") == []


def test_commit_from_its_sheet(desk: Desk) -> None:
    desk.choose(NAME)
    desk.window.verbs["commit"].trigger()
    sheet = desk.window.commands.dialog
    assert isinstance(sheet, DecisionSheet)
    desk.until(lambda: sheet.decision is not None, "the decision")
    assert not sheet.go.isEnabled(), "a reason is wanted"
    QTest.keyClicks(sheet.reason, "the shop is open again")
    QTest.mouseClick(sheet.go, Qt.MouseButton.LeftButton)
    desk.until(lambda: desk.context.errands.tasks()[0].outcome is not None, "the commit", 60)
    assert desk.context.errands.tasks()[0].outcome == "done", desk.context.errands.tasks()[0].detail
    desk.until(lambda: desk.cell(NAME, "status").startswith("Failed over"), "Failed over")
    assert not desk.window.verbs["commit"].isEnabled()
