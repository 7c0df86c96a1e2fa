"""A lab with a console of its own: paired sites and protected guests. What the demo and the proofs stand on."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vapor_desktop import app
from vapor_desktop.engine.console import EngineBackend
from vapor_desktop.lab import guests
from vapor_desktop.lab.lab import Lab
from vapor_desktop.lab.processes import LabFailed, wait_until
from vapor_desktop.model.manifest import Manifest
from vapor_desktop.model.sites import Site
from vapor_desktop.model.view import Check, ProtectionStatus, ProtectRequest


@dataclass(frozen=True, slots=True)
class Comparison:
    """One disk of one point against the source's frozen export."""

    vm_name: str
    seq: int
    disk: str
    identical: bool
    words: str


@dataclass(slots=True)
class Stage:
    """Use inside a KeyringSession. ``home`` holds the console's database and goes with the demo."""

    lab: Lab
    home: Path
    program: app.Program | None = None
    comparisons: list[Comparison] = field(default_factory=list)
    _thread: threading.Thread | None = None

    # --- the console's engine ---------------------------------------------------------------------
    def open(self, *, kind: str = "console", demo: bool = False, run_engine: bool = True) -> EngineBackend:
        """Wire a console on the stage's database; its engine runs in a thread unless told otherwise."""
        os.environ["VAPOR_DATABASE_URL"] = f"sqlite:///{self.home / 'vapor.db'}"
        self.program = app.build(kind, demo=demo)
        if run_engine:
            self._thread = threading.Thread(target=self.program.engine.run, name="engine", daemon=True)
            self._thread.start()
            if not self.program.engine.wait_active(15):
                raise LabFailed("The engine did not become active", why="another engine lives on this database")
        return self.program.backend

    def close(self) -> None:
        """Stop the engine and its connections. Idempotent."""
        if self.program is None:
            return
        self.program.engine.stop()
        if self._thread is not None:
            self._thread.join(timeout=30)
        self.program.close()
        self.program = self._thread = None

    @property
    def backend(self) -> EngineBackend:
        """Of the open console."""
        if self.program is None:
            raise LabFailed("The stage's console is not open")
        return self.program.backend

    # --- pairing and protecting ---------------------------------------------------------------------
    def add_sites(self, names: Sequence[str] = ("a", "b")) -> list[Site]:
        """Pair the console with sites, by URL and token as a user would."""
        found = []
        for name in names:
            host = self.lab.sites[name]
            probe = self.backend.probe_site(self.backend.normalise_url(host.api_url))
            token = host.token_new("--scope", "admin")
            found.append(self.backend.add_site(probe, token, _raise_on_failure))
        return found

    def pair(self) -> tuple[Site, Site]:
        """Both sites, paired with the console and with each other."""
        a, b = self.add_sites()
        self.backend.pair_sites(a.site_id, b.site_id, _raise_on_failure)
        return a, b

    def protect(
        self,
        a: Site,
        b: Site,
        names: Sequence[str],
        *,
        rpo_target_s: int = 10,
        newest: int = 6,
        start_guard: str = "hold",
    ) -> list[str]:
        """Protect guests of A at B; returns protection ids in the order of ``names``."""
        there = {vm.name: vm.vm_uuid for vm in self.backend.vms(a.site_id)}
        networks = {self.lab.sites["a"].network: self.lab.sites["b"].network}
        request = ProtectRequest(
            tuple(there[n] for n in names),
            a.site_id,
            b.site_id,
            rpo_target_s,
            networks,
            newest,
            0,
            0,
            start_guard=start_guard,
        )
        failed = [c for c in self.backend.preflight(request, lambda _c: None) if c.state == "failed"]
        if failed:
            raise LabFailed("Preflight failed", why="; ".join(f"{c.title}: {c.text}" for c in failed))
        return [p.protection_id for p in self.backend.protect(request)]

    def row(self, name: str) -> ProtectionStatus:
        """A protection's row by VM name."""
        return next(r for r in self.backend.snapshot().protections if r.protection.vm_name == name)

    def wait_for_point(self, name: str, seq: int, timeout_s: float = 120) -> ProtectionStatus:
        """Until the VM's newest recovery point is at least ``seq``."""

        def there() -> bool:
            return (self.row(name).last_seq or 0) >= seq

        def cause() -> str:
            row = self.row(name)
            return f"newest point {row.last_seq}, {row.status_text}, {row.protection.last_error}"

        try:
            wait_until(there, f"Point {seq} of {name}", timeout_s=timeout_s, every_s=0.1)
        except LabFailed as error:
            raise LabFailed(f"Point {seq} of {name} did not come in {timeout_s:.0f} s", why=cause()) from error
        return self.row(name)

    # --- comparing ------------------------------------------------------------------------------------
    def compare_every_point(self) -> None:
        """From now on each new point is compared with the source's frozen export while the job is open."""
        if self.program is None:
            raise LabFailed("The stage's console is not open")
        self.program.engine.worker.before_job_end = self._compare

    def _compare(self, _protection_id: str, manifest: Manifest, socket_path: str | None) -> None:
        newest = manifest.newest
        if newest is None or socket_path is None:
            return
        a, b = self.lab.sites["a"], self.lab.sites["b"]
        source = a.path(socket_path)
        root = Path("/var/lib/libvirt/images/vapor") / manifest.vm_uuid / "disks"
        for disk, file in sorted(newest.files.items()):
            replica = b.path(str(root / file))
            # A short name: a socket's path must fit 107 bytes.
            link = Path(f"/tmp/vapor-cmp-{os.getpid()}-{manifest.vm_uuid[:8]}.sock")  # noqa: S108
            link.unlink(missing_ok=True)
            link.symlink_to(source)
            try:
                done = subprocess.run(
                    [
                        "qemu-img",
                        "compare",
                        "-U",
                        "-f",
                        "raw",
                        "-F",
                        "qcow2",
                        f"nbd+unix:///{disk}?socket={link}",
                        replica,
                    ],
                    capture_output=True,
                    text=True,
                    check=False,
                )
            finally:
                link.unlink(missing_ok=True)
            words = (done.stdout + done.stderr).strip()
            self.comparisons.append(Comparison(manifest.vm_name, newest.seq, disk, done.returncode == 0, words))

    def newest_record(self, name: str) -> int:
        """The number of the last diary record in the VM's newest recovery point, read from its files at B."""
        if self.program is None:
            raise LabFailed("The stage's console is not open")
        p = self.row(name).protection
        target = next(s.site for s in self.backend.snapshot().sites if s.site.site_id == p.target_site)
        newest = self.program.engine.gateway.api(target).replica(p.vm_uuid).manifest.newest
        if newest is None:
            raise LabFailed(f"{name} has no recovery point")
        root = f"{target.replica_root}/{p.vm_uuid}/disks"
        report = self.lab.sites["b"].diary([f"{root}/{newest.files[disk]}" for disk in sorted(newest.files)])
        return max(disk.last for disk in report.per_disk)

    # --- after a failover ----------------------------------------------------------------------------
    def wait_booted(self, name: str, site: str, timeout_s: float = 60) -> str:
        """Until the guest has booted at ``site`` and its diary has judged its own disks; returns that line."""
        return guests.wait_for(self.lab.sites[site], name, r"VAPOR-DIARY [^\n]*", timeout_s=timeout_s)


