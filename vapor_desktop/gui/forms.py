"""Qt Designer forms, loaded at run time: no generated file that can be stale."""

from __future__ import annotations

from typing import TypeVar

from PySide6.QtCore import QFile, QIODevice, QObject
from PySide6.QtUiTools import QUiLoader
from PySide6.QtWidgets import QWidget

from vapor_desktop.gui.data import data_path

Child = TypeVar("Child", bound=QObject)


def load_form(name: str, parent: QWidget | None = None) -> QWidget:
    """The widget of ``ui/NAME.ui``. Raises FileNotFoundError, or RuntimeError when the form is malformed."""
    path = data_path("ui") / f"{name}.ui"
    file = QFile(str(path))
    if not file.open(QIODevice.OpenModeFlag.ReadOnly):
        raise FileNotFoundError(f"No form {path}")
    try:
        loader = QUiLoader()
        form = loader.load(file, parent)
        if form is None:
            raise RuntimeError(f"{path}: {loader.errorString()}")
        return form
    finally:
        file.close()


def child(form: QObject, kind: type[Child], name: str) -> Child:
    """The form's child of that type and object name. Raises LookupError: a form and its code disagree."""
    found: Child | None = form.findChild(kind, name)
    if found is None:
        raise LookupError(f"Form {form.objectName()!r} has no {kind.__name__} {name!r}")
    return found
