"""``vaporctl``: every verb of the console, for scripts.

Exit codes: 0 done; 1 it failed and a person must change something; 2 wrong usage; 75 it failed and may
succeed later; 70 our bug. Tokens come from a file or standard input, never from the arguments.
"""

from __future__ import annotations

import sys

import click

from vapor_desktop import __version__
from vapor_desktop.cli import (
    details,
    drills,
    failover,
    holders,
    operations,
    plans,
    protections,
    recovery,
    settings,
    sites,
)
from vapor_desktop.cli.diagnostics import diagnostics
from vapor_desktop.cli.explain import explain
from vapor_desktop.cli.output import Output, exit_code
from vapor_desktop.cli.report import report
from vapor_desktop.cli.reprotect import reprotect
from vapor_desktop.cli.runbook import runbook
from vapor_desktop.cli.where import where_options
from vapor_desktop.model.errors import VaporError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="vaporctl")
@click.option("--json", "as_json", is_flag=True, help="Print JSON (also accepted after the verb).")
@where_options
@click.pass_context
def vaporctl(ctx: click.Context, as_json: bool) -> None:
    """Site-to-site replication and disaster recovery of libvirt VMs, from the shell."""
    ctx.obj = Output(as_json)


vaporctl.add_command(sites.site)
vaporctl.add_command(sites.pair)
vaporctl.add_command(sites.vms)
vaporctl.add_command(failover.failover)
vaporctl.add_command(operations.migrate)
vaporctl.add_command(reprotect)
vaporctl.add_command(operations.operation)
vaporctl.add_command(holders.engines)
vaporctl.add_command(holders.lease)
vaporctl.add_command(plans.plan)
vaporctl.add_command(runbook)
vaporctl.add_command(drills.drill)
vaporctl.add_command(explain)
vaporctl.add_command(diagnostics)
vaporctl.add_command(report)
for command in (*protections.COMMANDS, *settings.COMMANDS, *details.COMMANDS, *recovery.COMMANDS):
    vaporctl.add_command(command)


def main() -> None:
    """Entry point."""
    import structlog

    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(40),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
    )
    as_json = "--json" in sys.argv
    try:
        vaporctl.main(standalone_mode=False)
    except VaporError as error:
        Output(as_json).error(error)
        sys.exit(exit_code(error))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
