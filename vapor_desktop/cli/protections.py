"""Verbs about protections and recovery."""

from __future__ import annotations

import threading
from typing import Literal

import click

from vapor_desktop.cli import program
from vapor_desktop.cli.completing import site_names, vm_names
from vapor_desktop.cli.confirming import check_confirmed
from vapor_desktop.cli.output import Output, duration, json_option, size
from vapor_desktop.cli.policy_options import PolicyOptions, policy_options
from vapor_desktop.engine.console import EngineBackend
from vapor_desktop.model.errors import InvalidRequest, NotFound
from vapor_desktop.model.policy import Policy
from vapor_desktop.model.view import ProtectionStatus, ProtectRequest


def status_facts(r: ProtectionStatus) -> dict[str, object]:
    """One protection for ``status --json``. ``rpo_now_s`` is null when unknown."""
    return {
        "vm": r.protection.vm_name,
        "uuid": r.protection.vm_uuid,
        "protection": r.key,
        "state": r.protection.phase.value,
        "status": r.status_text,
        "rpo_target_s": r.protection.policy.rpo_target_s,
        "rpo_now_s": None if r.rpo_now_s is None else round(r.rpo_now_s, 3),
        "rpo": r.rpo_health.value,
        "last_point": r.last_seq,
        "last_point_taken_at": r.last_point_taken_at,
        "current_as_of": r.current_as_of,
        "points": r.point_count,
        "source": r.source_name,
        "target": r.target_name,
        "route": r.route,
        "epoch": r.protection.epoch_number,
        "next_due_at": r.next_due_at,
        "last_sent_bytes": r.last_sent_bytes,
        "attainable_rpo_s": r.attainable_rpo_s,
        "last_error": r.protection.last_error,
        "last_error_code": r.protection.last_error_code,
        "failures": r.protection.failures,
        "warnings": r.protection.warnings,
    }


def print_status(out: Output, backend: EngineBackend) -> None:
    """All protections, worst first."""
    rows = sorted(backend.snapshot().protections, key=lambda r: (-r.severity, r.protection.vm_name))
    if out.as_json:
        out.json([status_facts(r) for r in rows])
        return
    cells = [
        (
            r.protection.vm_name,
            r.status_text,
            duration(r.rpo_now_s),
            duration(r.protection.policy.rpo_target_s),
            "—" if r.last_seq is None else f"{r.last_seq}",
            f"{r.point_count}",
            size(r.last_sent_bytes),
            f"{r.source_name} → {r.target_name}",
        )
        for r in rows
    ]
    columns = ("VM", "STATUS", "RPO NOW", "TARGET", "LAST POINT", "POINTS", "LAST SENT", "ROUTE")
    out.table(columns, cells, "No VM is protected yet")
    for r in rows:
        for text in r.protection.warnings:
            click.echo(f"{r.protection.vm_name}: {text}")


@click.command()
@json_option
@click.pass_obj
def status(out: Output) -> None:
    """Every protection: state, RPO now against its target, newest recovery point."""
    with program.reading() as backend:
        print_status(out, backend)


@click.command()
@click.option("--interval", type=click.FloatRange(0.2), default=1.0, show_default=True, help="Seconds between looks.")
@click.option("--count", type=int, default=0, help="Stop after this many looks (0: until interrupted).")
@json_option
@click.pass_obj
def watch(out: Output, interval: float, count: int) -> None:
    """Replicate (if no other engine runs) and show the status again and again."""
    pause, shown = threading.Event(), 0
    with program.acting() as backend:
        while True:
            if not out.as_json and out.console.is_terminal:
                out.console.clear()
            print_status(out, backend)
            shown += 1
            if count and shown >= count:
                return
            pause.wait(interval)


@click.command()
@click.argument("vms", nargs=-1, required=True)
@click.option("--from", "source", required=True, help="Source site.", shell_complete=site_names)
@click.option("--to", "target", required=True, help="Target site.", shell_complete=site_names)
@policy_options
@click.option("--dry-run", is_flag=True, help="Only run the preflight.")
@click.option("--wait", is_flag=True, help="Until the first recovery point is complete.")
@json_option
@click.pass_obj
def protect(
    out: Output,
    vms: tuple[str, ...],
    source: str,
    target: str,
    asked: PolicyOptions,
    dry_run: bool,
    wait: bool,
) -> None:
    """Protect VMS (names or UUIDs) of the source site at the target site."""
    policy = asked.policy(Policy())
    with program.acting() as backend:
        a, b = program.find_site(backend, source), program.find_site(backend, target)
        there = {v.name: v.vm_uuid for v in backend.vms(a.site_id)}
        uuids = []
        for vm in vms:
            found = there.get(vm) or (vm if vm in there.values() else None)
            if found is None:
                raise NotFound(f"{a.name} has no VM “{vm}”", fix=f"It has: {', '.join(sorted(there)) or 'none'}")
            uuids.append(found)
        request = ProtectRequest(
            tuple(uuids),
            a.site_id,
            b.site_id,
            policy.rpo_target_s,
            asked.networks({}),
            policy.retention.newest,
            policy.retention.hourly,
            policy.retention.daily,
            bandwidth_bytes_s=policy.bandwidth_bytes_s,
            quiesce=policy.quiesce.value,
            start_guard=policy.start_guard.value,
            at_times=policy.at_times,
            bandwidth_windows=policy.bandwidth_windows,
            streams=policy.streams,
            priority=policy.priority,
        )
        checks = backend.preflight(request, out.check)
        bad = [c for c in checks if c.state == "failed"]
        if bad:
            raise InvalidRequest(
                "The preflight found what must be mended first",
                why="; ".join(f"{c.title}: {c.text}" for c in bad),
                fix=" ".join(c.fix for c in bad if c.fix),
            )
        if dry_run:
            out.say("The preflight found nothing in the way; nothing was changed", dry_run=True)
            return
        made = backend.protect(request)
        if wait:
            for p in made:
                backend.wait_for_point(p.protection_id)
    names = ", ".join(p.vm_name for p in made)
    out.say(f"Protected: {names}", protections=[p.protection_id for p in made])


