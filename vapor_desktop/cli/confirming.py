"""What a destructive verb wants before it acts: the name typed again; without it only a dry run, and exit code 1."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import click

from vapor_desktop.cli.output import Output
from vapor_desktop.model.errors import InvalidRequest

DRY = "Without it: only show what would happen."


def check_confirmed(wanted: str, typed: str) -> None:
    """Raises InvalidRequest unless exactly that was typed."""
    if typed != wanted:
        raise InvalidRequest(f"--confirm must be “{wanted}”", why=f"it is “{typed}”", fix=f"--confirm '{wanted}'")


def nothing_done(
    out: Output, lines: Iterable[str], wanted: str, to_do: str, *, err: bool = False, **facts: Any
) -> InvalidRequest:
    """Show what would happen; the error to raise then, with what to add. ``facts``: for --json."""
    if out.as_json:
        out.json({"ok": False, "dry_run": True, **facts})
    else:
        for line in lines:
            click.echo(f"  {line}", err=err)
    return InvalidRequest("Nothing was done", fix=f"Add --confirm '{wanted}' to {to_do}")
