"""What another console did with a VM that was taken over, by the manifests' word."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from vapor_desktop.engine.following import followed
from vapor_desktop.model.manifest import Epoch, Manifest
from vapor_desktop.model.policy import Policy
from vapor_desktop.model.sites import Protection
from vapor_desktop.model.states import Phase

A, B, VM, PID = "id-a", "id-b", "u", "pid"
NOW = datetime(2026, 11, 23, tzinfo=UTC)
OVER = [Phase.PROVISIONAL, Phase.FAILED_OVER, Phase.SPLIT_BRAIN_RISK, Phase.SPLIT_BRAIN]


def protection(phase: Phase, **more: Any) -> Protection:
    ask_at = None if phase is Phase.FAILED_OVER else NOW
    known = {
        "protection_id": PID, "vm_uuid": VM, "vm_name": "web", "source_site": A, "target_site": B,
        "policy": Policy(), "settings_version": 1, "epoch_number": 2, "epoch_owner": B,
        "phase": phase, "commit_ask_at": ask_at, "created_at": NOW,
    }  # fmt: skip
    return Protection.model_validate({**known, **more})


def manifest(epoch: int = 2, **more: Any) -> Manifest:
    known = {
        "vm_uuid": VM, "vm_name": "web", "protection_id": PID, "source_site": A, "target_site": B,
        "epoch": Epoch(number=epoch, owner=B), "policy": Policy(), "next_seq": 5,
    }  # fmt: skip
    return Manifest.model_validate({**known, **more})


def turned(**more: Any) -> Manifest:
    return manifest(**{"source_site": B, "target_site": A, **more})


@pytest.mark.parametrize("phase", OVER)
def test_nothing_new_changes_nothing(phase: Phase) -> None:
    p = protection(phase)
    asked = 2 if p.commit_ask_at else 0
    assert followed(p, manifest(provisional=asked), None, NOW) is None
    assert followed(p, None, None, NOW) is None
    assert followed(p, manifest(protection_id="another", epoch=9), None, NOW) is None
    old_way_home = turned(epoch=1)  # of a round trip before this failover
    assert followed(p, manifest(provisional=asked), old_way_home, NOW) is None
    assert followed(p, manifest(provisional=asked), turned(folded=True), NOW) is None


@pytest.mark.parametrize(
    ("before", "after"),
    [(Phase.PROVISIONAL, Phase.FAILED_OVER), (Phase.SPLIT_BRAIN_RISK, Phase.SPLIT_BRAIN_RISK)],  # the watch judges it
)
def test_a_commit(before: Phase, after: Phase) -> None:
    p = protection(before)
    found = followed(p, manifest(), None, NOW)
    assert found is not None
    text, _whose, change = found
    assert "committed" in text
    assert (change(p).phase, change(p).commit_ask_at) == (after, None)


@pytest.mark.parametrize("phase", OVER)
@pytest.mark.parametrize(("provisional", "after"), [(3, Phase.PROVISIONAL), (0, Phase.FAILED_OVER)])
def test_another_run_there(phase: Phase, provisional: int, after: Phase) -> None:
    p = protection(phase)
    found = followed(p, manifest(3, provisional=provisional), None, NOW)
    assert found is not None
    moved = found[2](p)
    assert (moved.phase, moved.epoch_number) == (after, 3)
    assert (moved.commit_ask_at is None) == (after is Phase.FAILED_OVER)


@pytest.mark.parametrize("phase", OVER)
@pytest.mark.parametrize("paused", [False, True])
def test_a_reprotect(phase: Phase, paused: bool) -> None:
    p = protection(phase, paused=paused, failures=3, last_error="old", last_error_code="OLD")
    there = turned(settings_version=7)
    found = followed(p, manifest(), there, NOW)
    assert found is not None
    moved = found[2](p)
    assert (moved.source_site, moved.target_site, moved.settings_version) == (B, A, 7)
    assert moved.phase is (Phase.PAUSED if paused else Phase.INITIAL_SYNC)  # no point there yet
    assert (moved.commit_ask_at, moved.failures, moved.last_error) == (None, 0, None)
