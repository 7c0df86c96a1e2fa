"""After a failover on two real hosts: provisional, rolled back, committed; and the old primary's return."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import proofs
import pytest

from vapor_desktop.lab import guests
from vapor_desktop.lab.guests import GuestSpec
from vapor_desktop.lab.keyring_session import KeyringSession
from vapor_desktop.lab.lab import Lab, Site
from vapor_desktop.lab.processes import wait_until
from vapor_desktop.lab.stage import Stage, remove_guests
from vapor_desktop.model.operations import Operation, OperationKind, OperationState
from vapor_desktop.model.sites import Protection
from vapor_desktop.model.states import Phase

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]
NAME = "ledger"


@pytest.fixture(scope="module")
def stage(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """One guest with two recovery points, failed over from the newer one; its source is dark."""
    remove_guests(lab)
    home = tmp_path_factory.mktemp("console")
    guests.add(lab.sites["a"], GuestSpec(NAME), lab.cache)
    guests.wait_for(lab.sites["a"], NAME, "VAPOR-DIARY ", timeout_s=90)
    with KeyringSession(home):
        made = Stage(lab, home)
        made.open()
        try:
            a, b = made.pair()
            made.protect(a, b, [NAME], rpo_target_s=10)
            made.wait_for_point(NAME, 1)
            first = made.newest_record(NAME)
            wait_until(lambda: lab.sites["a"].diary(NAME).last > first + 10, "more records", timeout_s=60)
            made.backend.sync_now(made.row(NAME).key, wait=True)
            made.wait_for_point(NAME, 2)
            lab.kill_site("a")
            made.backend.failover(made.row(NAME).key, None, "site a is dark")
            yield made
        finally:
            made.close()
            remove_guests(lab)


def ctl(*words: str) -> dict[str, Any]:
    """``vaporctl … --json`` beside the living engine, which does it."""
    asked = [sys.executable, "-m", "vapor_desktop.cli.main", *words, "--json"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{words}: {done.stdout}\n{done.stderr}"
    return dict(json.loads(done.stdout.splitlines()[-1]))


def operate(stage: Stage, kind: OperationKind, **args: object) -> Operation:
    backend = stage.backend
    begun = backend.begin_operation(kind, stage.row(NAME).key, args, "because the lab wants it")
    return backend.wait_operation(begun, 120)


def state(stage: Stage, site: str) -> str:
    host = stage.lab.sites[site]
    return host.virsh("domstate", NAME) if NAME in host.virsh("list", "--all", "--name").split() else "undefined"


def disk_of(site: Site) -> str:
    return site.virsh("domblklist", NAME, "--details").split()[-1]


def backing_of(site: Site, image: str) -> str:
    told = site.exec(["qemu-img", "info", "-U", "--output=json", image]).stdout
    return str(json.loads(told)["full-backing-filename"])


def test_a_provisional_failover_is_rolled_back_and_what_ran_is_kept(stage: Stage) -> None:
    b, row = stage.lab.sites["b"], stage.row(NAME)
    assert row.protection.phase is Phase.PROVISIONAL
    assert row.protection.commit_ask_at is not None
    assert any(banner.key.startswith("provisional:") for banner in stage.backend.snapshot().banners)
    b.wait_boot(NAME, timeout_s=120)
    ran_on = disk_of(b)
    points = sorted(p.seq for p in stage.backend.points(row.key))
    older = points[-2]
    entry = proofs.view(stage, NAME).manifest.entry(older)
    assert entry is not None
    said = len(b.serial(NAME))
    ctl("roll-back", NAME, "--point", str(older), "--force", "--reason", "the lab wants it", "--confirm", NAME)
    assert state(stage, "b") == "running"
    now = disk_of(b)
    assert now != ran_on
    assert backing_of(b, now).endswith(entry.files["vda"]), "it runs on the older point"
    assert b.path(ran_on).exists(), "what it wrote before is kept"
    [kept] = stage.backend.kept_runs(row.key)
    assert (kept.epoch, kept.seq) == (row.protection.epoch_number, points[-1])
    assert kept.bytes > 0
    after = stored(stage, row.key)
    assert (after.phase, after.epoch_number) == (Phase.PROVISIONAL, row.protection.epoch_number + 1)
    assert b.wait_boot(NAME, timeout_s=120, after=said).torn == 0


def test_what_is_kept_goes_only_when_it_is_let_go(stage: Stage) -> None:
    key, b = stage.row(NAME).key, stage.lab.sites["b"]
    [kept] = stage.backend.kept_runs(key)
    running = disk_of(b)
    gone = b.path(running).parent.parent / str(kept.epoch)
    assert gone.is_dir()
    stage.backend.let_go(key, kept.epoch, "looked through")
    assert stage.backend.kept_runs(key) == ()
    assert not gone.exists()
    assert b.path(running).exists()
    assert not any(p.pins == (f"run:{kept.epoch}",) for p in stage.backend.points(key))


def test_the_old_primary_that_returns_fenced_is_shown_as_a_risk(stage: Stage) -> None:
    stage.lab.revive_site("a")
    program = stage.program
    assert program is not None
    source = stage.row(NAME).protection.source_site
    wait_until(lambda: reachable(stage, source), "a look at site a", timeout_s=40, every_s=0.05)
    back = time.monotonic()
    wait_until(lambda: phase(stage) is Phase.SPLIT_BRAIN_RISK, "the risk", timeout_s=10, every_s=0.05)
    print(f"risk shown {time.monotonic() - back:.1f} s after site a answered")
    wait_until(lambda: "fenced" in (stage.row(NAME).protection.last_error or ""), "the fence", timeout_s=20)
    assert (state(stage, "a"), state(stage, "b")) == ("shut off", "running")
    wait_until(lambda: alerting(stage, "split:SPLIT_BRAIN_RISK:"), "the alert", timeout_s=5)


def test_committed_it_stands(stage: Stage) -> None:
    done = operate(stage, OperationKind.COMMIT)
    assert done.state is OperationState.DONE, done.error
    ours = stored(stage, stage.row(NAME).key)
    assert (ours.phase, ours.commit_ask_at) == (Phase.FAILED_OVER, None)
    assert state(stage, "b") == "running"
    again = operate(stage, OperationKind.ROLLBACK, seq=1)
    assert again.question is not None, "it is not provisional any more"
    assert "nothing to roll back" in again.question.text
    stage.backend.answer_question(again.operation_id, again.question.question_id, "undo")
    wait_until(lambda: stage.backend.operation(again.operation_id).ended, "the undo", timeout_s=30)
    assert stage.row(NAME).protection.phase is Phase.FAILED_OVER
    assert state(stage, "b") == "running"


def override_and_start(stage: Stage) -> float:
    """A person on host A ignores every warning; seconds until the console says *split brain*."""
    a = stage.lab.sites["a"]
    a.exec(["vapor-site", "guard", "override", NAME, "--reason", "nobody told me"])
    a.virsh("start", NAME)
    began = time.monotonic()
    wait_until(lambda: phase(stage) is Phase.SPLIT_BRAIN, "split brain", timeout_s=10, every_s=0.05)
    return time.monotonic() - began


def test_a_split_brain_is_noticed_and_the_loser_at_the_old_primary_is_kept(stage: Stage) -> None:
    a, b = stage.lab.sites["a"], stage.lab.sites["b"]
    seconds = override_and_start(stage)
    print(f"split brain shown {seconds:.1f} s after the start")
    assert seconds < 10
    wait_until(lambda: alerting(stage, "split:SPLIT_BRAIN:"), "the alert", timeout_s=5)
    found = stage.backend.both_sides(stage.row(NAME).key)
    assert (found.source.state, found.target.state) == ("running", "running")
    assert found.common_seq is not None
    assert found.target.changed_bytes
    assert found.source.epoch == found.target.epoch + 1 if found.target.epoch else False
    runs_at_b, image = disk_of(b), disk_of(a)
    told = ctl("resolve", NAME)
    assert [side["state"] for side in told["sides"]] == ["running", "running"]
    ctl("resolve", NAME, "--keep", "site-b", "--force", "--reason", "the lab wants it", "--confirm", NAME)
    assert (state(stage, "a"), state(stage, "b")) == ("shut off", "running")
    assert disk_of(b) == runs_at_b
    assert a.path(image).exists()
    assert a.exec(["virsh", "-c", "qemu:///system", "start", NAME], check=False).returncode != 0
    row = stored(stage, stage.row(NAME).key)
    manifest = proofs.view(stage, NAME).manifest
    assert row.phase is Phase.FAILED_OVER
    assert manifest.epoch.number == row.epoch_number == (found.source.epoch or 0) + 1
    assert manifest.epoch.owner == row.target_site
    assert list(manifest.runs) == [str(row.epoch_number)]


def test_when_the_old_primary_wins_the_run_at_the_target_is_kept(stage: Stage) -> None:
    a, b = stage.lab.sites["a"], stage.lab.sites["b"]
    override_and_start(stage)
    lost, newest = disk_of(b), stage.row(NAME).last_seq or 0
    asked = operate(stage, OperationKind.RESOLVE, force=True)
    assert asked.question is not None
    assert {c.key for c in asked.question.choices} == {"source", "target", "undo"}
    assert "common point" in asked.question.text
    stage.backend.answer_question(asked.operation_id, asked.question.question_id, "source")
    wait_until(lambda: stage.backend.operation(asked.operation_id).ended, "the resolver", timeout_s=60)
    done = stage.backend.operation(asked.operation_id)
    assert done.state is OperationState.DONE, (done.question, done.error)
    assert (state(stage, "a"), state(stage, "b")) == ("running", "undefined")
    assert b.path(lost).exists()
    [kept] = stage.backend.kept_runs(stage.row(NAME).key)
    assert "split brain" in kept.name
    key = stage.row(NAME).key
    ours = stored(stage, key)
    assert ours.epoch_owner == ours.source_site
    assert ours.phase in {Phase.PROTECTED, Phase.SYNCING, Phase.COMPARING}
    guests.wait_for(a, NAME, "VAPOR-DIARY ", timeout_s=90)
    stage.wait_for_point(NAME, newest + 1)  # replication goes on
    assert phase(stage) in {Phase.PROTECTED, Phase.SYNCING, Phase.COMPARING}
    a.exec(["vapor-site", "guard", "override", NAME, "--reason", "once more, for nothing"])
    wanted = ours.epoch_number + 1
    wait_until(lambda: proofs.view(stage, NAME).manifest.epoch.number == wanted, "B's epoch", timeout_s=60)
    wait_until(lambda: stored(stage, key).epoch_number == wanted, "our own record of it", timeout_s=10)


def test_a_source_that_answers_is_fenced_before_the_target_starts(stage: Stage) -> None:
    a, key = stage.lab.sites["a"], stage.row(NAME).key
    preview = stage.backend.failover_preview(key)
    assert preview.may_fence
    assert preview.source_state == "running"
    assert any("the VM is running there" in line for line in preview.tried)
    assert preview.unsent_bytes is not None
    stage.backend.failover(key, None, "the roof of site a", "force off")
    done = next(o for o in stage.backend.operations() if o.kind is OperationKind.FAILOVER)
    assert done.result["source_state"] == "shutoff"
    off, started = done.step("fence").ended_at, done.step("start").started_at
    assert off is not None
    assert started is not None
    assert off <= started
    assert (state(stage, "a"), state(stage, "b")) == ("shut off", "running")
    refused = a.exec(["virsh", "-c", "qemu:///system", "start", NAME], check=False)
    assert refused.returncode != 0
    assert phase(stage) in {Phase.PROVISIONAL, Phase.SPLIT_BRAIN_RISK}


def reachable(stage: Stage, site_id: str) -> bool:
    return any(s.reachable is True for s in stage.backend.snapshot().sites if s.site.site_id == site_id)


def phase(stage: Stage) -> Phase:
    return stored(stage, stage.row(NAME).key).phase


def stored(stage: Stage, key: str) -> Protection:
    """As it is in the database now; rows are half a second old."""
    assert stage.program is not None
    found = stage.program.engine.repository.protection(key)
    assert found is not None
    return found


def alerting(stage: Stage, prefix: str) -> bool:
    return any(a.key.startswith(prefix) and a.closed_at is None for a in stage.backend.snapshot().alerts)
