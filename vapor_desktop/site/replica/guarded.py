"""Finding a replica below the roots, and holding its locks while something is done to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from vapor_desktop.model.errors import NotFound, ParentMoved
from vapor_desktop.model.manifest import Manifest, PointEntry
from vapor_desktop.model.wire import WriteGrant
from vapor_desktop.site.replica import grants, index, merge, publish, references, removal
from vapor_desktop.site.replica.files import FileLock, locked
from vapor_desktop.site.replica.layout import Layout, check_vm
from vapor_desktop.site.replica.references import References


class GuardedReplicas:
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

    def check_grant(self, manifest: Manifest, grant: WriteGrant) -> None:
        """Raises StaleLease, EpochMoved, ParentMoved."""
        grants.check_grant(manifest, grant, self._check_lease)

    def check_lease(self, vm: str, fence: int) -> None:
        """Raises StaleLease unless ``fence`` is of the VM's living lease here."""
        self._check_lease(self._layout(vm).vm, fence)

    def check_fence(self, vm: str, fence: int) -> None:
        """Raises StaleLease; there need be no replica yet."""
        self._check_lease(check_vm(vm), fence)

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
