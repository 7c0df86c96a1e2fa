"""The matrix of cuts and faults: every kind of operation × every step of it × every fault, from the registry.

    python tests/soak/matrix.py [--only KIND] [--fault FAULT] [--budget-s N] [--again]

Each cell is a run on the lab's two hosts from a clean world, in a process of its own. It passes when the operation
comes to its end, the VM was never seen running at both sites, and the end state is that of an undisturbed run of the
same program. ``report.json`` is written after every cell; a cell that was not run is said not to be run. A cell's
result counts as long as the commit is the one it was run on; ``--again`` runs those that have passed too.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from matrix_cell import CACHE
from matrix_faults import FAULTS, NONE, REPLICAS
from matrix_scenes import SCENES

from vapor_desktop.engine.operations.registry import TYPES
from vapor_desktop.engine.operations.steps import Step
from vapor_desktop.lab.keyring_session import KeyringSession
from vapor_desktop.lab.lab import Lab
from vapor_desktop.lab.stage import remove_guests
from vapor_desktop.model.operations import OperationKind

HERE = Path(__file__).parent
REPORT = HERE / "report.json"
NUMBER = os.environ.get("VAPOR_TEST_LAB", "")
LOCK = Path(f"/tmp/vapor-lab{NUMBER}.lock")  # noqa: S108 - the same for all users of the machine
CELL_S = 900.0
ROOM_MIB = 900

Cell = tuple[str, str, str]  # kind, step, fault


def cells() -> list[Cell]:
    """All of them, the undisturbed runs first. A new step or kind is here by itself."""
    kinds = [(kind.value, steps_of(kind)) for kind in TYPES]
    undisturbed = [(kind, "", NONE) for kind, _ in kinds]
    return undisturbed + [(kind, step.name, fault) for fault in FAULTS for kind, steps in kinds for step in steps]


def steps_of(kind: OperationKind) -> tuple[Step, ...]:
    """Those of an operation as its scene begins it."""
    scene = SCENES.get(kind)
    return TYPES[kind].steps_for(scene.like) if scene else TYPES[kind].steps


class Report:
    """``report.json``: what each cell came to, when, on which commit."""

    def __init__(self, path: Path, commit: str) -> None:
        self._path = path
        self._commit = commit
        known = json.loads(path.read_text())["cells"] if path.exists() else []
        self.rows: dict[Cell, dict[str, Any]] = {(c["kind"], c["step"], c["fault"]): c for c in known}

    def passed(self, cell: Cell) -> bool:
        """On this very commit."""
        row = self.rows.get(cell, {})
        return row.get("result") == "passed" and row.get("commit") == self._commit

    def baseline(self, kind: str) -> dict[str, Any] | None:
        """The end state of the undisturbed run."""
        row = self.rows.get((kind, "", NONE), {})
        return row.get("state") if row.get("result") == "passed" else None

    def put(self, cell: Cell, result: str, **more: Any) -> None:
        """One cell's outcome; the file is whole at every moment."""
        kind, step, fault = cell
        at = datetime.now(UTC).isoformat(timespec="seconds")
        row = {"kind": kind, "step": step, "fault": fault, "result": result, "commit": self._commit, "at": at, **more}
        self.rows[cell] = row
        self.save()

    def save(self) -> None:
        """Cells of today's registry alone; what has never been run is said so."""
        found = []
        for kind, step, fault in cells():
            why = "" if OperationKind(kind) in SCENES else "nobody has described how it begins (matrix_scenes.py)"
            never = {"kind": kind, "step": step, "fault": fault, "result": "not run", "why": why or "no time yet"}
            found.append(self.rows.get((kind, step, fault), never))
        document = {
            "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": self._commit,
            "cells_in_all": len(found),
            "run_on_this_commit": sum(c.get("commit") == self._commit for c in found),
            **dict(sorted(Counter(c["result"] for c in found).items())),
            "cells": found,
        }
        aside = self._path.with_suffix(".new")
        aside.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
        aside.rename(self._path)


