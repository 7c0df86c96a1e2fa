"""Planned migration on two real hosts: nothing lost, and before the point of no return everything can be undone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vapor_desktop.engine.operations.registry import TYPES
from vapor_desktop.lab import disks, guests
from vapor_desktop.lab.keyring_session import KeyringSession
from vapor_desktop.lab.lab import Lab
from vapor_desktop.lab.processes import wait_until
from vapor_desktop.lab.stage import Stage, remove_guests
from vapor_desktop.model.operations import Operation, OperationKind, OperationState
from vapor_desktop.model.states import Phase

pytestmark = [pytest.mark.lab, pytest.mark.timeout(420)]
NAME = "db"  # UEFI, NVRAM, two disks


@pytest.fixture(scope="module")
def stage(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """One protected guest under load."""
    remove_guests(lab)
    home = tmp_path_factory.mktemp("console")
    spec = next(s for s in guests.DEFAULT_GUESTS if s.name == NAME)
    guests.add(lab.sites["a"], spec, lab.cache)
    guests.wait_for(lab.sites["a"], NAME, "VAPOR-DIARY ", timeout_s=90)
    lab.sites["a"].virsh("autostart", NAME)
    with KeyringSession(home):
        made = Stage(lab, home)
        made.open()
        try:
            a, b = made.pair()
            made.protect(a, b, [NAME], rpo_target_s=10)
            made.wait_for_point(NAME, 1)
            yield made
        finally:
            made.close()
            remove_guests(lab)


def migrate(stage: Stage, **args: object) -> Operation:
    key = stage.row(NAME).key
    return stage.backend.wait_operation(
        stage.backend.begin_operation(OperationKind.MIGRATION, key, args, "a new roof for site a"), 200
    )


def state(stage: Stage, site: str) -> str:
    host = stage.lab.sites[site]
    return host.virsh("domstate", NAME) if NAME in host.virsh("list", "--all", "--name").split() else "undefined"


def test_what_fails_before_the_point_of_no_return_is_undone_whole(stage: Stage) -> None:
    """The source is not guarded as it should be at the last look: nothing may run at the target."""
    program = stage.program
    assert program is not None
    runner, a = program.engine.operations, stage.lab.sites["a"]
    before = stage.row(NAME).protection
    diary = a.diary(NAME).last

    def disturb(_operation: str, step: str, moment: str) -> None:
        if (step, moment) == ("resume", "begin"):  # somebody takes the guard's record away under the operation
            a.exec(["rm", "-f", f"/var/lib/vapor/guard/{before.vm_uuid}.json"])

    runner.observer = disturb
    try:
        asked = migrate(stage)
    finally:
        runner.observer = lambda _o, _s, _m: None
    assert asked.state is OperationState.WAITING
    assert asked.question is not None
    assert "guard" in asked.question.text
    assert (state(stage, "a"), state(stage, "b")) == ("shut off", "paused")
    stage.backend.answer_question(asked.operation_id, asked.question.question_id, "undo")
    wait_until(lambda: stage.backend.operation(asked.operation_id).ended, "the undo", timeout_s=60)
    done = stage.backend.operation(asked.operation_id)
    assert done.state is OperationState.UNDONE, done.question
    assert (state(stage, "a"), state(stage, "b")) == ("running", "undefined")
    assert "Autostart:      enable" in a.virsh("dominfo", NAME)
    after = stage.row(NAME).protection
    assert (after.epoch_number, after.epoch_owner) == (before.epoch_number + 2, before.source_site)
    wait_until(lambda: a.diary(NAME).last > diary, "the diary goes on", timeout_s=90)
    seq = stage.row(NAME).last_seq or 0
    stage.wait_for_point(NAME, seq + 1)
    assert stage.row(NAME).protection.phase in {Phase.PROTECTED, Phase.SYNCING}
    assert not list(stage.lab.sites["b"].path(f"/var/lib/libvirt/images/vapor/{before.vm_uuid}/run").glob("*"))


def test_a_planned_migration_loses_no_record(stage: Stage) -> None:
    a, b = stage.lab.sites["a"], stage.lab.sites["b"]
    wait_until(lambda: a.diary(NAME).last > 20, "records", timeout_s=60)
    asked = migrate(stage, reread=True)
    assert asked.question is not None, asked.error
    assert state(stage, "a") == "running", "it is asked while the guest serves"
    assert "makes the downtime about" in asked.question.text
    stage.backend.answer_question(asked.operation_id, asked.question.question_id, "read")
    wait_until(lambda: stage.backend.operation(asked.operation_id).ended, "the migration", timeout_s=200)
    done = stage.backend.operation(asked.operation_id)
    assert done.state is OperationState.DONE, (done.question, done.error)
    assert done.result["reread"]["vda"] > disks.DEFAULT_SIZE // 2
    assert (state(stage, "a"), state(stage, "b")) == ("shut off", "running")
    old = a.diary(a.disks_of(NAME))  # the source's disks, as they were when it was shut down
    verdict = b.wait_boot(NAME, timeout_s=120)
    assert (verdict.gaps, verdict.torn) == (0, 0)
    assert verdict.last == max(disk.last for disk in old.per_disk), "not one record is missing"
    refused = a.exec(["virsh", "-c", "qemu:///system", "start", NAME], check=False)
    assert refused.returncode != 0, "the guard at the source"
    assert "Autostart:      disable" in a.virsh("dominfo", NAME)
    assert done.result["compared_bytes"] > 0
    assert b.virsh("checkpoint-list", NAME, "--name").split() == [done.result["reverse_checkpoint"]]
    row = stage.row(NAME).protection
    assert (row.phase, row.epoch_owner) == (Phase.FAILED_OVER, row.target_site)
    # What we add to the guest's own shutdown and boot. The figure itself is the bench's: this machine is shared.
    off, running = done.step("shut-down").ended_at, done.step("resume").ended_at
    assert off is not None
    assert running is not None
    assert done.result["downtime_s"] == pytest.approx((running - off).total_seconds(), abs=1.0)
    assert 0 < done.result["downtime_s"] < 30
    [told] = [e.text for e in stage.backend.events(limit=50) if e.kind == "migrated"]
    assert f"{done.result['downtime_s']:.1f} s" in told
    assert "Read again from the stopped disks, vda " in told


def test_the_matrix_knows_every_step() -> None:
    names = [s.name for s in TYPES[OperationKind.MIGRATION].steps]
    assert names.index("resume") == next(i for i, s in enumerate(TYPES[OperationKind.MIGRATION].steps) if s.no_return)
    undoable = {s.name for s in TYPES[OperationKind.MIGRATION].steps if s.undo}
    assert undoable == {"check", "shut-down", "guard", "take-over", "start-paused"}
