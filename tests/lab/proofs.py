"""What several lab proofs ask of a stage: a quiet moment, a cycle seen while it sends, a point that boots, and
the inventory of everything that a kill could leave behind."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vapor_desktop.engine.ports import SiteApi
from vapor_desktop.lab import guests, hostfiles
from vapor_desktop.lab.diary import DiaryReport
from vapor_desktop.lab.guests import GuestSpec
from vapor_desktop.lab.lab import Site
from vapor_desktop.lab.processes import LabFailed, innermost_pid, wait_until
from vapor_desktop.lab.stage import Stage
from vapor_desktop.model.errors import Fate, NotFound, VaporError
from vapor_desktop.model.policy import Policy
from vapor_desktop.model.sites import Protection
from vapor_desktop.model.view import SettingsEdit
from vapor_desktop.model.wire import Progress, ReplicaView

REPLICAS = "/var/lib/libvirt/images/vapor"
SCRATCH = "/var/lib/libvirt/images/.vapor-scratch"
WATCHES = "/var/lib/vapor/watches"
RUN = "/run/vapor"
NEVER_DUE_S = 86400
# Programs that only live as long as a transfer, a merge or an offline reading.
FLEETING = {"qemu-nbd", "qemu-img", "nbdcopy"}


# --- looking at a protection -----------------------------------------------------------------------------
def target_api(stage: Stage, name: str) -> SiteApi:
    """The target's API, as the engine speaks to it."""
    assert stage.program is not None
    return stage.program.engine.gateway.api(stage.backend._site(stage.row(name).protection.target_site))


def view(stage: Stage, name: str) -> ReplicaView:
    return target_api(stage, name).replica(stage.row(name).protection.vm_uuid)


def files_of(seen: ReplicaView) -> list[str]:
    """Paths at the target through which the newest point's disks are read, in the disks' order."""
    assert seen.manifest.newest is not None
    names = [file for _, file in sorted(seen.manifest.newest.files.items())]
    return [f"{REPLICAS}/{seen.manifest.vm_uuid}/disks/{name}" for name in names]


def newest_files(stage: Stage, name: str) -> list[str]:
    return files_of(view(stage, name))


def judged(site: Site, files: Sequence[str]) -> DiaryReport:
    """A point's files are whole and its diary is sound: no torn, no missing record, one moment."""
    for file in files:
        site.exec(["qemu-img", "check", "-U", "-q", file])
    report = site.diary(files)
    assert report.sound, report
    assert report.last > 0
    return report


# --- a quiet moment ----------------------------------------------------------------------------------------
@contextlib.contextmanager
def quiet(stage: Stage) -> Iterator[None]:
    """Between cycles: none is due until it is left, and what an edit stopped in the middle is a point."""
    due = {r.key: r.protection.policy.rpo_target_s for r in stage.backend.snapshot().protections}
    for key in due:
        edit(stage, key, rpo_target_s=NEVER_DUE_S)
    try:
        wait_until(lambda: not running(stage), "the end of the cycles", timeout_s=120, every_s=0.05)
        for row in stage.backend.snapshot().protections:
            if stage.program is not None and stage.program.engine.active and _unfinished(stage, row.protection):
                stage.backend.sync_now(row.key, wait=True)
        wait_until(lambda: not running(stage), "the retention after them", timeout_s=60, every_s=0.05)
        yield
    finally:
        for key, rpo_target_s in due.items():
            edit(stage, key, rpo_target_s=rpo_target_s)


def _unfinished(stage: Stage, protection: Protection) -> bool:
    assert stage.program is not None
    last = stage.backend.cycles(protection.protection_id, 1)
    if last and last[0].outcome == "failed":  # cut before anything was received: its checkpoint waits for the next
        return True
    api = stage.program.engine.gateway.api(stage.backend._site(protection.target_site))
    try:
        found = api.replica(protection.vm_uuid)
    except NotFound:
        return False
    newest = found.manifest.newest
    known = {newest.checkpoint} if newest else set()
    return found.incoming is not None or not checkpoints(stage, protection) <= known


