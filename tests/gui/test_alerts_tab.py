"""Alerts in the window: dealt with there, the notifications know."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from PySide6.QtTest import QAbstractItemModelTester

from vapor_desktop.gui.alerting import Alerting
from vapor_desktop.gui.episodes import Notice
from vapor_desktop.gui.notify import Notifier
from vapor_desktop.model.states import Severity
from vapor_desktop.model.view import Alert


class Quiet(Notifier):
    """Keeps what it was given; there is no bus here."""

    def __init__(self) -> None:
        self.given: list[Notice] = []
        super().__init__("tests", "tests")

    def notify(self, notice: Notice) -> None:
        self.given.append(notice)


def alert(name: str, **more) -> Alert:  # type: ignore[no-untyped-def]
    opened = datetime.now(UTC) - timedelta(minutes=3)
    made = Alert(f"rpo:p-{name}", opened, None, Severity.CRITICAL, f"RPO breached: {name}", "12 min", f"p-{name}")
    return replace(made, **more)


@pytest.fixture
def deskful(console):  # type: ignore[no-untyped-def]
    window = console.shown()
    notifier = Quiet()
    alerting = Alerting(notifier, console.context.memory, window)
    tab = window.activity.alerts
    alerting.known.connect(tab.show_known)
    tab.acknowledge_asked.connect(alerting.acknowledge)
    tab.snooze_asked.connect(alerting.snooze)
    yield window, tab, alerting, notifier
    notifier.close()


def test_expectation_17_acknowledged_in_the_window_is_not_reminded_of(console, deskful) -> None:  # type: ignore[no-untyped-def]
    window, tab, alerting, notifier = deskful
    QAbstractItemModelTester(tab.model, QAbstractItemModelTester.FailureReportingMode.Fatal)
    over = alert("web01", closed_at=datetime.now(UTC), opened_at=datetime.now(UTC) - timedelta(hours=1))
    shot = replace(window.snapshot, alerts=(alert("db01"), over))
    tab.take(shot.alerts)
    alerting.take(shot)
    assert [n.title for n in notifier.given] == ["RPO breached: db01"]
    tab.table.selectRow(0)
    assert tab.acknowledge.isEnabled()
    tab.acknowledge.click()
    assert tab.model.index(0, 3).data() == "acknowledged"
    assert not tab.acknowledge.isEnabled()
    alerting.take(replace(shot, at=shot.at + timedelta(hours=9)))
    assert len(notifier.given) == 1
    tab.table.selectRow(1)  # it is over: nothing to acknowledge
    assert not tab.acknowledge.isEnabled()
    assert not tab.snooze.isEnabled()
    assert tab.open.isEnabled()


def test_snoozed_in_the_window_comes_back_in_an_hour(console, deskful) -> None:  # type: ignore[no-untyped-def]
    window, tab, alerting, notifier = deskful
    console.context.memory.put("notify_critical", False)  # not told yet
    shot = replace(window.snapshot, alerts=(alert("db01"),))
    tab.take(shot.alerts)
    alerting.take(shot)
    assert notifier.given == []
    tab.table.selectRow(0)
    tab.snooze.click()
    assert tab.model.index(0, 3).data().startswith("snoozed until ")
    console.context.memory.put("notify_critical", True)
    alerting.take(replace(shot, at=shot.at + timedelta(minutes=50)))
    assert notifier.given == []
    alerting.take(replace(shot, at=shot.at + timedelta(minutes=70)))
    assert [n.title for n in notifier.given] == ["Still: RPO breached: db01"]


def test_an_alert_opens_its_vm(console, deskful) -> None:  # type: ignore[no-untyped-def]
    window, tab, _alerting, _notifier = deskful
    window.go_to("activity")
    tab.take((alert("db01"),))
    tab.table.selectRow(0)
    tab.open.click()
    assert window.detail.key == "p-db01"


def test_no_alert_is_said(deskful) -> None:  # type: ignore[no-untyped-def]
    _window, tab, _alerting, _notifier = deskful
    tab.take(())
    assert not tab.state.isHidden()
    assert not tab.open.isEnabled()
