"""The start guard's rules; and that the hook which libvirt runs says exactly the same, word by word."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vapor_desktop.model import guard
from vapor_desktop.model.errors import Conflict, EpochMoved, InvalidRequest
from vapor_desktop.model.manifest import Epoch
from vapor_desktop.model.policy import StartGuard
from vapor_desktop.model.wire import GuardRecord, GuardRequest, GuardState, OwnerWord
from vapor_desktop.site import qemu_hook
from vapor_desktop.site.guard_hook import hook_text

VM = "8f1d6f0e-2c0b-4f7a-9d52-0a3b6f1f2a11"
A, B = "aaaaaaaa-0000-4000-8000-000000000000", "bbbbbbbb-0000-4000-8000-000000000000"
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
LATER = datetime(2026, 11, 22, 13, tzinfo=UTC)
BOOT = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
OLD = "00000000-0000-4000-8000-00000000b007"
DOMAIN = (
    f"<domain type='qemu'>\n  <name>web&lt;uuid&gt;01</name>\n  <uuid>{VM}</uuid>\n" + "<x/>" * 40000 + "</domain>"
)


def record(**change: Any) -> GuardRecord:
    base: dict[str, Any] = {
        "vm_uuid": VM, "vm_name": "web01", "epoch": Epoch(number=2, owner=A), "this_site": A, "peer_site": B,
        "state": GuardState.OWN, "confirmed_boot_id": BOOT, "reason": "protected to site-b", "changed_at": NOW,
        "changed_by": "desk",
    }  # fmt: skip
    return GuardRecord(**(base | change))


def request(**change: Any) -> GuardRequest:
    base: dict[str, Any] = {
        "fence": 1, "epoch": Epoch(number=2, owner=A), "state": GuardState.OWN, "vm_name": "web01", "peer_site": B,
        "boot_id": BOOT, "reason": "protected to site-b", "by": "desk",
    }  # fmt: skip
    return GuardRequest(**(base | change))


def arm(before: GuardRecord | None, **change: Any) -> GuardRecord:
    return guard.armed(before, VM, request(**change), this_site=A, boot_id=BOOT, at=LATER)


def hear(before: GuardRecord, number: int | None, owner: str = B, runs: bool | None = False) -> GuardRecord:
    epoch = None if number is None else Epoch(number=number, owner=owner)
    return guard.heard(before, OwnerWord(epoch=epoch, runs=runs), peer="site-b", boot_id=BOOT, at=LATER)


def silent(before: GuardRecord, patient: bool = False) -> GuardRecord:
    return guard.unheard(before, peer="site-b", why="no route", boot_id=BOOT, at=LATER, patient=patient)


# --- the hook ---------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def hook(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As installed, for a directory of records of its own."""
    directory = tmp_path_factory.mktemp("hook")
    (directory / "guard").mkdir()
    path = directory / "vapor"
    path.write_text(hook_text(directory / "guard"))
    path.chmod(0o755)
    return path


def ask(hook: Path, operation: str = "prepare", sub: str = "begin", xml: str = DOMAIN) -> tuple[int, str]:
    """As libvirt runs it: an almost empty environment, the domain's XML on stdin. (exit code, stderr)."""
    done = subprocess.run(
        [hook, "web01", operation, sub, "-"],
        input=xml.encode(),
        capture_output=True,
        env={"LC_ALL": "C", "PATH": "/usr/bin:/bin"},
        timeout=20,
    )
    assert done.stdout == b""  # libvirt would take it for a new domain XML
    return done.returncode, done.stderr.decode()


def place(hook: Path, content: str) -> Path:
    path = hook.parent / "guard" / f"{VM}.json"
    path.write_text(content)
    return path


