"""A source disk in memory and a mover that writes real qcow2 overlays with qemu-io: what replica tests share."""

from __future__ import annotations

import copy
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from vapor_desktop.model.errors import StaleLease, VaporError
from vapor_desktop.model.extents import BLOCK_BYTES, Extent, align
from vapor_desktop.model.manifest import Consistency, DiskMode, Epoch, Manifest, PointDisk
from vapor_desktop.model.policy import Mappings, Policy
from vapor_desktop.model.wire import PointDraft, ReplicaCreate, WriteGrant
from vapor_desktop.site.replica import Incoming, ReplicaStore, block_digest, steps

VM = "7d6b7a52-3f1c-4d7a-9d53-0a8a0c0b1e11"
SOURCE, TARGET = "site-a", "site-b"
MIB = 1 << 20
START = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)
XML = "<domain type='kvm'><name>vm</name></domain>"


class Broken(Exception):
    """The mover could not write."""


class Leases:
    """The newest fence of the VM."""

    def __init__(self, fence: int = 1) -> None:
        self.fence = fence

    def check(self, vm: str, fence: int) -> None:
        if fence != self.fence:
            raise StaleLease(f"fence {fence} is not the newest of VM {vm}")


class Source:
    """Disks with content; remembers what was changed since the last point."""

    def __init__(self, seed: int = 1, **sizes: int) -> None:
        self.random = random.Random(seed)
        self.disks = {name: bytearray(size) for name, size in sizes.items()}
        self.dirty: dict[str, list[Extent]] = {name: [Extent(0, size)] for name, size in sizes.items()}

    def write(self, disk: str, offset: int, data: bytes) -> None:
        self.disks[disk][offset : offset + len(data)] = data
        self.dirty[disk].append(Extent(offset, len(data)))

    def work(self, writes: int = 4) -> None:
        """Random writes, and zeroes over what was there."""
        for disk, content in self.disks.items():
            for _ in range(writes):
                length = self.random.choice((512, 4096, 65536, 200_000))
                offset = self.random.randrange(0, len(content) - length) // 512 * 512
                zero = self.random.random() < 0.3
                self.write(disk, offset, bytes(length) if zero else self.random.randbytes(length))

    def clean(self) -> None:
        self.dirty = {name: [] for name in self.disks}

    def snapshot(self) -> dict[str, bytes]:
        return {name: bytes(content) for name, content in self.disks.items()}


