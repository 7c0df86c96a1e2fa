"""Emergency failover from the shell: of one VM, or of several at once with one confirmation."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import click

from vapor_desktop.cli import program
from vapor_desktop.cli.completing import vm_names
from vapor_desktop.cli.confirming import check_confirmed
from vapor_desktop.cli.output import Output, json_option
from vapor_desktop.cli.protections import status_facts
from vapor_desktop.engine.console import EngineBackend
from vapor_desktop.engine.operations.fencing import WAYS
from vapor_desktop.model.errors import InvalidRequest, VaporError
from vapor_desktop.model.view import ProtectionStatus

AT_ONCE = 4


@click.command()
@click.argument("vms", nargs=-1, required=True, shell_complete=vm_names)
@click.option("--point", type=int, default=None, help="Recovery point, of one VM; default: the newest.")
@click.option("--proven", is_flag=True, help="The newest point that a drill has passed on, instead of the newest.")
@click.option("--source", type=click.Choice(WAYS), default="leave", show_default=True,
              help="What to do with a source that answers; one that is dark is never waited for.")  # fmt: skip
@click.option("--reason", required=True, help="Why; kept in the history and at the target.")
@click.option("--confirm", metavar="TEXT",
              help="The VM's name, of several “fail over N”. Without it: only show what would happen.")  # fmt: skip
@json_option
@click.pass_obj
def failover(
    out: Output, vms: tuple[str, ...], point: int | None, proven: bool, source: str, reason: str, confirm: str | None
) -> None:
    """Emergency failover: bring VMS up at their targets from a recovery point. The source is not waited for."""
    with program.acting() as backend:
        rows = {r.key: r for r in (program.find_protection(backend, vm) for vm in vms)}
        if point is not None and len(rows) > 1:
            raise InvalidRequest("--point is of one VM", fix="Fail that one over by itself")
        wanted = confirmation(list(rows.values()))
        if confirm is None:
            _dry_run(out, backend, list(rows.values()))
            raise InvalidRequest("Nothing was done", fix=f"Add --confirm “{wanted}” to fail over")
        check_confirmed(wanted, confirm)
        points = {key: _proven(backend, row) if proven else point for key, row in rows.items()}
        with ThreadPoolExecutor(AT_ONCE) as pool:
            asked = {key: pool.submit(_one, backend, key, points[key], reason, source) for key in rows}
            ended = {key: future.result() for key, future in asked.items()}
        now = {key: program.find_protection(backend, key) for key in rows}
    if len(rows) == 1:
        _tell_one(out, now[next(iter(rows))], next(iter(ended.values())))
        return
    facts = []
    for key, outcome in ended.items():
        row, failed = now[key], isinstance(outcome, VaporError)
        text = f"{outcome}" if failed else f"runs at {row.target_name} after {outcome:.1f} s"
        if not out.as_json:
            click.echo(f"  {row.protection.vm_name}: {text}")
        result = {"error": outcome.to_wire()} if isinstance(outcome, VaporError) else {"running_after_s": outcome}
        facts.append({"ok": not failed, **result, **status_facts(row)})
    bad = sum(not fact["ok"] for fact in facts)
    out.say(f"{len(facts) - bad} of {len(facts)} run at their targets", results=facts)
    if bad:
        sys.exit(1)


def confirmation(rows: Sequence[ProtectionStatus]) -> str:
    """What must be typed."""
    return rows[0].protection.vm_name if len(rows) == 1 else f"fail over {len(rows)}"


def _one(backend: EngineBackend, key: str, seq: int | None, reason: str, source: str) -> float | VaporError:
    try:
        return backend.failover(key, seq, reason, source)
    except VaporError as error:
        return error


def _proven(backend: EngineBackend, row: ProtectionStatus) -> int:
    found = [p.seq for p in backend.points(row.key) if p.proven_at is not None]
    if not found:
        raise InvalidRequest(f"No point of “{row.protection.vm_name}” is proven", fix="Leave --proven out")
    return max(found)


def _dry_run(out: Output, backend: EngineBackend, rows: Sequence[ProtectionStatus]) -> None:
    previews = [backend.failover_preview(row.key) for row in rows]
    if out.as_json:
        told = [
            {"vm": p.vm_name, "effects": p.effects, "tried": p.tried, "facts": p.facts(), "blockers": p.blockers}
            for p in previews
        ]
        one = {key: value for key, value in told[0].items() if key != "vm"} if len(told) == 1 else {"vms": told}
        out.json({"ok": False, "dry_run": True, **one})
        return
    for p in previews:
        click.echo(f"{p.vm_name}:")
        for line in (*p.tried, *p.facts(), *p.effects, *p.blockers):
            click.echo(f"  {line}")


def _tell_one(out: Output, row: ProtectionStatus, outcome: float | VaporError) -> None:
    if isinstance(outcome, VaporError):
        raise outcome
    out.say(
        f"{row.protection.vm_name} runs at {row.target_name} after {outcome:.1f} s",
        running_after_s=outcome,
        **status_facts(row),
    )