RECORDS = st.builds(
    record,
    vm_name=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20),
    epoch=st.builds(Epoch, number=st.integers(1, 9), owner=st.sampled_from([A, B])),
    state=st.sampled_from(GuardState),
    operation_id=st.sampled_from([None, "op-1"]),
    policy=st.sampled_from(StartGuard),
    confirmed_boot_id=st.sampled_from([None, BOOT, OLD]),
    held_boot_id=st.sampled_from([None, BOOT, OLD]),
    at_risk=st.booleans(),
    reason=st.text(st.characters(codec="utf-8"), max_size=60),
)


@given(RECORDS)
@settings(max_examples=400, deadline=None)
def test_the_hook_carries_the_rule_word_by_word(made: GuardRecord) -> None:
    assert qemu_hook.refusal(made.model_dump_json().encode(), "other") == guard.refusal(made, BOOT)


@given(RECORDS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_hook_as_libvirt_runs_it(hook: Path, made: GuardRecord) -> None:
    place(hook, made.model_dump_json(indent=1))
    why = guard.refusal(made, BOOT)
    code, said = ask(hook)
    assert (code == 0) == guard.may_start(made, BOOT)
    assert said == ("" if why is None else f"Vapor Desktop: {why}; see `vapor-site guard list` on this host\n")


@pytest.mark.parametrize("operation", ["prepare", "restore", "migrate"])
def test_every_way_to_start_is_refused(hook: Path, operation: str) -> None:
    place(hook, record(state=GuardState.OTHERS, epoch=Epoch(number=3, owner=B)).model_dump_json())
    code, said = ask(hook, operation)
    assert code == 1
    assert said.count("\n") == 1
    assert "another site owns it since epoch 3" in said


@pytest.mark.parametrize(
    ("operation", "sub"),
    [("start", "begin"), ("started", "begin"), ("stopped", "end"), ("release", "end"), ("reconnect", "begin"),
     ("attach", "begin"), ("prepare", "end")],
)  # fmt: skip
def test_nothing_else_is(hook: Path, operation: str, sub: str) -> None:
    """Least of all "reconnect": libvirt would kill a running VM when it fails."""
    place(hook, record(state=GuardState.OTHERS).model_dump_json())
    assert ask(hook, operation, sub) == (0, "")


def test_no_record_passes_and_a_damaged_one_holds(hook: Path, tmp_path: Path) -> None:
    path = place(hook, "")
    path.unlink()
    assert ask(hook) == (0, "")
    assert ask(hook, xml="not xml") == (0, "")
    assert ask(hook, xml="<domain><uuid>../../etc/passwd</uuid></domain>") == (0, "")
    elsewhere = tmp_path / "vapor"
    elsewhere.write_text(hook_text(tmp_path / "nothing here"))
    elsewhere.chmod(0o755)
    assert ask(elsewhere) == (0, "")
    for content in ("", "{", "[]", '{"vm_name": "web01"}', "7"):
        place(hook, content)
        code, said = ask(hook)
        assert code == 1
        assert "cannot be read" in said
    path.unlink()
    os.mkfifo(path)  # must not make libvirt wait
    assert ask(hook)[0] == 1
    path.unlink()
    path.symlink_to("/dev/zero")
    assert ask(hook)[0] == 1
    path.unlink()


def test_the_hook_runs_in_debians_python_alone() -> None:
    """Isolated, without site-packages: nothing of ours, nothing that is not in every Python."""
    source = Path(qemu_hook.__file__).read_text()
    assert source.startswith("#!/usr/bin/python3 -IS\n")
    imports = {line.split()[1] for line in source.splitlines() if line.strip().startswith(("import ", "from "))}
    assert imports <= sys.stdlib_module_names


# --- arming -----------------------------------------------------------------------------------------
def test_a_first_record_lets_start_in_this_boot_and_holds_in_the_next() -> None:
    first = arm(None)
    assert guard.may_start(first, BOOT)
    assert not guard.may_start(first, "another boot")
    assert not first.start_due
    assert not guard.may_start(arm(None, boot_id=None), BOOT)


def test_arming_again_changes_nothing() -> None:
    first = arm(None)
    assert arm(first, reason="other words", by="another desk") is first
    assert arm(first, policy=StartGuard.START).policy is StartGuard.START


@pytest.mark.parametrize("epoch", [Epoch(number=1, owner=A), Epoch(number=2, owner=A)])
def test_a_lower_epoch_is_refused_and_an_equal_one_of_another(epoch: Epoch) -> None:
    before = record(epoch=Epoch(number=2, owner=B), state=GuardState.OTHERS)
    with pytest.raises(EpochMoved):
        arm(before, epoch=epoch)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InvalidRequest):
        arm(None, epoch=Epoch(number=2, owner=B))
    with pytest.raises(InvalidRequest):
        arm(None, state=GuardState.OTHERS)
    with pytest.raises(InvalidRequest):
        arm(None, state=GuardState.MOVING)


