"""``./vapor demo``: two sites, replicated guests, and the console; or the same job without a display.

``--headless --once`` proves the whole job and says so in one line of JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from vapor_desktop import app
from vapor_desktop.lab import guests
from vapor_desktop.lab.keyring_session import KeyringSession
from vapor_desktop.lab.lab import Lab
from vapor_desktop.lab.processes import LabFailed
from vapor_desktop.lab.stage import Stage
from vapor_desktop.model.errors import VaporError

RPO_TARGET_S = 10
CYCLES = 3


@click.command()
@click.option("--headless", is_flag=True, help="No window: a live text view (the default without a display).")
@click.option("--once", is_flag=True, help="Prove pair, protect, cycles, failover once; print JSON; leave nothing.")
@click.option("--name", default="demo", show_default=True, help="Name of the lab.")
def demo(headless: bool, once: bool, name: str) -> None:
    """Two real KVM hosts on this machine, two real guests, replicated every 10 s."""
    app.log_to_stderr()
    summary: dict[str, object] | None = None
    home = Path(tempfile.mkdtemp(prefix="vapor-demo-"))
    lab = Lab(name)
    try:
        with KeyringSession(home):
            stage = Stage(lab, home)
            try:
                if once:
                    summary = _once(stage)
                else:
                    shown = bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
                    _set_the_stage(stage, headless or not shown)
            finally:
                stage.close()
    except (LabFailed, VaporError) as error:
        click.echo(f"vapor demo: {error}", err=True)
        sys.exit(1)
    finally:
        lab.down()
        shutil.rmtree(home, ignore_errors=True)
    if summary is not None:  # the last line, when nothing is left that could still say something
        click.echo(json.dumps(summary))
        sys.exit(0 if summary["ok"] else 1)


def _say(text: str) -> None:
    click.echo(f"demo: {text}", err=True)


def _bring_up(stage: Stage) -> None:
    _say("starting two hosts (network namespaces, libvirtd, sshd, vapor-site) …")
    stage.lab.up()
    specs = guests.DEFAULT_GUESTS
    for spec in specs:
        _say(f"starting guest {spec.name} ({spec.firmware}, {spec.disk_count} disk(s)) on site a …")
        guests.add(stage.lab.sites["a"], spec, stage.lab.cache)


def _set_the_stage(stage: Stage, headless: bool) -> None:
    _bring_up(stage)
    stage.open(demo=True)
    a, b = stage.pair()
    stage.protect(a, b, [s.name for s in guests.DEFAULT_GUESTS], rpo_target_s=RPO_TARGET_S)
    # The window, or the text view, is the user's own program on the demo's database: the engine moves into it.
    stage.close()
    if headless:
        _say("replicating; Ctrl+C ends the demo and removes everything")
        words = [sys.executable, "-m", "vapor_desktop.cli.main", "watch", "--interval", "2"]
    else:
        _say("opening the console …")
        words = [sys.executable, "-m", "vapor_desktop.app", "--demo"]
    with contextlib.suppress(KeyboardInterrupt):
        subprocess.run(words, check=False)


def _once(stage: Stage) -> dict[str, object]:
    """The proof, and what came of it."""
    began = time.monotonic()
    summary: dict[str, object] = {"ok": False}
    try:
        _prove(stage, summary)
    except (LabFailed, VaporError) as error:
        summary["error"] = str(error)
    summary["seconds"] = round(time.monotonic() - began, 1)
    return summary


def _prove(stage: Stage, summary: dict[str, object]) -> None:
    lab = stage.lab
    names = [s.name for s in guests.DEFAULT_GUESTS]
    _bring_up(stage)
    summary["lab_up"] = True
    for name in names:
        guests.wait_for(lab.sites["a"], name, r"VAPOR-DIARY ", timeout_s=60)
    stage.open(demo=True)
    a, b = stage.pair()
    _say("sites paired")
    stage.compare_every_point()
    stage.protect(a, b, names, rpo_target_s=RPO_TARGET_S)
    for name in names:
        row = stage.wait_for_point(name, CYCLES, timeout_s=180)
        _say(f"{name}: {row.point_count} points, RPO now {row.rpo_now_s or 0:.1f} s")
    # No cycle may come between the last comparison and the power cut: freeze the picture first.
    expected = {name: stage.row(name).last_seq for name in names}
    summary["points"] = {name: stage.row(name).point_count for name in names}
    summary["compared_disks"] = len(stage.comparisons)
    summary["identical"] = bool(stage.comparisons) and all(c.identical for c in stage.comparisons)
    _say(f"power cut at site a; failing over {', '.join(names)}")
    lab.kill_site("a")
    promised = {name: stage.newest_record(name) for name in names}
    took: dict[str, float] = {}
    verdicts: dict[str, str] = {}
    for name in names:
        row = stage.row(name)
        took[name] = round(stage.backend.failover(row.key, None, "demo: site a lost its power"), 2)
    for name in names:
        verdicts[name] = stage.wait_booted(name, "b")
    summary["failover_to_running_s"] = max(took.values())
    summary["diary"] = verdicts
    # No gap, nothing torn, and not an older point than the newest: its very last record is there.
    summary["diary_ok"] = all(
        {f"last={promised[name]}", "gaps=0", "torn=0"} <= set(words.split()) for name, words in verdicts.items()
    )
    summary["states"] = {name: stage.row(name).protection.phase.value for name in names}
    summary["newest_point"] = expected
    summary["ok"] = bool(
        summary["identical"] and summary["diary_ok"] and all(s == "provisional" for s in summary["states"].values())  # type: ignore[attr-defined]
    )


if __name__ == "__main__":
    demo()
