"""The RPO graph: a year of points, gaps never drawn as lines, breaches found."""

from __future__ import annotations

import csv
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from fake_backend import NOW, saw_tooth
from PySide6.QtGui import QImage
from PySide6.QtWidgets import QApplication

from vapor_desktop.engine.ports import Event, RpoSample
from vapor_desktop.gui.rpo_graph import RpoGraph
from vapor_desktop.gui.rpo_series import MOST_POINTS, build, marks, shown_from
from vapor_desktop.gui.theme import Scheme, Theme
from vapor_desktop.model.states import Severity

HOUR = timedelta(hours=1)


def sample(seconds: float, rpo: float | None, target: float = 300.0) -> RpoSample:
    return RpoSample(NOW - HOUR + timedelta(seconds=seconds), rpo, target)


def test_gaps_and_breaches() -> None:
    values = [10.0, 20.0, None, None, 30.0, 310.0, 320.0, 15.0]
    series = build([sample(10 * n, v) for n, v in enumerate(values)], NOW - HOUR, NOW - HOUR + timedelta(seconds=70))
    zero = (NOW - HOUR).timestamp()
    assert [(a - zero, b - zero) for a, b in series.gaps] == [(20, 40)]
    assert [(a - zero, b - zero) for a, b in series.breaches] == [(50, 70)]
    assert np.isnan(series.values).sum() == 2
    assert series.highest == 320


def test_time_without_samples_is_unknown_not_a_line() -> None:
    samples = [sample(n, 5.0) for n in range(10)] + [sample(1000 + n, 9.0) for n in range(10)]
    series = build(samples, NOW - HOUR, NOW)
    zero = (NOW - HOUR).timestamp()
    assert [(round(a - zero), round(b - zero)) for a, b in series.gaps] == [(9, 1000), (1009, 3600)]
    hole = np.flatnonzero(np.isnan(series.values))
    assert len(hole) == 1
    assert series.times[hole[0] - 1] - zero == 9


def test_thinned_days_beside_fresh_hours_are_no_gap() -> None:
    """Seven days of which five are kept as the worst of each five minutes: all of it is known."""
    week, fresh = NOW - timedelta(days=7), NOW - timedelta(days=2)
    old = [RpoSample(week + timedelta(minutes=5 * n), 60.0, 300.0, over_s=300.0) for n in range(5 * 288)]
    new = [RpoSample(fresh + timedelta(seconds=15 * n), 30.0, 300.0) for n in range(2 * 5760)]
    assert build([*old, *new], week, NOW).gaps == ()
    del old[100]
    [(begin, end)] = build([*old, *new], week, NOW).gaps
    assert (begin, end) == (old[99].at.timestamp(), old[100].at.timestamp())


def test_nothing_known_at_all() -> None:
    series = build([], NOW - HOUR, NOW)
    assert series.gaps == (((NOW - HOUR).timestamp(), NOW.timestamp()),)
    assert series.highest == 0
    assert series.at(NOW.timestamp()) is None


def test_thinning_keeps_the_peak_and_the_gaps() -> None:
    samples = [sample(n * 0.01, 10.0 + n % 7) for n in range(200_000)]
    samples[123_456] = sample(1234.56, 5000.0)
    samples[77_000] = sample(770.0, None)
    series = build(samples, NOW - HOUR, NOW)
    assert len(series.times) <= MOST_POINTS * 1.1
    assert series.highest == 5000
    assert np.isnan(series.values).any()
    assert len(series.breaches) == 1


def test_a_year_is_drawn(theme: Theme, qapp: QApplication, capsys: pytest.CaptureFixture[str]) -> None:
    year = timedelta(days=365)
    samples = saw_tooth(NOW - year, NOW, 60.0)
    start = time.thread_time()
    series = build(samples, NOW - year, NOW)
    building = time.thread_time() - start
    graph = RpoGraph(theme)
    graph.resize(1200, 400)
    graph.show()
    start = time.thread_time()
    graph.show_series(series, NOW - year, NOW)
    picture = graph.grab()
    drawing = time.thread_time() - start
    with capsys.disabled():
        print(f"\na year, {len(samples)} samples: built in {building:.2f} s, drawn in {drawing * 1e3:.0f} ms")
    assert len(samples) > 500_000
    assert len(series.breaches) == 365
    assert len(series.gaps) == 365
    assert drawing < 1.0
    assert not picture.isNull()


