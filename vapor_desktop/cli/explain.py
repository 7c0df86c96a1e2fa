"""``vaporctl explain``: what an error code means, read where there is no window and no network."""

from __future__ import annotations

import click
from rich.markdown import Markdown

from vapor_desktop.cli.output import Output, json_option
from vapor_desktop.guide.pages import explanation, explanations


def _codes(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    return [code for code in explanations() if code.startswith(incomplete.upper())]


@click.command()
@click.argument("code", required=False, shell_complete=_codes)
@json_option
@click.pass_obj
def explain(out: Output, code: str | None) -> None:
    """What an error CODE means and what to do. Without one: all codes."""
    found = {code.upper(): explanation(code)} if code else explanations()
    if out.as_json:
        out.json(found)
    elif code:
        out.console.print(Markdown(f"# {code.upper()}\n\n{found[code.upper()]}"))
    else:
        click.echo("\n".join(found))
