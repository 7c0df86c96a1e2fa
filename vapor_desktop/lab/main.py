"""``vapor-lab``: the lab's command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from vapor_desktop.lab.demo import demo
from vapor_desktop.lab.guests import DEFAULT_GUESTS, FIRMWARES, GuestSpec, parse_spec
from vapor_desktop.lab.lab import RELEASES, Lab
from vapor_desktop.lab.processes import require_tools
from vapor_desktop.model.errors import VaporError

pass_lab = click.make_pass_decorator(Lab)


@contextmanager
def told() -> Iterator[None]:
    """Our errors as one line on stderr and exit code 1; anything else is a bug and keeps its trace."""
    try:
        yield
    except VaporError as error:
        raise click.ClickException(str(error)) from error


class _Group(click.Group):
    """Turns our errors into messages, for all subcommands at once."""

    def invoke(self, ctx: click.Context) -> object:
        with told():
            return super().invoke(ctx)


@click.group(cls=_Group)
@click.option("--name", default="lab", show_default=True, help="Which lab; two of different names may coexist.")
@click.pass_context
def main(context: click.Context, name: str) -> None:
    """Two real KVM hosts on this machine, made of namespaces. Needs root."""
    context.obj = Lab(name)


@main.command()
@click.option("--release-b", type=click.Choice(RELEASES), default="bookworm", show_default=True)
@click.option("--no-site-service", is_flag=True, help="Only libvirt and sshd.")
@click.option("--guest", "guests", multiple=True, metavar="NAME[:FIRMWARE[:DISKS[:SITE]]]", help="Repeatable.")
@click.option("--no-guests", is_flag=True, help="Only the hosts.")
@pass_lab
def up(lab: Lab, release_b: str, no_site_service: bool, guests: tuple[str, ...], no_guests: bool) -> None:
    """Bring the lab up (a lab of this name that is there is taken down first).

    Without --guest: `web` (BIOS, one disk) and `db` (UEFI, two disks) on site a.
    """
    specs = [] if no_guests else [parse_spec(text) for text in guests] or list(DEFAULT_GUESTS)
    lab.up(release_b=release_b, site_service=not no_site_service, guest_specs=specs)
    for site in lab.sites.values():
        click.echo(f"site {site.name}: {site.address}  API {site.api_url}  network {site.network}")


@main.command()
@pass_lab
def down(lab: Lab) -> None:
    """Take the lab down; leaves nothing but the cache."""
    lab.down()


@main.command()
@click.option("--json", "as_json", is_flag=True)
@pass_lab
def status(lab: Lab, as_json: bool) -> None:
    """What is there."""
    found = lab.status()
    click.echo(json.dumps(found, indent=None if as_json else 2))
    sys.exit(0 if found["up"] else 3)


@main.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--user", help="As this user of the host instead of root.")
@click.argument("site")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@pass_lab
def exec_(lab: Lab, user: str | None, site: str, command: tuple[str, ...]) -> None:
    """Run a command on a host."""
    done = lab.site(site).exec(list(command), user=user, check=False, timeout_s=3600)
    click.echo(done.stdout, nl=False)
    click.echo(done.stderr, nl=False, err=True)
    sys.exit(done.returncode)


@main.command("cut-link")
@click.argument("site", required=False)
@pass_lab
def cut_link(lab: Lab, site: str | None) -> None:
    """Cut the sites from each other (no SITE), or SITE from everybody."""
    lab.cut_link(site)


@main.command("mend-link")
@click.argument("site", required=False)
@pass_lab
def mend_link(lab: Lab, site: str | None) -> None:
    """Undo cut-link."""
    lab.mend_link(site)


@main.command()
@click.option("--rate", help="For example 100mbit.")
@click.option("--delay", help="One way, for example 20ms.")
@click.option("--loss", help="For example 0.5%.")
@click.option("--site", "sites", multiple=True, default=("a", "b"))
@pass_lab
def shape(lab: Lab, rate: str | None, delay: str | None, loss: str | None, sites: tuple[str, ...]) -> None:
    """Shape what the hosts send; without options: unshape."""
    lab.shape(rate=rate, delay=delay, loss=loss, sites=sites)


@main.command("kill-site")
@click.argument("site")
@pass_lab
def kill_site(lab: Lab, site: str) -> None:
    """Cut a host's power: its processes are killed with SIGKILL, its link goes down."""
    lab.kill_site(site)


@main.command("revive-site")
@click.argument("site")
@pass_lab
def revive_site(lab: Lab, site: str) -> None:
    """Give a host its power back."""
    lab.revive_site(site)


@main.command("add-guest")
@click.argument("guest")
@click.option("--site", default="a", show_default=True)
@click.option("--firmware", type=click.Choice(FIRMWARES), default="bios", show_default=True)
@click.option("--disks", default=1, show_default=True)
@click.option("--size", default=1024, show_default=True, help="MiB per disk.")
@click.option("--rate", default=10.0, show_default=True, help="Diary records a second.")
@click.option("--scratch", default=4.0, show_default=True, help="Disturbing 4 KiB writes a second.")
@click.option("--tpm", is_flag=True)
@click.option("--off", is_flag=True, help="Define it, do not start it.")
@pass_lab
def add_guest(
    lab: Lab,
    guest: str,
    site: str,
    firmware: str,
    disks: int,
    size: int,
    rate: float,
    scratch: float,
    tpm: bool,
    off: bool,
) -> None:
    """Add a guest that boots from its own disks and keeps a diary."""
    spec = GuestSpec(guest, site, firmware, disks, size << 20, rate, scratch, tpm)
    lab.add_guest(spec, start=not off)
    click.echo(f"{spec.name} {spec.uuid}")


@main.command()
@click.argument("site")
@click.argument("guest")
@pass_lab
def serial(lab: Lab, site: str, guest: str) -> None:
    """What a guest has said on its serial console on that host."""
    click.echo(lab.site(site).serial(guest), nl=False)


@main.command()
@click.argument("site")
@click.argument("guest_or_images", nargs=-1, required=True)
@pass_lab
def diary(lab: Lab, site: str, guest_or_images: tuple[str, ...]) -> None:
    """Judge the diary of a guest's disks, or of images named by paths of that host, from outside."""
    one = len(guest_or_images) == 1 and "/" not in guest_or_images[0]
    report = lab.site(site).diary(guest_or_images[0] if one else guest_or_images)
    lasts = ",".join(str(disk.last) for disk in report.per_disk)
    click.echo(f"last={report.last} gaps={report.gaps} torn={report.torn} per-disk={lasts} sound={report.sound}")
    sys.exit(0 if report.sound else 1)


@main.command()
@click.argument("site")
@pass_lab
def token(lab: Lab, site: str) -> None:
    """A fresh one-time token of that host's site service."""
    click.echo(lab.site(site).token_new())


@main.command()
def doctor() -> None:
    """Whether all tools are there."""
    require_tools()
    click.echo("All tools of the lab are installed")


main.add_command(demo)

if __name__ == "__main__":
    main()