def checkpoints(stage: Stage, protection: Protection) -> set[str]:
    """Those of the VM at its source, where that can be asked; one more than the newest point's is a cut cycle's."""
    if protection.epoch_owner != protection.source_site:
        return set()  # it runs elsewhere: no cycle cleans up here
    names = {s.site.site_id: s.site.name.removeprefix("site-") for s in stage.backend.snapshot().sites}
    source = stage.lab.sites[names[protection.source_site]]
    try:
        return set(source.virsh("checkpoint-list", protection.vm_name, "--name").split())
    except LabFailed:
        return set()


def running(stage: Stage) -> bool:
    """Does any cycle run just now?"""
    assert stage.program is not None
    return bool(stage.program.engine._running)


# --- a cycle in its sending phase ---------------------------------------------------------------------------
def guest_does(site: Site, name: str, script: str) -> str:
    """Run it in the guest; a guest that is frozen just now refuses, so it is asked again. Must be repeatable."""
    said: list[str] = []

    def done() -> bool:
        with contextlib.suppress(LabFailed):
            said.append(site.guest_shell(name, script))
        return bool(said)

    wait_until(done, f"a script in {name}", timeout_s=60, every_s=0.2)
    return said[-1]


def set_policy(stage: Stage, name: str, **policy: object) -> Policy:
    """Change a protection's policy; returns what it was."""
    row = stage.row(name)
    edit(stage, row.key, **policy)
    return row.protection.policy


def edit(stage: Stage, key: str, **policy: object) -> None:
    """As a person does it, at the target; again while that does not answer, or another holds the lease."""

    def done() -> bool:
        try:
            now = stage.backend.settings(key)
            wanted = now.policy.model_copy(update=policy)
            stage.backend.edit(key, SettingsEdit(now.version, wanted, now.mappings))
        except VaporError as error:
            if error.fate is not Fate.RETRY:
                raise
            return False
        return True

    wait_until(done, "the edit of a policy", timeout_s=120, every_s=0.2)


@contextlib.contextmanager
def sending(stage: Stage, name: str) -> Iterator[Progress]:
    """In here a cycle of the guest has sent a part of its data and has seconds to go."""
    before = stage.row(name).protection.policy.bandwidth_bytes_s
    try:
        yield begin_sending(stage, name)
    finally:
        set_policy(stage, name, bandwidth_bytes_s=before)


def begin_sending(stage: Stage, name: str, mib: int = 6, rate_bytes_s: int = 1 << 20) -> Progress:
    """Make work for a cycle, limit its bandwidth, and wait until it has sent some of it and not nearly all."""
    assert stage.program is not None
    worker, key = stage.program.engine.worker, stage.row(name).key
    burst = f"dd if=/dev/urandom of=/dev/vda3 bs=65536 count={mib * 16} conv=fsync 2>&1"
    with quiet(stage):
        guest_does(stage.lab.sites["a"], name, burst)
        set_policy(stage, name, bandwidth_bytes_s=rate_bytes_s)
    stage.backend.sync_now(key)
    seen: list[Progress] = []

    def in_the_middle() -> bool:
        progress = worker.progress(key)
        if progress is not None and 0 < progress.done_bytes < progress.total_bytes - (mib << 20) // 4:
            seen.append(progress)
        return bool(seen)

    wait_until(in_the_middle, f"a cycle of {name} in its sending phase", timeout_s=60, every_s=0.01)
    return seen[-1]


