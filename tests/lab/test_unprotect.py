"""An end of protection leaves no bitmap in the images, whether the VM runs or is off."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from vapor_desktop.lab import guests
from vapor_desktop.lab.guests import GuestSpec
from vapor_desktop.lab.keyring_session import KeyringSession
from vapor_desktop.lab.lab import Lab
from vapor_desktop.lab.processes import wait_until
from vapor_desktop.lab.stage import Stage

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]
NAME = "leaver"


@pytest.fixture(scope="module")
def stage(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """One guest; the engine runs."""
    home = tmp_path_factory.mktemp("leaver")
    guests.add(lab.sites["a"], GuestSpec(NAME), lab.cache)
    guests.wait_for(lab.sites["a"], NAME, "VAPOR-DIARY ", timeout_s=120)
    with KeyringSession(home):
        made = Stage(lab, home)
        made.open()
        try:
            made.pair()
            yield made
        finally:
            made.close()


def bitmaps(stage: Stage) -> list[str]:
    """Of the stopped guest's image."""
    a = stage.lab.sites["a"]
    [image] = guests.disk_files(a, NAME)
    info = json.loads(a.exec(["qemu-img", "info", "--output=json", image]).stdout)
    return [b["name"] for b in info["format-specific"]["data"].get("bitmaps", [])]


def stop(stage: Stage) -> None:
    a = stage.lab.sites["a"]
    guests.shut_down(a, NAME)


def test_nothing_stays_in_the_images_of_a_vm_that_is_off(stage: Stage) -> None:
    a = stage.lab.sites["a"]
    site_a, site_b = sorted((s.site for s in stage.backend.snapshot().sites), key=lambda site: site.name)
    [pid] = stage.protect(site_a, site_b, [NAME])
    stage.wait_for_point(NAME, 2)
    stop(stage)

    def quiet() -> bool:
        last = stage.backend.cycles(pid, 1)
        return bool(last) and last[0].outcome == "unchanged"

    wait_until(quiet, "a cycle of the stopped VM", timeout_s=90, every_s=0.2)
    a.exec(["qemu-img", "bitmap", "--add", "-f", "qcow2", *guests.disk_files(a, NAME), "somebody-elses"])
    assert len(bitmaps(stage)) == 2
    stage.backend.unprotect(pid, delete_replica=True)
    assert bitmaps(stage) == ["somebody-elses"]
    assert a.virsh("checkpoint-list", NAME, "--name") == ""
    assert [e.text for e in stage.backend.events() if e.kind == "leftover"] == []

    # Off from its first copy on: libvirt never hears of the bitmap, which then goes while the VM runs.
    [pid] = stage.protect(site_a, site_b, [NAME])
    stage.wait_for_point(NAME, 1)
    said = len(a.serial(NAME))
    a.virsh("start", NAME)
    stage.backend.unprotect(pid, delete_replica=True)
    guests.wait_for(a, NAME, "VAPOR-DIARY ", timeout_s=120, after=said)
    stop(stage)
    assert bitmaps(stage) == ["somebody-elses"]
    assert [e.text for e in stage.backend.events() if e.kind == "leftover"] == []
