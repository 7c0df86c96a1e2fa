"""``vaporctl runbook``: what to type at the target when no console is left."""

from __future__ import annotations

from pathlib import Path

import click

from vapor_desktop.cli import program
from vapor_desktop.cli.completing import vm_names
from vapor_desktop.cli.output import Output, json_option
from vapor_desktop.model.errors import InvalidRequest


@click.command()
@click.argument("vm", shell_complete=vm_names)
@click.option("--point", type=int, default=None, help="From this recovery point instead of the newest.")
@click.option("--save", type=click.Path(path_type=Path, dir_okay=False), help="Write it to this file.")
@json_option
@click.pass_obj
def runbook(out: Output, vm: str, point: int | None, save: Path | None) -> None:
    """How to bring VM up by hand on the target's host, as the target writes it now."""
    with program.reading() as backend:
        found = backend.runbook(program.find_protection(backend, vm).key, point)
    if save is not None:
        try:
            save.write_text(found.text)
        except OSError as error:
            raise InvalidRequest(f"{save} cannot be written", why=error.strerror or str(error)) from error
    if out.as_json:
        out.json(found.model_dump(mode="json"))
    elif save is None:
        click.echo(found.text, nl=False)
    else:
        click.echo(f"The runbook of {found.vm_name} is in {save}")
