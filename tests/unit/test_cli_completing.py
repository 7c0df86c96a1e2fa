"""The Tab key: names of the database, in every verb; where there is no database, nothing and no noise."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete

from vapor_desktop.cli.main import vaporctl
from vapor_desktop.model.policy import Policy
from vapor_desktop.model.sites import Protection
from vapor_desktop.store.repository import SqlRepository

NAMES = ("web01", "web02", "Mail")


@pytest.fixture(autouse=True)
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path}/vapor.db"
    repository = SqlRepository(url)
    for name in NAMES:
        repository.save_protection(
            Protection(
                protection_id=f"p-{name}",
                vm_uuid=f"u-{name}",
                vm_name=name,
                source_site="A",
                target_site="B",
                epoch_owner="A",
                policy=Policy(rpo_target_s=300),
                created_at=datetime.now(UTC),
            )
        )
    repository.close()
    monkeypatch.setenv("VAPOR_DATABASE_URL", url)


def offered(*words: str) -> list[str]:
    *before, incomplete = words
    shell = ShellComplete(vaporctl, {}, "vaporctl", "_VAPORCTL_COMPLETE")
    return [item.value for item in shell.get_completions(before, incomplete)]


def test_vm_names_by_their_beginning_whatever_the_case() -> None:
    assert offered("sync", "we") == ["web01", "web02"]
    assert offered("runbook", "m") == ["Mail"]
    assert offered("failover", "web01", "") == ["Mail", "web01", "web02"]
    assert offered("drill", "start", "web02") == ["web02"]


def test_verbs_and_codes_too() -> None:
    assert "failover" in offered("fail")
    assert "LEASE-HELD" in offered("explain", "lea")


def arguments(command: click.Command, path: str = "") -> Iterator[tuple[str, click.Parameter]]:
    if isinstance(command, click.Group):
        for name, sub in command.commands.items():
            yield from arguments(sub, f"{path} {name}")
    for parameter in command.params:
        yield path, parameter


def test_no_verb_that_names_a_vm_or_a_site_was_forgotten() -> None:
    """What is protected only by this verb has no name in the database yet; a new site has none either."""
    without = {(path.strip(), p.name) for path, p in arguments(vaporctl) if p._custom_shell_complete is None}
    named = {(path, name) for path, name in without if name in {"vm", "vms", "site", "site_a", "site_name", "source"}}
    assert named <= {("protect", "vms"), ("failover", "source")}, named


def test_without_a_database_nothing_is_offered_and_nothing_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")  # root could make a folder that is only missing
    monkeypatch.setenv("VAPOR_DATABASE_URL", f"sqlite:///{tmp_path}/file/vapor.db")
    assert offered("sync", "") == []


def test_the_shells_get_a_script() -> None:
    for shell in ("bash", "zsh", "fish"):
        done = subprocess.run(
            [str(Path(sys.executable).parent / "vaporctl")],
            env={**os.environ, "_VAPORCTL_COMPLETE": f"{shell}_source"},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert "_VAPORCTL_COMPLETE" in done.stdout
