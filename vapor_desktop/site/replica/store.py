"""The store: all verbs on replicas, each under the replica's lock."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from vapor_desktop.model.errors import (
    Conflict,
    EditOutdated,
    InvalidRequest,
    ManifestInvalid,
    NotFound,
    ParentMoved,
    PointPinned,
)
from vapor_desktop.model.manifest import DiskMode, Manifest, Point, PointDisk, PointEntry
from vapor_desktop.model.wire import (
    AdoptRequest,
    CommitRequest,
    CurrentAsOf,
    EpochRequest,
    FoldPlan,
    FoldRequest,
    GiveBackRequest,
    IncomingView,
    LetGoRequest,
    PointDomain,
    PointDraft,
    ReplicaCreate,
    ReplicaView,
    Run,
    RunRequest,
    SettingsWrite,
    WriteGrant,
)
from vapor_desktop.site.replica import (
    adoption,
    drills,
    fold,
    grants,
    index,
    kept,
    merge,
    opening,
    publish,
    recover,
    references,
    removal,
    runbooks,
    runs,
    seed,
)
from vapor_desktop.site.replica import record as records
from vapor_desktop.site.replica.digests import UNKNOWN, DigestTable
from vapor_desktop.site.replica.files import FileLock, locked, make_dir, write_durable
from vapor_desktop.site.replica.incoming import Incoming, discard
from vapor_desktop.site.replica.layout import DRILL_PICTURE, DRILL_REPORT, POINT_FILES, Layout, check_vm
from vapor_desktop.site.replica.references import References
from vapor_desktop.site.replica.space import check_space, file_bytes, used_bytes

_BUSY_WAIT_S = 5.0
_CLOCK_NOISE = timedelta(seconds=10)


class ReplicaStore:
    """Replicas below some roots. ``check_lease(vm_uuid, fence)`` raises StaleLease.

    ``in_use`` names files that domains of this host refer to: they are never merged or deleted.
    """

    def __init__(
        self,
        roots: Sequence[Path],
        site_id: str,
        check_lease: Callable[[str, int], None],
        reserve_bytes: int,
        in_use: Callable[[], Iterable[Path]] = tuple,
    ) -> None:
        self._roots = [root.resolve() for root in roots]
        self._site_id = site_id
        self._check_lease = check_lease
        self._reserve_bytes = reserve_bytes
        self._in_use = in_use

    # --- reading: no lock, the manifest is replaced whole ------------------------------------------
    def vms(self) -> list[str]:
        """UUIDs of the VMs that have a replica here, broken or half deleted ones too."""
        found = []
        for root in self._roots:
            for top in sorted(root.iterdir()) if root.is_dir() else ():
                try:
                    if top.is_dir() and not top.is_symlink() and check_vm(top.name) == top.name:
                        found.append(top.name)
                except InvalidRequest:
                    continue  # another's directory
        return found

    def list(self) -> list[ReplicaView]:
        """Every replica, broken ones too (valid False, trouble says why)."""
        views = []
        for vm in self.vms():
            try:
                views.append(self.view(vm))
            except NotFound:
                continue  # just made or deleted
        return views

    def view(self, vm: str) -> ReplicaView:
        """One replica. Raises NotFound."""
        layout, trouble = self._layout(vm), None
        seeded: tuple[str, ...] = ()
        bases: dict[str, str] = {}
        try:
            manifest = self._load(layout)
            seeded = tuple(sorted(seed.ready(layout, manifest)))
            bases = {disk: s.file for disk, s in seed.load(layout).disks.items()}
        except ManifestInvalid as error:
            trouble = error.to_wire()
            try:
                manifest = recover.candidate(layout)
            except ManifestInvalid:
                manifest = recover.nothing_known(layout)
        return ReplicaView(
            manifest=manifest,
            root=str(layout.root),
            used_bytes=used_bytes(layout.top),
            incoming=_unfinished_view(layout),
            seeded=seeded,
            files_in_chain=self.files_in_chain(vm),
            disk_bytes=_disk_bytes(layout, manifest, bases),
            run_bytes=kept.run_bytes(layout, manifest),
            run_written_at=kept.run_written_at(layout, manifest),
            valid=trouble is None,
            trouble=trouble,
        )

    def files_in_chain(self, vm: str) -> int:
        """Files of the replica's deepest chain: points, incoming, drill and run overlays counted."""
        layout = self._layout(vm)
        refs = references.scan([layout.top], strict=False)
        tops = [child for child, _ in refs.backings]
        alone = 1 if layout.disks.is_dir() and any(layout.disks.iterdir()) else 0
        return max([alone, *(refs.depth(top) for top in tops)])

    def manifest(self, vm: str) -> Manifest:
        """Raises NotFound, ManifestInvalid."""
        return self._load(self._layout(vm))

    def point(self, vm: str, seq: int) -> Point:
        """Raises NotFound."""
        layout, _ = self._entry(vm, seq)
        return index.load_point(layout, seq)

    def point_domain(self, vm: str, seq: int) -> PointDomain:
        """The configuration the point carries. Raises NotFound."""
        layout, entry = self._entry(vm, seq)
        point = index.load_point(layout, seq)
        xml = self.point_file(vm, seq, "domain.xml").read_text()
        return PointDomain(domain_xml=xml, disks=tuple(sorted(entry.files)), nvram=point.nvram)

    def point_file(self, vm: str, seq: int, name: str) -> Path:
        """``domain.xml``, ``nvram.fd`` or ``tpm.tar`` of a living point. Raises NotFound."""
        layout, _ = self._entry(vm, seq)
        path = layout.point(seq) / name
        if name not in POINT_FILES or not path.is_file():
            raise NotFound(f"Recovery point {seq} has no {name}")
        return path

    def disk_path(self, vm: str, seq: int, disk: str) -> Path:
        """The qcow2 file that a living point's disk is read through (read only!). Raises NotFound."""
        layout, entry = self._entry(vm, seq)
        if disk not in entry.files:
            raise NotFound(f"Recovery point {seq} has no disk {disk}")
        return layout.disks / entry.files[disk]

    def digests(self, vm: str, disk: str) -> DigestTable:
        """The table of the newest point, or of the seed of a disk that no point holds yet. Raises NotFound."""
        with self._locked(vm) as layout:
            manifest = self._load(layout)
            publish.settle(layout, manifest)
            size = manifest.newest.sizes.get(disk) if manifest.newest else None
            if size is None and (seeded := seed.ready(layout, manifest).get(disk)) is not None:
                size = seeded.size_bytes
            if size is None:
                raise NotFound(f"The newest point of VM {manifest.vm_name} holds no disk {disk}")
            return DigestTable(layout.table(disk), size)

    # --- the replica itself --------------------------------------------------------------------------
    def create(self, vm: str, request: ReplicaCreate) -> Manifest:
        """Make the replica; of one that exists only the VM's name is written."""
        vm = check_vm(vm)
        if request.target_site != self._site_id:
            raise InvalidRequest("This site is not the target of that replica")
        wished = request.mappings.replica_root
        root = self._roots[0] if wished is None else Path(wished).resolve()
        if root not in self._roots:
            raise InvalidRequest(f"{wished} is not a replica root of this site")
        try:
            layout = self._layout(vm)
        except NotFound:
            layout = Layout(root, vm)
            make_dir(layout.top)
        with locked(layout.lock):
            try:
                manifest = self._load(layout)
            except NotFound:
                return self._create(layout, request)
            grants.check_grant(manifest, request.grant, self._check_lease)
            if request.protection_id != manifest.protection_id:
                raise Conflict(f"The replica of VM {manifest.vm_name} belongs to another protection")
            if wished is not None and root != layout.root:
                raise Conflict(f"The replica of VM {manifest.vm_name} is in {layout.root} already")
            if manifest.vm_name == request.vm_name:
                return manifest
            return index.save(layout, manifest, manifest.model_copy(update={"vm_name": request.vm_name}))

    def write_settings(self, vm: str, request: SettingsWrite) -> Manifest:
        """Another policy and other mappings, if nobody else changed them meanwhile. Writing the same is no change.

        Raises EditOutdated, Conflict (another replica root), StaleLease, EpochMoved, ParentMoved.
        """
        with self._locked(vm) as layout:
            manifest = self._granted(layout, request.grant)
            if request.mappings.replica_root not in (None, str(layout.root)):
                raise Conflict(f"The replica of VM {manifest.vm_name} is in {layout.root} already")
            if (request.policy, request.mappings) == (manifest.policy, manifest.mappings):
                return manifest
            version = manifest.settings_version
            if request.expect_version != version:
                raise EditOutdated(
                    f"The settings of {manifest.vm_name} were changed meanwhile",
                    why=f"they are at version {version}, the edit was made on version {request.expect_version}",
                    expected=request.expect_version,
                    found=version,
                )
            update = {"policy": request.policy, "mappings": request.mappings, "settings_version": version + 1}
            return index.save(layout, manifest, manifest.model_copy(update=update))

    def _create(self, layout: Layout, request: ReplicaCreate) -> Manifest:
        self._check_lease(layout.vm, request.grant.fence)
        if request.grant.parent_seq is not None:
            raise ParentMoved(f"There is no replica of VM {request.vm_name} here")
        check_space(layout.root, 0, self._reserve_bytes)
        for part in (layout.disks, layout.incoming, layout.points, layout.digests, layout.runs):
            make_dir(part)
        manifest = Manifest(
            vm_uuid=layout.vm,
            vm_name=request.vm_name,
            protection_id=request.protection_id,
            source_site=request.grant.source_site,
            target_site=self._site_id,
            epoch=request.grant.epoch,
            policy=request.policy,
            mappings=request.mappings,
        )
        return index.save(layout, None, manifest)

    def delete(self, vm: str, grant: WriteGrant) -> None:
        """Raises PointPinned while something runs on it or hangs on it, Conflict if foreign files lie in it."""
        with self._both(vm) as layout:
            if not removal.is_begun(layout):
                manifest = self._granted(layout, grant)
                runs.clear(layout, manifest, self._scan())
                removal.check_deletable(layout, manifest, self._scan())
                removal.begin(layout)
            removal.complete(layout)

    # --- a new point -------------------------------------------------------------------------------
    def check_grant(self, manifest: Manifest, grant: WriteGrant) -> None:
        """Raises StaleLease, EpochMoved, ParentMoved."""
        grants.check_grant(manifest, grant, self._check_lease)

    def open_incoming(
        self,
        vm: str,
        grant: WriteGrant,
        seq: int,
        disks: Mapping[str, tuple[int, DiskMode]],
        checkpoint: str | None,
        resume: bool,
        need_bytes: int = 0,
    ) -> Incoming:
        """New overlays on the newest point, or the kept incoming (resume; look at Incoming.resumed).

        seq: manifest.next_seq, or the kept incoming's (a kept one takes the new number). Without ``resume``
        a kept incoming is discarded. Waits for a merge in flight, and 5 s for another receiver to let go.
        Raises DiskShrunk, ReplicaFull, Conflict (another receiver still holds it), StaleLease, …
        """
        end = time.monotonic() + _BUSY_WAIT_S
        while True:
            try:
                with self._both(vm) as layout:
                    manifest = self._granted(layout, grant)
                    check_space(layout.root, need_bytes, self._reserve_bytes)
                    return opening.open_incoming(
                        layout, manifest, seq, disks, checkpoint, resume, self._reserve_bytes
                    )
            except opening.StillBusy as busy:
                other = FileLock(busy.directory / records.BUSY)
                if not other.acquire(max(0.0, end - time.monotonic())):
                    raise Conflict("Another receiver still holds the unfinished point") from busy
                other.release()

    def publish(
        self,
        vm: str,
        grant: WriteGrant,
        incoming: Incoming,
        draft: PointDraft,
        disks: Sequence[PointDisk],
        blobs: Mapping[str, bytes],
        duration_s: float = 0.0,
        wire_bytes: int = 0,
    ) -> Manifest:
        """Make the point exist. Close NBD exports before. ``blobs``: {"nvram": …, "tpm": …}. Idempotent.

        Raises ProtocolError when not everything wanted was received (or lacks digests), DigestMismatch
        when a PointDisk's digest is not the table's, StaleLease, EpochMoved, ParentMoved.
        """
        with self._locked(vm) as layout:
            manifest = self._load(layout)
            done = manifest.entry(incoming.seq)
            if done is not None:
                if done.checkpoint == draft.checkpoint and done.taken_at == draft.taken_at:
                    return manifest
                raise Conflict(f"Recovery point {incoming.seq} exists already and is another")
            manifest = self._granted(layout, grant)
            return publish.publish(layout, manifest, incoming, draft, disks, blobs, duration_s, wire_bytes)

    def discard_incoming(self, vm: str, grant: WriteGrant) -> None:
        """Delete what is unfinished; a receiver that still writes is refused from then on."""
        with self._locked(vm) as layout:
            self._granted(layout, grant)
            for seq, _, record in records.unfinished(layout):
                discard(layout, seq, record)

    # --- seeds -------------------------------------------------------------------------------------
    def begin_seed(self, vm: str, grant: WriteGrant, disk: str, size_bytes: int, source: str) -> Path:
        """Where to write the private copy of an image that is to be ``disk``'s first base.

        Raises Conflict when the disk has points already, ReplicaFull, StaleLease, …
        """
        with self._locked(vm) as layout:
            manifest = self._granted(layout, grant)
            check_space(layout.root, 0, self._reserve_bytes)
            return seed.begin(layout, manifest, disk, size_bytes, source, self._scan())

    def check_seeding(self, vm: str, grant: WriteGrant) -> None:
        """While it is copied: still allowed, still room? Raises StaleLease, EpochMoved, ParentMoved, ReplicaFull."""
        layout = self._layout(vm)
        self.check_grant(self._load(layout), grant)
        check_space(layout.root, 0, self._reserve_bytes)

    def seed_table(self, vm: str, disk: str, size_bytes: int) -> DigestTable:
        """The empty table of a seed that is being made."""
        path = self._layout(vm).seed_table(disk)
        path.unlink(missing_ok=True)
        return DigestTable(path, size_bytes)

    def finish_seed(self, vm: str, grant: WriteGrant, disk: str, path: Path) -> None:
        """Copy and table are whole: the disk's first copy will stand on them, by compare."""
        with self._locked(vm) as layout:
            self._granted(layout, grant)
            seed.finish(layout, disk, path)

    def abandon_seed(self, vm: str, disk: str, path: Path) -> None:
        """Delete what a failed copy left; needs no grant: nobody else writes that file."""
        with self._locked(vm) as layout:
            seed.abandon(layout, disk, path)

    # --- what is known of points -------------------------------------------------------------------
    def pin(self, vm: str, seq: int, grant: WriteGrant, pin: str) -> Manifest:
        """Pins are ``user:NOTE``, ``drill:ID``. Idempotent."""
        if not pin.startswith(("user:", "drill:")):
            raise InvalidRequest("A pin is user:NOTE or drill:ID")
        return self._change(
            vm, seq, grant, lambda e: e if pin in e.pins else e.model_copy(update={"pins": (*e.pins, pin)})
        )

    def unpin(self, vm: str, seq: int, grant: WriteGrant, pin: str) -> Manifest:
        """Idempotent. The pin of a run is not taken off this way."""
        if not pin.startswith(("user:", "drill:")):
            raise InvalidRequest("A pin is user:NOTE or drill:ID")
        return self._change(
            vm, seq, grant, lambda e: e.model_copy(update={"pins": tuple(p for p in e.pins if p != pin)})
        )

    def current_as_of(self, vm: str, request: CurrentAsOf) -> Manifest:
        """Only forward (an older time changes nothing), only for the newest point, not into the future."""
        latest = datetime.now(UTC) + _CLOCK_NOISE
        if request.at > latest:
            raise InvalidRequest(f"{request.at.isoformat()} is in the future of this site's clock")

        def advance(entry: PointEntry) -> PointEntry:
            # A time from the future says only that this clock was set back since: what is proven now is better.
            later = request.at if entry.current_as_of > latest else max(entry.current_as_of, request.at)
            images = entry.images if request.images is None else request.images
            return entry.model_copy(update={"current_as_of": later, "images": images})

        return self._change(vm, request.seq, request.grant, advance, newest_only=True)

    def mark_verified(self, vm: str, seq: int, grant: WriteGrant) -> Manifest:
        """The scrub found a whole pass without a mismatch."""
        return self._change(vm, seq, grant, lambda e: e.model_copy(update={"verified": True}))

    def mark_corrupt(
        self, vm: str, seq: int, grant: WriteGrant, blocks: Mapping[str, Iterable[int]] | None = None
    ) -> Manifest:
        """The point loses its tick; the digests of ``blocks`` become unknown, so a compare sends them again.

        Blocks (64 KiB numbers) are those of the newest point's tables.
        """
        with self._locked(vm) as layout:
            self._granted(layout, grant)
            for disk, numbers in (blocks or {}).items():
                table = DigestTable(layout.table(disk), 0)
                for block in numbers:
                    table.write(block, UNKNOWN)
                table.sync()
        return self._change(vm, seq, grant, lambda e: e.model_copy(update={"verified": False}))

    def mark_proven(self, vm: str, seq: int, grant: WriteGrant, at: datetime) -> Manifest:
        """A drill passed on it."""
        return self._change(vm, seq, grant, lambda e: e.model_copy(update={"proven_at": at}))

    # --- merging -----------------------------------------------------------------------------------
    def drop(self, vm: str, seq: int, grant: WriteGrant) -> Manifest:
        """Forget a point by merging the next one down. Raises PointPinned, Conflict, ImageToolFailed.

        A merge that was cut before goes on first. Conflict: a receive is in the way, or a failover stopped it;
        the next drop, or ``reconcile``, goes on with what was begun.
        """
        with self._merging(vm) as layout:
            with locked(layout.lock):
                self._granted(layout, grant)
                cut = layout.merge_journal.exists()
            if cut and self._merge(layout) is None:
                raise Conflict("Something more urgent stopped a merge that goes on first")
            with locked(layout.lock):
                merge.start(layout, self._granted(layout, grant), seq, self._scan)
            done = self._merge(layout)
            if done is None:
                raise Conflict("Something more urgent stopped the merge; it goes on later")
            return done

    def _merge(self, layout: Layout) -> Manifest | None:
        """Under ``.merge`` only: do, or go on with, the merge of the journal. None: stopped."""
        with locked(layout.lock):
            journal = merge.load_journal(layout)
            manifest = self._load(layout)
            if journal is None:
                return manifest
            merge.restore_heads(layout)
            dead = any(p.dead and p.seq == journal.seq for p in manifest.points)
            if dead:
                merge.check_free(layout, manifest, journal, self._scan())
        if dead and not merge.copy_down(layout, journal):
            return None
        with locked(layout.lock):
            return merge.finish(layout, self._load(layout), journal, self._scan)

    # --- failover ----------------------------------------------------------------------------------
    def check_lease(self, vm: str, fence: int) -> None:
        """Raises StaleLease unless ``fence`` is of the VM's living lease here."""
        self._check_lease(self._layout(vm).vm, fence)

    def run(self, vm: str, request: RunRequest) -> Run:
        """Take the VM over: epoch, overlays, NVRAM. Revokes a running receive, stops a merge. Idempotent.

        Raises StaleLease, EpochMoved (not above the manifest's epoch), NotFound, Conflict, ManifestInvalid.
        """
        with self._urgent(vm) as layout:
            manifest = self._load(layout)
            self._check_lease(layout.vm, request.fence)
            before = runs.earlier(layout, manifest, request)
            if before is not None:
                return before
            publish.settle(layout, manifest)
            return runs.make(layout, manifest, request, self._site_id, self._scan())

    def give_back(self, vm: str, request: GiveBackRequest) -> Manifest:
        """Undo a take-over: the source owns the VM again, under a new epoch. Idempotent.

        Raises StaleLease, EpochMoved, Conflict (something uses the overlays), NotFound, ManifestInvalid.
        """
        with self._urgent(vm) as layout:
            manifest = self._load(layout)
            self._check_lease(layout.vm, request.fence)
            return runs.give_back(layout, manifest, request, self._scan())

    # --- the runbook -------------------------------------------------------------------------------
    def folder(self, vm: str) -> Path:
        """The replica's directory. Raises NotFound."""
        return self._layout(vm).top

    def changed(self, vm: str) -> tuple[int, int] | None:
        """Something that differs after every change of the manifest; None while there is none."""
        try:
            found = self._layout(vm).manifest.stat()
        except (FileNotFoundError, NotFound):
            return None
        return found.st_ino, found.st_mtime_ns

    def keep_runbook(self, manifest: Manifest, text: str | None, xml_name: str, xml: str) -> None:
        """Write the definition, then the text that names it; ``text`` None: the definition alone.

        Raises NotFound, ParentMoved (the manifest has moved on since), ManifestInvalid.
        """
        with self._locked(manifest.vm_uuid) as layout:
            if self._load(layout).generation != manifest.generation:
                raise ParentMoved("The replica changed while its runbook was written")
            runbooks.keep(layout, text, xml_name, xml)

    def commit(self, vm: str, request: CommitRequest) -> Manifest:
        """The failover stands. Raises StaleLease, EpochMoved. Idempotent."""
        with self._locked(vm) as layout:
            self._check_lease(layout.vm, request.fence)
            return kept.commit(layout, self._load(layout), request)

    def raise_epoch(self, vm: str, request: EpochRequest) -> Manifest:
        """The owner's epoch follows what the other site has heard of. Raises StaleLease, EpochMoved. Idempotent."""
        with self._urgent(vm) as layout:
            self._check_lease(layout.vm, request.fence)
            manifest = self._load(layout)
            publish.settle(layout, manifest)
            return kept.raise_epoch(layout, manifest, request)

    def let_go(self, vm: str, epoch: int, request: LetGoRequest) -> Manifest:
        """Delete a kept run. Raises StaleLease, Conflict (it is in use, or the VM's run), NotFound. Idempotent."""
        with self._both(vm) as layout:
            self._check_lease(layout.vm, request.fence)
            return kept.let_go(layout, self._load(layout), epoch, self._scan())

    # --- drills ------------------------------------------------------------------------------------
    # No lease: a drill writes to nothing that a lease guards, and cycles go on meanwhile.
    def open_drill(self, vm: str, drill_id: str, seq: int) -> drills.DrillFiles:
        """Overlays on a point, outside the chain; the point is pinned. A merge that was begun ends first. Idempotent.

        Raises NotFound, ReplicaFull, ManifestInvalid; Conflict or PointPinned when a cut merge cannot go on.
        """
        with self._merging(vm) as layout:
            with locked(layout.lock):
                publish.settle(layout, self._load(layout))
                check_space(layout.root, 0, self._reserve_bytes)
                cut = layout.merge_journal.exists()
            if cut and self._merge(layout) is None:
                raise Conflict("Something more urgent stopped a merge that goes on first")
            with locked(layout.lock):
                return drills.make(layout, self._load(layout), drill_id, seq)

    def close_drill(self, vm: str, drill_id: str, *, force: bool = False) -> None:
        """Overlays and pin go. Idempotent, also without a replica. Raises Conflict while something uses them."""
        try:
            with self._locked(vm) as layout:
                if force:
                    drills.force_remove(layout, drill_id)
                # After a crash libvirt may have left its overlays to root: they need not be read to be removed.
                refs = references.scan(self._roots, self._in_use(), strict=False)
                drills.remove(layout, self._load(layout), drill_id, refs)
        except NotFound:
            return

    def drill_bytes(self, vm: str, drill_id: str) -> int:
        """Disk blocks that the drill's overlays take up. Raises NotFound."""
        return drills.used(self._layout(vm), drill_id)

    def prove(self, vm: str, seq: int, at: datetime, report: bytes, png: bytes | None) -> None:
        """A drill passed on it: beside the point lie its report and its picture. Raises NotFound."""
        with self._locked(vm) as layout:
            manifest = self._load(layout)
            entry = manifest.entry(seq)
            if entry is None:
                raise NotFound(f"There is no recovery point {seq} of VM {manifest.vm_name}")
            drills.keep_proof(layout, seq, report, png)
            index.save(layout, manifest, index.replaced(manifest, entry.model_copy(update={"proven_at": at})))

    def proof(self, vm: str, seq: int) -> tuple[bytes, bytes | None]:
        """(report, PNG) of the last drill that passed on the point. Raises NotFound."""
        layout, _ = self._entry(vm, seq)
        directory = layout.point(seq)
        try:
            report = (directory / DRILL_REPORT).read_bytes()
        except FileNotFoundError as error:
            raise NotFound(f"No drill has passed on recovery point {seq}") from error
        picture = directory / DRILL_PICTURE
        return report, picture.read_bytes() if picture.exists() else None

    # --- the way home ------------------------------------------------------------------------------
    def check_fence(self, vm: str, fence: int) -> None:
        """Raises StaleLease; there need be no replica yet."""
        self._check_lease(check_vm(vm), fence)

    def adopted(self, vm: str, request: AdoptRequest) -> Manifest | None:
        """What this very adoption made before, tidied; None: it is to be done. Raises EpochMoved, PointPinned."""
        try:
            with self._both(vm) as layout:
                return adoption.before(layout, self._load(layout), request, self._site_id)
        except NotFound:
            return None

    def flatten(self, vm: str, image: Path, fence: int) -> Path:
        """An image of a replica that is not run: the one file it consists of afterwards."""
        with self._both(vm) as layout:
            self._check_lease(layout.vm, fence)
            return adoption.flatten(layout, self._load(layout), image, self._scan())

    def inside(self, vm: str, image: Path) -> bool:
        """Does the image lie in the VM's replica?"""
        try:
            return image.is_relative_to(self._layout(vm).top)
        except NotFound:
            return False

    def adopt(self, vm: str, request: AdoptRequest, found: Mapping[str, adoption.Original]) -> Manifest:
        """The replica of the reverse direction, hung on the disks that were found. Raises StaleLease, EpochMoved."""
        vm = check_vm(vm)
        try:
            layout = self._layout(vm)
        except NotFound:
            layout = Layout(self._roots[0], vm)
            make_dir(layout.top)
        with self._both(vm):
            self._check_lease(vm, request.fence)
            try:
                manifest = self._load(layout)
            except NotFound:
                manifest = None
            done = adoption.before(layout, manifest, request, self._site_id) if manifest else None
            return done or adoption.adopt(layout, manifest, request, self._site_id, found)

    def folding(self, vm: str) -> dict[str, tuple[Path, Path]]:
        """Of a fold in flight: disk -> (overlay, file below)."""
        return fold.in_flight(self._layout(vm))

    def fold(self, vm: str, request: FoldRequest) -> FoldPlan:
        """Before and after the VM's overlay is written down. Raises StaleLease, EpochMoved, PointPinned, Conflict."""
        with self._urgent(vm) as layout:
            self._check_lease(layout.vm, request.fence)
            act = fold.finish if request.done else fold.begin
            return act(layout, self._load(layout), request, self._site_id, self._scan())

    # --- after a crash -----------------------------------------------------------------------------
    def reconcile(self, vm: str) -> Manifest:
        """After a crash and before a cycle: go on with a merge, take back what was not published, tidy.

        Raises ManifestInvalid (then nothing was deleted), NotFound (also after finishing a deletion). A merge
        that something is in the way of is left for the next time.
        """
        with self._merging(vm) as layout:
            with locked(layout.lock):
                if removal.is_begun(layout):
                    removal.complete(layout)
                    raise NotFound(f"The replica of VM {layout.vm} was deleted")
                manifest = self._load(layout)
                publish.settle(layout, manifest)
                refs = self._scan()
                recover.clear_unfinished(layout, manifest, refs)
                runs.clear(layout, manifest, refs)
            try:
                self._merge(layout)
            except (PointPinned, Conflict):
                return self._load(layout)  # the points read the same with and without it
            return self._load(layout)

    def rebuild(self, vm: str) -> Manifest:
        """Write a manifest again from point.json, entry.json and qcow2 heads; deletes nothing.

        A valid manifest is left as it is. The damaged one is kept as ``manifest.json.damaged``… by its time.
        """
        with self._both(vm) as layout:
            try:
                return self._load(layout)
            except ManifestInvalid:
                found = recover.candidate(layout)
                if layout.manifest.exists():
                    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
                    write_durable(layout.top / f"damaged-{stamp}.json", layout.manifest.read_bytes())
                for part in (layout.disks, layout.incoming, layout.points, layout.digests, layout.runs):
                    make_dir(part)
                return index.save(layout, None, found)

    # --- inside ------------------------------------------------------------------------------------
    def _layout(self, vm: str) -> Layout:
        vm = check_vm(vm)
        for root in self._roots:
            layout = Layout(root, vm)
            if layout.top.is_dir() and not layout.top.is_symlink():
                return layout
        raise NotFound(f"No replica of VM {vm} is at this site")

    def _load(self, layout: Layout) -> Manifest:
        if removal.is_begun(layout):
            raise NotFound(f"The replica of VM {layout.vm} is being deleted")
        return index.load(layout)

    def _entry(self, vm: str, seq: int) -> tuple[Layout, PointEntry]:
        layout = self._layout(vm)
        entry = self._load(layout).entry(seq)
        if entry is None:
            raise NotFound(f"There is no recovery point {seq} of VM {layout.vm}")
        return layout, entry

    def _scan(self) -> References:
        return references.scan(self._roots, self._in_use())

    def _granted(self, layout: Layout, grant: WriteGrant) -> Manifest:
        """Under the lock: the manifest, its last publish settled, the grant checked against it."""
        manifest = self._load(layout)
        self.check_grant(manifest, grant)
        publish.settle(layout, manifest)
        return manifest

    def _change(
        self,
        vm: str,
        seq: int,
        grant: WriteGrant,
        change: Callable[[PointEntry], PointEntry],
        newest_only: bool = False,
    ) -> Manifest:
        with self._locked(vm) as layout:
            manifest = self._granted(layout, grant)
            entry = manifest.entry(seq)
            if entry is None:
                raise NotFound(f"There is no recovery point {seq} of VM {manifest.vm_name}")
            if newest_only and entry != manifest.newest:
                raise ParentMoved(f"Recovery point {seq} is no longer the newest")
            after = change(entry)
            return manifest if after == entry else index.save(layout, manifest, index.replaced(manifest, after))

    @contextmanager
    def _locked(self, vm: str) -> Iterator[Layout]:
        layout = self._layout(vm)
        with _taken(layout, layout.lock):
            yield layout

    @contextmanager
    def _merging(self, vm: str) -> Iterator[Layout]:
        layout = self._layout(vm)
        with _taken(layout, layout.merge_lock):
            yield layout

    @contextmanager
    def _both(self, vm: str) -> Iterator[Layout]:
        with self._merging(vm) as layout, _taken(layout, layout.lock):
            yield layout

    @contextmanager
    def _urgent(self, vm: str) -> Iterator[Layout]:
        """Both locks, and a merge in flight is stopped for it."""
        layout = self._layout(vm)
        with ExitStack() as held:
            with _taken(layout, layout.stop_merge):
                held.enter_context(_taken(layout, layout.merge_lock))
            held.enter_context(_taken(layout, layout.lock))
            yield layout


