"""``vaporctl report``: what the records tell, as a file for people or for a spreadsheet."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from vapor_desktop.cli.output import Output, json_option
from vapor_desktop.cli.program import reading
from vapor_desktop.engine.reporting.making import KINDS, author, make
from vapor_desktop.engine.reporting.rendering import FORMATS
from vapor_desktop.model.errors import InvalidRequest

DAYS = 30
_KINDS = "; ".join(f"{k.key}: {k.title}" for k in KINDS.values())


def moment(text: str) -> datetime:
    """ISO 8601, a date or a time; without a zone it is this machine's local time. Raises InvalidRequest."""
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError) as error:
        raise InvalidRequest(
            f"“{text}” is not a date or time", fix="Write 2026-11-01, 2026-11-01T08:00 or 2026-11-01T08:00Z"
        ) from error


@click.command(help=f"Write the report KIND ({_KINDS}).")
@click.argument("kind", metavar="KIND", type=click.Choice(list(KINDS)))
@click.option("--from", "start", metavar="TIME", help=f"ISO 8601, local without a zone. Default: {DAYS} days ago.")
@click.option("--to", "end", metavar="TIME", help="Default: now.")
@click.option("--format", "fmt", type=click.Choice(list(FORMATS)), help="Default: html; with --json: json.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Default: standard output.")  # fmt: skip
@json_option
@click.pass_obj
def report(out: Output, kind: str, start: str | None, end: str | None, fmt: str | None, output: Path | None) -> None:
    """Make it, print it or write it."""
    now = datetime.now(UTC)
    until = moment(end) if end else now
    since = moment(start) if start else until - timedelta(days=DAYS)
    with reading() as backend:
        made = make(backend, kind, since, until, now, author())
    chosen = fmt or ("json" if out.as_json and output is None else "html")
    text = FORMATS[chosen](made, None)
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        output.write_text(text, encoding="utf-8", newline="")
    except OSError as error:
        raise InvalidRequest(
            "The report cannot be written", why=f"{output}: {error.strerror}", fix="Choose another place"
        ) from error
    out.say(f"Written: {output}", path=str(output), kind=kind, format=chosen)
