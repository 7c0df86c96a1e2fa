"""How vaporctl prints: a table for people, JSON for scripts, errors as one sentence with the fix."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.table import Table

from vapor_desktop.model.errors import Fate, VaporError
from vapor_desktop.model.view import Check

_EXIT = {Fate.OPERATOR: 1, Fate.RETRY: 75, Fate.BUG: 70}
_F = TypeVar("_F", bound=Callable[..., Any])


def exit_code(error: VaporError) -> int:
    """The process's exit code for an error."""
    return _EXIT[error.fate]


class Output:
    """Where a verb's result goes."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.console = Console(soft_wrap=True)

    def json(self, value: object) -> None:
        """One JSON document."""
        click.echo(json.dumps(value, default=_plain, ensure_ascii=False))

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], empty: str) -> None:
        """A plain table, or a sentence when there is nothing."""
        if not rows:
            self.console.print(empty)
            return
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in columns:
            table.add_column(column)
        for row in rows:
            table.add_row(*row)
        self.console.print(table)

    def say(self, text: str, **facts: object) -> None:
        """A result: the sentence for people, the facts for scripts."""
        if self.as_json:
            self.json({"ok": True, **facts})
        else:
            click.echo(text)

    def error(self, error: VaporError) -> None:
        """What failed, why, what to do."""
        if self.as_json:
            self.json({"ok": False, "error": error.to_wire()})
            return
        click.echo(f"vaporctl: {error.what}" + (f": {error.why}" if error.why else "") + f" [{error.code}]", err=True)
        if error.fix:
            click.echo(f"  {error.fix}.", err=True)

    def check(self, check: Check) -> None:
        """A live check list, on stderr so that stdout stays clean."""
        if check.state == "running" or self.as_json:
            return
        mark = {"ok": "ok     ", "warning": "warning", "failed": "FAILED "}.get(check.state, check.state)
        text = f"  {mark} {check.title}" + (f": {check.text}" if check.text else "")
        click.echo(text + (f" — {check.fix}" if check.fix and check.state != "ok" else ""), err=True)


def json_option(command: _F) -> _F:
    """``--json`` after the verb as well as before it."""

    def chosen(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
        if value:
            ctx.find_root().obj = ctx.obj = Output(True)

    option = click.option("--json", is_flag=True, expose_value=False, callback=chosen, help="Print JSON.")
    return option(command)


def read_secret(path: str | None, what: str) -> str:
    """A token from a file, or from standard input (not echoed on a terminal)."""
    if path and path != "-":
        with open(path, encoding="utf-8") as file:  # noqa: PTH123  (click has checked it)
            return file.read().strip()
    if sys.stdin.isatty():
        return str(click.prompt(what, hide_input=True)).strip()
    return sys.stdin.readline().strip()


def duration(seconds: float | None) -> str:
    """ "4 min", "1 h 10 min"; unknown is a dash, never 0."""
    if seconds is None:
        return "—"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    if minutes < 90:
        return f"{minutes:.0f} min"
    return f"{int(minutes // 60)} h {int(minutes % 60)} min"


def size(count: int | None) -> str:
    """IEC units; unknown is a dash."""
    if count is None:
        return "—"
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    return str(value)
