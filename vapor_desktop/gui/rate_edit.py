"""A bandwidth limit in MiB/s; 0 is *no limit*. What is shown rounded is kept exactly until it is changed."""

from __future__ import annotations

from PySide6.QtWidgets import QDoubleSpinBox

from vapor_desktop.model.policy import BANDWIDTH_MIN_BYTES_S

MIB = 1 << 20
MOST_MIB_S = 100_000.0


class RateEdit:
    """Gives a spin box its unit and its limits."""

    def __init__(self, box: QDoubleSpinBox) -> None:
        self.box = box
        box.setDecimals(2)
        box.setRange(0.0, MOST_MIB_S)
        box.setSuffix(" MiB/s")
        box.setSpecialValueText("no limit")
        self._exact: int | None = None
        self._shown = box.value()

    def set_rate(self, bytes_s: int | None) -> None:
        """None: no limit."""
        self._exact = bytes_s
        self.box.setValue((bytes_s or 0) / MIB)
        self._shown = self.box.value()

    def rate(self) -> int | None:
        """Bytes per second, None: no limit. Never less than a limit may be."""
        value = self.box.value()
        if value == self._shown:
            return self._exact
        return max(BANDWIDTH_MIN_BYTES_S, round(value * MIB)) if value else None
