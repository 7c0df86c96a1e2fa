"""The README's first command, without a display: everything once, one line of JSON, nothing left behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vapor_desktop.lab.lab import Lab

pytestmark = [pytest.mark.lab, pytest.mark.soak, pytest.mark.timeout(400)]
NAME = "demotest"


def test_once_without_a_display_ends_in_one_line_of_json_and_leaves_nothing(lab_lock: None) -> None:
    before = set(Path("/tmp").glob("vapor-demo-*"))  # noqa: S108
    command = [sys.executable, "-m", "vapor_desktop.lab.main", "demo", "--headless", "--once", "--name", NAME]
    done = subprocess.run(command, capture_output=True, text=True, timeout=360)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(done.stdout.splitlines()) == 1, done.stdout
    summary = json.loads(done.stdout)
    assert (summary["ok"], summary["identical"], summary["diary_ok"]) == (True, True, True), summary
    assert min(summary["points"].values()) >= 3
    assert summary["failover_to_running_s"] < 3
    assert set(Path("/tmp").glob("vapor-demo-*")) == before  # noqa: S108
    names = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    assert NAME not in names
    assert not Lab(NAME).state.exists()
