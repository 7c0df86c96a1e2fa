"""The soak matrix is made from the registry: a new step or kind is in it by itself, and what was not run is said."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "soak"))

import matrix
from matrix_faults import FAULTS, HOW, KILL, NONE
from matrix_scenes import SCENES

from vapor_desktop.engine.operations.registry import TYPES
from vapor_desktop.engine.operations.steps import Step
from vapor_desktop.model.operations import OperationKind


def test_every_step_of_every_kind_meets_every_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    migration = TYPES[OperationKind.MIGRATION]
    more = replace(migration, steps=(*migration.steps, Step("brand-new", "New", lambda _c: {})), steps_of=None)
    monkeypatch.setitem(matrix.TYPES, OperationKind.MIGRATION, more)
    cells = set(matrix.cells())
    for kind in TYPES:
        assert (kind.value, "", NONE) in cells
        for step in TYPES[kind].steps:
            assert {(kind.value, step.name, fault) for fault in FAULTS} <= cells
    assert ("planned migration", "brand-new", KILL) in cells
    assert set(HOW) | {KILL} == set(FAULTS)
    assert all(kind is scene.kind for kind, scene in SCENES.items())


def test_the_report_tells_what_was_not_run_and_forgets_steps_that_are_gone(tmp_path: Path) -> None:
    report = matrix.Report(tmp_path / "r.json", "abc")
    cell = ("emergency failover", "start", KILL)
    report.put(cell, "passed", seconds=1.0)
    report.rows["emergency failover", "long gone", KILL] = {"result": "failed"}
    report.save()
    told = json.loads((tmp_path / "r.json").read_text())
    assert (told["passed"], told["cells_in_all"]) == (1, len(matrix.cells()))
    assert told["not run"] == told["cells_in_all"] - 1
    assert "long gone" not in json.dumps(told)
    again = matrix.Report(tmp_path / "r.json", "def")
    assert not again.passed(cell), "it was run on another commit"
    assert matrix.Report(tmp_path / "r.json", "abc").passed(cell)
