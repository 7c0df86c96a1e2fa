"""``vapor-site guard``: what a person on the host sees of the start guard, and may override."""

from __future__ import annotations

import json

import click

from vapor_desktop.hypervisor.connection import LibvirtHypervisor
from vapor_desktop.model import guard as rules
from vapor_desktop.model.errors import InvalidRequest, VaporError
from vapor_desktop.model.manifest import Epoch
from vapor_desktop.model.wire import GuardRecord
from vapor_desktop.site import guard_hook
from vapor_desktop.site.audit import AuditLog
from vapor_desktop.site.enrolments import Enrolments
from vapor_desktop.site.guard_book import GuardBook
from vapor_desktop.site.guard_keeper import peer_name
from vapor_desktop.site.leases import boot_id
from vapor_desktop.site.peers import ask_owners
from vapor_desktop.site.plainly import plainly
from vapor_desktop.site.settings import AlarmTargets, SiteSettings, load_settings
from vapor_desktop.site.site_events import EventLog, event


@click.group("guard")
def guard() -> None:
    """The start guard: which protected VMs this host may start."""


@guard.command("list")
@click.option("--json", "as_json", is_flag=True)
@plainly
def list_(as_json: bool) -> None:
    """Every guarded VM, whether it may start here, and why not."""
    settings = load_settings()
    records = _book(settings).all()
    if as_json:
        click.echo(json.dumps([_told(record) for record in records]))
        return
    if not guard_hook.proven(settings):
        click.echo("The start guard is OFF: see `vapor-site doctor`")
    for record in records:
        why = rules.refusal(record, boot_id())
        word = "HELD     " if why else "may start"
        risk = f"  {rules.RISK.upper()}" if record.at_risk else ""
        epoch = f"epoch {record.epoch.number}"
        click.echo(f"{record.vm_name:20} {record.state:8} {epoch:9} {word}{risk}  {why or record.reason}")


@guard.command("show")
@click.argument("vm")
@plainly
def show(vm: str) -> None:
    """All that is recorded of one VM, as JSON."""
    click.echo(json.dumps(_told(_book(load_settings()).find(vm)), indent=1))


@guard.command("override")
@click.argument("vm")
@click.option("--reason", required=True, help="Why; it is logged and shown to everybody who looks.")
@plainly
def override(vm: str, reason: str) -> None:
    """Make this host the VM's owner under a new epoch, whatever the other site says. It may start then.

    If it runs at the other site as well, it runs twice, and what one of the two writes will be lost.
    """
    if not reason.strip():
        raise InvalidRequest("An override needs a reason")
    settings = load_settings()
    book = _book(settings)
    record = book.find(vm)
    peer, highest = _peer_epoch(settings, record)
    after = book.override(record.vm_uuid, reason.strip(), highest)
    told = f"{after.vm_name}: epoch {after.epoch.number} by {after.changed_by}: {reason.strip()}"
    # Only written here: the service reads it and tells the alarm's targets.
    EventLog(settings.events_file, AlarmTargets(), settings.name).add(event(after.vm_uuid, "guard-override", told))
    if highest is None:
        click.echo(f"{peer} could not be asked; if the VM runs there, it will run twice")
    elif highest.owner != after.this_site:
        click.echo(f"{peer} holds epoch {highest.number} of this VM: stop it there first, or it runs twice")
    click.echo(
        f"{after.vm_name} belongs to this host since epoch {after.epoch.number}; `virsh start` will be let pass"
    )


@guard.command("install")
@plainly
def install() -> None:
    """Put libvirt's hook in place (as root), make libvirt look for it, and prove that it refuses."""
    settings = load_settings()
    path = guard_hook.install(settings)
    unit = guard_hook.reload_libvirt()
    click.echo(f"{path} is in place" + (f", {unit} was told" if unit else ""))
    hypervisor = LibvirtHypervisor(settings.libvirt_uri)
    trouble = guard_hook.prove_or_tell(settings, hypervisor)
    hypervisor.close()
    found = guard_hook.check(settings)
    click.echo(f"{found.found}{f': {trouble}' if trouble else ''}")
    if not found.ok:
        raise click.ClickException(found.fix)


def _book(settings: SiteSettings) -> GuardBook:
    return GuardBook(settings, AuditLog(settings.audit_log))


def _told(record: GuardRecord) -> dict[str, object]:
    why = rules.refusal(record, boot_id())
    return {**record.model_dump(mode="json"), "may_start": why is None, "refusal": why}


def _peer_epoch(settings: SiteSettings, record: GuardRecord) -> tuple[str, Epoch | None]:
    """The peer's name, and the epoch it knows; None when it cannot be asked."""
    enrolments = Enrolments(settings)
    name = peer_name(enrolments.peer, record.peer_site)
    try:
        word = ask_owners(settings, enrolments.peer(record.peer_site), [record.vm_uuid])[record.vm_uuid]
    except VaporError:
        return name, None
    return name, None if isinstance(word, VaporError) else word.epoch
