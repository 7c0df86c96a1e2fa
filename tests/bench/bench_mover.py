"""The mover against ``nbdcopy`` through an SSH-forwarded unix socket: same disks, same run, real sshd on loopback.

``python -m tests.bench.bench_mover [--gib N] [--rounds N] [--dir DIR] [--json FILE]``. Ratios are throughputs,
ours divided by the rival's; the medians of rounds in which the two take turns at being first. Both read the same
export, cross the same sshd with the same cipher, end flushed on the same file system in a qcow2 file of their own
that is removed only after the round. ``local_…`` is ``nbdcopy`` without SSH: as if the link cost nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from tests.bench.loopback import Sshd
from tests.unit.mover_rig import MIB, Mover, Rig, SourceDisk, disk, export, run
from vapor_desktop.model.manifest import DiskMode

TICK = os.sysconf("SC_CLK_TCK")


def fill(kind: str, path: Path, size_bytes: int) -> SourceDisk:
    """A disk of random data, or with half of every 64 KiB block compressible (zeroes or text)."""
    source = SourceDisk(path, size_bytes)
    raw = path.with_suffix(".raw")
    rng = random.Random(7)
    words = [rng.randbytes(rng.randint(3, 9)) for _ in range(300)]
    with raw.open("wb") as file:
        for _ in range(size_bytes // MIB):
            if kind == "random":
                file.write(os.urandom(MIB))
                continue
            noise = os.urandom(MIB // 2)
            text = bytes(32768) if kind == "half-zero" else b"".join(rng.choices(words, k=8192))[:32768]
            file.write(b"".join(noise[i : i + 32768] + text for i in range(0, MIB // 2, 32768)))
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path)
    raw.unlink()
    return source


def nbdcopy(sshd: Sshd | None, source: Path, where: Path, size_bytes: int) -> tuple[float, Counter[str]]:
    """Seconds (and CPU seconds by program) of one copy into a fresh qcow2, flushed, through a forwarded socket.

    Without ``sshd``: straight into the server. ``rival.qcow2`` stays, for the caller to remove.
    """
    with ExitStack() as stack:
        image, there, here = where / "rival.qcow2", where / "there", where / "here"
        run("qemu-img", "create", "-q", "-f", "qcow2", image, str(size_bytes))
        server = subprocess.Popen(
            ["qemu-nbd", "--discard=unmap", "-f", "qcow2", "-x", "disk", "-t", "-e", "16", "-k", there, str(image)]
        )
        stack.callback(lambda: (server.kill(), server.wait(), there.unlink(missing_ok=True)))
        while not there.exists():
            time.sleep(0.005)
        watched = [server.pid]
        if sshd is not None:
            link = sshd.forward(here, there)
            stack.callback(lambda: (link.terminate(), link.wait(), here.unlink(missing_ok=True)))
            watched += [link.pid, sshd.pid]
        into = there if sshd is None else here
        before, child = cpu_by_name(*watched), children_s()
        started = time.monotonic()
        run("nbdcopy", "--flush", f"nbd+unix:///disk?socket={source}", f"nbd+unix:///disk?socket={into}")
        took = time.monotonic() - started
        used = cpu_by_name(*watched) - before
        used["nbdcopy"] = children_s() - child  # type: ignore[assignment]
        return took, used


def peak_rss_mb(pid: int) -> float:
    """VmHWM."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmHWM")


def cpu_s(pid: int) -> float:
    """User and system time so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def descendants(root: int) -> list[int]:
    """A process and everything below it, now."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, at = [root], 0
    while at < len(found):
        found += children.get(found[at], [])
        at += 1
    return found


def cpu_by_name(*roots: int) -> Counter[str]:
    """CPU seconds so far of every process at or below the roots, by program."""
    total: Counter[str] = Counter()
    for pid in {p for root in roots for p in descendants(root)}:
        try:
            total[Path(f"/proc/{pid}/comm").read_text().strip()] += cpu_s(pid)  # type: ignore[assignment]
        except OSError:
            continue
    return total


def pids(*words: str) -> list[int]:
    """Processes whose command line holds all the words."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if all(w in line for w in words) and int(entry.name) != os.getpid():
                found.append(int(entry.name))
    return found


Leg = tuple[float, Counter[str]]


def bulk(kind: str, rig: Rig, sshd: Sshd, mover: Mover, size: int, options: argparse.Namespace) -> dict[str, float]:
    """Median seconds and CPU seconds of each way of copying one kind of data, by "what_measure"."""
    source = fill(kind, rig.root / f"{kind}.qcow2", size)
    took: dict[str, list[Leg]] = {"nbdcopy": [], "mover": [], "local": []}
    with export(source.path) as socket:
        reader = pids("qemu-nbd", str(socket))
        legs: dict[str, Callable[[], Leg]] = {
            "nbdcopy": lambda: nbdcopy(sshd, socket, rig.root, size),
            "mover": lambda: ours(rig, sshd, mover, socket, size, options.streams),
            "local": lambda: nbdcopy(None, socket, rig.root, size),
        }
        for number in range(options.rounds):
            order = ["mover", "nbdcopy"] if number % 2 else ["nbdcopy", "mover"]
            for name in [*order, "local"]:
                if name == "local":  # the round is over: what it made may go
                    (rig.root / "rival.qcow2").unlink()
                idle = cpu_by_name(*reader)
                seconds, cpu = legs[name]()
                cpu["source"] = (cpu_by_name(*reader) - idle).total()
                took[name].append((seconds, cpu))
                print(f"  {kind}: {name:8} {seconds:5.2f} s, CPU {cpu.total():5.2f} s: {table(cpu)}", flush=True)
            (rig.root / "rival.qcow2").unlink()
            if not rig.identical(1, "vda", socket):
                raise RuntimeError("the copy differs")
            shutil.rmtree(rig.store.disk_path(rig.vm, 1, "vda").parents[1])
    source.path.unlink()
    gib = size / (1 << 30)
    numbers = {}
    for name, runs in took.items():
        numbers[f"{name}_s"] = statistics.median(seconds for seconds, _ in runs)
        numbers[f"{name}_cpu_s_per_gib"] = statistics.median(cpu.total() for _, cpu in runs) / gib
    return numbers


def ours(rig: Rig, sshd: Sshd, mover: Mover, socket: Path, size: int, streams: int) -> Leg:
    """One first copy by the mover."""
    rig.renew_vm()
    transfer = rig.transfer([disk("vda", size, socket)], checkpoint=None, streams=streams)
    before = cpu_by_name(mover.process.pid, sshd.pid)
    started = time.monotonic()
    mover.transfer(transfer)
    seconds = time.monotonic() - started
    return seconds, cpu_by_name(mover.process.pid, sshd.pid) - before


def children_s() -> float:
    """CPU seconds of our children that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def table(cpu: Counter[str]) -> str:
    """Programs with their seconds."""
    return ", ".join(f"{name} {value:.2f}" for name, value in cpu.most_common() if value > 0.02)