def test_a_moving_vm_belongs_to_its_operation_until_the_epoch_moves() -> None:
    moving = arm(record(), state=GuardState.MOVING, operation_id="op-1")
    assert not guard.may_start(moving, BOOT)
    for change in ({}, {"state": GuardState.MOVING, "operation_id": "op-2"}):
        with pytest.raises(Conflict):
            arm(moving, **change)
    with pytest.raises(Conflict):
        guard.check_release(moving, moving.epoch)
    assert guard.may_start(arm(moving, operation_id="op-1"), BOOT)  # the operation undoes itself
    gone = arm(moving, state=GuardState.OTHERS, epoch=Epoch(number=3, owner=B))
    assert (gone.state, gone.operation_id) == (GuardState.OTHERS, None)
    home = arm(gone, epoch=Epoch(number=4, owner=A))
    assert guard.may_start(home, BOOT)


def test_an_undo_in_a_later_boot_still_needs_somebodys_word() -> None:
    moving = arm(record(confirmed_boot_id=OLD), state=GuardState.MOVING, operation_id="op-1")
    undone = arm(moving, operation_id="op-1", boot_id=None)
    assert not guard.may_start(undone, BOOT)
    assert guard.may_start(arm(undone), BOOT)


def test_an_engine_that_asked_the_peer_confirms_a_new_boot() -> None:
    after = arm(record(confirmed_boot_id=OLD))
    assert guard.may_start(after, BOOT)
    assert after.start_due
    assert not guard.may_start(arm(record(confirmed_boot_id=OLD), boot_id=OLD), BOOT)  # it saw another boot


def test_coming_home_starts_nothing_by_itself() -> None:
    away = record(state=GuardState.OTHERS, epoch=Epoch(number=3, owner=B), confirmed_boot_id=OLD)
    assert not arm(away, epoch=Epoch(number=4, owner=A)).start_due


# --- asking -----------------------------------------------------------------------------------------
REBOOTED = record(confirmed_boot_id=OLD)


@pytest.mark.parametrize(("number", "owner"), [(2, A), (3, A), (1, B), (None, B)])
def test_yours_confirms_and_autostart_is_due(number: int | None, owner: str) -> None:
    after = hear(REBOOTED, number, owner)
    assert guard.may_start(after, BOOT)
    assert after.start_due
    assert after.epoch.number == max(2, number or 0 if owner == A else 0)


def test_a_higher_epoch_there_holds_for_good() -> None:
    after = hear(REBOOTED, 3)
    assert (after.state, after.epoch) == (GuardState.OTHERS, Epoch(number=3, owner=B))
    assert "site-b owns it since epoch 3" in (guard.refusal(after, BOOT) or "")
    assert guard.told(REBOOTED, after, BOOT) == "guard-held"
    assert hear(after, 2, A) is after  # nothing brings it back but a request or a person
    assert hear(record(), 3).state is GuardState.OTHERS  # the link was cut, no reboot


def test_a_tie_is_a_split_brain_and_holds() -> None:
    for before in (REBOOTED, record()):
        after = hear(before, 2)
        assert "split brain" in (guard.refusal(after, BOOT) or "")
        assert hear(after, 2) is after


