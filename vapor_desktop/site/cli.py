"""The administrator's verbs on a host: ``vapor-site token|fingerprint|doctor|guard|alarm|rebuild|runbook|…``."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from vapor_desktop.hypervisor.connection import LibvirtHypervisor
from vapor_desktop.model.wire import Scope
from vapor_desktop.site.alarm_targets import try_targets
from vapor_desktop.site.audit import AuditLog
from vapor_desktop.site.doctor import run_checks
from vapor_desktop.site.enrolments import Enrolments, uuid_text
from vapor_desktop.site.failover_cli import failover, runbook
from vapor_desktop.site.guard_cli import guard
from vapor_desktop.site.guard_hook import prove_or_tell
from vapor_desktop.site.helper_client import HelperClient
from vapor_desktop.site.identity import certificate_sha256, ensure_identity, fingerprint_text
from vapor_desktop.site.plainly import plainly
from vapor_desktop.site.settings import SiteSettings, load_settings
from vapor_desktop.site.stores import in_use_by, open_store
from vapor_desktop.site.tokens import ONE_TIME_TTL_S, TokenBook
from vapor_desktop.site.trust import revoke_token

UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
SERVE_HELP = "Other verbs: serve, helper; console and peer are for sshd's forced commands."


class Duration(click.ParamType[float]):
    """``90``, ``90s``, ``15m``, ``2h``, ``1d``: seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds; a person's mistake becomes click's usage error."""
        match = re.fullmatch(r"(\d+)([smhd]?)", str(value))
        if match is None or int(match[1]) == 0:
            self.fail(f"{value!r} is no duration; write 90s, 15m, 2h or 1d", param, ctx)
        return float(int(match[1]) * UNITS_S[match[2] or "s"])


@click.group(epilog=SERVE_HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="vapor-desktop")
def cli() -> None:
    """The service of one KVM host (a site) in Vapor Desktop."""


cli.add_command(guard)
cli.add_command(runbook)
cli.add_command(failover)


@cli.group()
def token() -> None:
    """Tokens for pairing consoles with this site."""


@token.command("new")
@click.option(
    "--ttl", type=Duration(), default=f"{ONE_TIME_TTL_S:.0f}s", help="How long it may be used: 15m, 2h, 1d."
)
@click.option("--scope", type=click.Choice([scope.value for scope in Scope]), default=Scope.ADMIN.value)
@click.option("--json", "as_json", is_flag=True)
@plainly
def token_new(ttl: float, scope: str, as_json: bool) -> None:
    """Print this site's URL and a one-time token for a console."""
    settings = load_settings()
    ensure_identity(settings)
    digest = certificate_sha256(settings)
    text, record = _book(settings).new_one_time(digest, Scope(scope), ttl)
    url = _url(settings)
    if as_json:
        expires = record.expires_at.isoformat() if record.expires_at else None
        shown = {"url": url, "token": text, "token_id": record.token_id, "scope": scope, "expires_at": expires}
        click.echo(json.dumps({**shown, "fingerprint": fingerprint_text(digest)}))
        return
    click.echo(f"URL          {url}")
    click.echo(f"Token        {text}")
    click.echo(f"Fingerprint  {fingerprint_text(digest)}")
    click.echo(f"One use, until {record.expires_at:%Y-%m-%d %H:%M:%S} UTC; the console may then {scope}.")


@token.command("list")
@click.option("--json", "as_json", is_flag=True)
@plainly
def token_list(as_json: bool) -> None:
    """Every token this site knows; texts are not kept."""
    records = _book(load_settings()).all()
    rows = [
        {
            "token_id": item.token_id,
            "kind": item.kind,
            "scope": item.scope.value,
            "state": item.state,
            "console": item.console_name,
            "console_id": item.console_id,
            "made_at": item.made_at.isoformat(timespec="seconds"),
            "expires_at": item.expires_at.isoformat(timespec="seconds") if item.expires_at else "",
        }
        for item in records
    ]
    if as_json:
        click.echo(json.dumps(rows))
        return
    for row in rows:
        click.echo("{token_id}  {kind:8}  {scope:7}  {state:7}  until {expires_at}  {console}".format(**row))


@token.command("revoke")
@click.argument("token_id")
@plainly
def token_revoke(token_id: str) -> None:
    """End a token at once; a console's last token takes its SSH key along."""
    settings = load_settings()
    record = revoke_token(_book(settings), Enrolments(settings), token_id)
    click.echo(f"{record.token_id} ({record.console_name or record.kind}) is revoked")


@cli.command()
@plainly
def fingerprint() -> None:
    """The certificate's SHA-256, to compare with what a console shows."""
    settings = load_settings()
    ensure_identity(settings)
    click.echo(fingerprint_text(certificate_sha256(settings)))


@cli.command()
@click.option("--json", "as_json", is_flag=True)
@plainly
def doctor(as_json: bool) -> None:
    """Look whether this host has what it needs, and try the start guard; exit code 1 when something is missing."""
    settings = load_settings()
    hypervisor = LibvirtHypervisor(settings.libvirt_uri)
    trouble = prove_or_tell(settings, hypervisor)
    if trouble and not as_json:
        click.echo(f"The start guard could not be tried: {trouble}")
    checks = list(run_checks(settings, hypervisor.versions))
    hypervisor.close()
    if as_json:
        click.echo(json.dumps([check.model_dump() for check in checks]))
    else:
        for check in checks:
            click.echo(f"{'ok  ' if check.ok else 'BAD '} {check.name:20} {check.found}")
            if check.fix:
                click.echo(f"     -> {check.fix}")
    if not all(check.ok for check in checks):
        sys.exit(1)


@cli.group()
def alarm() -> None:
    """The site's own alarm: mail and webhook of site.toml."""


@alarm.command("test")
@click.option("--json", "as_json", is_flag=True)
@plainly
def alarm_test(as_json: bool) -> None:
    """Send a test to every target now; exit code 1 when one of them, or one recipient, does not get it."""
    settings = load_settings()
    tried = try_targets(settings.alarm, settings.name)
    if as_json:
        click.echo(json.dumps([{"target": name, "error": error and error.to_wire()} for name, error in tried]))
    else:
        for name, error in tried:
            click.echo(f"{'ok  ' if error is None else 'BAD '} {name:30} {error or 'sent'}")
    if any(error for _, error in tried):
        sys.exit(1)


@cli.command()
@click.argument("vm")
@plainly
def rebuild(vm: str) -> None:
    """Write a replica's lost or damaged manifest again from its points; deletes nothing."""
    settings = load_settings()
    hypervisor = LibvirtHypervisor(settings.libvirt_uri)
    store = open_store(settings, in_use_by(hypervisor, HelperClient(settings.helper_socket)))
    manifest = store.rebuild(uuid_text(vm, "the VM"))
    AuditLog(settings.audit_log)("rebuild", vm_uuid=manifest.vm_uuid, points=[p.seq for p in manifest.points])
    newest = manifest.newest
    click.echo(f"{manifest.vm_name}: {len(manifest.points)} points" + (f", newest {newest.seq}" if newest else ""))


def _book(settings: SiteSettings) -> TokenBook:
    return TokenBook(settings.tokens_file, AuditLog(settings.audit_log))


def _url(settings: SiteSettings) -> str:
    host = settings.reach_address
    return f"https://{f'[{host}]' if ':' in host else host}:{settings.port}/api/v1"


def main(args: Sequence[str]) -> NoReturn:
    """The admin's verbs."""
    cli.main(args=list(args), prog_name="vapor-site")
