"""Where forms and icons are: in a checkout beside the package, in a wheel under ``vapor_desktop/_data``."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import vapor_desktop


@cache
def data_path(kind: str) -> Path:
    """The folder ``ui`` or ``resources``. Raises FileNotFoundError naming both places tried."""
    package = Path(vapor_desktop.__file__).resolve().parent
    tried = (package / "_data" / kind, package.parent / kind)
    for path in tried:
        if path.is_dir():
            return path
    raise FileNotFoundError(f"The installation is incomplete: neither {tried[0]} nor {tried[1]} exists")
