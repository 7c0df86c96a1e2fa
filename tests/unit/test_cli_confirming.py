"""The name that a destructive verb wants, and what it shows without one."""

from __future__ import annotations

import json

import click
import pytest
from click.testing import CliRunner

from vapor_desktop.cli.confirming import check_confirmed, nothing_done
from vapor_desktop.cli.main import vaporctl
from vapor_desktop.cli.output import Output
from vapor_desktop.model.errors import InvalidRequest


@pytest.mark.parametrize("typed", ["", "Web", "web ", "we"])
def test_only_the_very_name_counts(typed: str) -> None:
    with pytest.raises(InvalidRequest, match="--confirm must be “web”"):
        check_confirmed("web", typed)
    check_confirmed("web", "web")


@pytest.mark.parametrize("as_json", [False, True])
def test_without_the_name_it_shows_what_would_happen(as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    out = Output(as_json=as_json)
    error = nothing_done(out, ["Shut it down", "Start it"], "my vm", "move it", steps=["a", "b"])
    assert (error.what, error.fix) == ("Nothing was done", "Add --confirm 'my vm' to move it")
    said = capsys.readouterr().out
    if as_json:
        assert json.loads(said) == {"ok": False, "dry_run": True, "steps": ["a", "b"]}
    else:
        assert said.splitlines() == ["  Shut it down", "  Start it"]


def commands(group: click.Group, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for name, command in group.commands.items():
        inner = commands(command, (*path, name)) if isinstance(command, click.Group) else [(*path, name)]
        found += inner
    return found


@pytest.mark.parametrize("words", commands(vaporctl), ids=" ".join)
def test_every_verb_tells_what_it_does(words: tuple[str, ...]) -> None:
    done = CliRunner().invoke(vaporctl, [*words, "--help"])
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[2].strip(), "a line of what it does"
