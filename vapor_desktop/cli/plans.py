"""Recovery plans from the shell: a file in, a file out; ready or not; run one and follow it; its report."""

from __future__ import annotations

import json
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from vapor_desktop.cli import program
from vapor_desktop.cli.completing import plan_names
from vapor_desktop.cli.confirming import DRY, check_confirmed, nothing_done
from vapor_desktop.cli.operations import finish, follow
from vapor_desktop.cli.output import Output, json_option
from vapor_desktop.engine.console import EngineBackend
from vapor_desktop.model.errors import GuestMissing, InvalidRequest, NotFound
from vapor_desktop.model.operations import Operation, OperationKind, OperationState
from vapor_desktop.model.plan_report import ReportLine, report_of
from vapor_desktop.model.plans import Plan, PlanMode, PlanStatus, read_plan

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
EXAMPLE = """\b
  name = "Shop"
  [[tiers]]
  name = "data"
  delay_s = 10
  [[tiers.vms]]
  name = "db01"
  checks = [{kind = "agent"}, {kind = "tcp", port = 5432}]
  [[tiers]]
  name = "front"
  pause = "Is the DNS moved?"
  [[tiers.vms]]
  name = "web01"
  networks = {lan = "dr-lan"}
  addresses = [{address = "198.51.100.7/24", gateway = "198.51.100.1"}]
"""


@click.group()
def plan() -> None:
    """Recovery plans: VMs in tiers, brought up in order, with checks and pauses between them."""


@plan.command("list")
@json_option
@click.pass_obj
def list_(out: Output) -> None:
    """All plans, and whether each is ready."""
    with program.reading() as backend:
        found = backend.plans()
    if out.as_json:
        out.json([_status(s) for s in found])
        return
    rows = [
        (
            s.plan.name,
            {True: "yes", False: "NO", None: "not looked yet"}[s.ready],
            str(len(s.plan.tiers)),
            str(sum(1 for _ in s.plan.vms())),
            ", ".join(s.targets),
            "; ".join(p.words for p in s.problems),
        )
        for s in found
    ]
    out.table(("PLAN", "READY", "TIERS", "VMS", "TARGETS", "WHY NOT"), rows, "No recovery plan yet")


@plan.command()
@click.argument("name", shell_complete=plan_names)
@json_option
@click.pass_obj
def show(out: Output, name: str) -> None:
    """One plan. With --json in the form that `create` and `edit` read."""
    with program.reading() as backend:
        found = find_plan(backend, name).plan
    if out.as_json:
        out.json(found.model_dump(mode="json"))
        return
    click.echo(f"{found.name} (version {found.version}, by {found.changed_by}, at most {found.parallel} at a time)")
    for n, tier in enumerate(found.tiers, 1):
        if tier.pause:
            click.echo(f"  ask a person: {tier.pause}")
        click.echo(f"  Tier {n}" + (f": {tier.name}" if tier.name else ""))
        for vm in tier.vms:
            parts = [f"wait until {c.words}" for c in vm.checks]
            parts += [f"{old} → {new}" for old, new in vm.networks.items()]
            parts += [a.address for a in vm.addresses] + ([f"then {vm.delay_s:g} s"] if vm.delay_s else [])
            click.echo(f"    {vm.name}" + (f": {', '.join(parts)}" if parts else ""))
        if tier.delay_s:
            click.echo(f"  wait {tier.delay_s:g} s")


@plan.command(epilog=EXAMPLE)
@click.argument("file", type=FILE)
@json_option
@click.pass_obj
def create(out: Output, file: Path) -> None:
    """Make a plan from a TOML or JSON file. VMs are named as they are protected."""
    with program.reading() as backend:
        raw = _read(file)
        for key in ("plan_id", "version"):
            raw.pop(key, None)
        saved = backend.save_plan(_draft(backend, raw, "", 0))
    out.say(f"{saved.name}: saved (version {saved.version})", plan=saved.model_dump(mode="json"))


@plan.command(epilog=EXAMPLE)
@click.argument("name", shell_complete=plan_names)
@click.argument("file", type=FILE)
@json_option
@click.pass_obj
def edit(out: Output, name: str, file: Path) -> None:
    """Replace a plan by what the file says. A "version" in it must be the newest one."""
    with program.reading() as backend:
        known = find_plan(backend, name).plan
        raw = _read(file)
        version = int(raw.pop("version", known.version))
        if raw.pop("plan_id", known.plan_id) != known.plan_id:
            raise InvalidRequest("The file holds another plan", fix="Take its plan_id out, or name that plan")
        saved = backend.save_plan(_draft(backend, raw, known.plan_id, version))
    out.say(f"{saved.name}: saved (version {saved.version})", plan=saved.model_dump(mode="json"))


@plan.command()
@click.argument("name", shell_complete=plan_names)
@click.option("--confirm", metavar="NAME", required=True, help="The plan's name again.")
@json_option
@click.pass_obj
def delete(out: Output, name: str, confirm: str) -> None:
    """Delete a plan, at every site that keeps it. No VM is touched."""
    with program.reading() as backend:
        found = find_plan(backend, name).plan
        check_confirmed(found.name, confirm)
        backend.delete_plan(found.plan_id, found.version)
    out.say(f"{found.name}: deleted", plan_id=found.plan_id)


@plan.command()
@click.argument("name", shell_complete=plan_names)
@json_option
@click.pass_obj
def ready(out: Output, name: str) -> None:
    """Look now whether a plan could run. Exit code 1 when not."""
    with program.reading() as backend:
        found = backend.look_at_plan(find_plan(backend, name).plan.plan_id)
    if not found.ready:
        raise GuestMissing(
            f"The recovery plan “{found.plan.name}” is not ready",
            why="; ".join(p.words for p in found.problems),
            fix=" ".join(dict.fromkeys(p.fix for p in found.problems if p.fix)),
            problems=[{"vm": p.vm_name, "what": p.what, "fix": p.fix} for p in found.problems],
        )
    out.say(f"{found.plan.name}: ready", **_status(found))


