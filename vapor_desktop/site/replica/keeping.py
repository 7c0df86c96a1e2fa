"""The replica itself: made, set, deleted, mended after a crash."""

from __future__ import annotations

from datetime import UTC, datetime
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
from vapor_desktop.model.manifest import Manifest
from vapor_desktop.model.wire import ReplicaCreate, SettingsWrite, WriteGrant
from vapor_desktop.site.replica import grants, index, publish, recover, removal, runbooks, runs
from vapor_desktop.site.replica.files import locked, make_dir, write_durable
from vapor_desktop.site.replica.guarded import GuardedReplicas
from vapor_desktop.site.replica.layout import Layout, check_vm
from vapor_desktop.site.replica.space import check_space


class ReplicaKeeping(GuardedReplicas):
    """A replica as a whole."""

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
