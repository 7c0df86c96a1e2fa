"""A VM that runs on its replica: taken over, committed, given back; drills beside it; the way home."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vapor_desktop.model.errors import Conflict, NotFound
from vapor_desktop.model.manifest import Manifest
from vapor_desktop.model.wire import (
    AdoptRequest,
    CommitRequest,
    EpochRequest,
    FoldPlan,
    FoldRequest,
    GiveBackRequest,
    LetGoRequest,
    Run,
    RunRequest,
)
from vapor_desktop.site.replica import adoption, drills, fold, kept, publish, references, runs
from vapor_desktop.site.replica.files import locked, make_dir
from vapor_desktop.site.replica.guarded import GuardedReplicas
from vapor_desktop.site.replica.layout import Layout, check_vm
from vapor_desktop.site.replica.space import check_space


class TakeOver(GuardedReplicas):
    """Runs and drills of a replica."""

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
