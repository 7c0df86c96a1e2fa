"""Reading replicas. No lock: the manifest is replaced whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vapor_desktop.model.errors import InvalidRequest, ManifestInvalid, NotFound
from vapor_desktop.model.manifest import Manifest, Point
from vapor_desktop.model.wire import IncomingView, PointDomain, ReplicaView
from vapor_desktop.site.replica import index, kept, publish, recover, references, seed
from vapor_desktop.site.replica import record as records
from vapor_desktop.site.replica.digests import DigestTable
from vapor_desktop.site.replica.files import FileLock
from vapor_desktop.site.replica.guarded import GuardedReplicas
from vapor_desktop.site.replica.incoming import Incoming
from vapor_desktop.site.replica.layout import POINT_FILES, Layout, check_vm
from vapor_desktop.site.replica.space import file_bytes, used_bytes


class ReplicaReading(GuardedReplicas):
    """What is here, and how it stands."""

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
