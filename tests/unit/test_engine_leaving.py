"""An end of protection: the running cycle ends first, whichever engine runs it, and no bitmap of ours stays."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from tests.unit.test_engine_plan import disk, domain, manifest, point
from tests.unit.test_engine_runtime import CLOCK, DarkGateway, engine, gateway, site  # noqa: F401 - two are fixtures
from vapor_desktop.engine.console import EngineBackend
from vapor_desktop.engine.leaving import checkpoints_at_target, forget_bitmaps
from vapor_desktop.engine.ports import ImageInfo, SiteGateway
from vapor_desktop.engine.runtime import Engine, new_identity
from vapor_desktop.lab.processes import wait_until
from vapor_desktop.model.domains import DomainView
from vapor_desktop.model.errors import DomainNotFound, SiteUnreachable
from vapor_desktop.model.policy import Policy
from vapor_desktop.model.sites import Protection
from vapor_desktop.model.wire import ReplicaView
from vapor_desktop.store.durable import DbosOperations

PID = "12345678-0000-4000-8000-000000000000"
MINE = ["vapor-12345678-1-000004-aa", "vapor-12345678-1-000005-bb"]
OTHERS = ["vapor-87654321-1-000001-cc", "virtnbdbackup.0"]
PROTECTION = Protection(
    protection_id=PID, vm_uuid="u", vm_name="web", source_site="A", target_site="B", policy=Policy(), epoch_owner="A",
    created_at=CLOCK.now(),
)  # fmt: skip


class Host:
    """A source with one VM: what libvirt lists, and what lies in the images. Also the gateway and the target."""

    def __init__(self, live: bool, listed: Sequence[str]) -> None:
        self.view: DomainView | None = domain(disk("vda"), disk("vdb"), disk("vdc", fmt="raw"), live=live)
        self.listed = list(listed)
        self.images = {f"/img/{t}": [*MINE, *OTHERS] for t in ("vda", "vdb")}
        self.target_dark = False

    def hypervisor(self, _site: object) -> Any:
        return self

    def mover(self, _source: object, _target: object) -> Any:
        return self

    def api(self, _site: object) -> Any:
        if self.target_dark:
            raise SiteUnreachable("no answer")
        return self

    def replica(self, _vm: str) -> ReplicaView:
        m = manifest(point(4, MINE[0]), point(5, MINE[1]))
        return ReplicaView(manifest=m, root="/r", used_bytes=0, incoming=None, files_in_chain=2, valid=True)

    def domain(self, _vm: str) -> DomainView:
        if self.view is None:
            raise DomainNotFound("no such VM")
        return self.view

    def checkpoints(self, _vm: str) -> list[str]:
        return list(self.listed)

    def delete_checkpoint(self, _vm: str, name: str) -> None:
        """As libvirt does it: bitmaps go only while the VM runs; an orphan is adopted and deleted."""
        assert self.view is not None
        if name in self.listed:
            self.listed.remove(name)
        if self.view.live_id is not None:
            for bitmaps in self.images.values():
                if name in bitmaps:
                    bitmaps.remove(name)

    def image_info(self, path: str) -> ImageInfo:
        return ImageInfo(1 << 30, "qcow2", dict.fromkeys(self.images[path], True), "1:2:3")

    def remove_bitmap(self, path: str, name: str) -> None:
        assert self.view is not None
        assert self.view.live_id is None
        self.images[path].remove(name)


def leave(host: Host) -> None:
    there = cast("SiteGateway", host)
    names = checkpoints_at_target(there, PROTECTION, site("B"))
    forget_bitmaps(there, PROTECTION, site("A"), site("B"), names)


@pytest.mark.parametrize("target_dark", [False, True])
def test_bitmaps_of_a_vm_that_is_off_are_removed_from_its_images(target_dark: bool) -> None:
    host = Host(live=False, listed=[MINE[1], OTHERS[1]])
    host.target_dark = target_dark
    leave(host)
    assert host.images == {"/img/vda": OTHERS, "/img/vdb": OTHERS}
    assert host.listed == [OTHERS[1]]


def test_a_bitmap_that_libvirt_does_not_list_is_known_by_the_replica() -> None:
    host = Host(live=True, listed=[OTHERS[1]])  # made while the VM was off: libvirt has no metadata of it
    leave(host)
    assert host.images == {"/img/vda": OTHERS, "/img/vdb": OTHERS}


def test_a_vm_that_is_gone_has_nothing_to_remove() -> None:
    host = Host(live=False, listed=[])
    host.view = None
    leave(host)
    assert host.images["/img/vda"] == [*MINE, *OTHERS]


def test_the_cycle_of_another_engine_ends_before_the_replica_goes(
    engine: Engine,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    order: list[str] = []
    began = threading.Event()

    def long_cycle(protection_id: str, *, asked: bool) -> None:
        assert asked  # by a person, now
        began.set()
        wait_until(lambda: protection_id in engine.worker._cancelled, "the cancelling", timeout_s=20)
        engine.worker._cancelled.discard(protection_id)
        order.append("cycle ended")

    monkeypatch.setattr(engine.worker, "run", long_cycle)
    monkeypatch.setattr(engine.recovery, "delete_replica", lambda _pid: order.append("replica deleted"))
    EngineBackend(engine, None).sync_now("p1")  # type: ignore[arg-type]
    assert began.wait(10)
    EngineBackend(engine, None).sync_now("p1")  # type: ignore[arg-type]  # one more is asked for meanwhile
    durable = DbosOperations(f"sqlite:///{tmp_path / 'v.db'}")
    viewer = Engine(engine.repository, DarkGateway(), CLOCK, new_identity("console", CLOCK), durable)
    EngineBackend(viewer, None).unprotect("p1", delete_replica=True)  # type: ignore[arg-type]
    assert order == ["cycle ended", "replica deleted"]
    assert engine.repository.protection("p1") is None
    assert [e.kind for e in engine.repository.events() if e.kind == "leftover"] != []