def test_breach_and_unknown_are_hatched(theme: Theme, qapp: QApplication) -> None:
    """Pixels, in both palettes: breach in the critical colour, unknown in grey, the rest in neither."""
    values = [(n * 10, 20.0 if n < 100 else 400.0 if n < 200 else None if n < 300 else 20.0) for n in range(361)]
    series = build([sample(s, v) for s, v in values], NOW - HOUR, NOW)
    graph = RpoGraph(theme)
    graph.resize(900, 300)
    graph.show()
    for scheme in (Scheme.LIGHT, Scheme.DARK):
        theme.use(scheme)
        graph.show_series(series, NOW - HOUR, NOW)
        image = graph.grab().toImage().convertToFormat(QImage.Format.Format_RGB32)
        critical = theme.severity(Severity.CRITICAL)
        found = {name: _reddish(image, graph, at, critical.red()) for name, at in (("ok", 500), ("bad", 1500))}
        assert found["bad"] > 50, (scheme, found)
        assert found["ok"] == 0, (scheme, found)
        assert graph.unknown._spans == series.gaps != ()


def _reddish(image: QImage, graph: RpoGraph, second: float, red: int) -> int:
    """Pixels of the critical colour's hue in a strip of the plot below the target line's label."""
    vb = graph.getPlotItem().vb
    zero = (NOW - HOUR).timestamp()
    left = graph.mapFromScene(vb.mapViewToScene(_point(zero + second - 100, 0))).x()
    right = graph.mapFromScene(vb.mapViewToScene(_point(zero + second + 100, 0))).x()
    top = graph.mapFromScene(vb.mapViewToScene(_point(zero, 250))).y()
    count = 0
    for x in range(left, right):
        for y in range(top, top + 60):
            colour = image.pixelColor(x, y)
            count += colour.red() > colour.green() + 60 and colour.red() > colour.blue() + 40
    return count


def _point(x: float, y: float):  # type: ignore[no-untyped-def]
    from PySide6.QtCore import QPointF

    return QPointF(x, y)


def test_reading_under_the_mouse(theme: Theme) -> None:
    graph = RpoGraph(theme)
    series = build([sample(10 * n, v) for n, v in enumerate((10.0, 310.0, None))], NOW - HOUR, NOW)
    graph.show_series(series, NOW - HOUR, NOW)
    zero = (NOW - HOUR).timestamp()
    assert "RPO 10 s, target 5 min" in graph.describe(zero + 1)
    assert graph.describe(zero + 11).endswith("RPO 5 min 10 s, target 5 min — breached")
    assert graph.describe(zero + 25).endswith("RPO unknown")


def test_csv_tells_unknown_from_zero(tmp_path: Path, theme: Theme) -> None:
    from fake_backend import FakeBackend

    from vapor_desktop.gui.bridge import Bridge
    from vapor_desktop.gui.context import Context
    from vapor_desktop.gui.errands import Errands
    from vapor_desktop.gui.layout_store import Memory
    from vapor_desktop.gui.rpo_tab import RpoTab

    bridge = Bridge(FakeBackend())
    tab = RpoTab(Context(bridge, Errands(bridge), theme, Memory(tmp_path / "m.json")))
    tab._samples = [sample(0, 0.0), sample(1, None)]
    tab.save_table(tmp_path / "rpo.csv")
    rows = list(csv.reader((tmp_path / "rpo.csv").read_text(encoding="utf-8").splitlines()))
    assert rows[1][1:] == ["0.000", "300"]
    assert rows[2][1:] == ["", "300"]
    tab.save_picture(tmp_path / "rpo.png")
    assert not QImage(str(tmp_path / "rpo.png")).isNull()
    with pytest.raises(OSError, match="not written"):
        tab.save_picture(tmp_path / "no" / "rpo.png")


def test_what_happened_to_the_vm_is_marked(theme: Theme) -> None:
    def event(minutes: float, kind: str) -> Event:
        return Event(NOW - timedelta(minutes=minutes), kind, "p", None, 1, "…")

    events = [event(5, "reprotected"), event(20, "migrated"), event(30, "cycle-failed"), event(90, "failed-over")]
    found = marks(events, NOW - HOUR, NOW)
    assert found == ((events[1].at.timestamp(), "migrated"), (events[0].at.timestamp(), "reprotected"))
    graph = RpoGraph(theme)
    series = build([sample(10 * n, 10.0) for n in range(300)], NOW - HOUR, NOW)
    graph.show_series(series, NOW - HOUR, NOW, found)
    assert graph.marked == list(found)
    graph.show_series(series, NOW - HOUR, NOW)
    assert graph.marked == []


def test_the_picture_begins_where_the_vm_was_protected(theme: Theme) -> None:
    young = shown_from(NOW - HOUR, NOW - timedelta(minutes=2), NOW)
    assert young == NOW - timedelta(minutes=10), "room for what comes"
    assert shown_from(NOW - HOUR, NOW - timedelta(minutes=40), NOW) == NOW - timedelta(minutes=40)
    assert shown_from(NOW - HOUR, NOW - timedelta(days=4), NOW) == NOW - HOUR
    graph = RpoGraph(theme)
    graph.show_series(build([], NOW - HOUR, NOW), NOW - HOUR, NOW, begin=young)
    left, right = graph.getPlotItem().viewRange()[0]
    assert (left, right) == (young.timestamp(), NOW.timestamp())
    assert graph.span == HOUR
