"""F6: from pane to pane, as everywhere on a desktop. Each keeps the place where one was."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from PySide6.QtCore import QObject, Qt
from PySide6.QtWidgets import QApplication, QWidget

Pane = Callable[[], QWidget | None]  # the pane as it is now; None or hidden: it is left out


class Panes(QObject):
    """The panes of a window, in the order of the key."""

    def __init__(self, panes: Sequence[Pane], parent: QObject) -> None:
        super().__init__(parent)
        self._panes = tuple(panes)
        self._places: dict[QWidget, QWidget] = {}

    def step(self, by: int) -> None:
        """The next pane (1), or the one before (-1)."""
        shown = [p for pane in self._panes if (p := pane()) is not None and p.isVisible()]
        if not shown:
            return
        focus = QApplication.focusWidget()
        here = next(
            (n for n, p in enumerate(shown) if focus is not None and (p is focus or p.isAncestorOf(focus))), -1
        )
        if here >= 0 and focus is not None:
            self._remember(shown[here], focus)
        start = here if here >= 0 else (-1 if by > 0 else 0)
        for n in range(1, len(shown) + 1):
            if self._enter(shown[(start + by * n) % len(shown)]):
                return

    def _remember(self, pane: QWidget, focus: QWidget) -> None:
        if pane not in self._places:
            pane.destroyed.connect(lambda _gone=None, pane=pane: self._places.pop(pane, None))
        self._places[pane] = focus

    def _enter(self, pane: QWidget) -> bool:
        """Focus where one was, else the first place that takes it."""
        known = self._places.get(pane)
        if known is not None and _takes_focus(known) and (known is pane or pane.isAncestorOf(known)):
            known.setFocus(Qt.FocusReason.ShortcutFocusReason)
            return True
        inside = [pane, *pane.findChildren(QWidget)]
        first = next((w for w in _tab_order(pane, inside) if _takes_focus(w)), None)
        if first is None:
            return False
        first.setFocus(Qt.FocusReason.ShortcutFocusReason)
        return True


def _takes_focus(widget: QWidget) -> bool:
    return (
        widget.isVisible() and widget.isEnabled() and bool(widget.focusPolicy().value & Qt.FocusPolicy.TabFocus.value)
    )


def _tab_order(pane: QWidget, inside: list[QWidget]) -> list[QWidget]:
    """The widgets of a pane as the Tab key goes."""
    wanted, order, at = set(inside), [pane], pane.nextInFocusChain()
    while at is not None and at is not pane:
        if at in wanted:
            order.append(at)
        at = at.nextInFocusChain()
    return order
