"""After a failover on two real hosts: provisional, rolled back, committed; and the old primary's return."""

from __future__ import annotations

import json
from collections.abc import Iterator

import proofs
import pytest

from vapor_desktop.lab import guests
from vapor_desktop.lab.guests import GuestSpec
from vapor_desktop.lab.keyring_session import KeyringSession
from vapor_desktop.lab.lab import Lab, Site
from vapor_desktop.lab.processes import wait_until
from vapor_desktop.lab.stage import Stage, remove_guests
from vapor_desktop.model.operations import Operation, OperationKind, OperationState
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
    done = operate(stage, OperationKind.ROLLBACK, seq=older, force=True)
    assert done.state is OperationState.DONE, (done.question, done.error)
    assert state(stage, "b") == "running"
    now = disk_of(b)
    assert now != ran_on
    assert backing_of(b, now).endswith(entry.files["vda"]), "it runs on the older point"
    assert b.path(ran_on).exists(), "what it wrote before is kept"
    [kept] = stage.backend.kept_runs(row.key)
    assert (kept.epoch, kept.seq) == (row.protection.epoch_number, points[-1])
    assert kept.bytes > 0
    after = stage.row(NAME).protection
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


def test_committed_it_stands(stage: Stage) -> None:
    done = operate(stage, OperationKind.COMMIT)
    assert done.state is OperationState.DONE, done.error
    row = stage.row(NAME)
    assert (row.protection.phase, row.protection.commit_ask_at) == (Phase.FAILED_OVER, None)
    assert state(stage, "b") == "running"
    again = operate(stage, OperationKind.ROLLBACK, seq=1)
    assert again.question is not None, "it is not provisional any more"
    assert "nothing to roll back" in again.question.text
    stage.backend.answer_question(again.operation_id, again.question.question_id, "undo")
    wait_until(lambda: stage.backend.operation(again.operation_id).ended, "the undo", timeout_s=30)
    assert stage.row(NAME).protection.phase is Phase.FAILED_OVER
    assert state(stage, "b") == "running"