class Bench:
    """A store on a directory, a source, and the verbs of a mover."""

    def __init__(self, root: Path, source: Source, fence: int = 1, **options: object) -> None:
        self.root = root
        self.leases = Leases(fence)
        self.store = ReplicaStore([root], TARGET, self.leases.check, 0, **options)  # type: ignore[arg-type]
        self.source = source
        self.epoch = Epoch(number=1, owner=SOURCE)
        self.expected: dict[int, dict[str, bytes]] = {}

    def create(self) -> Manifest:
        grant = WriteGrant(fence=self.leases.fence, epoch=self.epoch, source_site=SOURCE, parent_seq=None)
        return self.store.create(
            VM,
            ReplicaCreate(
                grant=grant,
                protection_id="p1",
                vm_name="vm",
                target_site=TARGET,
                policy=Policy(),
                mappings=Mappings(),
            ),
        )

    @property
    def manifest(self) -> Manifest:
        return self.store.manifest(VM)

    def grant(self, **changes: object) -> WriteGrant:
        newest = self.manifest.newest
        base = WriteGrant(
            fence=self.leases.fence,
            epoch=self.epoch,
            source_site=SOURCE,
            parent_seq=newest.seq if newest else None,
        )
        return base.model_copy(update=changes)

    def mode(self, disk: str) -> DiskMode:
        newest = self.manifest.newest
        return DiskMode.DELTA if newest is not None and disk in newest.files else DiskMode.FULL

    def open(self, resume: bool = False, seq: int | None = None, checkpoint: str | None = None) -> Incoming:
        seq = self.manifest.next_seq if seq is None else seq
        disks = {name: (len(content), self.mode(name)) for name, content in self.source.disks.items()}
        return self.store.open_incoming(VM, self.grant(), seq, disks, checkpoint or f"cp-{seq}", resume)

    def send(self, incoming: Incoming, disk: str, extents: Iterable[Extent]) -> None:
        """Write the source's content of these ranges, flushed, with digests; then mark them."""
        parts = align(extents, len(self.source.disks[disk]))
        write_image(incoming.path(disk), self.source.disks[disk], parts)
        for part in parts:
            for at in range(part.offset, part.end, BLOCK_BYTES):
                block = self.source.disks[disk][at : min(at + BLOCK_BYTES, part.end)]
                incoming.put_digests(disk, at // BLOCK_BYTES, block_digest(block))
        incoming.mark_received(disk, parts)

    def fill(self, incoming: Incoming) -> None:
        for disk in self.source.disks:
            incoming.want(disk, self.source.dirty[disk])
            self.send(incoming, disk, incoming.needed(disk).runs())

    def keep(self) -> None:
        """An unfinished point that was agreed on and of which nothing has arrived."""
        with self.open() as incoming:
            for disk in self.source.disks:
                incoming.want(disk, self.source.dirty[disk])

    def draft(self, incoming: Incoming) -> PointDraft:
        return PointDraft(
            protection_id="p1",
            vm_name="vm",
            checkpoint=incoming.checkpoint,
            taken_at=START + timedelta(minutes=incoming.seq),
            consistency=Consistency.CRASH,
            domain_xml=XML,
        )

    def publish(self, incoming: Incoming, grant: WriteGrant | None = None) -> Manifest:
        disks = [
            PointDisk(target=name, size_bytes=len(content), mode=self.mode(name))
            for name, content in self.source.disks.items()
        ]
        done = self.store.publish(
            VM, grant or self.grant(), incoming, self.draft(incoming), disks, {"nvram": b"NVRAM"}
        )
        self.expected[incoming.seq] = self.source.snapshot()
        self.source.clean()
        return done

    def copy_to(self, root: Path) -> Bench:
        """The same replica and source, elsewhere: backing names are relative."""
        shutil.copytree(self.root, root)
        other = Bench(root, copy.deepcopy(self.source), self.leases.fence)
        other.epoch, other.expected = self.epoch, dict(self.expected)
        return other

    def cycle(self, writes: int = 4) -> int:
        """One point; its number."""
        self.source.work(writes)
        with self.open() as incoming:
            self.fill(incoming)
            self.publish(incoming)
            return incoming.seq

    def check(self) -> None:
        """Every living point reads as the source was, and the digest tables say the same of the newest."""
        self.check_points()
        self.check_tables()

    def check_points(self) -> None:
        manifest = self.manifest
        living = [p for p in manifest.points if not p.dead]
        for entry in living:
            for disk, content in self.expected[entry.seq].items():
                assert read_image(self.store.disk_path(VM, entry.seq, disk)) == content, (entry.seq, disk)

    def check_tables(self) -> None:
        living = [p for p in self.manifest.points if not p.dead]
        if living:
            for disk, content in self.expected[living[-1].seq].items():
                table = self.store.digests(VM, disk)
                blocks = [content[at : at + BLOCK_BYTES] for at in range(0, len(content), BLOCK_BYTES)]
                assert table.read(0, len(blocks)) == b"".join(map(block_digest, blocks))
                described = {d.target: d.digest for d in self.store.point(VM, living[-1].seq).disks}
                assert described[disk] == table.root() != ""

    def files(self) -> set[str]:
        """Names below disks/ and incoming/."""
        top = self.root / VM
        return {str(p.relative_to(top)) for part in ("disks", "incoming") for p in (top / part).rglob("*")}


def write_image(image: Path, content: bytes | bytearray, extents: Iterable[Extent]) -> None:
    """Through qemu-io: zero blocks as zeroes, the rest as data, one flush at the end."""
    with tempfile.TemporaryDirectory() as folder:
        commands = []
        for number, part in enumerate(extents):
            for at in range(part.offset, part.end, BLOCK_BYTES):
                block = content[at : min(at + BLOCK_BYTES, part.end)]
                if not any(block):
                    commands.append(f"write -z {at} {len(block)}")
                else:
                    raw = Path(folder, f"{number}-{at}")
                    raw.write_bytes(block)
                    commands.append(f"write -s {raw} {at} {len(block)}")
        script = "\n".join([*commands, "flush", "quit", ""])
        done = subprocess.run(["qemu-io", "-f", "qcow2", str(image)], input=script, capture_output=True, text=True)
        if done.returncode or "failed" in done.stdout:
            raise Broken(done.stderr + done.stdout)


def read_image(image: Path) -> bytes:
    """The guest-visible content."""
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder, "raw")
        subprocess.run(["qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", str(image), str(raw)], check=True)
        return raw.read_bytes()


def steps_of(action: Callable[[], object]) -> list[tuple[str, int]]:
    """Every durable step that ``action`` goes through, and how many times it had been there."""
    seen: list[tuple[str, int]] = []

    def reached(step: str) -> None:
        seen.append((step, 1 + sum(step == s for s, _ in seen)))

    before, steps.reached = steps.reached, reached
    try:
        action()
    finally:
        steps.reached = before
    return seen


def in_process(action: Callable[[], object], cut: tuple[str, int] | None = None) -> int:
    """Do it in a forked process; with ``cut`` it is killed -9 at that step. The process's number, to wait for."""
    pid = os.fork()
    if pid:
        return pid
    try:
        left = [cut[1] if cut else 0]

        def reached(step: str) -> None:
            if cut and step == cut[0]:
                left[0] -= 1
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)

        steps.reached = reached
        action()
        os._exit(0)
    except (VaporError, Broken) as error:
        print(f"refused: {error!r}", file=sys.stderr)
        os._exit(3)
    except BaseException:  # noqa: BLE001  (nothing may return into the forked test run)
        traceback.print_exc()
        os._exit(1)


def ended(pid: int) -> int:
    """Exit code; -9 for a killed one."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def cut_at(cut: tuple[str, int], action: Callable[[], object]) -> None:
    """The action is killed -9 at that step."""
    assert ended(in_process(action, cut)) == -signal.SIGKILL
