"""How the admin's verbs on a host fail: one sentence and exit code 1, no traceback."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import click

from vapor_desktop.model.errors import VaporError

Command = TypeVar("Command", bound=Callable[..., Any])


def plainly(command: Command) -> Command:
    """Our errors as click's."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except VaporError as error:
            raise click.ClickException(str(error)) from error
        except PermissionError as error:
            raise click.ClickException(f"{error.filename}: permission denied. Run it as root or as vapor") from error

    return wrapped  # type: ignore[return-value]  # functools.wraps keeps the signature