@plan.command()
@click.argument("name", shell_complete=plan_names)
@click.option("--as", "mode", type=click.Choice([m.value for m in PlanMode]), required=True, help="What is done.")
@click.option("--reason", required=True, help="Why; kept in the history and at the sites.")
@click.option("--confirm", metavar="NAME", help=f"The plan's name again. {DRY}")
@json_option
@click.pass_obj
def run(out: Output, name: str, mode: str, reason: str, confirm: str | None) -> None:
    """Run a plan and follow it. What runs at its target already is seen as done, so running it again is safe."""
    with program.acting() as backend:
        found = find_plan(backend, name).plan
        if confirm is None:
            steps = backend.plan_steps(found.plan_id, PlanMode(mode))
            lines = [f"{'  ' if step.parent else ''}{step.title}" for step in steps]
            raise nothing_done(out, lines, found.name, f"run it as {mode}", steps=[s.title for s in steps])
        check_confirmed(found.name, confirm)
        done = follow(out, backend, backend.run_plan(found.plan_id, PlanMode(mode), reason))
    if not out.as_json and done.kind is OperationKind.PLAN and done.ended:
        _print_report(out, done)
    finish(out, done)


@plan.command()
@click.argument("name", shell_complete=plan_names)
@json_option
@click.pass_obj
def report(out: Output, name: str) -> None:
    """What came of a plan's last run (a plan's name, or the id of a run)."""
    with program.reading() as backend:
        done = _run_of(backend, name)
    if out.as_json:
        lines = [line.facts() for line in report_of(done)]
        facts = {"plan": done.vm_name, "operation_id": done.operation_id, "state": done.state, "mode": _mode(done)}
        out.json({**facts, "seconds": done.result.get("seconds"), "vms": lines})
        return
    click.echo(f"{done.vm_name} as {_mode(done)}, {done.started_at:%Y-%m-%d %H:%M:%S}Z: {done.state}")
    click.echo(f"asked by {done.asked_by}: {done.reason}")
    _print_report(out, done)


def find_plan(backend: EngineBackend, text: str) -> PlanStatus:
    """By name or the beginning of its id. Raises NotFound, InvalidRequest when ambiguous."""
    plans = backend.plans()
    exact = [s for s in plans if text in {s.plan.name, s.plan.plan_id}]
    found = exact or [
        s for s in plans if s.plan.plan_id.startswith(text) or s.plan.name.casefold() == text.casefold()
    ]
    if not found:
        names = ", ".join(s.plan.name for s in plans) or "none"
        raise NotFound(f"No recovery plan is called “{text}”", fix=f"Plans: {names}")
    if len(found) > 1:
        raise InvalidRequest(f"“{text}” names several plans", fix="Give the id")
    return found[0]


def _run_of(backend: EngineBackend, text: str) -> Operation:
    runs = [o for o in backend.operations(limit=1000) if o.kind is OperationKind.PLAN]
    found = [o for o in runs if o.vm_name == text or o.operation_id.startswith(text)]
    if not found:
        raise NotFound(f"“{text}” has not been run", fix="`vaporctl operation list` shows the runs")
    return found[0]


def _read(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text()
        value = json.loads(text) if text.lstrip().startswith("{") else tomllib.loads(text)
    except (ValueError, OSError) as error:
        raise InvalidRequest(f"{file} cannot be read as TOML or JSON", why=str(error)) from error
    return dict(value)


def _draft(backend: EngineBackend, raw: dict[str, Any], plan_id: str, version: int) -> Plan:
    """The plan that a file means: VMs by name or UUID."""
    tiers = [dict(t) if isinstance(t, dict) else t for t in raw.get("tiers") or []]
    for tier in tiers:
        if isinstance(tier, dict):
            tier["vms"] = [_vm(backend, vm) for vm in tier.get("vms") or []]
    own = {"plan_id": plan_id, "version": version, "changed_at": datetime.now(UTC), "changed_by": ""}
    return read_plan({**raw, **own, "tiers": tiers})


def _vm(backend: EngineBackend, raw: Any) -> Any:
    vm = {"name": raw} if isinstance(raw, str) else dict(raw)
    wanted = str(vm.get("vm_uuid") or vm.get("name") or "")
    protection = program.find_protection(backend, wanted).protection
    return {**vm, "vm_uuid": protection.vm_uuid, "name": protection.vm_name}


def _status(status: PlanStatus) -> dict[str, Any]:
    return {
        "plan_id": status.plan.plan_id,
        "name": status.plan.name,
        "version": status.plan.version,
        "ready": status.ready,
        "problems": [{"vm": p.vm_name, "what": p.what, "fix": p.fix} for p in status.problems],
        "targets": list(status.targets),
        "checked_at": status.checked_at,
    }


def _mode(run_: Operation) -> str:
    return str(run_.args.get("mode", ""))


def _print_report(out: Output, done: Operation) -> None:
    rows = [_row(line) for line in report_of(done)]
    out.table(("VM", "RESULT", "UP AFTER", "NOW", "AT", "CHECKED", "NOTE"), rows, "It brought up nothing")
    if done.state is OperationState.DONE and done.result.get("seconds") is not None:
        click.echo(f"{done.result['seconds']:.1f} s in all")


def _row(line: ReportLine) -> tuple[str, ...]:
    took = "" if line.seconds is None else f"{line.seconds:.1f} s"
    return (line.vm, line.words, took, line.now, line.target, ", ".join(line.checks), line.note)
