"""Making seeds: one copy at a time per VM, in a thread of its own, so that no request waits for terabytes.

The image is read through the root helper (whose roots it must lie below), frozen and read-only; the copy is
ours alone. Its digest table is made from the copy as it lies on disk. The caller keeps its lease alive
meanwhile; when the lease ends, so does the copying.
"""

from __future__ import annotations

import logging
import subprocess
import threading
from contextlib import suppress
from pathlib import Path

from vapor_desktop.model.errors import Conflict, ImageToolFailed, InvalidRequest, Unexpected, VaporError
from vapor_desktop.model.extents import BLOCK_BYTES, Extent, chunks
from vapor_desktop.model.wire import SeedImage, SeedRequest, SeedState
from vapor_desktop.site.helper_client import HelperClient
from vapor_desktop.site.mover.nbd_source import Export
from vapor_desktop.site.mover.qsd import StorageDaemon
from vapor_desktop.site.mover.tables import digests_of
from vapor_desktop.site.replica import ReplicaStore
from vapor_desktop.site.replica.layout import check_disk, check_vm

log = logging.getLogger(__name__)

EXPORT = "seed"
POLL_S = 0.5
CHECK_BYTES = 256 << 20


class Seeding:
    """The seeds being made at this site."""

    def __init__(self, store: ReplicaStore, helper: HelperClient, run_dir: Path) -> None:
        self._store = store
        self._helper = helper
        self._run_dir = run_dir
        self._lock = threading.Lock()
        self._work: dict[str, _Work] = {}

    def start(self, vm: str, request: SeedRequest) -> SeedState:
        """Begin. Raises Conflict while another one of this VM runs, InvalidRequest, StaleLease, NotAllowed, …"""
        vm = check_vm(vm)
        if not request.disks:
            raise InvalidRequest("Name at least one disk and its image")
        for disk in request.disks:
            check_disk(disk)
        self._store.check_seeding(vm, request.grant)
        with self._lock:
            running = self._work.get(vm)
            if running is not None and running.thread.is_alive():
                raise Conflict("A seed of this VM is being made already", fix="Wait until it is done")
            work = self._work[vm] = _Work(self._store, self._helper, self._run_dir / f"seed-{vm[:8]}", vm, request)
            work.thread.start()
        return work.state

    def state(self, vm: str) -> SeedState:
        """Of the running or the last one of this VM since the service started."""
        with self._lock:
            work = self._work.get(check_vm(vm))
        return SeedState(running=False) if work is None else work.state

    def stop(self) -> None:
        """End them all; what is unfinished is deleted."""
        with self._lock:
            works = list(self._work.values())
        for work in works:
            work.stop.set()
        for work in works:
            if work.thread.ident is not None:
                work.thread.join()


class _Work:
    """One request, disk after disk."""

    def __init__(
        self, store: ReplicaStore, helper: HelperClient, run_dir: Path, vm: str, request: SeedRequest
    ) -> None:
        self._store = store
        self._helper = helper
        self._run_dir = run_dir
        self._vm = vm
        self._request = request
        self.stop = threading.Event()
        self.state = SeedState(running=True)
        self.thread = threading.Thread(target=self._run, name=f"seed-{vm[:8]}", daemon=True)

    def _run(self) -> None:
        error: VaporError | None = None
        try:
            for disk, image in self._request.disks.items():
                self._disk(disk, image)
        except VaporError as caught:
            error = caught
        except Exception as caught:  # the edge of a thread: kept, and told to whoever asks
            log.exception("the seed of %s failed unexpectedly", self._vm)
            error = Unexpected("The seed could not be made", why=repr(caught))
        self.state = self.state.model_copy(update={"running": False, "error": error.to_wire() if error else None})

    def _disk(self, disk: str, image: SeedImage) -> None:
        with self._helper.offline_export(image.path, image.format, None, EXPORT) as socket:
            source = Export(socket, EXPORT)
            source.close()
            self._check_size(disk, image, source.size_bytes)
            grant, vm = self._request.grant, self._vm
            copy = self._store.begin_seed(vm, grant, disk, source.size_bytes, image.path)
            try:
                self._tell(disk, 0, 2 * source.size_bytes)  # copied, then read back
                self._copy(disk, socket, copy, source.size_bytes)
                self._digests(disk, copy, source.size_bytes)
                self._store.finish_seed(vm, grant, disk, copy)
            except BaseException:
                self._store.abandon_seed(vm, disk, copy)
                raise

    def _check_size(self, disk: str, image: SeedImage, size_bytes: int) -> None:
        if size_bytes == 0 or size_bytes % 512:
            raise InvalidRequest(f"{image.path} is no disk image of whole sectors", size_bytes=size_bytes)
        if image.disk_bytes is not None and size_bytes > image.disk_bytes:
            raise InvalidRequest(
                f"{image.path} has {size_bytes} bytes, disk {disk} has only {image.disk_bytes}",
                fix="Is it the image of another disk? Check --format too",
            )

    def _copy(self, disk: str, socket: str, copy: Path, size_bytes: int) -> None:
        """By qemu-img, holes kept. Ends early when the lease, the room or the service does."""
        url = f"nbd+unix:///{EXPORT}?socket={socket}"
        command = ("qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", url, str(copy))
        with subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            umask=0o007,
            text=True,
        ) as process:
            try:
                while True:
                    try:
                        _, words = process.communicate(timeout=POLL_S)
                        break
                    except subprocess.TimeoutExpired:
                        self._check()
                        self._tell(disk, min(_allocated(copy), size_bytes), 2 * size_bytes)
            except BaseException:
                process.kill()
                raise
        if process.returncode != 0:
            raise ImageToolFailed("The image could not be copied", why=words.strip(), stderr=words)

    def _digests(self, disk: str, copy: Path, size_bytes: int) -> None:
        self._run_dir.mkdir(mode=0o700, exist_ok=True)
        daemon = StorageDaemon(self._run_dir)
        try:
            daemon.start()  # ends with this thread at the latest
            name = daemon.add(copy, read_only=True)
            table = self._store.seed_table(self._vm, disk, size_bytes)
            export = Export(daemon.socket_path, name)
            try:
                for part in chunks([Extent(0, size_bytes)], CHECK_BYTES):
                    self._check()
                    for extent, digests in digests_of(export, [part], self.stop):
                        table.write(extent.offset // BLOCK_BYTES, digests)
                    self._tell(disk, size_bytes + part.end, 2 * size_bytes)
            finally:
                export.close()
            table.sync()
        finally:
            daemon.stop()
            with suppress(OSError):  # what a killed service left in it is swept the next time
                self._run_dir.rmdir()

    def _check(self) -> None:
        if self.stop.is_set():
            raise Conflict("The site service stops; the seed was not finished", fix="Seed again")
        self._store.check_seeding(self._vm, self._request.grant)

    def _tell(self, disk: str, done_bytes: int, total_bytes: int) -> None:
        self.state = SeedState(running=True, disk=disk, done_bytes=done_bytes, total_bytes=total_bytes)


def _allocated(path: Path) -> int:
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:
        return 0