def deltas(rig: Rig, mover: Mover, say: Callable[[str], None]) -> dict[str, float]:
    """An empty delta end to end, and scattered small writes: wire bytes per changed byte."""
    size = 1 << 30
    source = SourceDisk(rig.root / "delta.qcow2", size)
    source.write((0, 64 * MIB, 1))
    rig.renew_vm()
    source.bitmap("cp0")
    with export(source.path) as socket:
        mover.transfer(rig.transfer([disk("vda", size, socket)], checkpoint="cp0"))
    empty = []
    with export(source.path, bitmap="cp0") as socket:
        for i in range(7):
            started = time.monotonic()
            mover.transfer(rig.transfer([disk("vda", size, socket, DiskMode.DELTA, "cp0")], checkpoint=f"e{i}"))
            empty.append(time.monotonic() - started)
    rng = random.Random(3)
    writes = [(rng.randrange(size // 65536) * 65536, 65536, rng.randrange(1, 1 << 30)) for _ in range(200)]
    source.write(*writes)
    changed = 65536 * len({w[0] for w in writes})
    with export(source.path, bitmap="cp0") as socket:
        done = mover.transfer(rig.transfer([disk("vda", size, socket, DiskMode.DELTA, "cp0")], checkpoint="d"))
        if not rig.identical(done.seq, "vda", socket):
            raise RuntimeError("the delta differs")
    say(f"  empty delta: {statistics.median(empty) * 1000:.0f} ms (worst {max(empty) * 1000:.0f} ms)")
    return {
        "empty_delta_s": statistics.median(empty),
        "wire_bytes_per_changed_byte": done.wire_bytes / changed,
    }


def main() -> int:
    """Run everything; prints a table, and JSON as the last line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gib", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dir", default=None)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", default=None)
    parser.add_argument("--streams", type=int, default=1)
    options = parser.parse_args()
    size = int(options.gib * 1024) * MIB
    numbers: dict[str, float] = {}
    with ExitStack() as stack:
        root = stack.enter_context(tempfile.TemporaryDirectory(prefix="vb-", dir=options.dir))
        rig = Rig(Path(root))
        sshd = Sshd(rig)
        stack.callback(sshd.close)
        mover = Mover(rig, over_ssh=True)
        stack.callback(mover.close)
        numbers |= deltas(rig, mover, print)
        names = {
            "random": "incompressible",
            "half-zero": "half",
            "half-text": "half_text",
        }
        for kind, name in names.items():
            if options.only in (None, kind):
                found = bulk(kind, rig, sshd, mover, size, options)
                numbers[f"mover_vs_nbdcopy_{name}"] = found["nbdcopy_s"] / found["mover_s"]
                numbers[f"local_vs_nbdcopy_{name}"] = found["nbdcopy_s"] / found["local_s"]
                numbers[f"mover_cpu_s_per_gib_{name}"] = found["mover_cpu_s_per_gib"]
                numbers[f"nbdcopy_cpu_s_per_gib_{name}"] = found["nbdcopy_cpu_s_per_gib"]
        receive = [p for p in pids("vapor_desktop.site.dispatch", rig.source_id) if not pids_is_shell(p)]
        numbers["send_peak_rss_mb"] = peak_rss_mb(mover.process.pid)
        numbers["receive_peak_rss_mb"] = max(peak_rss_mb(p) for p in receive)
        numbers["send_cpu_s"] = cpu_s(mover.process.pid)
        numbers["receive_cpu_s"] = sum(cpu_s(p) for p in receive)
    for name, value in numbers.items():
        print(f"{name:40} {value:10.3f}")
    if options.json:
        options.json.write_text(json.dumps(numbers, indent=1))
    print(json.dumps(numbers))
    return 0


def pids_is_shell(pid: int) -> bool:
    """sshd runs a forced command through the login shell, whose own memory does not count."""
    return os.path.basename(os.readlink(f"/proc/{pid}/exe")) in ("bash", "sh", "dash", "ssh", "sshd")  # noqa: PTH119, PTH115


if __name__ == "__main__":
    sys.exit(main())
