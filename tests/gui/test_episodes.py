"""Which notifications an alert deserves."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from vapor_desktop.gui.episodes import GROUP_SLOT, Episodes, Rules, Urgency
from vapor_desktop.model.states import Severity
from vapor_desktop.model.view import Alert

T0 = datetime(2026, 11, 20, 10, 0, tzinfo=UTC)


def after(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def alert(name: str, opened: datetime = T0, severity: Severity = Severity.CRITICAL) -> Alert:
    return Alert(f"rpo:{name}", opened, None, severity, f"RPO breached: {name}", "12 min old", f"p-{name}")


def test_once_per_episode_and_recovery_is_told() -> None:
    episodes, one = Episodes(), alert("db01")
    (first,) = episodes.feed([one], T0)
    assert (first.urgency, first.protection_id, first.closed) == (Urgency.CRITICAL, "p-db01", False)
    for second in range(1, 60):
        assert episodes.feed([one], after(second)) == []
    closed = replace(one, closed_at=after(95))
    (second_,) = episodes.feed([closed], after(95))
    assert second_.closed
    assert second_.slot == first.slot
    assert second_.body == "It is over after 1 min 35 s."
    assert episodes.feed([closed], after(96)) == []
    again = alert("db01", after(200))
    assert len(episodes.feed([again], after(200))) == 1


def test_what_was_over_before_we_looked_is_not_news() -> None:
    assert Episodes().feed([replace(alert("a"), closed_at=after(5))], after(10)) == []


def test_a_fresh_opening_while_the_old_closing_was_missed() -> None:
    episodes = Episodes()
    episodes.feed([alert("a")], T0)
    (notice,) = episodes.feed([alert("a", after(100))], after(100))
    assert not notice.closed


def test_more_than_three_become_one() -> None:
    episodes = Episodes()
    (group,) = episodes.feed([alert(f"vm{n}") for n in range(9)], T0)
    assert group.slot == GROUP_SLOT
    assert group.title == "9 alerts within a minute"
    assert group.body.endswith("and 3 more")
    assert len(group.keys) == 9


def test_the_fourth_within_a_minute_is_grouped_with_the_others() -> None:
    episodes = Episodes()
    alerts = []
    slots = []
    for n in range(5):
        alerts.append(alert(f"vm{n}", after(n)))
        slots += [notice.slot for notice in episodes.feed(alerts, after(n))]
    assert slots == ["rpo:vm0", "rpo:vm1", "rpo:vm2", GROUP_SLOT, GROUP_SLOT]
    late = alert("late", after(300))
    assert [n.slot for n in episodes.feed([*alerts, late], after(300))] == ["rpo:late"]


def test_an_escalation_is_never_suppressed() -> None:
    episodes = Episodes()
    episodes.feed([alert("a", severity=Severity.WARNING)], T0)
    episodes.acknowledge(["rpo:a"])
    (notice,) = episodes.feed([alert("a", severity=Severity.CRITICAL)], after(1))
    assert notice.urgency is Urgency.CRITICAL


def test_reminder_acknowledge_and_snooze() -> None:
    episodes, one = Episodes(), alert("a")
    episodes.feed([one], T0)
    assert len(episodes.feed([one], after(4 * 3600))) == 1
    episodes.acknowledge(["rpo:a"])
    assert episodes.feed([one], after(12 * 3600)) == []
    episodes.snooze(["rpo:a"], after(12 * 3600))
    assert episodes.feed([one], after(12.5 * 3600)) == []
    assert len(episodes.feed([one], after(13 * 3600))) == 1


def test_a_restart_neither_repeats_nor_forgets() -> None:
    episodes, one = Episodes(), alert("a")
    episodes.feed([one], T0)
    woken = Episodes.restore(json.loads(json.dumps(episodes.saved())))
    assert woken.feed([one], after(5)) == []
    assert [n.closed for n in woken.feed([replace(one, closed_at=after(9))], after(9))] == [True]


def closed(one: Alert, at: datetime) -> Alert:
    return replace(one, closed_at=at)


def test_expectation_17_what_comes_and_goes_is_told_twice_and_then_how_it_settles() -> None:
    episodes = Episodes()
    told = []
    for n in range(6):  # opens every two minutes, for one
        one = alert("a", after(120 * n))
        told += episodes.feed([one], after(120 * n))
        told += episodes.feed([closed(one, after(120 * n + 60))], after(120 * n + 60))
    assert [n.title for n in told] == ["RPO breached: a", "Recovered: RPO breached: a", "Again: RPO breached: a"]
    assert "you will be told how it settles" in told[-1].body
    last = 120 * 5 + 60
    assert episodes.feed([], after(last + 29 * 60)) == []
    (settled,) = episodes.feed([], after(last + 30 * 60))
    assert (settled.title, settled.closed, settled.protection_id) == ("Recovered: RPO breached: a", True, "p-a")
    assert episodes.feed([], after(last + 31 * 60)) == []
    (fresh,) = episodes.feed([alert("a", after(2 * 3600))], after(2 * 3600))
    assert fresh.title == "RPO breached: a"


def test_a_flapping_alert_that_stays_is_told_to_hold() -> None:
    episodes = Episodes()
    for n in range(2):
        one = alert("a", after(120 * n))
        episodes.feed([one], after(120 * n))
        episodes.feed([closed(one, after(120 * n + 60))], after(120 * n + 60))
    stays = alert("a", after(240))
    assert episodes.feed([stays], after(240)) == []
    woken = Episodes.restore(json.loads(json.dumps(episodes.saved())))
    assert woken.feed([stays], after(240 + 29 * 60)) == []
    (notice,) = woken.feed([stays], after(240 + 30 * 60))
    assert (notice.title, notice.urgency, notice.closed) == ("Still: RPO breached: a", Urgency.CRITICAL, False)
    (over,) = woken.feed([closed(stays, after(9000))], after(9000))
    assert over.title == "Recovered: RPO breached: a"


def test_expectation_17_an_escalation_is_told_while_it_flaps_and_in_quiet_hours() -> None:
    episodes = Episodes()
    for n in range(3):
        one = alert("a", after(120 * n), Severity.WARNING)
        episodes.feed([one], after(120 * n))
        episodes.feed([closed(one, after(120 * n + 60))], after(120 * n + 60))
    worse = alert("a", after(400), Severity.CRITICAL)
    (notice,) = episodes.feed([worse], after(400), Rules(quiet=True))
    assert notice.urgency is Urgency.CRITICAL


def test_quiet_hours_hold_back_warnings_and_never_what_is_critical() -> None:
    episodes, quiet = Episodes(), Rules(quiet=True)
    warning, critical = alert("w", severity=Severity.WARNING), alert("c")
    assert [n.slot for n in episodes.feed([warning, critical], T0, quiet)] == ["rpo:c"]
    assert [n.slot for n in episodes.feed([closed(critical, after(60))], after(60), quiet)] == ["rpo:c"]  # recovery
    assert [n.slot for n in episodes.feed([warning], after(3600), Rules())] == ["rpo:w"]  # still there in the morning
    gone = alert("x", severity=Severity.WARNING)
    assert episodes.feed([gone], after(4000), quiet) == []
    assert episodes.feed([closed(gone, after(4100))], after(4100), quiet) == []
    assert episodes.feed([closed(gone, after(4100))], after(9000), Rules()) == []


def test_severities_can_be_switched_off_and_reminders_too() -> None:
    episodes = Episodes()
    assert episodes.feed([alert("w", severity=Severity.WARNING)], T0, Rules(warnings=False)) == []
    assert episodes.feed([alert("c")], T0, Rules(critical=False)) == []
    never = Rules(remind_every=None)
    episodes.feed([alert("c")], T0, never)
    assert episodes.feed([alert("c")], after(90 * 3600), never) == []
    (reminder,) = episodes.feed([alert("c")], after(90 * 3600), Rules())
    assert reminder.title == "Still: RPO breached: c"
