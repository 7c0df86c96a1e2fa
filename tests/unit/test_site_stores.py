"""Which files the host's domains read: whole chains, on real qcow2 files."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from vapor_desktop.model.domains import DiskView, DomainView
from vapor_desktop.model.errors import HypervisorUnreachable, NotAllowed
from vapor_desktop.site.helper_client import HelperClient
from vapor_desktop.site.stores import in_use_by


class Domains:
    """A libvirt that tells these disks."""

    def __init__(self, *sources: tuple[str, str | None], away: bool = False) -> None:
        self._sources = sources
        self._away = away

    def domains(self) -> Sequence[DomainView]:
        if self._away:
            raise HypervisorUnreachable("libvirt does not answer")
        disks = tuple(
            DiskView(f"vd{i}", "disk", kind, path, "qcow2", None, None)
            for i, (kind, path) in enumerate(self._sources)
        )
        return [
            DomainView(
                "u", "n", "shutoff", None, True, False, disks, (), (), False, None, None, False, "q35", False, None
            )
        ]


def image(path: Path, backing: str | None = None) -> Path:
    options = ["-b", backing, "-F", "qcow2"] if backing else []
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, path, "1M"], check=True, cwd=path.parent)
    return path


def test_every_file_of_every_chain_is_named(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    base, point = image(store / "base.qcow2"), image(store / "point.qcow2", "base.qcow2")
    drill = image(tmp_path / "drill.qcow2", str(point))
    other = image(tmp_path / "other.qcow2")
    link = tmp_path / "link.qcow2"
    link.symlink_to(drill)
    domains = Domains(
        ("file", str(link)), ("file", str(other)), ("file", str(tmp_path / "gone")), ("none", None), ("network", "x")
    )
    found = in_use_by(domains, HelperClient(tmp_path / "no.sock"))()
    assert {path.resolve() for path in found} >= {base, point, drill, other}


def test_what_cannot_be_looked_at_stops_it(tmp_path: Path) -> None:
    helper = HelperClient(tmp_path / "no.sock")
    with pytest.raises(HypervisorUnreachable):
        in_use_by(Domains(away=True), helper)()
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(NotAllowed):
        in_use_by(Domains(("file", str(loop))), helper)()
