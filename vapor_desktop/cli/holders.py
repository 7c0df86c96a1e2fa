"""Who is at work: ``engines``, ``lease show``, ``lease take-over``."""

from __future__ import annotations

from dataclasses import asdict

import click

from vapor_desktop.cli import program
from vapor_desktop.cli.completing import site_names, vm_names
from vapor_desktop.cli.confirming import check_confirmed
from vapor_desktop.cli.output import Output, json_option


@click.command()
@json_option
@click.pass_obj
def engines(out: Output) -> None:
    """The engines that live, and how many VMs each works for."""
    with program.reading() as backend:
        found = backend.engines()
    if out.as_json:
        out.json([{**asdict(e), "heartbeat_at": e.heartbeat_at.isoformat()} for e in found])
        return
    cells = [
        (e.host, e.kind, str(e.pid), "yes" if e.acts else "stands by", str(e.protections), e.engine_id) for e in found
    ]
    out.table(("HOST", "KIND", "PID", "ACTS", "VMS", "ENGINE"), cells, "No engine runs: nothing is replicated")


@click.group()
def lease() -> None:
    """The leases by which the sites let one engine or operation at a time act on a VM."""


@lease.command()
@click.argument("vm", shell_complete=vm_names)
@json_option
@click.pass_obj
def show(out: Output, vm: str) -> None:
    """Who holds VM's lease at each of its sites, for what, and since when."""
    with program.reading() as backend:
        found = backend.leases(program.find_protection(backend, vm).key)
    if out.as_json:
        out.json(
            [
                {"site": h.site_name, "lease": h.lease and h.lease.model_dump(mode="json"), "error": h.trouble}
                for h in found
            ]
        )
        return
    cells = []
    for h in found:
        if h.lease is None:
            cells.append((h.site_name, h.trouble or "nobody", "", "", ""))
        else:
            since = f"{h.lease.since:%Y-%m-%d %H:%M:%S}Z" if h.lease.since else "—"
            cells.append((h.site_name, h.lease.holder_name, h.lease.purpose, since, str(h.lease.fence)))
    out.table(("SITE", "HELD BY", "FOR", "SINCE", "FENCE"), cells, "No site of it is paired here")


@lease.command("take-over")
@click.argument("vm", shell_complete=vm_names)
@click.option("--site", "site_name", required=True, help="At which site.", shell_complete=site_names)
@click.option("--reason", required=True, help="Why; kept in the site's audit log.")
@click.option("--confirm", required=True, metavar="NAME", help="The VM's name again.")
@json_option
@click.pass_obj
def take_over(out: Output, vm: str, site_name: str, reason: str, confirm: str) -> None:
    """End the lease that somebody holds of VM: from then on the site refuses what that holder writes."""
    with program.reading() as backend:
        row = program.find_protection(backend, vm)
        check_confirmed(row.protection.vm_name, confirm)
        site = program.find_site(backend, site_name)
        was = backend.take_over_lease(row.key, site.site_id, reason)
    out.say(f"Taken over at {site.name} from {was}; do again what was refused", site=site.name, was=was)
