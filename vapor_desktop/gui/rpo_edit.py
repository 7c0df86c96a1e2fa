"""Any RPO target from 5 s to 24 h, with presets."""

from __future__ import annotations

from PySide6.QtCore import Signal
from PySide6.QtWidgets import QComboBox, QHBoxLayout, QSpinBox, QWidget

from vapor_desktop.model.policy import RPO_MAX_S, RPO_MIN_S, RPO_PRESETS_S

UNITS = {"seconds": 1, "minutes": 60, "hours": 3600}
OWN = "own value"


class RpoEdit(QWidget):
    """Signals:
    changed: the seconds.
    """

    changed = Signal(int)

    def __init__(
        self,
        parent: QWidget,
        preset: QComboBox | None = None,
        value: QSpinBox | None = None,
        unit: QComboBox | None = None,
    ) -> None:
        """Uses the widgets of a form, or its own."""
        super().__init__(parent)
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        self.preset, self.value, self.unit = (
            preset or QComboBox(self),
            value or QSpinBox(self),
            unit or QComboBox(self),
        )
        if preset is None:
            for widget in (self.preset, self.value, self.unit):
                row.addWidget(widget)
        self.preset.setAccessibleName("RPO target preset")
        self.value.setAccessibleName("RPO target value")
        self.unit.setAccessibleName("RPO target unit")
        self.preset.addItems([*RPO_PRESETS_S, OWN])
        self.unit.addItems(list(UNITS))
        self.preset.activated.connect(self._use_preset)
        self.unit.currentTextChanged.connect(self._bound)
        self.value.valueChanged.connect(self._follow)
        self._bound(self.unit.currentText())
        self.set_seconds(900)

    def seconds(self) -> int:
        """What is set."""
        return self.value.value() * UNITS[self.unit.currentText()]

    def set_seconds(self, seconds: int) -> None:
        """Show it in the largest unit that fits exactly."""
        unit = next(name for name, size in reversed(UNITS.items()) if seconds % size == 0)
        self.unit.setCurrentText(unit)
        self.value.setValue(seconds // UNITS[unit])
        self._follow()

    def _use_preset(self) -> None:
        seconds = RPO_PRESETS_S.get(self.preset.currentText())
        if seconds is not None:
            self.set_seconds(seconds)
        else:
            self.value.setFocus()

    def _bound(self, unit: str) -> None:
        size = UNITS[unit]
        self.value.setRange(-(-RPO_MIN_S // size), RPO_MAX_S // size)
        self._follow()

    def _follow(self) -> None:
        seconds = self.seconds()
        known = {value: name for name, value in RPO_PRESETS_S.items()}
        self.preset.setCurrentText(known.get(seconds, OWN))
        self.changed.emit(seconds)
