"""``vaporctl reprotect``: the price first; with ``--yes`` the operation."""

from __future__ import annotations

from dataclasses import asdict

import click

from vapor_desktop.cli import program
from vapor_desktop.cli.completing import vm_names
from vapor_desktop.cli.operations import carry_out, finish
from vapor_desktop.cli.output import Output, json_option
from vapor_desktop.model.errors import Conflict, InvalidRequest
from vapor_desktop.model.operations import OperationKind


@click.command()
@click.argument("vm", shell_complete=vm_names)
@click.option("--reason", required=True, help="Why; kept in the history and at the sites.")
@click.option("--yes", is_flag=True, help="Do it. Without it: only tell what it costs and what would happen.")
@json_option
@click.pass_obj
def reprotect(out: Output, vm: str, reason: str, yes: bool) -> None:
    """Protect VM the other way after a migration or a failover, to the side that it came from. It goes on running."""
    with program.acting() as backend:
        row = program.find_protection(backend, vm)
        preview = backend.reprotect_preview(row.key)
        if not out.as_json:
            click.echo(f"  {preview.price} ({preview.why})" if preview.price else "  the price cannot be told")
            for text in preview.effects:
                click.echo(f"  {text}")
        if preview.blockers:
            raise Conflict(f"“{preview.vm_name}” cannot be reprotected now", why="; ".join(preview.blockers))
        if not yes:
            if out.as_json:
                out.json({"ok": False, "dry_run": True, **asdict(preview)})
            raise InvalidRequest("Nothing was done", fix=f"Add --yes to reprotect it to {preview.target_name}")
        done = carry_out(out, backend, OperationKind.REPROTECT, row.key, {}, reason)
    finish(out, done)
