"""Two sites' worth of real parts for the mover's tests: replica store, leases, qemu-nbd exports, a real receiver.

The receiver runs as a child process under the dispatcher, as sshd would start it; the sender runs in the test.
"""

from __future__ import annotations

import json
import os
import socket as sockets
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from vapor_desktop.model.errors import from_wire
from vapor_desktop.model.manifest import Consistency, DiskMode, Epoch, Manifest
from vapor_desktop.model.policy import Mappings, Policy
from vapor_desktop.model.wire import (
    DiskTransfer,
    LeaseRequest,
    NbdSource,
    PointDraft,
    Progress,
    ReplicaCreate,
    Transfer,
    Transferred,
    WriteGrant,
)
from vapor_desktop.site import leases
from vapor_desktop.site.helper_client import HelperClient
from vapor_desktop.site.identity import ensure_identity
from vapor_desktop.site.mover.link import CommandLink
from vapor_desktop.site.mover.peer import PeerPool
from vapor_desktop.site.mover.sender import Outgoing
from vapor_desktop.site.replica import DigestTable, ReplicaStore
from vapor_desktop.site.settings import SiteSettings

MIB = 1 << 20
EXPORT_WAIT_S = 20.0


def run(*argv: str | Path) -> str:
    """A tool's output; fails loudly."""
    return subprocess.run([str(a) for a in argv], check=True, capture_output=True, text=True).stdout


@contextmanager
def export(image: Path, *, bitmap: str | None = None, fmt: str = "qcow2", name: str = "disk") -> Iterator[Path]:
    """A frozen read-only export by qemu-nbd; the socket. Killed at the end (a clean end takes it 2 s)."""
    socket = image.with_suffix(f".{uuid4().hex[:6]}")
    argv = ["qemu-nbd", "-r", "-f", fmt, "-x", name, "-t", "-e", "16", "-k", str(socket)]
    argv += ["-B", bitmap] if bitmap else []
    process = subprocess.Popen([*argv, str(image)])
    try:
        deadline = time.monotonic() + EXPORT_WAIT_S
        while not _listens(socket):
            assert process.poll() is None, "qemu-nbd ended"
            assert time.monotonic() < deadline, "qemu-nbd opens no socket"
            time.sleep(0.005)
        yield socket
    finally:
        process.kill()
        process.wait()
        socket.unlink(missing_ok=True)