@contextmanager
def _taken(layout: Layout, path: Path) -> Iterator[None]:
    try:
        lock = FileLock(path)
        lock.acquire(None)
    except FileNotFoundError as error:
        raise NotFound(f"No replica of VM {layout.vm} is at this site") from error
    try:
        yield
    finally:
        lock.release()


def _disk_bytes(layout: Layout, manifest: Manifest, bases: Mapping[str, str]) -> dict[str, int]:
    """What each disk's files take up: its seed (``bases``), its points' and those of an unfinished copy."""
    files = [(disk, layout.disks / name) for disk, name in bases.items()]
    files += [(disk, layout.disks / name) for p in manifest.points for disk, name in p.files.items()]
    for _seq, _directory, record in records.unfinished(layout):
        files += [(disk, layout.incoming / d.file) for disk, d in (record.disks if record else {}).items()]
    used: dict[str, int] = {}
    for disk, path in dict.fromkeys(files):
        used[disk] = used.get(disk, 0) + file_bytes(path)
    return used


def _unfinished_view(layout: Layout) -> IncomingView | None:
    kept = [
        (seq, directory, record)
        for seq, directory, record in records.unfinished(layout)
        if record is not None and records.agreed(directory, record)
    ]
    if not kept:
        return None
    seq, directory, record = kept[-1]
    incoming = Incoming(layout, seq, record, FileLock(directory / records.BUSY), 0, resumed=True)
    return IncomingView(
        seq=seq,
        parent_seq=record.parent_seq,
        checkpoint=record.checkpoint,
        disks=incoming.modes,
        sizes=incoming.sizes,
        received_bytes=incoming.received_bytes(),
        complete_first_copy=record.parent_seq is None and incoming.complete(),
    )
