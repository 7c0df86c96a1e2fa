"""A table model whose rows have keys: rows come, go and move, but the model is never reset.

So selection, scroll position and current cell survive each refresh.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from PySide6.QtCore import QAbstractTableModel, QModelIndex, QObject, QPersistentModelIndex, Qt

Index = QModelIndex | QPersistentModelIndex
T = TypeVar("T")
VALUE_ROLE = Qt.ItemDataRole.UserRole + 1


def runs(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Sorted numbers as closed ranges of neighbours."""
    start = end = None
    for n in numbers:
        if start is None or end is None:
            start = end = n
        elif n == end + 1:
            end = n
        else:
            yield start, end
            start = end = n
    if start is not None and end is not None:
        yield start, end


class KeyedTableModel(QAbstractTableModel):
    """Keeps the keys of the rows shown; subclasses say what a cell is."""

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._shown: list[str] = []

    def rowCount(self, parent: Index = QModelIndex()) -> int:  # noqa: B008
        """Rows shown."""
        return 0 if parent.isValid() else len(self._shown)

    def _arrange_to(self, wanted: list[str]) -> None:
        """Make ``wanted`` the rows shown, by removing, inserting and moving only."""
        if wanted == self._shown:
            return
        keep, have = set(wanted), set(self._shown)
        self._remove({key for key in self._shown if key not in keep})
        new = [key for key in wanted if key not in have]
        if new:
            at = len(self._shown)
            self.beginInsertRows(QModelIndex(), at, at + len(new) - 1)
            self._shown.extend(new)
            self.endInsertRows()
        if wanted != self._shown:
            self._reorder(wanted)

    def _remove(self, keys: set[str]) -> None:
        places = [n for n, key in enumerate(self._shown) if key in keys]
        for first, last in reversed(list(runs(places))):
            self.beginRemoveRows(QModelIndex(), first, last)
            del self._shown[first : last + 1]
            self.endRemoveRows()

    def _reorder(self, wanted: list[str]) -> None:
        self.layoutAboutToBeChanged.emit()
        old = self._shown
        place = {key: n for n, key in enumerate(wanted)}
        before = self.persistentIndexList()
        self._shown = wanted
        after = [self.index(place[old[i.row()]], i.column()) for i in before]
        self.changePersistentIndexList(before, after)
        self.layoutChanged.emit()


@dataclass(frozen=True, slots=True)
class Field(Generic[T]):
    """One column of a record table. ``colour`` and ``icon`` may say how it looks."""

    header: str
    show: Callable[[T], str]
    width: int = 120
    right: bool = False
    said: Callable[[T], str] | None = None
    look: Callable[[T, int], Any] | None = None


class RecordModel(KeyedTableModel, Generic[T]):
    """A plain list of records in the order given."""

    def __init__(self, fields: Sequence[Field[T]], key: Callable[[T], str], parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.fields = tuple(fields)
        self._key = key
        self._records: dict[str, T] = {}

    def columnCount(self, parent: Index = QModelIndex()) -> int:  # noqa: B008
        """Columns."""
        return 0 if parent.isValid() else len(self.fields)

    def headerData(self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """Header texts."""
        if orientation is Qt.Orientation.Horizontal and role == Qt.ItemDataRole.DisplayRole:
            return self.fields[section].header if 0 <= section < len(self.fields) else None
        return None

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """One cell in one role; VALUE_ROLE gives the record."""
        record = self.record(index.row()) if index.isValid() else None
        if record is None:
            return None
        field = self.fields[index.column()]
        if role in (Qt.ItemDataRole.DisplayRole, Qt.ItemDataRole.ToolTipRole):
            return field.show(record)
        if role == VALUE_ROLE:
            return record
        if role == Qt.ItemDataRole.AccessibleTextRole:
            return field.said(record) if field.said else f"{field.header}: {field.show(record) or 'none'}"
        if role == Qt.ItemDataRole.TextAlignmentRole and field.right:
            return int(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
        return field.look(record, role) if field.look else None

    def record(self, at: int) -> T | None:
        """The record in a row."""
        return self._records[self._shown[at]] if 0 <= at < len(self._shown) else None

    def put(self, records: Iterable[T]) -> None:
        """Show these, in this order."""
        new = {self._key(record): record for record in records}
        old = self._records
        self._records = {**old, **new}
        self._arrange_to(list(new))
        self._records = new
        places = [n for n, key in enumerate(self._shown) if key in old and old[key] != new[key]]
        for first, last in runs(places):
            self.dataChanged.emit(self.index(first, 0), self.index(last, len(self.fields) - 1))