def test_what_runs_there_does_not_start_here() -> None:
    after = hear(REBOOTED, 2, A, runs=True)
    assert "runs at site-b right now" in (guard.refusal(after, BOOT) or "")
    assert guard.may_start(hear(after, 2, A), BOOT)
    assert not guard.may_start(hear(REBOOTED, None, runs=None), BOOT)  # it knows nothing at all: no answer


def test_moving_stays_held_unless_it_arrived() -> None:
    moving = record(state=GuardState.MOVING, operation_id="op", confirmed_boot_id=OLD)
    assert hear(moving, 2, A) is moving
    assert silent(moving) is moving
    assert hear(moving, 3).state is GuardState.OTHERS


def test_a_silent_peer_and_the_policy() -> None:
    held = silent(REBOOTED)
    assert "the policy is hold: no route" in (guard.refusal(held, BOOT) or "")
    assert guard.told(REBOOTED, held, BOOT) == "guard-held"
    assert silent(held) is held
    assert guard.told(held, hear(held, 2, A), BOOT) == "guard-released"

    daring = record(confirmed_boot_id=OLD, policy=StartGuard.START)
    assert silent(daring, patient=True) is daring
    risky = silent(daring)
    assert guard.may_start(risky, BOOT)
    assert risky.at_risk
    assert risky.start_due
    assert guard.RISK in risky.reason
    assert guard.told(daring, risky, BOOT) == "guard-risk"
    assert guard.unsettled(risky, BOOT)
    assert not hear(risky, 2, A).at_risk
    lost = hear(risky, 3)
    assert (lost.state, lost.at_risk, guard.told(risky, lost, BOOT)) == (GuardState.OTHERS, False, "guard-held")


def test_a_silent_peer_changes_nothing_in_a_confirmed_boot() -> None:
    assert silent(record()) == record()
    assert hear(record(), 2, A) == record()


# --- override ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("highest", "number"), [(None, 4), (Epoch(number=7, owner=B), 8), (Epoch(number=1, owner=B), 4)]
)
def test_an_override_is_above_everything_known(highest: Epoch | None, number: int) -> None:
    away = record(state=GuardState.OTHERS, epoch=Epoch(number=3, owner=B), confirmed_boot_id=None)
    taken = guard.overridden(away, highest=highest, boot_id=BOOT, at=LATER, by="root", reason="site-b burnt down")
    assert taken.epoch == Epoch(number=number, owner=A)
    assert guard.may_start(taken, BOOT)
    assert "site-b burnt down" in taken.reason
    with pytest.raises(EpochMoved):
        arm(taken, state=GuardState.OTHERS, epoch=Epoch(number=3, owner=B))


STEP = st.one_of(
    st.builds(
        lambda n, o, r: ("hear", n, o, r), st.none() | st.integers(1, 6), st.sampled_from([A, B]), st.booleans()
    ),
    st.builds(lambda p: ("silent", p), st.booleans()),
    st.builds(lambda n, s: ("arm", n, s), st.integers(1, 6), st.sampled_from(GuardState)),
)


@given(RECORDS, st.lists(STEP, max_size=8))
@settings(max_examples=300, deadline=None)
def test_whatever_comes_the_epoch_never_falls_and_anothers_vm_never_starts(
    made: GuardRecord, steps: list[tuple[Any, ...]]
) -> None:
    now = made
    for step in steps:
        before = now
        if step[0] == "hear":
            now = hear(now, step[1], step[2], step[3])
        elif step[0] == "silent":
            now = silent(now, step[1])
        else:
            owner = A if step[2] is GuardState.OWN else B
            change = {"epoch": Epoch(number=step[1], owner=owner), "state": step[2], "operation_id": "op-1"}
            try:
                now = arm(now, **change)
            except (EpochMoved, Conflict):
                continue
        assert now.epoch.number >= before.epoch.number
        if now.epoch.number == before.epoch.number:
            assert now.epoch.owner == before.epoch.owner
        if guard.may_start(now, BOOT):
            assert now.epoch.owner == now.this_site
