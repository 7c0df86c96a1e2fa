"""``python -m tests.bench [--json FILE]``: every ``bench_*`` here, one after another; one table, one file of medians.

Each bench is a module with ``--json FILE`` that writes {name: number}. A bench that fails makes the whole fail.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path


def _machine() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{line.partition(':')[2].strip()}, {os.cpu_count()} cores, Linux {os.uname().release}"
    return f"{os.uname().machine}, {os.cpu_count()} cores, Linux {os.uname().release}"


def main() -> int:
    """Run them; the exit code is 1 if one failed."""
    parser = argparse.ArgumentParser(prog="./vapor bench")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    numbers: dict[str, float] = {}
    failed = []
    for bench in sorted(Path(__file__).parent.glob("bench_*.py")):
        print(f"=== {bench.stem}", flush=True)
        with tempfile.TemporaryDirectory(prefix="vb-") as into:
            result = Path(into, "numbers.json")
            done = subprocess.run([sys.executable, "-m", f"tests.bench.{bench.stem}", "--json", str(result)])
            if done.returncode != 0:
                failed.append(bench.stem)
                continue
            numbers |= json.loads(result.read_text())
    print(f"\n{datetime.now(UTC):%Y-%m-%d}, {_machine()}")
    print("| what | median |\n|---|---|")
    for name, value in sorted(numbers.items()):
        print(f"| {name} | {value:.3f} |")
    if options.json:
        options.json.write_text(json.dumps(numbers, indent=1) + "\n")
    for name in failed:
        print(f"FAILED: {name}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
