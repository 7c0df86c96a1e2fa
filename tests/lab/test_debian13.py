"""Once with site B on another release (Debian 13: libvirt 11.3, QEMU 10): protect, cycle, fail over."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from vapor_desktop.lab import guests
from vapor_desktop.lab.guest_tpm import SECRET_BYTES, define_secret, read_secret, write_secret
from vapor_desktop.lab.keyring_session import KeyringSession
from vapor_desktop.lab.lab import Lab
from vapor_desktop.lab.stage import Stage

pytestmark = [pytest.mark.lab, pytest.mark.soak, pytest.mark.timeout(900)]
CACHE = Path.home() / ".cache/vapor-lab"


@pytest.fixture
def newer(lab_lock: None) -> Iterator[Lab]:
    """A lab whose second host is a Debian 13."""
    made = Lab("newer", cache=CACHE)
    made.up(release_b="trixie")
    yield made
    made.down()


def test_a_newer_target_takes_cycles_and_a_failover(newer: Lab, tmp_path: Path) -> None:
    a = newer.sites["a"]
    spec = guests.GuestSpec("old", firmware="uefi", disk_count=2, rate=5, scratch=2, tpm=True)
    guests.add(a, spec, newer.cache)
    guests.wait_for(a, "old", "VAPOR-DIARY ", timeout_s=90)
    guests.wait_for_agent(a, "old")
    secret = secrets.token_bytes(SECRET_BYTES)
    define_secret(a, "old")
    write_secret(a, "old", secret)
    with KeyringSession(tmp_path):
        stage = Stage(newer, tmp_path)
        stage.open()
        try:
            site_a, site_b = stage.pair()
            stage.compare_every_point()
            [key] = stage.protect(site_a, site_b, ["old"], rpo_target_s=10)
            stage.wait_for_point("old", 3)
            assert [c for c in stage.comparisons if not c.identical] == []
            assert {c.disk for c in stage.comparisons} == {"vda", "vdb"}
            versions = {s.site.name: s.libvirt_version for s in stage.backend.snapshot().sites}
            assert versions["site-b"] is not None
            assert versions["site-b"] > "11"
            # Its libvirt, too, was seen to ask the start guard's hook and to refuse by it.
            assert {s.site.name: s.guard_proven for s in stage.backend.snapshot().sites} == {
                "site-a": True,
                "site-b": True,
            }
            newer.kill_site("a")
            # Its cold libvirt probes QEMU anew before the first define (16 s measured here): no figure of ours.
            stage.backend.failover(key, None, "proof on another release")
            line = stage.wait_booted("old", "b", timeout_s=120)
            assert " gaps=0 " in f"{line} "
            assert " torn=0 " in f"{line} "
            guests.wait_for_agent(newer.sites["b"], "old")
            assert read_secret(newer.sites["b"], "old") == secret
        finally:
            stage.close()
