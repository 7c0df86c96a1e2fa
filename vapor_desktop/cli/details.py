"""Verbs about what belongs to a protection: its disks, kept points, running cycle, history."""

from __future__ import annotations

from dataclasses import asdict

import click

from vapor_desktop.cli import program
from vapor_desktop.cli.completing import vm_names
from vapor_desktop.cli.output import Output, duration, json_option, size
from vapor_desktop.model.view import DiskStatus


def _how(d: DiskStatus) -> str:
    text = d.last_mode or d.kind or "unknown"
    why = d.last_why or d.reason
    return f"{text} ({why})" if why else text


def _checked(d: DiskStatus) -> str:
    if d.verified is False:
        return "MISMATCH"
    if d.scrub_passed_at is not None:
        return d.scrub_passed_at.astimezone().isoformat(sep=" ", timespec="minutes")
    if d.scrub_reached_bytes is not None and d.size_bytes:
        return f"{100 * d.scrub_reached_bytes // d.size_bytes} % of the first pass"
    return "—"


@click.command()
@click.argument("vm", shell_complete=vm_names)
@json_option
@click.pass_obj
def disks(out: Output, vm: str) -> None:
    """Each disk of VM: where it is, how it replicates and why, what its replica takes, when it was verified."""
    with program.reading() as backend:
        view = backend.disks(program.find_protection(backend, vm).key)
    if out.as_json:
        out.json(
            {
                "disks": [asdict(d) for d in view.disks],
                "source_trouble": view.source_trouble,
                "target_trouble": view.target_trouble,
            }
        )
        return
    for side in (view.source_trouble, view.target_trouble):
        if side:
            click.echo(f"  {side}", err=True)
    cells = [
        (
            d.target,
            d.format or "—",
            d.source or "—",
            size(d.size_bytes),
            size(d.replica_bytes),
            _how(d),
            size(d.last_sent_bytes),
            _checked(d),
        )
        for d in view.disks
    ]
    columns = ("DISK", "FORMAT", "SOURCE", "SIZE", "REPLICA", "REPLICATES", "LAST SENT", "VERIFIED")
    out.table(columns, cells, "Nothing is known of its disks")
    for d in view.disks:
        if d.kind in {"delta", "compare", "refused"} and d.reason:
            click.echo(f"  {d.target}: {d.reason}. {d.fix}", err=True)


@click.command()
@click.argument("vm", shell_complete=vm_names)
@click.argument("point", type=int)
@click.option("--note", default="", help="Why it is kept.")
@json_option
@click.pass_obj
def pin(out: Output, vm: str, point: int, note: str) -> None:
    """Keep recovery POINT of VM, whatever the retention says."""
    with program.acting() as backend:
        row = program.find_protection(backend, vm)
        backend.pin(row.key, point, note)
    out.say(f"{row.protection.vm_name}: point {point} is kept", vm=row.protection.vm_name, point=point)


@click.command()
@click.argument("vm", shell_complete=vm_names)
@click.argument("point", type=int)
@json_option
@click.pass_obj
def unpin(out: Output, vm: str, point: int) -> None:
    """Let recovery POINT of VM go when the retention says so."""
    with program.acting() as backend:
        row = program.find_protection(backend, vm)
        backend.unpin(row.key, point)
    out.say(f"{row.protection.vm_name}: point {point} is no longer kept", vm=row.protection.vm_name, point=point)


@click.command()
@click.argument("vm", shell_complete=vm_names)
@json_option
@click.pass_obj
def cancel(out: Output, vm: str) -> None:
    """Cancel the running cycle of VM. What it has sent is kept; the next cycle goes on from there."""
    with program.acting() as backend:
        row = program.find_protection(backend, vm)
        backend.cancel(f"cycle:{row.key}")
    out.say(f"{row.protection.vm_name}: its cycle was asked to stop", vm=row.protection.vm_name)


@click.command()
@click.argument("vm", required=False, shell_complete=vm_names)
@click.option("--count", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many lines.")
@json_option
@click.pass_obj
def history(out: Output, vm: str | None, count: int) -> None:
    """What happened, newest first: cycles and events of VM, or the events of everything."""
    with program.reading() as backend:
        key = program.find_protection(backend, vm).key if vm else None
        cycles = backend.cycles(key, count) if key else ()
        events = backend.events(key, count)
    if out.as_json:
        out.json({"cycles": [asdict(c) for c in cycles], "events": [asdict(e) for e in events]})
        return
    if key:
        rows = [
            (
                c.started_at.astimezone().isoformat(sep=" ", timespec="seconds"),
                f"point {c.seq}" if c.seq is not None else c.outcome,
                duration(c.duration_s),
                size(c.data_bytes),
                c.mode or "—",
                " ".join(filter(None, (c.error, c.error_code and f"[{c.error_code}]"))),
            )
            for c in cycles
        ]
        out.table(("CYCLE", "RESULT", "TOOK", "DATA", "MODE", "ERROR"), rows, "No cycle has run yet")
    lines = [(e.at.astimezone().isoformat(sep=" ", timespec="seconds"), e.kind, e.text) for e in events]
    out.table(("EVENT", "KIND", "TEXT"), lines, "Nothing has happened yet")


COMMANDS = (disks, pin, unpin, cancel, history)
