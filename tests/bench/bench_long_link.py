"""The mover over a long link (the lab's, without its hosts): one stream, four, and ``nbdcopy`` through SSH. Root.

``python -m tests.bench.bench_long_link [--delay 50ms] [--mib N] [--json FILE]``. The delay is one way, and there on
both ways. Incompressible data; MB/s; medians of interleaved rounds. The sender runs in host A's network namespace,
sshd and the receiver in B's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from tests.bench.bench_mover import fill, nbdcopy
from tests.bench.loopback import Sshd
from tests.unit.mover_rig import MIB, Mover, Rig, disk, export
from vapor_desktop.lab import network
from vapor_desktop.lab.layout import LabLayout

STREAMS = (1, 4)
RIVAL = "nbdcopy"


def outside(options: argparse.Namespace) -> int:
    """Lay the link, run the rest inside its end, take it away."""
    with tempfile.TemporaryDirectory(prefix="vb-") as state, ExitStack() as stack:
        network.remove(LabLayout("bench-link", Path(state)))  # what a killed bench left
        with network.choosing() as index:
            layout = LabLayout("bench-link", Path(state), index)
            stack.callback(network.remove, layout)
            network.create(layout)
        a, b = layout.sites.values()
        for site in (a, b):
            site.directory.mkdir()
            network.shape(site, rate=options.rate, delay=options.delay, loss=None)
            print(f"  {site.name}: {network.state(layout, site).shape}", flush=True)
        words = [sys.executable, "-m", __spec__.name, "--inside", f"{b.namespace}@{b.address}", *sys.argv[1:]]
        return subprocess.run(["ip", "netns", "exec", a.namespace, *words]).returncode


def inside(options: argparse.Namespace) -> int:
    """In A's network namespace: every way of copying, in turns."""
    namespace, _, address = options.inside.partition("@")
    size = options.mib * MIB
    took: dict[str, list[float]] = {}
    with ExitStack() as stack:
        root = stack.enter_context(tempfile.TemporaryDirectory(prefix="vb-"))
        rig = Rig(Path(root))
        sshd = Sshd(rig, address, ["ip", "netns", "exec", namespace])
        stack.callback(sshd.close)
        mover = Mover(rig, over_ssh=True)
        stack.callback(mover.close)
        source = fill("random", rig.root / "random.qcow2", size)
        socket = stack.enter_context(export(source.path))
        for _ in range(options.rounds):
            if not options.ours_only:
                took.setdefault(RIVAL, []).append(nbdcopy(sshd, socket, rig.root, size)[0])
            for streams in options.streams or STREAMS:
                rig.renew_vm()
                started = time.monotonic()
                mover.transfer(rig.transfer([disk("vda", size, socket)], checkpoint=None, streams=streams))
                took.setdefault(f"{streams}_streams", []).append(time.monotonic() - started)
                if not rig.identical(1, "vda", socket):
                    raise RuntimeError("the copy differs")
            print("  " + ", ".join(f"{name} {times[-1]:.2f} s" for name, times in took.items()), flush=True)
    numbers = {f"long_link_{name}_mb_s": size / 1e6 / statistics.median(times) for name, times in took.items()}
    for name, value in numbers.items():
        print(f"{name:40} {value:10.1f}")
    if options.json:
        options.json.write_text(json.dumps(numbers, indent=1))
    return 0


def main() -> int:
    """Both halves are this program."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--delay", default="50ms")
    parser.add_argument("--rate", default=None)
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--streams", type=int, action="append")
    parser.add_argument("--ours-only", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--inside", default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("network namespaces need root")
    return inside(options) if options.inside else outside(options)


if __name__ == "__main__":
    sys.exit(main())
