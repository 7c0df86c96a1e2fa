"""A powered-off VM is started in the middle of its copy: it starts, and nothing torn becomes a recovery point."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator

import proofs
import pytest

from vapor_desktop.engine.cycle import Outcome
from vapor_desktop.lab import guests
from vapor_desktop.lab.guests import GuestSpec
from vapor_desktop.lab.keyring_session import KeyringSession
from vapor_desktop.lab.lab import Lab
from vapor_desktop.lab.processes import wait_until
from vapor_desktop.lab.stage import Stage
from vapor_desktop.model.manifest import Manifest

pytestmark = [pytest.mark.lab, pytest.mark.timeout(400)]
MIB = 1 << 20


@pytest.fixture(scope="module")
def stage(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Two paired sites; cycles run when a test says so."""
    home = tmp_path_factory.mktemp("start-while-copied")
    with KeyringSession(home):
        made = Stage(lab, home)
        made.open(run_engine=False)
        try:
            made.pair()
            made.compare_every_point()
            yield made
        finally:
            made.close()


def stop(stage: Stage, name: str) -> None:
    a = stage.lab.sites["a"]
    guests.shut_down(a, name)


def start(stage: Stage, name: str) -> None:
    a = stage.lab.sites["a"]
    said = len(a.serial(name))
    a.virsh("start", name)
    guests.wait_for(a, name, "VAPOR-DIARY ", timeout_s=120, after=said)


def to_raw(stage: Stage, name: str) -> None:
    """The guest's only disk as a raw file."""
    a = stage.lab.sites["a"]
    [image] = guests.disk_files(a, name)
    raw = image.replace(".qcow2", ".raw")
    subprocess.run(["qemu-img", "convert", "-O", "raw", a.path(image), a.path(raw)], check=True)
    xml = a.virsh("dumpxml", "--inactive", name).replace("type='qcow2'", "type='raw'").replace(image, raw)
    a.path("/var/lib/libvirt/raw.xml").write_text(xml)
    a.virsh("define", "/var/lib/libvirt/raw.xml")


@pytest.mark.parametrize("fmt", ["qcow2", "raw"])
def test_the_vm_starts_and_no_torn_point_is_published(stage: Stage, fmt: str) -> None:
    assert stage.program is not None
    engine, a = stage.program.engine, stage.lab.sites["a"]
    name = f"off-{fmt}"
    guests.add(a, GuestSpec(name), stage.lab.cache)
    guests.wait_for(a, name, "VAPOR-DIARY ", timeout_s=120)
    if fmt == "raw":
        stop(stage, name)
        to_raw(stage, name)
        start(stage, name)
    site_a, site_b = sorted((s.site for s in stage.backend.snapshot().sites), key=lambda site: site.name)
    [pid] = stage.protect(site_a, site_b, [name])
    assert engine.worker.run(pid) is not None
    guests.guest_shell(a, name, "dd if=/dev/urandom of=/data0/fill bs=1M count=24 && sync")
    stop(stage, name)
    limit(stage, pid, 2 * MIB)

    def manifest() -> Manifest:
        p = stage.row(name).protection
        return engine.gateway.api(site_b).replica(p.vm_uuid).manifest

    before = manifest().points
    found: list[Outcome | None] = []
    worker = threading.Thread(target=lambda: found.append(engine.worker.run(pid)))
    worker.start()

    def under_way() -> bool:
        progress = engine.worker.progress(pid)
        assert worker.is_alive(), (found, stage.row(name).protection.last_error)
        return progress is not None and progress.done_bytes > 0

    wait_until(under_way, "the offline copy to be under way", timeout_s=60)
    start(stage, name)  # virsh start fails where its own disk cannot be opened
    worker.join(60)
    assert found == [None]
    p = stage.row(name).protection
    assert p.last_error_code == "TRANSFER-INTERRUPTED", p.last_error
    assert manifest().points == before

    limit(stage, pid, None)
    outcome = engine.worker.run(pid)
    assert outcome is not None, stage.row(name).protection.last_error
    assert outcome.seq is not None
    compared = [c for c in stage.comparisons if c.vm_name == name and c.seq == outcome.seq]
    assert [c.identical for c in compared] == [True], compared

    # Left off, the next copy is a point, and the one after it knows that nothing changed.
    stop(stage, name)
    done = engine.worker.run(pid)
    assert done is not None, stage.row(name).protection.last_error
    newest = manifest().newest
    assert newest is not None
    assert set(newest.images) == {"vda"}
    if fmt == "qcow2":
        quiet = engine.worker.run(pid)
        assert quiet is not None
        assert quiet.unchanged
        a.virsh("desc", name, "--config", "moved to another rack")  # nothing but its configuration changes
        told = engine.worker.run(pid)
        assert told is not None
        assert told.seq is not None
        assert told.result is not None
        assert told.result.data_bytes == 0
        after = engine.worker.run(pid)
        assert after is not None
        assert after.unchanged
    assert not stage.row(name).protection.warnings


def limit(stage: Stage, pid: str, bandwidth_bytes_s: int | None) -> None:
    proofs.edit(stage, pid, bandwidth_bytes_s=bandwidth_bytes_s)