def remove_guests(lab: Lab) -> None:
    """Leave both hosts up, without any guest or replica: for the next user of the same lab."""
    for name, site in lab.sites.items():
        if not site.runs("libvirtd"):
            lab.revive_site(name)
        for vm in site.virsh("list", "--all", "--name").split():
            site.virsh("destroy", vm, check=False)
            site.virsh("undefine", vm, "--nvram", "--checkpoints-metadata", "--managed-save")
        # A guest's UUID comes from its name: a record left behind would hold the next one of that name.
        for command in (
            "rm -rf /var/lib/libvirt/images/vapor/* /var/lib/vapor/guard/*.json /var/lib/vapor/plans/*.json",
            "find /var/lib/libvirt/images -maxdepth 1 -type f -delete",
            "rm -f /var/log/libvirt/qemu/*-serial.log",  # the next guest of the name has not booted yet
            # What a power cut in the middle of a backup job leaves, of a VM whose next cycle never came.
            "rm -f /var/lib/libvirt/images/.vapor-scratch/* /var/lib/libvirt/qemu/domain-*/vapor-*.sock",
        ):
            site.exec(["sh", "-c", command])


def _raise_on_failure(check: Check) -> None:
    if check.state == "failed":
        raise LabFailed(f"{check.title} failed", why=check.text, fix=check.fix)
