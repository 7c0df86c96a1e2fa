"""``vaporctl diagnostics``: what a person who helps must know, in one file."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import click
import platformdirs

from vapor_desktop.cli.output import Output, json_option
from vapor_desktop.cli.program import reading
from vapor_desktop.engine import diagnostics as bundle
from vapor_desktop.model.errors import VaporError
from vapor_desktop.program_log import APP, CONSOLE, ENGINE, log_file


@click.command()
@click.argument("file", required=False, type=click.Path(dir_okay=False, path_type=Path))
@json_option
@click.pass_obj
def diagnostics(out: Output, file: Path | None) -> None:
    """Write a zip for whoever helps: versions, state, history, logs; no secrets. Without FILE: tell what it holds."""
    if file is None:
        out.say(bundle.announcement(), contents=[name for name, _told in bundle.CONTENTS], left_out=bundle.LEFT_OUT)
        return
    if not out.as_json:
        click.echo(bundle.announcement(), err=True)
    logs = {name: log_file(name) for name in (CONSOLE, ENGINE)}
    try:
        with reading() as backend:
            files = bundle.collect(backend, datetime.now(UTC), _settings(), logs)
    except VaporError as error:  # the very thing that somebody may need help with
        files = bundle.collect(None, datetime.now(UTC), _settings(), logs, trouble=f"{error.code}: {error}")
    bundle.write(file, files)
    out.say(f"Written: {file}", path=str(file), files=sorted(files))


def _settings() -> dict[str, object]:
    """What the console has kept, if there is one."""
    try:
        found = json.loads((Path(platformdirs.user_config_dir(APP)) / "window.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
