"""``vapor-engine``: the engine without a window."""

from __future__ import annotations

import sys

import click

from vapor_desktop import __version__, app
from vapor_desktop.cli.where import where_options


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="vapor-engine")
@where_options
def engine() -> None:
    """Replicate and carry out operations without a window, until SIGTERM or SIGINT.

    Consoles and vaporctl on the same database look on and command. Several engines on one PostgreSQL database share
    the work. It may be killed at any moment: another one, or its next start, goes on.
    """
    sys.exit(app.engine_main())


def main() -> None:
    """Entry point."""
    engine()


if __name__ == "__main__":
    main()
