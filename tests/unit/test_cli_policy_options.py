"""``vaporctl protect`` and ``edit`` read a policy from their options: what is not given stays."""

from __future__ import annotations

from datetime import time

import click
import pytest
from click.testing import CliRunner

from vapor_desktop.cli.policy_options import PolicyOptions, policy_options
from vapor_desktop.model.errors import InvalidRequest
from vapor_desktop.model.policy import BandwidthWindow, Policy, Quiesce, Retention, StartGuard

BASE = Policy(
    rpo_target_s=60, at_times=(time(6),), retention=Retention(newest=2, hourly=2, daily=2), bandwidth_bytes_s=1 << 20,
    bandwidth_windows=(BandwidthWindow(start=time(1), end=time(2)),), quiesce=Quiesce.NEVER, priority=7,
)  # fmt: skip


def parsed(*words: str) -> PolicyOptions:
    found: list[PolicyOptions] = []

    @click.command()
    @policy_options
    def command(asked: PolicyOptions) -> None:
        found.append(asked)

    result = CliRunner().invoke(command, list(words), standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return found[0]


def test_nothing_given_changes_nothing() -> None:
    assert parsed().policy(BASE) == BASE
    assert parsed().policy(Policy()) == Policy()
    assert parsed().networks({"lan": "lan-b"}) == {"lan": "lan-b"}


def test_each_option_sets_its_field_and_no_other() -> None:
    changed = parsed(
        *("--rpo", "2h", "--at", "18:30", "--at", "06:00", "--retention", "3", "1", "0", "--bandwidth", "20M"),
        *(
            "--window",
            "08:00-18:00=512K",
            "--window",
            "22:00-05:00=none",
            "--quiesce",
            "try",
            "--start-guard",
            "start",
        ),
    ).policy(BASE)
    windows = (
        BandwidthWindow(start=time(8), end=time(18), bandwidth_bytes_s=512 << 10),
        BandwidthWindow(start=time(22), end=time(5)),
    )
    assert changed == BASE.model_copy(
        update={
            "rpo_target_s": 7200, "at_times": (time(6), time(18, 30)), "bandwidth_bytes_s": 20 << 20,
            "retention": Retention(newest=3, hourly=1, daily=0), "bandwidth_windows": windows, "quiesce": Quiesce.TRY,
            "start_guard": StartGuard.START,
        }
    )  # fmt: skip


def test_what_was_set_can_be_taken_back() -> None:
    back = parsed("--continuous", "--limit", "none", "--no-windows").policy(BASE)
    assert (back.at_times, back.bandwidth_bytes_s, back.bandwidth_windows) == ((), None, ())
    maps = parsed("--map", "dmz=dmz-b", "--unmap", "lan").networks({"lan": "lan-b", "san": "san-b"})
    assert maps == {"san": "san-b", "dmz": "dmz-b"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--rpo", "4s"), "rpo_target_s"),
        (("--keep", "0", "1", "1"), "newest"),
        (("--keep", "25", "1", "1"), "newest"),
        (("--bandwidth", "100"), "bandwidth_bytes_s"),
        (("--at", "24:30"), "24:30"),
    ],
)
def test_what_is_out_of_range_is_named(words: tuple[str, ...], says: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parsed(*words).policy(BASE)
    assert says in str(caught.value)


@pytest.mark.parametrize("window", ["08:00", "08:00-18:00", "8-9=1M", "08:00-18:00=fast", "08:00-18:00=5"])
def test_a_window_that_is_none_is_a_usage_error(window: str) -> None:
    with pytest.raises(click.UsageError):
        parsed("--window", window)
