"""One transfer at the source: sources opened, what is needed agreed, disks sent, the point published."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vapor_desktop.model.blockmap import BlockMap
from vapor_desktop.model.errors import InvalidRequest, TransferCancelled, TransferInterrupted, VaporError
from vapor_desktop.model.extents import Extent
from vapor_desktop.model.manifest import DiskMode, Manifest, config_of_point
from vapor_desktop.model.wire import DiskTransfer, Progress, Transfer, Transferred
from vapor_desktop.site.helper_client import HelperClient
from vapor_desktop.site.leases import vm_file_name
from vapor_desktop.site.mover import protocol
from vapor_desktop.site.mover.disk_run import DiskRun, raise_cause, run_all
from vapor_desktop.site.mover.nbd_source import Export
from vapor_desktop.site.mover.peer import PeerPool, PeerSession
from vapor_desktop.site.mover.protocol import Kind
from vapor_desktop.site.mover.source import open_export
from vapor_desktop.site.mover.stopped import StoppedImage
from vapor_desktop.site.mover.throttle import Throttle
from vapor_desktop.site.replica.digests import DigestTable
from vapor_desktop.site.statefile import make_dir

JOIN_FROM_BYTES = 32 << 20  # less is through before another ssh has said hello
LANES = 2  # disks of a VM at a time
PROGRESS_S = 1.0
SYNC_EVERY = 5  # progress ticks; tells the receiver that we live
STALLED_S = 120.0


@dataclass
class Source:
    """A disk, its export, and what must reach the target (before it is known what is there)."""

    disk: DiskTransfer
    export: Export
    changed: BlockMap


@dataclass
class Outgoing:
    """A transfer being sent. ``run`` in one thread; ``cancel`` from any."""

    request: Transfer
    pool: PeerPool
    helper: HelperClient
    on_progress: Callable[[Progress], None]
    digests_dir: Path | None = None  # of the site; None: keep no record of what was read
    _stop: threading.Event = field(default_factory=threading.Event)
    _cancelled: bool = False
    _deadline: bool = False
    _sessions: list[PeerSession] = field(default_factory=list)
    _current: str = ""
    _records: list[DigestTable | None] = field(default_factory=list)
    _stopped: dict[str, StoppedImage] = field(default_factory=dict)
    _moved: VaporError | None = None
    _config: str = ""
    _compared: list[str] = field(default_factory=list)

    def cancel(self) -> None:
        """Stop within a chunk; the session is ended, the receiver keeps what is durable."""
        self._cancelled = True
        self._stop.set()
        for session in list(self._sessions):
            session.kill()

    def run(self) -> Transferred:
        """Send. Raises TransferCancelled, TransferInterrupted, and whatever the receiver says."""
        started = time.monotonic()
        try:
            with ExitStack() as open_sources:
                return self._run(open_sources, started)
        except VaporError as error:
            if self._cancelled:
                raise TransferCancelled("The transfer was cancelled") from error
            raise

    def _run(self, stack: ExitStack, started: float) -> Transferred:
        request = self.request
        sources = [self._source(disk, stack) for disk in request.disks]
        # A disk may be compared now that was to be sent by its changes.
        request = self.request = request.model_copy(update={"disks": tuple(s.disk for s in sources)})
        blobs = self._blobs()
        self._config = config_of_point(request.draft.config, blobs)
        same = self._config == request.known_config and not any(s.changed for s in sources)
        if request.skip_if_empty and not request.resume_incoming and same:
            self._check_stopped()
            return self._answer([], started, 0, published=False, manifest=None, empty=True)
        session, opened = self._open()
        self._sessions = [session]
        session.on_error = self._stop.set
        wire_before = session.wire_bytes
        try:
            if self._cancelled:
                raise TransferCancelled("The transfer was cancelled")
            runs = self._agree(session, sources, rebase=bool(opened["rebase"]), token=opened["token"])
            self._send(session, runs, wire_before)
            for run, record in zip(runs, self._records, strict=True):
                if record is not None and run.counts.done_bytes:
                    record.sync()
            if self._deadline or not request.complete:
                session.ask(protocol.encode_json(Kind.END, {}), Kind.ENDED)
                manifest = None
            else:
                self._check_stopped()
                for name, content in blobs.items():
                    session.send(protocol.encode(Kind.BLOB, protocol.pack_blob(name, content)))
                manifest = self._commit(session, time.monotonic() - started, self._wire_bytes() - wire_before)
            wire = self._wire_bytes() - wire_before
            return self._answer(runs, started, wire, published=manifest is not None, manifest=manifest)
        except VaporError:
            session.kill()
            raise
        finally:
            joined, self._sessions = self._sessions[1:], []
            for one in joined:
                one.close()
            self.pool.give_back(request.peer_site, session)

    # --- what is to be sent --------------------------------------------------------------------------
    def _source(self, disk: DiskTransfer, stack: ExitStack) -> Source:
        stopped = None
        if disk.source.kind == "offline":
            stopped = self._stopped[disk.target] = StoppedImage(self.helper, disk.target, disk.source.path)
        export = open_export(disk, self.helper, stack)
        if disk.source.bitmap is None and disk.mode is DiskMode.DELTA:
            raise InvalidRequest(f"Disk {disk.target} is to be sent by its changes, but no bitmap is named")
        changed = BlockMap(disk.size_bytes, full=disk.source.bitmap is None)
        if disk.source.bitmap is not None:
            changed.add(export.dirty(disk.source.bitmap))
        if stopped is not None and not changed and disk.known_stamp not in ("", stopped.stamp):
            self._compared.append(disk.target)
            return Source(_compared(disk), export, BlockMap(disk.size_bytes, full=True))
        return Source(disk, export, changed)

    def _check_stopped(self) -> None:
        """Before anything is published or called unchanged. Raises TransferInterrupted."""
        for image in self._stopped.values():
            image.check()

    def _open(self) -> tuple[PeerSession, dict[str, Any]]:
        """A session with the incoming open. An idle session whose link died meanwhile is replaced, once."""
        request = self.request
        frame = protocol.encode_json(
            Kind.OPEN,
            {
                "vm_uuid": request.vm_uuid,
                "grant": request.grant.model_dump(mode="json"),
                "seq": request.seq,
                "disks": [{"target": d.target, "size_bytes": d.size_bytes, "mode": d.mode} for d in request.disks],
                "checkpoint": request.draft.checkpoint,
                "resume": request.resume_incoming,
                "streams": request.streams,
                # A stopped VM's bitmap goes on from job to job: its name does not tell that the VM ran meanwhile.
                "moved": any(d.source.kind == "offline" for d in request.disks),
            },
        )
        session = self.pool.take(request.peer_site)
        try:
            return session, session.ask(frame, Kind.OPENED)
        except TransferInterrupted:
            retry = session.used
            session.close()
            if not retry:
                raise
        except VaporError:
            session.recover()
            self.pool.give_back(request.peer_site, session)
            raise
        session = self.pool.take(request.peer_site, fresh=True)
        try:
            return session, session.ask(frame, Kind.OPENED)
        except VaporError:
            session.close()
            raise

    def _agree(
        self, session: PeerSession, sources: list[Source], *, rebase: bool, token: str | None
    ) -> list[DiskRun]:
        """Tell what changed, learn what is needed."""
        for i, source in enumerate(sources):
            for part in _batches(source.changed.runs()):
                session.send(protocol.encode(Kind.WANT, protocol.pack_extents(part), disk=i))
        todo = [BlockMap(s.disk.size_bytes) for s in sources]
        for i, extents in session.needs():
            todo[i].add(extents)
        limit = self.request.bandwidth_bytes_s
        throttle = Throttle(limit, self._stop) if limit else None
        if token is not None and sum(t.total_bytes() for t in todo) >= JOIN_FROM_BYTES:
            self._join(token)
        self._records = [self._record(s.disk) for s in sources]
        return [
            DiskRun(
                i,
                s.disk.target,
                s.export,
                todo[i],
                # A whole pass over an incoming that holds something already sends only what differs.
                compare=s.disk.mode is DiskMode.COMPARE
                or (rebase and (s.disk.source.bitmap is None or s.disk.source.kind == "offline")),
                channels=tuple(self._sessions),
                stop=self._stop,
                throttle=throttle,
                record=self._records[i],
            )
            for i, s in enumerate(sources)
        ]

    def _record(self, disk: DiskTransfer) -> DigestTable | None:
        if self.digests_dir is None:
            return None
        directory = make_dir(self.digests_dir / vm_file_name(self.request.vm_uuid))
        return DigestTable(directory / f"{disk.target}.table", disk.size_bytes)

    def _join(self, token: str) -> None:
        """More channels for the same transfer, opened at the same time."""

        def one(_number: int) -> None:
            session = self.pool.take(self.request.peer_site, fresh=True)
            self._sessions.append(session)  # from here on it is closed with the transfer
            session.on_error = self._stop.set
            session.ask(protocol.encode_json(Kind.JOIN, {"token": token}), Kind.JOINED)

        count = self.request.streams - 1
        with ThreadPoolExecutor(count, thread_name_prefix="join") as crew:
            joining = [crew.submit(one, i) for i in range(count)]
        raise_cause(joining)

    def _wire_bytes(self) -> int:
        return sum(session.wire_bytes for session in self._sessions)

    def _blobs(self) -> dict[str, bytes]:
        draft, vm = self.request.draft, self.request.vm_uuid
        blobs = {}
        if draft.nvram_path is not None:
            blobs["nvram"] = self.helper.read_nvram(vm, draft.nvram_path)
        if draft.tpm_dir is not None:
            blobs["tpm"] = self.helper.read_tpm(vm)
        return blobs

    # --- sending -------------------------------------------------------------------------------------
    def _send(self, session: PeerSession, runs: list[DiskRun], wire_before: int) -> None:
        """All disks. Returns early, without error, at the deadline."""
        finished = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(session, runs, wire_before, finished), name="progress")
        watcher.start()
        try:
            run_all(runs, LANES, self._at_disk)
        except TransferCancelled:
            if self._moved is not None and not self._cancelled:
                raise self._moved from None
            for one in self._sessions:
                if one.error is not None:
                    raise one.error from None
            if not self._deadline or self._cancelled:
                raise
        finally:
            finished.set()
            watcher.join()
        for one in self._sessions:
            if one.error is not None:
                raise one.error
        if self._cancelled:
            raise TransferCancelled("The transfer was cancelled")
        for one in self._sessions[1:]:
            one.send(protocol.encode_json(Kind.DONE, {}))

    def _at_disk(self, target: str) -> None:
        self._current = target

    def _watch(self, session: PeerSession, runs: list[DiskRun], wire_before: int, finished: threading.Event) -> None:
        started = moved_at = last_at = time.monotonic()
        last_done, last_seen, ticks = 0, -1, 0
        total = sum(r.todo_bytes for r in runs)
        while not finished.wait(self._pause(started)):
            now = time.monotonic()
            if self._pause(started) <= 0:
                self._deadline = True
                self._stop.set()
            done = sum(r.counts.done_bytes for r in runs)
            wire = self._wire_bytes() - wire_before
            self.on_progress(
                Progress(
                    done_bytes=done,
                    total_bytes=total,
                    rate_bytes_s=(done - last_done) / max(now - last_at, 0.001),
                    disk=self._current,
                    wire_bytes=wire,
                )
            )
            last_done, last_at, ticks = done, now, ticks + 1
            if done + session.durable_bytes != last_seen:
                last_seen, moved_at = done + session.durable_bytes, now
            elif now - moved_at > STALLED_S:
                session.kill()
                return
            try:
                self._check_stopped()
            except VaporError as error:  # what is read from now on is of no use
                self._moved = error
                self._stop.set()
                return
            if ticks % SYNC_EVERY == 0:
                try:
                    for one in self._sessions:
                        one.send(protocol.encode_json(Kind.SYNC, {}))
                except VaporError:
                    return  # the workers meet the same end and tell it

    def _pause(self, started: float) -> float:
        """Until the next look: a second, or what is left to the deadline."""
        deadline_s = self.request.deadline_s
        if deadline_s is None or self._deadline:
            return PROGRESS_S
        return min(PROGRESS_S, deadline_s - (time.monotonic() - started))

    def _commit(self, session: PeerSession, duration_s: float, wire_bytes: int) -> Manifest:
        told = {"images": self._stamps(), "config": self._config}
        draft = self.request.draft.model_copy(update=told).model_dump(mode="json")
        answer = session.ask(
            protocol.encode_json(Kind.COMMIT, {"draft": draft, "duration_s": duration_s, "wire_bytes": wire_bytes}),
            Kind.COMMITTED,
        )
        return Manifest.model_validate(answer["manifest"])

    def _answer(
        self,
        runs: list[DiskRun],
        started: float,
        wire_bytes: int,
        *,
        published: bool,
        manifest: Manifest | None,
        empty: bool = False,
    ) -> Transferred:
        return Transferred(
            published=published,
            seq=self.request.seq,
            data_bytes=sum(r.counts.data_bytes for r in runs),
            zero_bytes=sum(r.counts.zero_bytes for r in runs),
            wire_bytes=wire_bytes,
            read_bytes=sum(r.counts.read_bytes for r in runs),
            duration_s=time.monotonic() - started,
            manifest=manifest,
            empty=empty,
            images=self._stamps(),
            compared=tuple(self._compared),
        )

    def _stamps(self) -> dict[str, str]:
        return {target: image.stamp for target, image in self._stopped.items()}


def _compared(disk: DiskTransfer) -> DiskTransfer:
    """The same disk, read whole: its image was written by nobody who tells bitmaps."""
    source = disk.source.model_copy(update={"bitmap": None})
    return disk.model_copy(update={"mode": DiskMode.COMPARE, "source": source})


def _batches(extents: Iterable[Extent]) -> Iterable[list[Extent]]:
    part: list[Extent] = []
    for extent in extents:
        part.append(extent)
        if len(part) == protocol.EXTENTS_A_FRAME:
            yield part
            part = []
    if part:
        yield part
