"""Round trips in a row: no record lost, deltas only, no growth of chains, checkpoints, files, hooks.

    python tests/soak/round_trips.py [--trips N] [--guest bios|uefi] [--release-b trixie]

Each trip is: migrate → reprotect → migrate home → reprotect, under the guest's diary. After each one the inventory of
both hosts is that of the first one's end; the last line is the report, as JSON. The UEFI guest has two disks.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from vapor_desktop.lab import guests
from vapor_desktop.lab.guests import GuestSpec
from vapor_desktop.lab.keyring_session import KeyringSession
from vapor_desktop.lab.lab import Lab, Site
from vapor_desktop.lab.stage import Stage, remove_guests
from vapor_desktop.model.operations import OperationKind, OperationState
from vapor_desktop.site.replica import runbooks

NAME = "rover"
SPECS = {"bios": GuestSpec(NAME), "uefi": GuestSpec(NAME, firmware="uefi", disk_count=2)}
NUMBER = os.environ.get("VAPOR_TEST_LAB", "")
LOCK = Path(f"/tmp/vapor-lab{NUMBER}.lock")  # noqa: S108 - the same for all users of the machine
CACHE = Path.home() / ".cache/vapor-lab"
OP_S = 300.0


def main() -> int:
    """0: every trip lost nothing and nothing grew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trips", type=int, default=10)
    parser.add_argument("--guest", choices=sorted(SPECS), default="bios")
    parser.add_argument("--release-b", default="bookworm", help="site B's Debian release")
    options = parser.parse_args()
    LOCK.touch()
    with LOCK.open("rb+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lab = Lab(f"soak{NUMBER}", cache=CACHE)
        lab.up(release_b=options.release_b)
        try:
            return run(lab, SPECS[options.guest], options.trips)
        finally:
            lab.down()


def run(lab: Lab, spec: GuestSpec, trips: int) -> int:
    """All trips on a lab that is up."""
    with tempfile.TemporaryDirectory() as folder, KeyringSession(Path(folder)):
        stage = Stage(lab, Path(folder))
        guests.add(lab.sites["a"], spec, lab.cache)
        guests.wait_for(lab.sites["a"], NAME, "VAPOR-DIARY ", timeout_s=120)
        stage.open()
        try:
            stage.protect(*stage.pair(), [NAME], rpo_target_s=10)
            stage.wait_for_point(NAME, 1)
            rows, failed = [], []
            for number in range(1, trips + 1):
                row = trip(stage)
                rows.append(row)
                if row["gaps"] or row["torn"] or row["lost"]:
                    failed.append(f"trip {number}: records were lost: {row}")
                if row["sent_bytes"] > spec.disk_count * spec.size_bytes // 8:
                    failed.append(f"trip {number}: that was no delta: {row['sent_bytes']} bytes")
                if row["inventory"] != rows[0]["inventory"]:
                    failed.append(f"trip {number}: it grew: {row['inventory']} from {rows[0]['inventory']}")
                print(
                    f"trip {number}: {row['seconds']:.0f} s, {row['sent_bytes'] >> 10} KiB back and forth", flush=True
                )
            print(json.dumps({"trips": rows, "failed": failed}, indent=1))
            return 1 if failed else 0
        finally:
            stage.close()
            remove_guests(lab)


def trip(stage: Stage) -> dict[str, Any]:
    """There and back; what was lost, what was sent, and what is there afterwards."""
    began = time.monotonic()
    lost = gaps = torn = sent = 0
    for source, target in (("a", "b"), ("b", "a")):
        here, there = stage.lab.sites[source], stage.lab.sites[target]
        log = there.path(f"/var/log/libvirt/qemu/{NAME}-serial.log")
        said = len(there.serial(NAME)) if log.exists() else 0
        operate(stage, OperationKind.MIGRATION)
        wrote = max(disk.last for disk in here.diary(here.disks_of(NAME)).per_disk)
        verdict = there.wait_boot(NAME, timeout_s=180, after=said)
        lost += wrote - verdict.last
        gaps += verdict.gaps
        torn += verdict.torn
        sent += operate(stage, OperationKind.REPROTECT)["first_bytes"]
    for event in stage.backend.events(stage.row(NAME).key):
        if event.kind == "scrub-mismatch":  # what was adopted by its record was not what the record says
            raise SystemExit(event.text)
    stage.wait_for_point(NAME, (stage.row(NAME).last_seq or 0) + 2)
    seen = {name: inventory(stage, site) for name, site in stage.lab.sites.items()}
    seconds = time.monotonic() - began
    return {"seconds": seconds, "lost": lost, "gaps": gaps, "torn": torn, "sent_bytes": sent, "inventory": seen}


def operate(stage: Stage, kind: OperationKind) -> dict[str, int]:
    """To its end; its result."""
    backend, key = stage.backend, stage.row(NAME).key
    done = backend.wait_operation(backend.begin_operation(kind, key, {}, "ten round trips"), OP_S)
    if done.state is not OperationState.DONE:
        raise SystemExit(f"{kind}: {done.state}: {done.question or done.error}")
    return done.result


def inventory(stage: Stage, site: Site) -> dict[str, object]:
    """What could grow on a host, as counts; which points are held just now is the retention's."""
    vm = stage.row(NAME).protection.vm_uuid
    top = site.path(f"/var/lib/libvirt/images/vapor/{vm}")
    own = {"disks", "points", "runbook"}  # by retention; a runbook keeps its last definitions
    parts = {p.name: len(list(p.iterdir())) for p in top.iterdir() if p.is_dir() and p.name not in own}
    definitions = len(list((top / "runbook").glob("domain-*.xml")))
    ask = ["qemu-img", "info", "-U", "--backing-chain", "--output=json"]
    chains = [len(json.loads(site.exec([*ask, disk]).stdout)) for disk in site.disks_of(NAME)]
    running = site.virsh("domstate", NAME) == "running"
    return {
        "chains": chains,
        "checkpoints": len(site.virsh("checkpoint-list", NAME, "--name").split()) if running else 0,
        "parts": parts,
        "definitions_within": definitions <= runbooks.KEPT,
        "files": sorted(p.name for p in top.iterdir()),
        "hooks": sorted(p.name for p in site.path("/etc/libvirt/hooks/qemu.d").glob("*")),
        "guards": len(list(site.path("/var/lib/vapor/guard").glob("*.json"))),
        "domains": sorted(site.virsh("list", "--all", "--name").split()),
    }


if __name__ == "__main__":
    sys.exit(main())
