"""The protection table's model: worst first, never reset, fast with 2,000 rows."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import timedelta

import pytest
from fake_backend import NOW, fleet, later, status, vm, world
from PySide6.QtCore import QItemSelectionModel, Qt
from PySide6.QtTest import QAbstractItemModelTester
from PySide6.QtWidgets import QApplication, QTableView

from vapor_desktop.gui import words
from vapor_desktop.gui.layout_store import Memory, apply_columns, capture_columns
from vapor_desktop.gui.protection_columns import COLUMNS, INDEX, Chip
from vapor_desktop.gui.protection_looks import Looks
from vapor_desktop.gui.protection_model import ROW_ROLE, ProtectionModel
from vapor_desktop.gui.protection_table import ProtectionTable
from vapor_desktop.gui.theme import Theme
from vapor_desktop.model.states import Phase

UP, DOWN = Qt.SortOrder.AscendingOrder, Qt.SortOrder.DescendingOrder
FATAL = QAbstractItemModelTester.FailureReportingMode.Fatal


@pytest.fixture
def model(theme: Theme) -> ProtectionModel:
    made = ProtectionModel(Looks(theme))
    made.tester = QAbstractItemModelTester(made, FATAL, made)  # type: ignore[attr-defined]
    return made


def names(model: ProtectionModel) -> list[str]:
    return [model.index(n, INDEX["name"]).data() for n in range(model.rowCount())]


def text(model: ProtectionModel, name: str, column: str, role: int = Qt.ItemDataRole.DisplayRole) -> object:
    return model.index(names(model).index(name), INDEX[column]).data(role)


def test_worst_first(model: ProtectionModel) -> None:
    model.update_from(world())
    assert names(model) == ["db01", "files", "web02", "build", "mail", "web01"]


def test_unknown_is_a_dash_and_sorts_last_both_ways(model: ProtectionModel) -> None:
    model.update_from(world())
    assert text(model, "files", "rpo_now") == words.UNKNOWN
    for order in (UP, DOWN):
        model.sort(INDEX["rpo_now"], order)
        assert names(model)[-1] == "files"
    assert names(model)[0] == "db01"


def test_sorts_by_value_not_by_text(model: ProtectionModel) -> None:
    model.update_from(world(protections=tuple(status(n, s) for n, s in (("a", 9), ("b", 100), ("c", 3700)))))
    model.sort(INDEX["rpo_now"], DOWN)
    assert names(model) == ["c", "b", "a"]  # "9 s" > "1 h" as text
    model.update_from(world(protections=(status("web10", 1), status("web2", 1), status("Web1", 1))))
    model.sort(INDEX["name"], UP)
    assert names(model) == ["Web1", "web2", "web10"]


def test_cells_speak(model: ProtectionModel) -> None:
    model.update_from(world())
    spoken = Qt.ItemDataRole.AccessibleTextRole
    assert text(model, "db01", "rpo_now", spoken) == "RPO breached, 12 min, target 5 min"
    assert text(model, "files", "rpo_now", spoken) == "RPO unknown, target 5 min"
    assert text(model, "db01", "sev", spoken) == "critical: protected · breached"


def test_progress_shows_left_rate_and_eta(model: ProtectionModel) -> None:
    model.update_from(world())
    assert text(model, "mail", "progress") == "38 % · 650 MiB left · 44 MiB/s · 15 s"
    assert text(model, "build", "next_run") == "paused"
    assert text(model, "mail", "next_run") == "running"


def test_chips_and_filter(model: ProtectionModel) -> None:
    seen: list[tuple[int, int]] = []
    model.counted.connect(lambda shown, under, _counts: seen.append((shown, under)))
    model.update_from(world())
    model.filter("web", Chip.ALL)
    assert names(model) == ["web02", "web01"]
    assert seen[-1] == (2, 6)
    model.filter("", Chip.UNPROTECTED)
    assert sorted(names(model)) == ["legacy", "scratch"]
    model.filter("", Chip.BREACHED)
    assert names(model) == ["db01"]
    model.filter("", Chip.PAUSED)
    assert names(model) == ["build"]


def test_a_vm_that_becomes_protected_moves(model: ProtectionModel) -> None:
    model.filter("", Chip.UNPROTECTED)
    model.update_from(world())
    shot = world(unprotected=(vm("legacy"),), protections=(*world().protections, status("scratch")))
    model.update_from(shot)
    assert names(model) == ["legacy"]
    model.filter("", Chip.ALL)
    assert "scratch" in names(model)


def test_selection_scroll_and_current_survive(
    model: ProtectionModel, theme: Theme, memory: Memory, qapp: QApplication
) -> None:
    table = ProtectionTable(model, theme, memory)
    table.resize(900, 300)
    table.show()
    shot = fleet(300)
    model.update_from(shot)
    resets: list[int] = []
    model.modelReset.connect(lambda: resets.append(1))
    table.select("p-vm0150")
    qapp.processEvents()
    chosen = [row.key for row in table.chosen()]
    assert chosen == ["p-vm0150"]
    # Others overtake it, some go, some come.
    rows = [r for r in shot.protections if r.key not in ("p-vm0001", "p-vm0002")]
    rows = [status(r.protection.vm_name, 900.0) if n % 3 == 0 else r for n, r in enumerate(rows)]
    model.update_from(replace(shot, protections=(*rows, status("fresh", 1000.0))))
    qapp.processEvents()
    assert [row.key for row in table.chosen()] == chosen
    assert table.currentIndex().data(ROW_ROLE).key == "p-vm0150"
    assert not resets
    assert model.rowCount() == 299


def test_only_what_changed_is_redrawn(model: ProtectionModel) -> None:
    shot = world()
    model.update_from(shot)
    told: list[tuple[int, int, int]] = []
    model.dataChanged.connect(lambda a, b: told.append((a.row(), b.row(), a.column())))
    model.update_from(replace(shot, at=NOW + timedelta(milliseconds=100)))
    assert told == []
    rows = tuple(replace(r, point_count=16) if r.protection.vm_name == "mail" else r for r in shot.protections)
    model.update_from(replace(shot, protections=rows))
    mail = names(model).index("mail")
    assert told == [(mail, mail, INDEX["points"])]


def test_2000_rows_every_second(
    theme: Theme, memory: Memory, qapp: QApplication, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ProtectionModel(Looks(theme))  # without the tester, which looks at every cell on every signal
    table = ProtectionTable(model, theme, memory)
    table.resize(1300, 800)
    table.show()
    shot = fleet(2000)
    resets: list[int] = []
    model.modelReset.connect(lambda: resets.append(1))
    model.update_from(shot)
    table.selectRow(1000)
    key = table.chosen()[0].key
    spent: list[float] = []
    for second in range(1, 11):
        new = later(shot, second)
        start = time.thread_time()
        model.update_from(new)
        spent.append(time.thread_time() - start)
        qapp.processEvents()
        assert table.chosen()[0].key == key
    start = time.thread_time()
    model.filter("vm1", Chip.ALL)
    filtering = time.thread_time() - start
    spent.sort()
    with capsys.disabled():
        print(f"\n2,000 rows: update median {spent[5] * 1e3:.0f} ms, worst {spent[-1] * 1e3:.0f} ms;", end=" ")
        print(f"filter {filtering * 1e3:.0f} ms")
    assert not resets
    assert model.rowCount() == 1000
    assert spent[5] < 0.1


def test_columns_survive_an_upgrade_that_adds_one(model: ProtectionModel, theme: Theme, memory: Memory) -> None:
    first = ProtectionTable(model, theme, memory)
    header = first.horizontalHeader()
    header.moveSection(header.visualIndex(INDEX["points"]), 1)
    header.resizeSection(INDEX["name"], 333)
    header.setSectionHidden(INDEX["route"], True)
    first.remember()
    saved = capture_columns(header)
    older = {**saved, "order": [k for k in saved["order"] if k not in ("epoch", "last_sent")] + ["gone-column"]}
    older["widths"] = {k: v for k, v in saved["widths"].items() if k != "last_sent"}
    second = QTableView()
    second.setModel(model)
    apply_columns(second.horizontalHeader(), older)
    header = second.horizontalHeader()
    assert header.visualIndex(INDEX["points"]) == 1
    assert header.sectionSize(INDEX["name"]) == 333
    assert header.isSectionHidden(INDEX["route"])
    assert not header.isSectionHidden(INDEX["last_sent"])  # new, so as it is by default
    assert header.isSectionHidden(INDEX["epoch"])
    first.reset_columns()
    assert not first.isColumnHidden(INDEX["route"])
    assert first.columnWidth(INDEX["name"]) == COLUMNS[INDEX["name"]].width


def test_copy_is_tab_separated(model: ProtectionModel, theme: Theme, memory: Memory, qapp: QApplication) -> None:
    table = ProtectionTable(model, theme, memory)
    model.update_from(world())
    flags = QItemSelectionModel.SelectionFlag.Select | QItemSelectionModel.SelectionFlag.Rows
    for name in ("db01", "web01"):
        table.selectionModel().select(model.index(names(model).index(name), 0), flags)
    table.copy()
    lines = [line.split("\t") for line in qapp.clipboard().text().split("\n")]
    assert lines[0][:4] == ["Severity", "VM", "Status", "RPO now"]
    assert [line[1] for line in lines[1:]] == ["db01", "web01"]
    assert lines[1][3] == "12 min"


def test_retry_is_told(model: ProtectionModel) -> None:
    late = status("late", 900, failures=2, phase=Phase.ERROR, not_before=NOW + timedelta(seconds=180))
    model.update_from(world(protections=(late,)))
    assert text(model, "late", "next_run") == "retry in 3 min"