def _listens(path: Path) -> bool:
    with sockets.socket(sockets.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


class SourceDisk:
    """A qcow2 image as a stopped VM's disk, with persistent bitmaps."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self.path = path
        self.size_bytes = size_bytes
        run("qemu-img", "create", "-q", "-f", "qcow2", path, str(size_bytes))

    def write(self, *writes: tuple[int, int, int]) -> None:
        """(offset, length, seed): random bytes of a seed; seed 0: zeroes as zeroes; -1: discard."""
        commands: list[str] = []
        scratch = self.path.with_suffix(".pattern")
        for offset, length, seed in writes:
            if seed == 0:
                commands += ["-c", f"write -z {offset} {length}"]
            elif seed < 0:
                commands += ["-c", f"discard {offset} {length}"]
            else:
                part = scratch.with_suffix(f".{seed}.{offset}")
                part.write_bytes(noise(seed, length))
                commands += ["-c", f"write -s {part} {offset} {length}"]
        run("qemu-io", "-f", "qcow2", *commands, self.path)
        for left in self.path.parent.glob(f"{self.path.stem}.*.*"):
            left.unlink()

    def bitmap(self, name: str) -> None:
        run("qemu-img", "bitmap", "--add", "-f", "qcow2", self.path, name)

    def drop_bitmap(self, name: str) -> None:
        run("qemu-img", "bitmap", "--remove", "-f", "qcow2", self.path, name)


def noise(seed: int, length: int) -> bytes:
    """Incompressible and repeatable."""
    import random

    return random.Random(seed).randbytes(length)


class Rig:
    """A source site, a target site and one VM's replica between them."""

    def __init__(self, root: Path, reserve_bytes: int = 0) -> None:
        self.root = root
        self.source = self._site("a", reserve_bytes)
        self.target = self._site("b", reserve_bytes)
        self.source_id, self.target_id = ensure_identity(self.source), ensure_identity(self.target)
        self.epoch = Epoch(number=1, owner=self.source_id)
        self.store = ReplicaStore(
            self.target.replica_roots, self.target_id, leases.checker(self.target.leases_dir), reserve_bytes
        )
        self.renew_vm()
        self.pool = PeerPool(lambda _peer: CommandLink(self.receive_argv()))
        self.helper = HelperClient(self.source.helper_socket)

    def renew_vm(self) -> None:
        """Another VM, with an empty replica; the old one's files stay."""
        self.vm = str(uuid4())
        self.fence = self.lease()
        self.store.create(
            self.vm,
            ReplicaCreate(
                grant=self.grant(None),
                protection_id="p1",
                vm_name="vm1",
                target_site=self.target_id,
                policy=Policy(),
                mappings=Mappings(),
            ),
        )

    def _site(self, name: str, reserve_bytes: int) -> SiteSettings:
        base = self.root / name
        for part in ("replicas", "run", "state"):
            (base / part).mkdir(parents=True)
        (base / "site.toml").write_text(
            f'name = "{name}"\nstate_dir = "{base}/state"\nrun_dir = "{base}/run"\n'
            f'replica_roots = ["{base}/replicas"]\nreplica_reserve_bytes = {reserve_bytes}\n'
            f'helper_socket = "{base}/helper.sock"\nhelper_run_dir = "{base}/exports"\n'
            f'helper_image_roots = ["{self.root}"]\nhelper_nvram_roots = ["{self.root}"]\n'
        )
        os.environ["VAPOR_SITE_CONFIG"] = str(base / "site.toml")
        try:
            return SiteSettings()
        finally:
            del os.environ["VAPOR_SITE_CONFIG"]

    def receive_argv(self) -> list[str]:
        """As sshd runs it for the source's key."""
        return [
            "env",
            f"VAPOR_SITE_CONFIG={self.root}/b/site.toml",
            "SSH_ORIGINAL_COMMAND=receive",
            *(sys.executable, "-W", "error", "-m", "vapor_desktop.site.dispatch", "peer", self.source_id),
        ]

    def lease(self) -> int:
        """A new fencing number."""
        request = LeaseRequest(holder="test", holder_name="test", purpose="cycle", ttl_s=600)
        self.fence = leases.acquire(self.target.leases_dir, self.vm, request, lambda *_a, **_k: None).fence
        return self.fence

    def grant(self, parent: int | None) -> WriteGrant:
        return WriteGrant(fence=self.fence, epoch=self.epoch, source_site=self.source_id, parent_seq=parent)

    def manifest(self) -> Manifest:
        return self.store.manifest(self.vm)

    def transfer(self, disks: Iterable[DiskTransfer], *, checkpoint: str | None, **more: object) -> Transfer:
        manifest = self.manifest()
        newest = manifest.newest
        return Transfer.model_validate(
            {
                "vm_uuid": self.vm,
                "peer_site": self.target_id,
                "grant": self.grant(newest.seq if newest else None),
                "seq": manifest.next_seq,
                "disks": tuple(disks),
                "draft": PointDraft(
                    protection_id="p1",
                    vm_name="vm1",
                    checkpoint=checkpoint,
                    taken_at=datetime.now(UTC),
                    consistency=Consistency.OFF,
                    domain_xml="<domain/>",
                ),
                **more,
            }
        )

    def send(self, transfer: Transfer, on_progress: Callable[[Progress], None] = lambda _p: None) -> Transferred:
        return Outgoing(transfer, self.pool, self.helper, on_progress, self.source.digests_dir).run()

    def identical(self, seq: int, disk: str, source: Path) -> bool:
        """Does the point's disk read like the frozen export?"""
        image = self.store.disk_path(self.vm, seq, disk)
        done = subprocess.run(
            ["qemu-img", "compare", "-f", "raw", "-F", "qcow2", f"nbd+unix:///disk?socket={source}", str(image)],
            capture_output=True,
            text=True,
        )
        assert done.returncode in (0, 1), done.stderr
        return done.returncode == 0

    def same_tables(self, seq: int, disk: str, size_bytes: int) -> bool:
        """Do both sides' records of the disk say the same, without a gap?"""
        mine = DigestTable(self.source.digests_dir / self.vm / f"{disk}.table", size_bytes).root()
        theirs = next(d.digest for d in self.store.point(self.vm, seq).disks if d.target == disk)
        return mine == theirs != ""

    def chain_ok(self, seq: int, disk: str) -> bool:
        """qemu-img check finds nothing on the point's file."""
        out = run("qemu-img", "check", "--output=json", self.store.disk_path(self.vm, seq, disk))
        return json.loads(out)["check-errors"] == 0

    def receiver_pids(self) -> set[int]:
        """Of every receiver that runs for this rig."""
        return _processes("vapor_desktop.site.dispatch", self.source_id)

    def receiver_pid(self) -> int:
        """Of the one receiver that runs for this rig."""
        return _only(self.receiver_pids())

    def daemon_pid(self) -> int:
        """Of its storage daemon."""
        return _only(_processes("qemu-storage-daemon", f"{self.root}/b/run/"))

    def close(self) -> None:
        self.pool.close()


class Mover:
    """A ``vapor-site mover`` process, spoken to as the engine does."""

    def __init__(self, rig: Rig, *, over_ssh: bool = False) -> None:
        environment = {**os.environ, "VAPOR_SITE_CONFIG": f"{rig.root}/a/site.toml"}
        argv = [sys.executable, "-W", "error", "-m", "vapor_desktop.site.mover.send_main"]
        argv += [] if over_ssh else ["--receive-command", *rig.receive_argv()]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        self._number = 0
        self.progress: list[dict[str, Any]] = []
        self.hello = self.line()

    def ask(self, verb: str, params: dict[str, Any]) -> int:
        """Send a request; its number."""
        self._number += 1
        self.write({"id": self._number, "verb": verb, "params": params})
        return self._number

    def write(self, message: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        self.process.stdin.flush()

    def answer(self, number: int) -> Any:
        """Its result. Raises what the mover answered. Progress is kept aside."""
        while True:
            message = self.line()
            if "event" in message:
                self.progress.append(message)
            elif message["id"] != number:
                raise AssertionError(message)
            elif "error" in message:
                raise from_wire(message["error"])
            else:
                return message["result"]

    def transfer(self, transfer: Transfer) -> Transferred:
        number = self.ask("transfer", transfer.model_dump(mode="json"))
        return Transferred.model_validate(self.answer(number))

    def line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the mover ended"
        value: dict[str, Any] = json.loads(line)
        return value

    def close(self) -> int:
        """End of its input; its exit code."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        code = self.process.wait(timeout=20)
        self.process.stdout.close()
        return code


def _only(found: set[int]) -> int:
    assert len(found) == 1, found
    return next(iter(found))


def _processes(*words: str) -> set[int]:
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if all(word in line for word in words) and "send_main" not in line:
                found.add(int(entry.name))
    return found


def disk(
    name: str, size_bytes: int, socket: Path, mode: DiskMode = DiskMode.FULL, bitmap: str | None = None
) -> DiskTransfer:
    """A disk of a transfer that reads a qemu-nbd export."""
    source = NbdSource(kind="live", path=str(socket), export="disk", bitmap=bitmap)
    return DiskTransfer(target=name, size_bytes=size_bytes, mode=mode, source=source)
