"""After a failover, from the shell: commit it, roll it back, let go what was kept."""

from __future__ import annotations

from dataclasses import asdict

import click

from vapor_desktop.cli import program
from vapor_desktop.cli.completing import vm_names
from vapor_desktop.cli.confirming import DRY, check_confirmed, nothing_done
from vapor_desktop.cli.operations import carry_out, finish, shutdown_option
from vapor_desktop.cli.output import Output, json_option
from vapor_desktop.engine.operations.provisional import roll_back_effects
from vapor_desktop.engine.operations.resolve import SOURCE, TARGET, resolve_effects
from vapor_desktop.model.errors import InvalidRequest
from vapor_desktop.model.operations import OperationKind


@click.command()
@click.argument("vm", shell_complete=vm_names)
@click.option("--reason", required=True, help="Why; kept in the history and at the target.")
@json_option
@click.pass_obj
def commit(out: Output, vm: str, reason: str) -> None:
    """Let VM's failover stand: it is no longer provisional, and can be reprotected."""
    with program.acting() as backend:
        row = program.find_protection(backend, vm)
        done = carry_out(out, backend, OperationKind.COMMIT, row.key, {}, reason)
    finish(out, done)


@click.command("roll-back")
@click.argument("vm", shell_complete=vm_names)
@click.option("--point", type=int, required=True, help="The recovery point to start it from.")
@click.option("--reason", required=True, help="Why; kept in the history and at the target.")
@click.option("--confirm", metavar="NAME", help=f"The VM's name again. {DRY}")
@click.option("--force", is_flag=True, help="Cut the running VM's power instead of asking its guest to shut down.")
@shutdown_option
@json_option
@click.pass_obj
def roll_back(
    out: Output, vm: str, point: int, reason: str, confirm: str | None, force: bool, shutdown_timeout: float
) -> None:
    """Start a provisionally failed-over VM from another point. What it wrote since the failover is kept."""
    with program.acting() as backend:
        row = program.find_protection(backend, vm)
        if confirm is None:
            effects = roll_back_effects(row.protection, row.target_name, point)
            raise nothing_done(out, effects, row.protection.vm_name, "roll it back", effects=effects)
        check_confirmed(row.protection.vm_name, confirm)
        args = {"seq": point, "force": force, "shutdown_s": shutdown_timeout}
        done = carry_out(out, backend, OperationKind.ROLLBACK, row.key, args, reason)
    finish(out, done)


@click.command()
@click.argument("vm", shell_complete=vm_names)
@click.option("--keep", metavar="SITE", help="Whose goes on. Without it: only compare both sides.")
@click.option("--reason", default="", help="Why; kept in the history and at the sites.")
@click.option("--confirm", metavar="NAME", help=f"The VM's name again. {DRY}")
@click.option("--force", is_flag=True, help="Cut the other one's power instead of asking its guest to shut down.")
@shutdown_option
@json_option
@click.pass_obj
def resolve(
    out: Output, vm: str, keep: str | None, reason: str, confirm: str | None, force: bool, shutdown_timeout: float
) -> None:
    """Resolve a split brain of VM: choose whose goes on; the other's is switched off and always kept."""
    with program.acting() as backend:
        row = program.find_protection(backend, vm)
        found = backend.both_sides(row.key)
        if keep is None:
            out.say("\n".join(found.lines()), dry_run=True, sides=[asdict(found.source), asdict(found.target)])
            return
        winner = program.find_site(backend, keep).site_id
        ends = {row.protection.source_site: SOURCE, row.protection.target_site: TARGET}
        if winner not in ends:
            raise InvalidRequest(f"{keep} is neither of the sites of {vm}")
        if confirm is None:
            for line in (*found.lines(), *resolve_effects(found, ends[winner])):
                click.echo(f"  {line}", err=True)
            raise InvalidRequest("Nothing was done", fix=f"Add --confirm {row.protection.vm_name} to do it")
        check_confirmed(row.protection.vm_name, confirm)
        args = {"winner": winner, "force": force, "shutdown_s": shutdown_timeout}
        done = carry_out(out, backend, OperationKind.RESOLVE, row.key, args, reason)
    finish(out, done)


@click.command("kept")
@click.argument("vm", shell_complete=vm_names)
@click.option("--let-go", "epoch", type=int, default=None, metavar="EPOCH", help="Delete what that run has written.")
@click.option("--reason", default="", help="Why it is let go; kept at the target.")
@json_option
@click.pass_obj
def kept(out: Output, vm: str, epoch: int | None, reason: str) -> None:
    """What VM wrote in runs that are over, kept at its target until let go."""
    with program.acting() as backend:
        row = program.find_protection(backend, vm)
        if epoch is not None:
            if not reason.strip():
                raise InvalidRequest("Letting a kept run go wants a --reason")
            backend.let_go(row.key, epoch, reason)
        found = backend.kept_runs(row.key)
    if out.as_json:
        out.json([{"epoch": k.epoch, "name": k.name, "at": k.at, "point": k.seq, "bytes": k.bytes} for k in found])
        return
    cells = [(str(k.epoch), k.name, k.at.astimezone().isoformat(sep=" ", timespec="seconds"), str(k.seq),
              f"{k.bytes / 2**20:.1f} MiB") for k in found]  # fmt: skip
    out.table(("EPOCH", "NAME", "OVER SINCE", "ON POINT", "WRITTEN"), cells, "Nothing is kept")


COMMANDS = (commit, roll_back, resolve, kept)
