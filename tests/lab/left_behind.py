"""What a lab could leave behind on the outer machine."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from vapor_desktop.lab.lab import Lab


def inventory(lab: Lab) -> dict[str, object]:
    """What this lab could leave behind on the outer machine (others may come and go meanwhile)."""
    links = json.loads(subprocess.run(["ip", "-j", "link"], check=True, capture_output=True, text=True).stdout)
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    rules = subprocess.run(["iptables-save"], check=True, capture_output=True, text=True).stdout.splitlines()
    names = (str(lab.state), f"vapor-lab-{lab.name}-")
    return {
        "links": [link["ifname"] for link in links if lab.layout.tag in link["ifname"]],
        "mounts": [mount for mount in mounts if any(name in mount for name in names)],
        "namespaces": [path.name for path in Path("/run/netns").glob(f"vapor-lab-{lab.name}-*")],
        "state": lab.state.exists(),
        "rules": [rule for rule in rules if "VAPOR-LAB" in rule or lab.layout.tag in rule],
        "accounts": [line for line in Path("/etc/passwd").read_text().splitlines() if line.startswith("vapor:")],
        "processes": [
            int(entry.name)
            for entry in Path("/proc").iterdir()
            if entry.name.isdigit() and lab.state.name in _words(entry)
        ],
    }


def _words(process: Path) -> str:
    try:
        return (process / "cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
