"""The two-site lab: two real KVM hosts on one machine, made of namespaces. The API of tests and the demo.

with Lab("proof") as lab:           # up() and down()
    token = lab.sites["a"].token_new()
    lab.kill_site("a")
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from vapor_desktop.lab import guests, hostfiles, network, release
from vapor_desktop.lab.diary import DiaryReport
from vapor_desktop.lab.guests import GuestSpec
from vapor_desktop.lab.host import Host
from vapor_desktop.lab.layout import (
    API_PORT,
    SSH_PORT,
    LabLayout,
    SiteLayout,
    checked_name,
    default_cache,
    default_state,
)
from vapor_desktop.lab.processes import LabFailed, require_tools

RELEASES = ("bookworm", "trixie")


@dataclass(frozen=True)
class LabRecord:
    """``lab.json``: written before anything else is made, so that ``down`` knows what to look for."""

    name: str
    index: int
    releases: dict[str, str]
    site_service: bool


@dataclass(frozen=True)
class DiaryVerdict:
    """The line a guest prints about its diary when it boots."""

    last: int
    gaps: int
    torn: int
    disks: int
    skew: int

    @classmethod
    def parse(cls, line: str) -> Self:
        """From the serial console's line."""
        match = guests.VERDICT.search(line)
        if match is None:
            raise LabFailed(f"{line!r} is no verdict on a diary")
        return cls(*(int(number) for number in match.groups()[1:]))