@click.command()
@click.argument("vm", shell_complete=vm_names)
@click.option("--delete-replica", is_flag=True, help="Also delete the recovery points at the target.")
@click.option("--confirm", required=True, metavar="NAME", help="The VM's name again.")
@json_option
@click.pass_obj
def unprotect(out: Output, vm: str, delete_replica: bool, confirm: str) -> None:
    """Stop protecting VM. The replica is kept unless asked otherwise."""
    with program.acting() as backend:
        row = program.find_protection(backend, vm)
        check_confirmed(row.protection.vm_name, confirm)
        backend.unprotect(row.key, delete_replica=delete_replica)
    out.say(f"{row.protection.vm_name} is no longer protected", vm=row.protection.vm_name)


@click.command()
@click.argument("vm", shell_complete=vm_names)
@click.option("--wait", is_flag=True, help="Until the cycle is done.")
@json_option
@click.pass_obj
def sync(out: Output, vm: str, wait: bool) -> None:
    """Start a cycle of VM now."""
    with program.acting() as backend:
        row = program.find_protection(backend, vm)
        backend.sync_now(row.key, wait=wait)
        row = program.find_protection(backend, vm)
    out.say(f"{row.protection.vm_name}: {row.status_text}", **status_facts(row))


@click.command()
@click.argument("vm", shell_complete=vm_names)
@click.argument("images", nargs=-1, required=True, metavar="DISK=PATH...")
@click.option("--format", "image_format", type=click.Choice(["qcow2", "raw"]), default="qcow2", show_default=True)
@json_option
@click.pass_obj
def seed(out: Output, vm: str, images: tuple[str, ...], image_format: Literal["qcow2", "raw"]) -> None:
    """Begin VM's first copy from images at the target: its first cycle sends only what differs from them.

    PATH is absolute, on the target host, below its helper_image_roots. The image is copied, never changed.
    """
    paths = {}
    for pair in images:
        disk, sep, path = pair.partition("=")
        if not sep or not disk or not path.startswith("/"):
            raise click.BadParameter(f"“{pair}” is not DISK=/ABSOLUTE/PATH", param_hint="DISK=PATH")
        paths[disk] = path
    with program.reading() as backend:
        row = program.find_protection(backend, vm)
        backend.seed(row.key, paths, image_format)
    out.say(
        f"{row.protection.vm_name}: {', '.join(sorted(paths))} seeded at {row.target_name}",
        vm=row.protection.vm_name,
        disks=sorted(paths),
    )


@click.command()
@click.argument("vm", shell_complete=vm_names)
@json_option
@click.pass_obj
def pause(out: Output, vm: str) -> None:
    """No more cycles of VM until resumed."""
    with program.reading() as backend:
        row = program.find_protection(backend, vm)
        backend.pause(row.key)
    out.say(f"{row.protection.vm_name} is paused", vm=row.protection.vm_name)


@click.command()
@click.argument("vm", shell_complete=vm_names)
@json_option
@click.pass_obj
def resume(out: Output, vm: str) -> None:
    """Cycles of VM again."""
    with program.reading() as backend:
        row = program.find_protection(backend, vm)
        backend.resume(row.key)
    out.say(f"{row.protection.vm_name} is resumed", vm=row.protection.vm_name)


@click.command()
@click.argument("vm", shell_complete=vm_names)
@json_option
@click.pass_obj
def points(out: Output, vm: str) -> None:
    """The recovery points of VM, newest first."""
    with program.reading() as backend:
        row = program.find_protection(backend, vm)
        rows = sorted(backend.points(row.key), key=lambda p: -p.seq)
    if out.as_json:
        out.json(
            [
                {
                    "seq": p.seq,
                    "taken_at": p.taken_at,
                    "current_as_of": p.current_as_of,
                    "consistency": p.consistency,
                    "bytes_sent": p.bytes_sent,
                    "pins": list(p.pins),
                    "verified": p.verified,
                    "proven_at": p.proven_at,
                }
                for p in rows
            ]
        )
        return
    cells = [
        (
            str(p.seq),
            p.taken_at.astimezone().isoformat(sep=" ", timespec="seconds"),
            p.consistency,
            size(p.bytes_sent),
            ", ".join(p.pins) or "—",
            "no mismatch" if p.verified else "MISMATCH",
        )
        for p in rows
    ]
    out.table(
        ("POINT", "TAKEN", "CONSISTENCY", "SENT", "PINS", "DIGESTS OK"), cells, "There is no recovery point yet"
    )


@click.command()
@click.argument("site", shell_complete=site_names)
@json_option
@click.pass_obj
def adopt(out: Output, site: str) -> None:
    """Take over the protections that SITE's replicas tell of (for a console that knows only the target)."""
    with program.reading() as backend:
        made = backend.adopt_replicas(program.find_site(backend, site).site_id)
    names = ", ".join(p.vm_name for p in made) or "nothing new"
    out.say(f"Adopted: {names}", protections=[p.protection_id for p in made])


COMMANDS = (status, watch, protect, unprotect, seed, sync, pause, resume, points, adopt)
