"""Two administrators' consoles, each with a database, a keyring and an engine of its own, protect the same VM.

Neither knows of the other: what keeps them apart is the target's lease, and what they share is the manifest there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import proofs
import pytest

from vapor_desktop.lab import guests
from vapor_desktop.lab.keyring_session import KeyringSession
from vapor_desktop.lab.lab import Lab
from vapor_desktop.lab.processes import wait_until
from vapor_desktop.lab.stage import Stage, remove_guests
from vapor_desktop.model.operations import OperationKind, OperationState
from vapor_desktop.model.states import Phase

pytestmark = [pytest.mark.lab, pytest.mark.soak, pytest.mark.timeout(300)]
NAME = "common"
RPO_TARGET_S = 10
BETWEEN_S = 6.5  # two cycles of one console at that target, about
LOOKED_AT_S = 45


@dataclass
class Far:
    """The other administrator's console, in processes of its own."""

    home: Path
    environment: Mapping[str, str]

    def ctl(self, *words: str, given: str = "", code: int = 0) -> Any:
        """vaporctl --json; the parsed answer."""
        done = subprocess.run(
            [sys.executable, "-m", "vapor_desktop.cli.main", *words, "--json"],
            input=given,
            capture_output=True,
            text=True,
            timeout=120,
            env=self.environment,
        )
        assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return json.loads(done.stdout.splitlines()[-1])

    def row(self) -> dict[str, Any]:
        return next(r for r in self.ctl("status") if r["vm"] == NAME)


@pytest.fixture(scope="module")
def consoles(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stage, Far]]:
    """Ours protects the guest; theirs has adopted it, and both engines run."""
    remove_guests(lab)
    host = lab.sites["a"]
    guests.add(host, guests.GuestSpec(NAME, rate=5, scratch=1), lab.cache)
    guests.wait_for(host, NAME, "VAPOR-DIARY ", timeout_s=90)
    theirs, ours = tmp_path_factory.mktemp("theirs"), tmp_path_factory.mktemp("ours")
    with KeyringSession(theirs):
        far = Far(theirs, {**os.environ, "VAPOR_DATABASE_URL": f"sqlite:///{theirs / 'vapor.db'}"})
        with KeyringSession(ours):
            stage = Stage(lab, ours)
            stage.open()
            try:
                stage.compare_every_point()
                stage.protect(*stage.pair(), [NAME], rpo_target_s=RPO_TARGET_S)
                stage.wait_for_point(NAME, 1)
                for site in lab.sites.values():
                    far.ctl("site", "add", site.api_url, given=site.token_new("--scope", "admin") + "\n")
                far.ctl("adopt", "site-b")
                with (theirs / "engine.log").open("wb") as log:
                    engine = subprocess.Popen(
                        [sys.executable, "-m", "vapor_desktop.cli.engine"], stderr=log, env=far.environment
                    )
                try:
                    wait_until(lambda: bool(far.ctl("engines")), "their engine", timeout_s=60)
                    wait_until(lambda: guarded(stage), "the proof of both start guards", timeout_s=60)
                    yield stage, far
                finally:
                    engine.terminate()
                    engine.wait(60)
                    print((theirs / "engine.log").read_text()[-3000:])
            finally:
                stage.close()
                remove_guests(lab)


def guarded(stage: Stage) -> bool:
    """Without a proven guard nothing keeps the VM from being started where it was lost."""
    return all(site.guard_proven for site in stage.backend.snapshot().sites)


def false_alarms(stage: Stage, far: Far) -> list[tuple[str, float, float | None]]:
    """Looks for a while, and keeps each breach that a console tells of and the target's own manifest denies."""
    end, found, looked = time.monotonic() + LOOKED_AT_S, [], 0
    while time.monotonic() < end:
        newest = proofs.view(stage, NAME).manifest.newest
        assert newest is not None
        age_s = (datetime.now(UTC) - newest.current_as_of).total_seconds()  # one machine, one clock
        ours, theirs = stage.row(NAME), far.row()
        told = ("ours", ours.rpo_health.value, ours.rpo_now_s), ("theirs", theirs["rpo"], theirs["rpo_now_s"])
        found += [(who, age_s, said_s) for who, word, said_s in told if word == "breached" and age_s < RPO_TARGET_S]
        looked += 1
    assert looked > 5
    return found


def test_the_cycles_of_one_count_for_the_other(consoles: tuple[Stage, Far]) -> None:
    stage, far = consoles
    first = stage.row(NAME).last_seq or 0
    assert false_alarms(stage, far) == []
    cycles = [(c.outcome, c.seq) for c in stage.backend.cycles(stage.row(NAME).key, 50)]
    cycles += [(c["outcome"], c["seq"]) for c in far.ctl("history", NAME, "--count", "50")["cycles"]]
    assert "failed" not in {outcome for outcome, _ in cycles}
    made = [seq for outcome, seq in cycles if outcome == "point" and seq > first]
    assert len(made) == len(set(made))  # a number is one console's
    assert 3 <= len(made) <= 1.3 * LOOKED_AT_S / BETWEEN_S + 2, made  # one console alone makes as many
    assert stage.comparisons
    assert [c for c in stage.comparisons if not c.identical] == []


def test_an_edit_and_a_failover_at_one_are_known_at_the_other(consoles: tuple[Stage, Far]) -> None:
    stage, far = consoles
    far.ctl("edit", NAME, "--rpo", "12s")
    wait_until(lambda: stage.row(NAME).protection.policy.rpo_target_s == 12, "the edit here", timeout_s=40)
    last = stage.row(NAME).last_seq or 0
    done = far.ctl("failover", NAME, "--source", "force off", "--reason", "two consoles", "--confirm", NAME)
    assert done["state"] == "provisional"
    wait_until(lambda: stage.row(NAME).protection.epoch_number == 2, "the failover here", timeout_s=40)
    row = stage.row(NAME)
    assert row.protection.phase in {Phase.PROVISIONAL, Phase.SPLIT_BRAIN_RISK}  # its old primary is there, and off
    assert row.rpo_now_s is None  # nothing is protected now, and no number is made up
    seen = proofs.view(stage, NAME).manifest
    assert seen.newest is not None
    assert seen.newest.seq >= last
    states = [host.virsh("domstate", NAME) for _, host in sorted(stage.lab.sites.items())]
    assert states == ["shut off", "running"]
    # What the one did, the other one goes on with.
    begun = stage.backend.begin_operation(OperationKind.COMMIT, row.key, {}, "it stays")
    assert stage.backend.wait_operation(begun, 60).state is OperationState.DONE
    wait_until(lambda: far.row()["state"] == "failed over", "the commit there", timeout_s=60)
    assert far.ctl("reprotect", NAME, "--reason", "home again", "--yes")["state"] == "done"
    wait_until(lambda: stage.row(NAME).source_name == "site-b", "the reprotect here", timeout_s=60)
    stage.wait_for_point(NAME, (stage.row(NAME).last_seq or 0) + 2, timeout_s=60)
    assert stage.row(NAME).rpo_now_s is not None
