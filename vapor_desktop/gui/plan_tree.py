"""A plan run as a live tree: tier, then VM, then the steps of that VM's own operation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QHeaderView, QTreeWidget, QTreeWidgetItem, QWidget

from vapor_desktop.gui import words
from vapor_desktop.gui.icons import SEVERITY_ICONS, icon
from vapor_desktop.gui.operations_tab import STEP_LOOKS
from vapor_desktop.gui.theme import Theme
from vapor_desktop.model.operations import Operation, StepRow

COLUMNS = ("Step", "State", "Took", "Note")
_KEY = Qt.ItemDataRole.UserRole


@dataclass(frozen=True, slots=True)
class Branch:
    """A line of the tree. ``key`` is its identity while the run lives."""

    key: str
    step: StepRow
    below: tuple[Branch, ...] = ()


def branches(run: Operation, known: Mapping[str, Operation]) -> tuple[Branch, ...]:
    """The tree of a run; ``known``: operations by id, the VMs' own among them as far as they are known."""

    def of_vm(row: StepRow) -> Branch:
        child = known.get(row.operation_id)
        steps = child.steps if child is not None else ()
        return Branch(row.name, row, tuple(Branch(f"{row.operation_id}/{s.name}", s) for s in steps))

    top = [s for s in run.steps if not s.parent]
    return tuple(Branch(s.name, s, tuple(of_vm(v) for v in run.steps if v.parent == s.name)) for s in top)


class PlanTree(QTreeWidget):
    """Keeps what is opened and selected while the run goes on."""

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._theme = theme
        self._run_id = ""
        self.setAccessibleName("Steps of the plan run")
        self.setHeaderLabels(list(COLUMNS))
        self.setAlternatingRowColors(True)
        self.setUniformRowHeights(True)
        self.header().setSectionResizeMode(QHeaderView.ResizeMode.Interactive)
        for column, width in enumerate((330, 90, 80)):
            self.setColumnWidth(column, width)

    def show_run(self, run: Operation | None, known: Mapping[str, Operation]) -> None:
        """That run, as far as it is; None for none."""
        run_id = run.operation_id if run is not None else ""
        if run_id != self._run_id:
            self.clear()
            self._run_id = run_id
        if run is not None:
            self._put(self.invisibleRootItem(), branches(run, known), depth=0)

    def lines(self) -> list[tuple[int, str, str, str]]:
        """(depth, step, state, note) of every line, from above."""
        return list(self._lines(self.invisibleRootItem(), 0))

    def _lines(self, item: QTreeWidgetItem, depth: int) -> Iterator[tuple[int, str, str, str]]:
        for below in _children(item):
            yield depth, below.text(0), below.text(1), below.text(3)
            yield from self._lines(below, depth + 1)

    def _put(self, parent: QTreeWidgetItem, wanted: tuple[Branch, ...], depth: int) -> None:
        there = {item.data(0, _KEY): item for item in _children(parent)}
        for key, item in there.items():
            if key not in {b.key for b in wanted}:
                parent.removeChild(item)
        for place, branch in enumerate(wanted):
            found = there.get(branch.key)
            item = found if found is not None else QTreeWidgetItem()
            if found is None:
                item.setData(0, _KEY, branch.key)
                parent.insertChild(place, item)
                item.setExpanded(depth == 0)
            self._draw(item, branch.step)
            self._put(item, branch.below, depth + 1)

    def _draw(self, item: QTreeWidgetItem, step: StepRow) -> None:
        cells = (step.title, step.state.value, _took(step), step.note)
        for column, text in enumerate(cells):
            if item.text(column) != text:
                item.setText(column, text)
        item.setToolTip(3, step.note)
        severity = STEP_LOOKS[step.state]
        colours = self._theme.colours
        item.setIcon(0, icon(SEVERITY_ICONS[severity], colours.severity[severity], knockout=colours.base))


def _children(item: QTreeWidgetItem) -> list[QTreeWidgetItem]:
    found = (item.child(n) for n in range(item.childCount()))
    return [below for below in found if below is not None]


def _took(step: StepRow) -> str:
    if step.started_at is None:
        return ""
    return words.duration(((step.ended_at or datetime.now(UTC)) - step.started_at).total_seconds())
