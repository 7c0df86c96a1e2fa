"""Verbs about sites: ``site add|list|remove``, ``pair``, ``vms``."""

from __future__ import annotations

import click

from vapor_desktop.cli import program
from vapor_desktop.cli.completing import site_names
from vapor_desktop.cli.confirming import check_confirmed
from vapor_desktop.cli.output import Output, json_option, read_secret, size
from vapor_desktop.model.errors import CertificateChanged, InvalidRequest


@click.group()
def site() -> None:
    """Paired sites."""


@site.command("add")
@click.argument("url")
@click.option("--token-file", help="File with the token; default: standard input.")
@click.option("--fingerprint", help="Expected SHA-256 of the certificate (the token carries it as well).")
@json_option
@click.pass_obj
def add(out: Output, url: str, token_file: str | None, fingerprint: str | None) -> None:
    """Pair this console with the site at URL (or HOST). The token comes from `vapor-site token new` there."""
    with program.reading() as backend:
        probe = backend.probe_site(backend.normalise_url(url))
        if not out.as_json:
            click.echo(f"  certificate SHA-256 {bytes.fromhex(probe.cert_sha256).hex(':').upper()}", err=True)
        wanted = (fingerprint or "").replace(":", "").replace(" ", "").casefold()
        if wanted and wanted != probe.cert_sha256.casefold():
            raise CertificateChanged("The site's certificate is not the one you named; nothing was sent")
        token = read_secret(token_file, "Token")
        if not token:
            raise InvalidRequest("No token was given", fix="Pipe it in, or use --token-file")
        added = backend.add_site(probe, token, out.check)
    out.say(f"Paired with {added.name} ({added.site_id})", site=added.name, site_id=added.site_id)


@site.command("list")
@json_option
@click.pass_obj
def list_(out: Output) -> None:
    """Every paired site, looked at now."""
    with program.reading() as backend:
        for row in backend.snapshot().sites:
            backend.look(row.site.site_id)
        rows = backend.snapshot().sites
    if out.as_json:
        out.json(
            [
                {
                    "name": r.site.name,
                    "site_id": r.site.site_id,
                    "api_url": r.site.api_url,
                    "reachable": r.reachable,
                    "clock_offset_s": r.clock_offset_s,
                    "version": r.version,
                    "libvirt": r.libvirt_version,
                    "free_bytes": r.free_bytes,
                    "peers": list(r.peers),
                    "start_guard": r.guard_proven,
                    "error": r.error,
                    "error_code": r.error_code,
                }
                for r in rows
            ]
        )
        return
    cells = [
        (
            r.site.name,
            r.site.api_url,
            "yes" if r.reachable else f"no: {r.error}",
            r.libvirt_version or "—",
            size(r.free_bytes),
            "—" if r.clock_offset_s is None else f"{r.clock_offset_s:+.2f} s",
            {True: "proven", False: "OFF", None: "—"}[r.guard_proven],
        )
        for r in rows
    ]
    out.table(("SITE", "URL", "REACHABLE", "LIBVIRT", "FREE", "CLOCK", "START GUARD"), cells, "No site is paired yet")


@site.command("remove")
@click.argument("name", shell_complete=site_names)
@click.option("--confirm", required=True, help="The site's name again.")
@json_option
@click.pass_obj
def remove(out: Output, name: str, confirm: str) -> None:
    """Forget a site: its token is given back and leaves the keyring."""
    with program.reading() as backend:
        found = program.find_site(backend, name)
        check_confirmed(found.name, confirm)
        backend.remove_site(found.site_id)
    out.say(f"{found.name} is no longer paired", site_id=found.site_id)


@click.command()
@click.argument("site_a", shell_complete=site_names)
@click.argument("site_b", shell_complete=site_names)
@json_option
@click.pass_obj
def pair(out: Output, site_a: str, site_b: str) -> None:
    """Make two sites trust each other, both ways."""
    with program.reading() as backend:
        a, b = program.find_site(backend, site_a), program.find_site(backend, site_b)
        route = backend.pair_sites(a.site_id, b.site_id, out.check)
    out.say(f"{a.name} and {b.name} are paired ({route})", route=route)


@click.command()
@click.argument("name", shell_complete=site_names)
@json_option
@click.pass_obj
def vms(out: Output, name: str) -> None:
    """The VMs of a site, and which of them can be protected."""
    with program.reading() as backend:
        rows = backend.vms(program.find_site(backend, name).site_id)
    if out.as_json:
        out.json(
            [
                {
                    "vm": v.name,
                    "uuid": v.vm_uuid,
                    "state": v.state,
                    "protectable": v.protectable,
                    "reason": v.reason,
                    "networks": list(v.networks),
                    "disks": [
                        {
                            "target": d.target,
                            "kind": d.kind,
                            "reason": d.reason,
                            "fix": d.fix,
                            "size_bytes": d.size_bytes,
                        }
                        for d in v.disks
                    ],
                }
                for v in rows
            ]
        )
        return
    cells = [(v.name, v.state, "yes" if v.protectable else "no", v.reason, v.vm_uuid) for v in rows]
    out.table(("VM", "STATE", "PROTECTABLE", "WHY NOT", "UUID"), cells, "There are no VMs")
