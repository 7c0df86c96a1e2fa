"""Drills from the shell: start one and see its checks, stop it with a verdict, list, clean up."""

from __future__ import annotations

from base64 import b64decode
from pathlib import Path

import click

from vapor_desktop.cli import program
from vapor_desktop.cli.completing import vm_names
from vapor_desktop.cli.operations import carry_out, finish
from vapor_desktop.cli.output import Output, json_option
from vapor_desktop.model.drills import BOOT_S, DISK_LIMIT_BYTES, LASTS_MAX_S, LASTS_S
from vapor_desktop.model.errors import InvalidRequest
from vapor_desktop.model.operations import Operation, OperationKind

GIB = 1 << 30


@click.group()
def drill() -> None:
    """Rehearse: a copy of a recovery point boots at the target in a network that leads nowhere."""


@drill.command()
@click.argument("vm", shell_complete=vm_names)
@click.option("--reason", default="a drill", show_default=True, help="Why; kept in the history and at the site.")
@click.option("--point", type=int, metavar="N", help="The recovery point; default: the newest.")
@click.option("--port", "ports", type=click.IntRange(1, 65535), multiple=True, help="A TCP port that must accept.")
@click.option("--agent/--no-agent", default=True, help="Whether the guest's agent must answer.")
@click.option("--script", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="A shell script to run in the guest through its agent; exit code 0 passes.")  # fmt: skip
@click.option("--boot-timeout", type=click.FloatRange(1, 86400), default=BOOT_S, show_default=True, metavar="SECONDS",
              help="How long the checks may take to pass.")  # fmt: skip
@click.option("--hours", type=click.FloatRange(0.01, LASTS_MAX_S / 3600), default=LASTS_S / 3600, show_default=True,
              help="It ends by itself after this long.")  # fmt: skip
@click.option("--disk-limit", type=click.FloatRange(0.1, 65536), default=DISK_LIMIT_BYTES / GIB, show_default=True,
              metavar="GIB", help="It is paused when it has written this much.")  # fmt: skip
@json_option
@click.pass_obj
def start(
    out: Output,
    vm: str,
    reason: str,
    point: int | None,
    ports: tuple[int, ...],
    agent: bool,
    script: Path | None,
    boot_timeout: float,
    hours: float,
    disk_limit: float,
) -> None:
    """Start a drill of VM and wait for its checks. It goes on running until `drill stop`."""
    wanted = {
        "boot_s": boot_timeout,
        "agent": agent,
        "tcp_ports": list(ports),
        "script": script.read_text() if script is not None else "",
    }
    args = {"seq": point, "wanted": wanted, "lasts_s": hours * 3600, "disk_limit_bytes": int(disk_limit * GIB)}
    with program.acting() as backend:
        row = program.find_protection(backend, vm)
        done = carry_out(out, backend, OperationKind.DRILL, row.key, args, reason)
    if done.error is None and not out.as_json:
        _tell_checks(done)
    finish(out, done)


@drill.command()
@click.argument("vm", shell_complete=vm_names)
@click.option("--passed/--failed", "passed", default=None, help="Your verdict. A passed drill proves its point.")
@click.option("--note", default="", help="What you saw; kept in the history and with the point.")
@json_option
@click.pass_obj
def stop(out: Output, vm: str, passed: bool | None, note: str) -> None:
    """Stop the drill of VM; everything of it is removed, and it is looked whether anything is left."""
    if passed is None:
        raise InvalidRequest("Did the drill pass?", fix="Add --passed or --failed")
    _end(out, vm, {"passed": passed, "note": note}, "the drill was stopped")


@drill.command()
@click.argument("vm", shell_complete=vm_names)
@json_option
@click.pass_obj
def clean(out: Output, vm: str) -> None:
    """Force the clean-up after a drill of VM: what cannot be removed now does not hold up the rest."""
    _end(out, vm, {"passed": None, "force": True}, "a forced clean-up")


