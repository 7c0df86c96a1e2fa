"""*Seed first copy…*: images that are at the target already, on which the disks' first copies will stand."""

from __future__ import annotations

from html import escape

from PySide6.QtCore import Qt
from PySide6.QtWidgets import (
    QComboBox,
    QDialog,
    QHeaderView,
    QLabel,
    QLineEdit,
    QPushButton,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from vapor_desktop.gui import words
from vapor_desktop.gui.context import Context
from vapor_desktop.gui.error_box import sentence
from vapor_desktop.gui.forms import child, load_form
from vapor_desktop.model.errors import VaporError
from vapor_desktop.model.view import DiskStatus, DisksView
from vapor_desktop.model.wire import ImageFormat

_FORMATS: dict[str, ImageFormat] = {"qcow2": "qcow2", "raw": "raw"}


def no_seed_of(disk: DiskStatus) -> str:
    """Why this disk takes no seed; "" when it does."""
    if disk.kind not in ("delta", "compare"):
        return disk.reason or "the source does not tell of it"
    if disk.in_point:
        return "has recovery points already"
    return ""


class SeedDialog(QDialog):
    """Read ``images`` and ``image_format`` after it was accepted."""

    def __init__(self, context: Context, protection_id: str, vm_name: str, target: str, parent: QWidget) -> None:
        super().__init__(parent)
        self._target = target
        self._paths: dict[str, QLineEdit] = {}
        self.setWindowTitle(f"Seed the first copy of {vm_name}")
        form = load_form("seed", self)
        box = QVBoxLayout(self)
        box.addWidget(form)
        self.disks, self.state = child(form, QTableWidget, "disks"), child(form, QLabel, "state")
        self._format, self.go = child(form, QComboBox, "format"), child(form, QPushButton, "go")
        self._format.addItems(list(_FORMATS))
        child(form, QLabel, "headline").setText(f"<h3>Begin the first copy from images at {escape(target)}</h3>")
        child(form, QLabel, "intro").setText(
            "The first cycle then sends only what differs from them. Give the path of each disk's image as "
            f"{escape(target)} knows it, below one of its image roots. The images are copied, never changed."
        )
        self.go.clicked.connect(self.accept)
        child(form, QPushButton, "cancel").clicked.connect(self.reject)
        self.go.setDefault(True)
        self._prepare()
        self.state.setText("Reading the disks…")
        self.resize(720, 360)
        self._judge()
        backend = context.backend
        context.bridge.ask(lambda: backend.disks(protection_id), self, self._show, self._failed)

    @property
    def images(self) -> dict[str, str]:
        """Disk → absolute path at the target."""
        return {disk: box.text().strip() for disk, box in self._paths.items() if box.text().strip()}

    @property
    def image_format(self) -> ImageFormat:
        """Of all of them."""
        return _FORMATS[self._format.currentText()]

    def path_of(self, disk: str) -> QLineEdit:
        """The line for a disk's path."""
        return self._paths[disk]

    def _prepare(self) -> None:
        table = self.disks
        table.setColumnCount(3)
        table.setHorizontalHeaderLabels(["Disk", "Size", "Image at the target"])
        table.verticalHeader().hide()
        table.verticalHeader().setDefaultSectionSize(table.fontMetrics().height() + 14)
        table.setTabKeyNavigation(False)
        table.setShowGrid(False)
        table.horizontalHeader().setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        table.horizontalHeader().setStretchLastSection(True)
        table.horizontalHeader().setHighlightSections(False)
        table.horizontalHeader().setDefaultAlignment(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter)

    def _failed(self, error: VaporError) -> None:
        self.state.setText(f"The disks cannot be read. {sentence(error)}")

    def _show(self, view: DisksView) -> None:
        rows = [d for d in view.disks if d.kind != "excluded"]
        self.disks.setRowCount(len(rows))
        for row, disk in enumerate(rows):
            for column, text in enumerate((f"{disk.target}   ", f"{words.size(disk.size_bytes)}   ")):
                self._cell(row, column, text)
            why = no_seed_of(disk)
            if why:
                self._cell(row, 2, why)
                continue
            box = QLineEdit(self.disks)
            box.setAccessibleName(f"Image of disk {disk.target} at the target")
            box.setPlaceholderText("/var/lib/libvirt/images/…" + (" — seeded already" if disk.seeded else ""))
            box.textChanged.connect(self._judge)
            self.disks.setCellWidget(row, 2, box)
            self._paths[disk.target] = box
        trouble = view.source_trouble or view.target_trouble
        self.state.setText(escape(trouble))
        if self._paths:
            next(iter(self._paths.values())).setFocus()
        elif not trouble:
            self.state.setText("Every disk has recovery points already: later cycles send only what changed.")
        self._judge()

    def _cell(self, row: int, column: int, text: str) -> None:
        item = QTableWidgetItem(text)
        item.setFlags(Qt.ItemFlag.ItemIsEnabled)
        self.disks.setItem(row, column, item)

    def _judge(self) -> None:
        wrong = [disk for disk, path in self.images.items() if not path.startswith("/")]
        if wrong:
            self.state.setText(f"The path of {', '.join(wrong)} is not absolute.")
        elif self._paths:
            self.state.setText("A running first copy is stopped for it.")
        self.go.setEnabled(bool(self.images) and not wrong)
