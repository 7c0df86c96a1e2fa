"""What the window remembers: columns by key (so that an upgrade may add one), theme, seen alerts."""

from __future__ import annotations

import contextlib
import json
import logging
from pathlib import Path
from typing import Any

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QHeaderView

from vapor_desktop.gui.protection_columns import COLUMNS, INDEX

log = logging.getLogger(__name__)


class Memory:
    """A small JSON file. Losing it costs only looks, so a damaged one is set aside and said in the log."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._values: dict[str, Any] = self._read()

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            log.warning("the window's memory %s is unreadable (%s); starting afresh", self._path, error)
            return {}
        return found if isinstance(found, dict) else {}

    def get(self, key: str, default: Any = None) -> Any:
        """A remembered value."""
        return self._values.get(key, default)

    def all(self) -> dict[str, Any]:
        """Everything, for diagnostics."""
        return dict(self._values)

    def put(self, key: str, value: Any) -> None:
        """Remember it, on disk at once. A full disk is logged, not raised."""
        if self._values.get(key) == value:
            return
        self._values[key] = value
        aside = self._path.with_suffix(".new")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            aside.write_text(json.dumps(self._values, indent=1), encoding="utf-8")
            aside.replace(self._path)
        except OSError as error:
            log.warning("the window's memory %s cannot be written: %s", self._path, error)
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)


def capture_columns(header: QHeaderView) -> dict[str, Any]:
    """Order, widths, hidden and sort, by column key."""
    order = sorted(range(len(COLUMNS)), key=header.visualIndex)
    return {
        "order": [COLUMNS[n].key for n in order],
        "widths": {COLUMNS[n].key: header.sectionSize(n) for n in order if not header.isSectionHidden(n)},
        "hidden": [COLUMNS[n].key for n in order if header.isSectionHidden(n)],
        "sort": COLUMNS[header.sortIndicatorSection()].key,
        "descending": header.sortIndicatorOrder() is Qt.SortOrder.DescendingOrder,
    }


def apply_columns(header: QHeaderView, saved: dict[str, Any]) -> None:
    """Give the header its saved look, ``{}`` the default. Unknown keys are ignored, new ones keep theirs."""
    wanted = [key for key in saved.get("order", []) if key in INDEX]
    hidden = saved.get("hidden")
    for at, key in enumerate(wanted or [column.key for column in COLUMNS]):
        header.moveSection(header.visualIndex(INDEX[key]), at)
    for n, column in enumerate(COLUMNS):
        known = not wanted or column.key in wanted
        header.resizeSection(n, int(saved.get("widths", {}).get(column.key, column.width)))
        hide = column.hidden if hidden is None or not known else column.key in hidden
        header.setSectionHidden(n, hide and column.key != "sev")
    sort = INDEX.get(saved.get("sort", "sev"), INDEX["sev"])
    down = Qt.SortOrder.DescendingOrder if saved.get("descending") else Qt.SortOrder.AscendingOrder
    header.setSortIndicator(sort, down)
