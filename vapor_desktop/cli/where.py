"""Which database, and whose secrets: options that every program with an engine has."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import click


def where_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--database`` and ``--credentials``; each is its environment variable for the rest of the program."""
    database = click.option(
        "--database",
        metavar="URL",
        expose_value=False,
        callback=_into("VAPOR_DATABASE_URL"),
        help="sqlite:////path or postgresql+psycopg://…, without a password. Default: $VAPOR_DATABASE_URL, the"
        " credential database-url, or the user's own file.",
    )
    credentials = click.option(
        "--credentials",
        metavar="FOLDER",
        expose_value=False,
        callback=_into("VAPOR_CREDENTIALS"),
        help="Keep secrets there, sealed by systemd-creds for a system unit, instead of in the keyring.",
    )
    return database(credentials(command))


def _into(variable: str) -> Callable[[click.Context, click.Parameter, str | None], None]:
    def keep(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> None:
        if value is not None:
            os.environ[variable] = value

    return keep
