"""``vapor-site runbook`` and ``vapor-site failover``: what is left when console and database are gone."""

from __future__ import annotations

import getpass
import json
import os
import pwd
from dataclasses import asdict

import click

from vapor_desktop.hypervisor.connection import LibvirtHypervisor
from vapor_desktop.model.errors import InvalidRequest
from vapor_desktop.site.audit import AuditLog
from vapor_desktop.site.enrolments import Enrolments
from vapor_desktop.site.failover import BreakGlass, find_replica
from vapor_desktop.site.guard_book import GuardBook
from vapor_desktop.site.helper_client import HelperClient
from vapor_desktop.site.plainly import plainly
from vapor_desktop.site.runbook import Runbooks
from vapor_desktop.site.settings import SiteSettings, load_settings
from vapor_desktop.site.stores import in_use_by, open_store
from vapor_desktop.site.tpm import TpmKeeper


@click.command()
@click.argument("vm")
@click.option("--point", type=int, default=None, help="From this recovery point instead of the newest.")
@click.option("--json", "as_json", is_flag=True)
@plainly
def runbook(vm: str, point: int | None, as_json: bool) -> None:
    """Print how to bring VM up by hand on this host: every command, and what to look at first."""
    settings = load_settings()
    _as_service(settings)
    hypervisor = LibvirtHypervisor(settings.libvirt_uri)
    try:
        helper = HelperClient(settings.helper_socket)
        store = open_store(settings, in_use_by(hypervisor, helper))
        guards = GuardBook(settings, AuditLog(settings.audit_log))
        runbooks = Runbooks(settings, store, hypervisor, TpmKeeper(store, helper), guards, Enrolments(settings).peer)
        made = runbooks.write(find_replica(store, vm).vm_uuid, point)
    finally:
        hypervisor.close()
    click.echo(made.model_dump_json() if as_json else made.text, nl=as_json)


@click.command()
@click.argument("vm")
@click.option("--point", type=int, default=None, help="This recovery point instead of the newest.")
@click.option("--reason", required=True, help="Why; it is logged and shown to everybody who looks.")
@click.option("--even-if-it-runs", is_flag=True, help="Also when the source answers and says that VM runs there.")
@click.option("--json", "as_json", is_flag=True)
@plainly
def failover(vm: str, point: int | None, reason: str, even_if_it_runs: bool, as_json: bool) -> None:
    """Bring VM up on this host from its replica, now: no console and no database is needed.

    This site becomes its owner under a new epoch, and every console that comes later sees it. What was written at the
    source after that recovery point is not here.
    """
    settings = load_settings()
    by = f"{getpass.getuser()} on {settings.name}"
    _as_service(settings)
    hypervisor = LibvirtHypervisor(settings.libvirt_uri)
    try:
        glass = BreakGlass(settings, hypervisor, by, lambda line: click.echo(line, err=True))
        done = glass.run(vm, point, reason, even_if_it_runs=even_if_it_runs)
    finally:
        hypervisor.close()
    if as_json:
        click.echo(json.dumps(asdict(done)))
        return
    for note in done.notes:
        click.echo(f"Note: {note}")
    click.echo(
        f"{done.vm_name} runs here from recovery point {done.seq} since {done.running_after_s:.1f} s after the call; "
        f"epoch {done.epoch}. It is not protected"
    )


def _as_service(settings: SiteSettings) -> None:
    """Root becomes the service's account: what is made here must be the service's to use. Raises InvalidRequest."""
    if os.geteuid() != 0:
        return
    try:
        account = pwd.getpwnam(settings.user)
    except KeyError as error:
        raise InvalidRequest(
            f"There is no account {settings.user} on this host", fix="Correct `user` in site.toml"
        ) from error
    os.initgroups(account.pw_name, account.pw_gid)
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)
    os.environ["HOME"] = account.pw_dir
    os.umask(0o007)  # QEMU's group reads and writes what we make in the replica roots