# --- a point that boots ---------------------------------------------------------------------------------------
@contextlib.contextmanager
def booted_copy(site: Site, name: str, files: Sequence[str], firmware: str = "bios") -> Iterator[str]:
    """A VM of its own boots from new overlays on these files; gives the line its diary judged itself by.

    It is off afterwards, still defined until the end of the block.
    """
    spec = GuestSpec(name, disk_count=len(files), firmware=firmware)
    uid, gid = hostfiles.user_ids(site.layout, "libvirt-qemu")
    for overlay, file in zip(spec.files, files, strict=True):
        site.exec(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", file, overlay])
        os.chown(site.path(overlay), uid, gid)
    site.exec(
        ["virsh", "-q", "-c", "qemu:///system", "define", "/dev/stdin"], input=guests.domain_xml(spec, site.network)
    )
    said = len(site.serial(name))
    try:
        site.virsh("start", name)
        line = guests.wait_for(site, name, r"VAPOR-DIARY [^\n]*\n", timeout_s=90, after=said)
        site.virsh("destroy", name)
        yield line
    finally:
        site.virsh("destroy", name, check=False)
        site.virsh("undefine", name, "--nvram")
        for overlay in spec.files:
            site.path(overlay).unlink()


def assert_sound(line: str) -> None:
    """A guest's own verdict on its diary: nothing missing, nothing torn."""
    assert " gaps=0 torn=0 " in f"{line} ", line


# --- nothing is left behind -----------------------------------------------------------------------------------
@dataclass(frozen=True)
class Process:
    """A process of a lab host, as the outer machine sees it."""

    pid: int
    parent: int
    words: tuple[str, ...]

    @property
    def program(self) -> str:
        """Its name without the path."""
        return Path(self.words[0]).name if self.words else ""


def processes(site: Site) -> list[Process]:
    """What runs on a host now."""
    found = []
    for pid in site.processes():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")[:-1]
            stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            if words:
                found.append(Process(pid, int(stat[1]), tuple(words)))
    return found


def traces_of_drills(stage: Stage) -> dict[str, list[str]]:
    """Whatever a drill makes on its host, looked at from the outside, by other means than the site's own."""
    b = stage.lab.sites["b"]
    links = json.loads(b.exec(["ip", "-j", "link"]).stdout)
    return {
        "domains": b.virsh("list", "--all", "--name").split(),
        "networks": b.virsh("net-list", "--all", "--name").split(),
        "links": sorted(link["ifname"] for link in links),
        "files": sorted(str(p) for p in b.path(REPLICAS).glob("*/drill/**/*")),
        # The start guard's own proof leaves one whenever the site service starts.
        "logs": sorted(p.name for p in b.path("/var/log/libvirt/qemu").iterdir() if "guard-proof" not in p.name),
        "programs": sorted(p.program for p in processes(b) if p.program.startswith("qemu-system")),
        "probes": [p.words[-1] for p in processes(b) if any("bubble_probe" in w for w in p.words)],
    }


def assert_nothing_is_left(stage: Stage, names: Sequence[str]) -> None:
    """In a quiet moment: no scratch, socket, job, freeze, watch, stray checkpoint or bitmap, unfinished or orphaned
    file, nor a process that nobody owns, on either host."""
    with quiet(stage):
        left = {"inventory": ["was never taken"]}

        def clean() -> bool:
            nonlocal left
            try:
                left = {what: things for what, things in inventory(stage, names).items() if things}
            except LabFailed as error:  # for example an agent that does not answer yet
                left = {"inventory": [f"{error.what}: {error.why}"]}
            return not left

        # Some of it ends by itself, a moment later: libvirt deletes its scratch, a receiver sees its sender gone.
        with contextlib.suppress(LabFailed):
            wait_until(clean, "a clean inventory", timeout_s=40, every_s=0.5)
        assert left == {}


def inventory(stage: Stage, names: Sequence[str]) -> dict[str, list[str]]:
    """What is there that should not be, by kind."""
    a, b = stage.lab.sites["a"], stage.lab.sites["b"]
    found: dict[str, list[str]] = {
        "scratch": [p.name for p in a.path(SCRATCH).glob("*")],
        "sockets": [str(p) for p in a.path("/var/lib/libvirt/qemu").glob("domain-*/vapor-*.sock")],
        "watches": [p.name for p in a.path(WATCHES).glob("*")],
        "processes": [*_strays(a), *_strays(b)],
        "receivers": _receivers_left(b),
    }
    for name in names:
        for what, things in (*_guest_leftovers(stage, name), *_replica_leftovers(stage, name)):
            found.setdefault(what, []).extend(f"{name}: {thing}" for thing in things)
    return found


def _strays(site: Site) -> list[str]:
    """Programs that end with their work, and processes of ours whose parent is gone."""
    daemons = {site.pid_of(name) for name in ("serve", "helper", "bubble")}
    found = []
    for process in processes(site):
        ours = process.program in {"ssh", "qemu-storage-daemon"} or any("vapor" in w for w in process.words[:4])
        orphan = ours and process.parent == site.holder and process.pid not in daemons
        if process.program in FLEETING or orphan:
            found.append(f"{site.name}: {' '.join(process.words)[:120]}")
    return found


def _receivers_left(site: Site) -> list[str]:
    """Storage daemons and run directories beyond one for each receiver that lives."""
    alive = processes(site)
    numbers = {str(innermost_pid(p.pid)) for p in alive}
    directories = [p.name for p in site.path(RUN).glob("receive-*") if p.name.removeprefix("receive-") not in numbers]
    receivers = {p.pid for p in alive if "peer" in p.words}
    daemons = [p for p in alive if p.program == "qemu-storage-daemon" and p.parent not in receivers]
    return [*directories, *(f"storage daemon {p.pid}" for p in daemons)]


def _guest_leftovers(stage: Stage, name: str) -> list[tuple[str, list[str]]]:
    a = stage.lab.sites["a"]
    newest = view(stage, name).manifest.newest
    wanted = {newest.checkpoint} if newest and newest.checkpoint else set()
    checkpoints = set(a.virsh("checkpoint-list", name, "--name").split())
    found = [("checkpoints", sorted(checkpoints ^ wanted))]
    if a.virsh("domstate", name) != "running":
        return [*found, ("state", [a.virsh("domstate", name, "--reason")])]
    nodes = json.loads(a.virsh("qemu-monitor-command", name, '{"execute":"query-named-block-nodes"}'))["return"]
    bitmaps = {bitmap["name"] for node in nodes for bitmap in node.get("dirty-bitmaps", [])}
    exports = json.loads(a.virsh("qemu-monitor-command", name, '{"execute":"query-block-exports"}'))["return"]
    job = a.virsh("domjobinfo", name).split()[-1]
    frozen = guests.agent(a, name, "guest-fsfreeze-status")
    return [
        *found,
        ("bitmaps", sorted(bitmaps ^ wanted)),
        ("exports", [str(export["id"]) for export in exports]),
        ("jobs", [] if job == "None" else [job]),
        ("freeze", [] if frozen == "thawed" else [str(frozen)]),
    ]


def _replica_leftovers(stage: Stage, name: str) -> list[tuple[str, list[str]]]:
    seen = view(stage, name)
    top = stage.lab.sites["b"].path(f"{REPLICAS}/{seen.manifest.vm_uuid}")
    listed = {file for point in seen.manifest.points for file in point.files.values()}
    numbered = {f"{point.seq:06d}" for point in seen.manifest.points}
    return [
        ("incoming", [p.name for p in (top / "incoming").iterdir()]),
        ("orphaned disks", sorted({p.name for p in (top / "disks").iterdir()} ^ listed)),
        ("orphaned points", sorted({p.name for p in (top / "points").iterdir()} ^ numbered)),
        ("merges", [p.name for p in top.glob("merge*")]),
        ("dead points", [str(p.seq) for p in seen.manifest.points if p.dead]),
    ]


def sha256_of_disk(site: Site, image: str) -> str:
    """Of all that a guest would read from it."""
    raw = f"{guests.IMAGES}/.sha256.raw"
    site.exec(["qemu-img", "convert", "-U", "-O", "raw", image, raw])
    try:
        return site.exec(["sha256sum", raw]).stdout.split()[0]
    finally:
        site.path(raw).unlink()


def assert_same_disk(source: Path, site: Site, image: str) -> None:
    """A stopped VM's qcow2 (outer path) and a point's file at a site: bit for bit what a guest would read."""
    raw = f"{guests.IMAGES}/.compare.raw"
    site.exec(["qemu-img", "convert", "-U", "-O", "raw", image, raw])
    try:
        asked = ["qemu-img", "compare", "-U", "-f", "raw", "-F", "qcow2", str(site.path(raw)), str(source)]
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    finally:
        site.path(raw).unlink()
