"""Where the parts of one replica lie (``docs/protocols.md``), and which names are allowed in it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

from vapor_desktop.model.errors import InvalidRequest

_DISK = re.compile(r"[a-z][a-z0-9]{0,31}")
IMAGE_NAME = re.compile(r"[0-9a-f]{32}\.qcow2")
BLOB_FILES = {"nvram": "nvram.fd", "tpm": "tpm.tar"}
POINT_FILES = ("domain.xml", *BLOB_FILES.values())
# Of the last drill that passed on the point.
DRILL_REPORT, DRILL_PICTURE = "drill.json", "drill.png"


def check_vm(vm: str) -> str:
    """The VM's UUID in its usual form. Raises InvalidRequest: it becomes a path."""
    try:
        return str(UUID(vm))
    except ValueError as error:
        raise InvalidRequest(f"{vm!r} is not a VM's UUID") from error


def check_disk(target: str) -> str:
    """A disk's target name. Raises InvalidRequest: it becomes a file name."""
    if not _DISK.fullmatch(target):
        raise InvalidRequest(f"{target!r} is not a disk's target name")
    return target


def new_image_name() -> str:
    """All of one length, so that a changed backing name never changes the head's layout."""
    return f"{uuid4().hex}.qcow2"


def is_plain(name: str) -> bool:
    """A file of ours below ``disks/``; else an adopted image, named by its absolute path, or one of a run."""
    return IMAGE_NAME.fullmatch(name) is not None


def backing_of(name: str) -> str:
    """What an overlay in ``disks/`` or ``incoming/`` writes down as its backing file."""
    return name if name.startswith("/") else f"../disks/{name}"


@dataclass(frozen=True)
class Layout:
    """Paths of one replica. Overlays lie in ``incoming/`` and then in ``disks/``, both one level deep, so that
    the relative backing name ``../disks/NAME`` is right in both."""

    root: Path
    vm: str

    @property
    def top(self) -> Path:
        """The replica's directory."""
        return self.root / self.vm

    @property
    def manifest(self) -> Path:
        """The index."""
        return self.top / "manifest.json"

    @property
    def protection(self) -> Path:
        """The manifest's part that no point.json carries, for a rebuild."""
        return self.top / "protection.json"

    @property
    def lock(self) -> Path:
        """Held for every change of the index."""
        return self.top / ".lock"

    @property
    def merge_lock(self) -> Path:
        """Held while data is merged; taken before ``lock``."""
        return self.top / ".merge"

    @property
    def stop_merge(self) -> Path:
        """Held while somebody more urgent waits for ``merge_lock``."""
        return self.top / ".stop-merge"

    @property
    def merge_journal(self) -> Path:
        """Which files a merge in flight is about."""
        return self.top / "merge.json"

    @property
    def fold_journal(self) -> Path:
        """Which files a fold in flight is about."""
        return self.top / "fold.json"

    @property
    def seeds(self) -> Path:
        """Copies of images that were here before the first point."""
        return self.top / "seeds.json"

    @property
    def disks(self) -> Path:
        """The chain."""
        return self.top / "disks"

    @property
    def incoming(self) -> Path:
        """Unfinished overlays, and a directory per unfinished point."""
        return self.top / "incoming"

    @property
    def points(self) -> Path:
        """A directory per point."""
        return self.top / "points"

    @property
    def digests(self) -> Path:
        """Digest tables of the newest point."""
        return self.top / "digests"

    @property
    def runs(self) -> Path:
        """A directory per epoch in which the VM ran here."""
        return self.top / "run"

    @property
    def runbook(self) -> Path:
        """``runbook.txt`` and the definitions that it names."""
        return self.top / "runbook"

    @property
    def drills(self) -> Path:
        """A directory per drill that hangs on a point."""
        return self.top / "drill"

    def point(self, seq: int) -> Path:
        """``points/000041``."""
        return self.points / f"{seq:06d}"

    def unfinished(self, seq: int) -> Path:
        """``incoming/000042``."""
        return self.incoming / f"{seq:06d}"

    def run(self, epoch: int) -> Path:
        """``run/3``."""
        return self.runs / str(epoch)

    def table(self, disk: str) -> Path:
        """``digests/vda.table``."""
        return self.digests / f"{check_disk(disk)}.table"

    def seed_table(self, disk: str) -> Path:
        """``digests/vda.seed.table``: of a seed that is being made."""
        return self.digests / f"{check_disk(disk)}.seed.table"


def numbered(directory: Path) -> dict[int, Path]:
    """Real subdirectories whose name is a number."""
    if not directory.is_dir():
        return {}
    return {int(p.name): p for p in directory.iterdir() if p.name.isdecimal() and p.is_dir() and not p.is_symlink()}