def _end(out: Output, vm: str, args: dict[str, object], reason: str) -> None:
    with program.acting() as backend:
        row = program.find_protection(backend, vm)
        done = carry_out(out, backend, OperationKind.STOP_DRILL, row.key, args, reason)
    if done.error is None and not out.as_json:
        _tell_report(done)
    finish(out, done)


@drill.command()
@click.argument("vm", shell_complete=vm_names)
@click.option("--every", type=click.IntRange(1, 366), metavar="DAYS",
              help="A drill shall pass within so many days; you are reminded when none has.")  # fmt: skip
@click.option("--never", is_flag=True, help="No reminder (any more).")
@click.option("--auto/--remind", default=False, help="Then begin one by itself, judged by its checks.")
@json_option
@click.pass_obj
def schedule(out: Output, vm: str, every: int | None, never: bool, auto: bool) -> None:
    """How often a drill of VM must pass."""
    if (every is None) == (not never):
        raise InvalidRequest("How often?", fix="--every DAYS, or --never")
    with program.acting() as backend:
        row = program.find_protection(backend, vm)
        backend.schedule_drills(row.key, every, auto=auto and every is not None)
    text = "no drills are asked for" if every is None else f"a drill every {every} days"
    out.say(f"{row.protection.vm_name}: {text}", every_days=every, auto=auto)


@drill.command("list")
@json_option
@click.pass_obj
def list_(out: Output) -> None:
    """Drills at every site, ended ones too."""
    with program.reading() as backend:
        found = backend.drills()
    if out.as_json:
        out.json([{"site": d.site_name, **d.record.model_dump(mode="json")} for d in found])
        return
    cells = [
        (
            d.record.drill_id[:8],
            ", ".join(f"{v.vm_name} #{v.seq}" for v in d.record.vms),
            d.site_name,
            d.record.phase.value,
            f"{d.record.expires_at:%Y-%m-%d %H:%M}Z",
            d.record.trouble or next((v.paused for v in d.record.vms if v.paused), "") or d.record.reason,
        )
        for d in found
    ]
    out.table(("ID", "VM", "SITE", "STATE", "ENDS", "NOTE"), cells, "No drill")


@drill.command()
@click.argument("vm", shell_complete=vm_names)
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--point", type=int, metavar="N", help="Of the drill that passed on this recovery point.")
@json_option
@click.pass_obj
def screen(out: Output, vm: str, file: Path, point: int | None) -> None:
    """Write a picture (PNG) of the screen of VM's drill to FILE."""
    with program.reading() as backend:
        key = program.find_protection(backend, vm).key
        png = backend.drill_screen(key) if point is None else b64decode(backend.point_proof(key, point).png)
    file.write_bytes(png)
    out.say(f"{file}: {len(png)} bytes", file=str(file), bytes=len(png))


def _tell_checks(done: Operation) -> None:
    for text in done.result.get("isolation", ()):
        click.echo(f"  isolated: {text}")
    for check in done.result.get("checks", ()):
        click.echo(f"  {check['state']:7} {check['title']}" + (f": {check['text']}" if check["text"] else ""))
    usable = done.result.get("usable_s")
    click.echo(f"  usable after {usable:.1f} s" if usable is not None else "  not usable by its checks")


def _tell_report(done: Operation) -> None:
    result = done.result
    click.echo(f"  left on the host: {', '.join(result['left']) or 'nothing'} (looked at: {_counts(result)})")
    for word in ("appeared", "gone"):
        for thing in result[word]:
            click.echo(f"  {word} meanwhile, not the drill's: {thing}")
    before, during = result.get("rpo_before_s"), result.get("rpo_during_s")
    click.echo(f"  worst RPO before {_seconds(before)}, during {_seconds(during)}, target {result['rpo_target_s']} s")
    if result.get("proven_seq") is not None:
        click.echo(f"  recovery point {result['proven_seq']} is proven")


def _counts(result: dict[str, object]) -> str:
    kinds = result.get("inventory")
    return ", ".join(f"{n} × {kind}" for kind, n in kinds.items()) if isinstance(kinds, dict) else ""


def _seconds(value: object) -> str:
    return f"{value:.1f} s" if isinstance(value, (int, float)) else "unknown"