@contextmanager
def two_hosts() -> Iterator[Lab]:
    """The lab under its lock; the target's replicas on a file system of their own, so that it can be filled."""
    LOCK.touch()
    with LOCK.open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with Lab(f"soak{NUMBER}", cache=CACHE) as lab:
            b = lab.sites["b"]
            options = f"size={ROOM_MIB}m,mode=2770,uid=vapor,gid=libvirt-qemu"
            b.exec(["mount", "-t", "tmpfs", "-o", options, "tmpfs", REPLICAS])
            settings = b.path("/etc/vapor/site.toml")
            settings.write_text(settings.read_text() + "replica_reserve_bytes = 67108864\n")
            lab.kill_site("b")  # its service reads the settings as it starts
            lab.revive_site("b")
            yield lab
            remove_guests(lab)


def child(lab: Lab, *words: str) -> subprocess.CompletedProcess[str]:
    """One run of ``matrix_cell.py``."""
    verb, home, *rest = words
    command = [sys.executable, str(HERE / "matrix_cell.py"), verb, lab.name, home, *rest]
    return subprocess.run(command, capture_output=True, text=True, timeout=CELL_S, check=False)


def run_cell(lab: Lab, home: Path, cell: Cell, report: Report) -> str:
    """Run it and write it down; its result."""
    try:
        done = child(lab, "run", str(home), *cell)
    except subprocess.TimeoutExpired:
        report.put(cell, "failed", wrong=[f"not done in {CELL_S:.0f} s"])
        return "failed"
    if done.returncode != 0:
        report.put(cell, "failed", wrong=[done.stderr.strip()[-1500:] or f"exit code {done.returncode}"])
        return "failed"
    # A log line of a thread that ends late may come after it.
    told = json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith("{")))
    wrong, state = told["wrong"], told["state"]
    kind, _, fault = cell
    wanted = state if fault == NONE else report.baseline(kind)
    if wanted is None:
        wrong.append("there is no undisturbed run to compare with")
    elif state and wanted != state:
        wrong += [
            f"{key}: {state.get(key)} instead of {wanted[key]}" for key in wanted if wanted[key] != state.get(key)
        ]
    result = "failed" if wrong else "passed"
    kept = {"state": state} if fault == NONE else {}
    report.put(
        cell, result, seconds=told["seconds"], words=told["words"], **({"wrong": wrong} if wrong else {}), **kept
    )
    return result


def commit_of_this() -> str:
    """With a "+" when the program has changes that are not in it."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=HERE, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    return git("rev-parse", "--short", "HEAD") + (
        "+" if git("status", "--porcelain", "--", ":/vapor_desktop") else ""
    )


def main() -> int:
    """0: every cell that was run passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], metavar="KIND")
    parser.add_argument("--step", action="append", default=[])
    parser.add_argument("--fault", action="append", default=[], choices=[*FAULTS, NONE])
    parser.add_argument("--budget-s", type=float, default=float("inf"))
    parser.add_argument("--again", action="store_true")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda _n, _f: sys.exit(143))  # the lab is taken down all the same
    report = Report(REPORT, commit_of_this())
    wanted = [
        (kind, step, fault)
        for kind, step, fault in cells()
        if OperationKind(kind) in SCENES
        and (not asked.only or kind in asked.only)
        and (fault == NONE or ((not asked.fault or fault in asked.fault) and (not asked.step or step in asked.step)))
        and (asked.again or not report.passed((kind, step, fault)))
    ]
    failed = 0
    with tempfile.TemporaryDirectory(prefix="vm-") as folder, two_hosts() as lab, KeyringSession(Path(folder)):
        paired = child(lab, "pair", folder)
        if paired.returncode != 0:
            print(paired.stderr, file=sys.stderr)
            return 2
        end = time.monotonic() + asked.budget_s
        for cell in wanted:
            if time.monotonic() > end:
                break
            result = run_cell(lab, Path(folder), cell, report)
            failed += result == "failed"
            row = report.rows[cell]
            print(
                f"{result:7} {' / '.join(filter(None, cell))}  {row.get('seconds', '')}  {row.get('wrong', '')}",
                flush=True,
            )
    report.save()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
