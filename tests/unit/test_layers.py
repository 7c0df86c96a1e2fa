"""Which way imports point, and what the wheel carries: proven on the installed thing, not on its drawing."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]

# Loads every module of a package in a fresh interpreter, then tells how many there were and what came with them.
LOAD_ALL = """
import importlib, pkgutil, sys
package = importlib.import_module(sys.argv[1])
names = [m.name for m in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
for name in names:
    if not name.endswith(".__main__"):
        importlib.import_module(name)
print(len(names))
print(" ".join(sorted({name.split(".")[0] for name in sys.modules})))
"""

CALLABLE = """
import importlib, sys
for target in sys.argv[1:]:
    module, function = target.split(":")
    assert callable(getattr(importlib.import_module(module), function)), target
"""

QT = {"PySide6", "shiboken6", "pyqtgraph"}


def _loaded_by(package: str, cwd: str | Path = "/") -> tuple[int, set[str]]:
    done = subprocess.run(
        [sys.executable, "-W", "error::SyntaxWarning", "-c", LOAD_ALL, package],
        capture_output=True, text=True, timeout=120, cwd=cwd,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    count, roots = done.stdout.splitlines()
    return int(count), set(roots.split())


@pytest.mark.parametrize("package", ["model", "engine", "site", "hypervisor", "transport", "store", "cli", "lab"])
def test_nothing_but_the_window_loads_qt(package: str) -> None:
    count, roots = _loaded_by(f"vapor_desktop.{package}")
    assert count > 0, "an empty package proves nothing"
    assert not roots & QT


def test_the_proof_would_see_qt(tmp_path: Path) -> None:
    planted = tmp_path / "planted"
    (planted / "deep").mkdir(parents=True)
    for init in (planted / "__init__.py", planted / "deep/__init__.py"):
        init.touch()
    (planted / "deep/sly.py").write_text("def later():\n    pass\n\nimport PySide6\n")
    count, roots = _loaded_by("planted", cwd=tmp_path)
    assert count == 2
    assert "PySide6" in roots


@pytest.mark.parametrize(
    ("package", "never"),
    [
        ("model", {"libvirt", "paramiko", "sqlalchemy", "httpx2", "keyring", "fastapi", "nbd"}),
        ("engine", {"libvirt", "paramiko", "sqlalchemy", "httpx2", "keyring", "fastapi", "nbd"}),
        ("site", {"paramiko", "sqlalchemy", "keyring", "httpx2"}),  # a host installs only the `site` extra
        ("hypervisor", {"paramiko", "sqlalchemy", "keyring", "httpx2"}),
    ],
)
def test_each_process_loads_only_its_own_libraries(package: str, never: set[str]) -> None:
    _, roots = _loaded_by(f"vapor_desktop.{package}")
    assert not roots & never


def test_the_contracts_hold() -> None:
    tool = Path(sysconfig.get_path("scripts"), "lint-imports")
    done = subprocess.run([tool, "--no-cache"], cwd=TOP, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as pip builds it from this checkout, with the locked back end: no network."""
    into = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
         "--disable-pip-version-check", "--wheel-dir", into, TOP],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (built,) = into.glob("vapor_desktop-*.whl")
    return built


def _tracked(folder: str) -> set[str]:
    return {str(p.relative_to(TOP)) for p in (TOP / folder).rglob("*") if p.is_file() and p.suffix != ".pyc"}


def test_forms_and_resources_travel_in_the_wheel(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    wanted = {f"vapor_desktop/_data/{name}" for folder in ("ui", "resources") for name in _tracked(folder)}
    assert any(name.endswith(".ui") for name in wanted)
    assert any(name.endswith(".svg") for name in wanted)
    assert wanted <= inside


def test_every_module_travels_and_nothing_else_does(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in _tracked("vapor_desktop") if name.endswith((".py", ".mako"))} <= inside
    assert {name.split("/")[0].split("-")[0] for name in inside} == {"vapor_desktop"}


def test_the_commands_are_declared_and_their_functions_exist(wheel: Path) -> None:
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("entry_points.txt"))
        declared = ConfigParser()
        declared.read_string(archive.read(name).decode())
    assert dict(declared["console_scripts"]) == project["scripts"]
    assert dict(declared["gui_scripts"]) == project["gui-scripts"]
    targets = [*project["scripts"].values(), *project["gui-scripts"].values()]
    probe = CALLABLE
    done = subprocess.run(
        [sys.executable, "-c", probe, *targets], capture_output=True, text=True, timeout=120, cwd="/"
    )
    assert done.returncode == 0, done.stderr