class Site(Host):
    """One host of the lab, as tests and the demo see it."""

    def __init__(self, layout: SiteLayout) -> None:
        super().__init__(layout)
        self.name = layout.name
        self.address = layout.address
        self.ssh_port = SSH_PORT
        self.api_url = f"https://{layout.address}:{API_PORT}"
        self.network = layout.network

    def exec(
        self,
        command: Sequence[str],
        *,
        user: str | None = None,
        input: str | None = None,  # noqa: A002
        check: bool = True,
        timeout_s: float = 120.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on this host (root unless ``user``); absolute paths, working directory ``/``."""
        return self.run(command, user=user, input=input, check=check, timeout_s=timeout_s)

    def token_new(self, *words: str) -> str:
        """A fresh one-time token of this host's site service, its text alone. ``words``: more options."""
        said = self.run(["vapor-site", "token", "new", *words], user="vapor").stdout
        found = [word for word in said.split() if word.startswith("vapor1.")]
        if len(found) != 1:
            raise LabFailed("`vapor-site token new` printed no token", why=said[-500:])
        return found[0]

    def virsh(self, *words: str, check: bool = True) -> str:
        """What virsh says on this host, stripped."""
        return self.run(["virsh", "-q", "-c", "qemu:///system", *words], check=check).stdout.strip()

    # --- guests ----------------------------------------------------------------------------------
    def guest_shell(self, guest: str, script: str) -> str:
        """Run a shell script in a guest through its agent; what it printed."""
        return guests.guest_shell(self, guest, script)

    def serial(self, guest: str) -> str:
        """All that a guest has said on its serial console on this host."""
        return guests.serial(self, guest)

    def wait_serial(self, guest: str, pattern: str, *, timeout_s: float = 60.0, after: int = 0) -> str:
        """Wait until the console matches past ``after`` characters (``len(site.serial(guest))``); the match."""
        return guests.wait_for(self, guest, pattern, timeout_s=timeout_s, after=after)

    def wait_boot(self, guest: str, *, timeout_s: float = 60.0, after: int = 0) -> DiaryVerdict:
        """Wait until the guest has booted from its own disks and judged its diary."""
        return DiaryVerdict.parse(self.wait_serial(guest, r"VAPOR-DIARY last=.*", timeout_s=timeout_s, after=after))

    def disks_of(self, guest: str) -> list[str]:
        """The guest's disk images in order, as this host names them."""
        return guests.disk_files(self, guest)

    def diary(self, guest_or_images: str | Sequence[str]) -> DiaryReport:
        """Judge the diary of a guest's disks, or of image paths / NBD URIs true on this host, from outside.

        A guest that writes meanwhile is a moving target: give exports, points, or stop it first.
        """
        images = guests.disk_files(self, guest_or_images) if isinstance(guest_or_images, str) else guest_or_images
        return guests.read_diary(self, list(images))

    def set_rates(self, guest: str, **rates: float) -> None:
        """The diary's ``rate``, ``scratch``, ``zero``, ``discard`` per second, from now on; 0 pauses."""
        guests.set_rate(self, guest, **rates)

    @property
    def link_state(self) -> network.LinkState:
        """The host's link as observed."""
        return network.state(self.layout.lab, self.layout)


class Lab:
    """A lab by name. Making the object touches nothing; ``up`` and ``down`` do."""

    def __init__(self, name: str = "lab", *, state: Path | None = None, cache: Path | None = None) -> None:
        self.name = checked_name(name)
        self.state = state or default_state(name)
        self.cache = cache or default_cache()
        record = self._record()
        self._use(record.index if record else 0)

    def _use(self, index: int) -> None:
        self.layout = LabLayout(self.name, self.state, index)
        self.sites = {name: Site(site) for name, site in self.layout.sites.items()}

    @property
    def _record_file(self) -> Path:
        return self.state / "lab.json"

    def _record(self) -> LabRecord | None:
        try:
            return LabRecord(**json.loads(self._record_file.read_text()))
        except FileNotFoundError:
            return None

    # --- life ------------------------------------------------------------------------------------
    def up(
        self, *, release_b: str = "bookworm", site_service: bool = True, guest_specs: Sequence[GuestSpec] = ()
    ) -> None:
        """Bring both hosts up; returns when libvirt, sshd and the site service of both answer and guests start.

        A lab that is (half) there is taken down first. When a step fails, everything is taken down again.
        """
        require_tools()
        if release_b not in RELEASES:
            raise LabFailed(f"No release {release_b!r}", fix=f"One of {', '.join(RELEASES)}")
        self.down()
        try:
            with network.choosing() as index:
                self._use(index)
                self.state.mkdir(parents=True)
                self.state.chmod(0o711)
                record = LabRecord(self.name, index, {"a": "bookworm", "b": release_b}, site_service)
                self._record_file.write_text(json.dumps(asdict(record)))
                network.create(self.layout)
            for site in self.sites.values():
                self._make(site, record.releases[site.name])
            for site in self.sites.values():
                site.start_daemons()
            if site_service:
                for site in self.sites.values():
                    site.start_site_service()
            for spec in guest_specs:
                self.add_guest(spec)
        except BaseException:
            self.down()
            raise

    def _make(self, site: Site, release_name: str) -> None:
        program = hostfiles.program_root()
        if release_name == "bookworm":
            root, interpreter, libraries = Path("/"), sys.executable, ""
        else:
            root = release.build(self.cache, release.TRIXIE, program / "requirements/site.txt")
            interpreter, libraries = "/usr/bin/python3", release.LIBRARIES
        hostfiles.prepare(site.layout, root)
        hostfiles.write_command(site.layout, interpreter, libraries)
        site.hold(root, [(program, hostfiles.CHECKOUT)])

    def down(self) -> None:
        """Leave nothing but the cache, whatever state the lab is in. Idempotent."""
        for site in self.sites.values():
            site.destroy()
        network.remove(self.layout)
        if self.state.exists():
            shutil.rmtree(self.state)

    def add_guest(self, spec: GuestSpec, *, start: bool = True) -> None:
        """Build, define and (by default) start a guest on ``spec.site``; does not wait for its boot."""
        if self.site(spec.site).holder is None:
            raise LabFailed(f"Lab {self.name} is not up", fix="`vapor-lab up` first")
        guests.add(self.site(spec.site), spec, self.cache, start=start)

    @property
    def is_up(self) -> bool:
        """Whether the lab's hosts exist (their daemons may be dead)."""
        return self._record() is not None and all(site.holder for site in self.sites.values())

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    # --- the link --------------------------------------------------------------------------------
    def site(self, name: str) -> Site:
        """A site by name. Raises LabFailed."""
        if name not in self.sites:
            raise LabFailed(f"No site {name!r}", fix=f"One of {', '.join(self.sites)}")
        return self.sites[name]

    def cut_link(self, site: str | None = None) -> None:
        """Without a name: the sites lose each other, the console keeps both. With one: that host loses everybody."""
        if site is None:
            network.cut_between(self.layout)
        else:
            network.set_port(self.site(site).layout, up=False)

    def mend_link(self, site: str | None = None) -> None:
        """Undo ``cut_link``; without a name everything that is cut, but not the link of a host without power."""
        network.mend_between(self.layout)
        for each in [self.site(site)] if site else self.sites.values():
            if each.processes():
                network.set_port(each.layout, up=True)

    def shape(
        self,
        *,
        rate: str | None = None,
        delay: str | None = None,
        loss: str | None = None,
        sites: Sequence[str] = ("a", "b"),
    ) -> None:
        """Shape what these hosts send; values as ``tc`` takes them; all None: unshaped."""
        for name in sites:
            network.shape(self.site(name).layout, rate=rate, delay=delay, loss=loss)

    # --- power -----------------------------------------------------------------------------------
    def kill_site(self, name: str) -> None:
        """A power cut: the link goes down and every process of the host is killed at once."""
        site = self.site(name)
        network.set_port(site.layout, up=False)
        site.power_cut()

    def revive_site(self, name: str) -> None:
        """Power again: empty /run, new boot id, no left-over devices, then the daemons and the link."""
        site, record = self.site(name), self._record()
        if record is None or site.holder is None:
            raise LabFailed(f"Lab {self.name} is not up", fix="`vapor-lab up` first")
        site.power_cut()
        network.forget_guests_links(site.layout)
        hostfiles.new_boot(site.layout)
        network.set_port(site.layout, up=True)
        site.start_daemons()
        if record.site_service:
            site.start_site_service()

    def status(self) -> dict[str, object]:
        """What is there, as observed; JSON-ready."""
        record = self._record()
        if record is None:
            return {"name": self.name, "up": False}
        return {
            "name": self.name,
            "up": self.is_up,
            "state": str(self.state),
            "console_address": self.layout.console_address,
            "sites": {site.name: self._site_status(site, record) for site in self.sites.values()},
        }

    def _site_status(self, site: Site, record: LabRecord) -> dict[str, object]:
        if site.holder is None:
            return {"address": site.address, "holder": None}
        daemons = {name: site.runs(name) for name in ("libvirtd", "virtlogd", "sshd", "serve", "helper")}
        guests: dict[str, str] = {}
        if daemons["libvirtd"]:
            names = [name for name in site.virsh("list", "--all", "--name").splitlines() if name]
            guests = {name: site.virsh("domstate", name) for name in names}
        return {
            "address": site.address,
            "api_url": site.api_url,
            "release": record.releases[site.name],
            "network": site.network,
            "holder": site.holder,
            "running": daemons,
            "link": asdict(site.link_state),
            "guests": guests,
        }
