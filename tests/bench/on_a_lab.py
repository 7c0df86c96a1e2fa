"""What the benches on two real hosts share: a lab and a console of their own, a table, a file of figures."""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from vapor_desktop.lab.keyring_session import KeyringSession
from vapor_desktop.lab.lab import Lab
from vapor_desktop.lab.stage import Stage


def measured(measure: Callable[..., dict[str, float]], **numbers: int) -> None:
    """Run ``measure(stage, NAME=number, …)``. ``numbers``: options of the command line with their defaults."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    for name, default in numbers.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    options = vars(parser.parse_args())
    file = options.pop("json")
    home = Path(tempfile.mkdtemp(prefix="vapor-bench-"))
    try:
        with Lab("bench") as lab, KeyringSession(home):
            stage = Stage(lab, home)
            try:
                figures = measure(stage, **options)
            finally:
                stage.close()
    finally:
        shutil.rmtree(home, ignore_errors=True)
    for name, value in figures.items():
        print(f"{name:36} {value}")
    if file:
        file.write_text(json.dumps(figures, indent=1))
