"""The lab itself: what the other proofs stand on must be proven first."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from left_behind import inventory

from vapor_desktop.lab import diary
from vapor_desktop.lab.guests import GuestSpec, agent, wait_for_agent
from vapor_desktop.lab.host import answers
from vapor_desktop.lab.lab import Lab
from vapor_desktop.lab.layout import SSH_PORT
from vapor_desktop.lab.processes import LabFailed, alive, kill, wait_until

CACHE = Path.home() / ".cache/vapor-lab"
ON_CONSOLE = 60.0
RAW = "/var/lib/libvirt/images/cut.raw"
SHOT, EARLY = "/var/lib/libvirt/images/web.ppm", "/var/lib/libvirt/images/early.qcow2"


def reaches(lab: Lab, site: str, address: str) -> bool:
    """Whether sshd at the address greets a client on that host."""
    script = f"import socket; s = socket.create_connection(('{address}', {SSH_PORT}), 1); assert s.recv(4)"
    return lab.sites[site].exec(["/usr/bin/python3", "-c", script], check=False).returncode == 0


def test_down_leaves_nothing(lab_lock: None) -> None:
    lab = Lab("leaves", cache=CACHE)
    before = inventory(lab)
    lab.up(site_service=False, guest_specs=[GuestSpec("web")])
    pids = [pid for site in lab.sites.values() for pid in [*site.processes(), site.holder or 0]]
    assert len(pids) >= 9
    assert lab.sites["a"].pid_of("qemu:web") in pids
    assert inventory(lab) != before
    lab.down()
    assert inventory(lab) == before
    assert not [pid for pid in pids if alive(pid)]
    lab.down()
    assert inventory(lab) == before


@pytest.mark.parametrize("moment", ["lab.json", "a/setup.sh", "b/holder.pid", "b/files/run/libvirtd.pid"])
def test_interrupted_up_is_cleaned_by_down(lab_lock: None, moment: str) -> None:
    lab = Lab("half", cache=CACHE)
    before = inventory(lab)
    words = [
        sys.executable,
        "-m",
        "vapor_desktop.lab.main",
        "--name",
        "half",
        "up",
        "--no-site-service",
        "--no-guests",
    ]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL) as process:
        wait_until((lab.state / moment).exists, moment, timeout_s=30, every_s=0.001)
        process.kill()
    assert inventory(lab) != before
    Lab("half", cache=CACHE).down()
    assert inventory(lab) == before


def test_down_after_a_crash_of_everything(lab_lock: None) -> None:
    """One host's init has died (the kernel ends all it ran), the other lost daemons, and the record is gone."""
    lab = Lab("crashed", cache=CACHE)
    before = inventory(lab)
    lab.up(site_service=False)
    a, b = lab.sites["a"], lab.sites["b"]
    survivors = [pid for pid in b.processes() if pid not in {b.pid_of("libvirtd"), b.pid_of("sshd")}]
    killed = [a.holder or 0, b.pid_of("libvirtd"), b.pid_of("sshd")]
    for pid in killed:
        kill(pid)
    (lab.state / "lab.json").unlink()
    wait_until(lambda: not any(alive(pid) for pid in killed), "the crash", timeout_s=5)
    assert any(alive(pid) for pid in survivors)
    Lab("crashed", cache=CACHE).down()
    assert not any(alive(pid) for pid in survivors)
    assert inventory(lab) == before


@pytest.mark.soak
@pytest.mark.timeout(900)  # the release's root is downloaded when it is not in the cache
def test_host_of_the_next_release(lab_lock: None) -> None:
    lab = Lab("next", cache=CACHE)
    before = inventory(lab)
    lab.up(release_b="trixie", site_service=False)
    try:
        a, b = lab.sites["a"], lab.sites["b"]
        names = [
            re.search(r"VERSION_CODENAME=(\w+)", site.exec(["cat", "/etc/os-release"]).stdout) for site in (a, b)
        ]
        assert [name and name.group(1) for name in names] == ["bookworm", "trixie"]
        assert "11." in b.virsh("version")
        lab.add_guest(GuestSpec("far", site="b", firmware="uefi", disk_count=2))
        assert b.wait_boot("far", timeout_s=ON_CONSOLE).disks == 2
        libraries = "import nbd, libvirt, blake3, fastapi, lxml.etree; print('ok')"
        words = ["env", "PYTHONPATH=/opt/vapor:/opt/vapor-python", "python3", "-c", libraries]
        assert b.exec(words, user="vapor").stdout.strip() == "ok"
    finally:
        lab.down()
    assert inventory(lab) == before


def test_two_labs_coexist(bare_lab: Lab) -> None:
    with_other = Lab("other", cache=CACHE)
    with_other.up(site_service=False)
    try:
        assert with_other.sites["a"].address != bare_lab.sites["a"].address
        assert answers(with_other.sites["b"].address, SSH_PORT)
        assert answers(bare_lab.sites["b"].address, SSH_PORT)
        assert not reaches(with_other, "a", bare_lab.sites["b"].address)
    finally:
        with_other.down()
    assert answers(bare_lab.sites["a"].address, SSH_PORT)


def test_account_exists_on_the_hosts_only(bare_lab: Lab) -> None:
    said = bare_lab.sites["a"].exec(["id", "-Gn"], user="vapor").stdout.split()
    assert {"vapor", "libvirt", "libvirt-qemu", "kvm"} <= set(said)
    uri = ["virsh", "-q", "-c", "qemu:///system"]
    assert "lan-a" in bare_lab.sites["a"].exec([*uri, "net-list", "--name"], user="vapor").stdout
    assert "vapor:" not in Path("/etc/passwd").read_text()
    with pytest.raises(LabFailed):
        bare_lab.sites["a"].exec(["cat", "/etc/shadow"], user="vapor")


def test_hosts_are_two(bare_lab: Lab) -> None:
    a, b = bare_lab.sites["a"], bare_lab.sites["b"]
    for what in (
        ["hostname"],
        ["cat", "/proc/sys/kernel/random/boot_id"],
        ["cat", "/etc/ssh/ssh_host_ed25519_key.pub"],
    ):
        assert a.exec(what).stdout != b.exec(what).stdout
    assert a.virsh("net-list", "--name").split() == ["lan-a"]
    assert b.virsh("net-list", "--name").split() == ["lan-b"]


def test_link_between_the_sites_is_cut_and_mended(bare_lab: Lab) -> None:
    b = bare_lab.sites["b"]
    assert reaches(bare_lab, "a", b.address)
    bare_lab.cut_link()
    try:
        assert not reaches(bare_lab, "a", b.address)
        assert not reaches(bare_lab, "b", bare_lab.sites["a"].address)
        assert answers(b.address, SSH_PORT), "the console keeps its link"
        assert not b.link_state.hears_peer
    finally:
        bare_lab.mend_link()
    assert reaches(bare_lab, "a", b.address)
    bare_lab.cut_link("b")
    try:
        assert not answers(b.address, SSH_PORT)
        assert answers(bare_lab.sites["a"].address, SSH_PORT)
        assert not b.link_state.port_up
    finally:
        bare_lab.mend_link("b")
    assert answers(b.address, SSH_PORT)


@pytest.fixture(scope="module")
def guests(bare_lab: Lab) -> Iterator[Lab]:
    """A BIOS guest with one disk and a UEFI guest with two, booted from their own disks."""
    site = bare_lab.sites["a"]
    bare_lab.add_guest(GuestSpec("web", rate=40))
    bare_lab.add_guest(GuestSpec("db", firmware="uefi", disk_count=2, rate=40))
    for name, count in (("web", 1), ("db", 2)):
        verdict = site.wait_boot(name, timeout_s=ON_CONSOLE)
        assert (verdict.last, verdict.gaps, verdict.torn, verdict.disks) == (0, 0, 0, count)
    yield bare_lab
    for name in ("web", "db"):
        site.virsh("destroy", name, check=False)
        site.virsh("undefine", name, "--nvram", check=False)


def test_guest_freezes_thaws_and_answers(guests: Lab) -> None:
    site = guests.sites["a"]
    site.virsh("domfsfreeze", "db")
    try:
        assert agent(site, "db", "guest-fsfreeze-status") == "frozen"
        frozen = [disk.last for disk in site.diary("db").per_disk]
        assert [disk.last for disk in site.diary("db").per_disk] == frozen, "nothing is written while frozen"
    finally:
        site.virsh("domfsthaw", "db")
    assert agent(site, "db", "guest-fsfreeze-status") == "thawed"
    wait_until(lambda: site.diary("db").last > frozen[0], "records after the thaw", timeout_s=20)
    site.wait_serial("db", r"VAPOR-GUEST address 192\.168\.150\.\d+")
    assert site.guest_shell("db", "hostname").strip() == "db"
    site.virsh("screenshot", "web", SHOT)
    assert site.path(SHOT).read_bytes()[:2] in {b"P6", b"\x89P"}


def test_rate_is_settable(guests: Lab) -> None:
    site = guests.sites["a"]
    site.set_rates("web", rate=0, scratch=0, zero=0, discard=0)
    wait_until(lambda: site.diary("web").last == site.diary("web").last, "a pause", timeout_s=10)
    held = site.diary("web").last
    site.set_rates("web", rate=50)
    wait_until(lambda: site.diary("web").last > held + 20, "new records", timeout_s=20)


def test_power_cut_loses_nothing_that_was_durable(guests: Lab) -> None:
    site = guests.sites["a"]
    for name in ("web", "db"):
        site.virsh("autostart", name)
        wait_until(lambda name=name: site.diary(name).last > 10, "records", timeout_s=20)  # type: ignore[misc]
    boot_id = site.exec(["cat", "/proc/sys/kernel/random/boot_id"]).stdout
    pid, seen = site.pid_of("qemu:db"), {name: len(site.serial(name)) for name in ("web", "db")}
    images = {name: site.disks_of(name) for name in ("web", "db")}
    guests.kill_site("a")
    assert not alive(pid)
    assert site.processes() == []
    assert not answers(site.address, SSH_PORT)
    assert answers(guests.sites["b"].address, SSH_PORT)
    left = {name: site.diary(files) for name, files in images.items()}
    assert all(report.sound for report in left.values()), left
    for image in [*images["web"], *images["db"]]:
        diary.to_raw(image, RAW, enter=site.enter())
        assert diary.filesystem_sound(site.path(RAW)), image
        site.path(RAW).unlink()
    guests.revive_site("a")
    assert answers(site.address, SSH_PORT)
    assert site.exec(["cat", "/proc/sys/kernel/random/boot_id"]).stdout != boot_id
    for name, report in left.items():
        verdict = site.wait_boot(name, timeout_s=ON_CONSOLE, after=seen[name])
        assert (verdict.gaps, verdict.torn) == (0, 0)
        # The guest names the newest record of any disk, the report the newest of all.
        assert verdict.last == max(disk.last for disk in report.per_disk)
    assert re.search(r"VAPOR-NVRAM boots=2", site.serial("db")), "the NVRAM is kept over the cut"


def test_disks_of_different_moments_are_caught(guests: Lab) -> None:
    site = guests.sites["a"]
    first, second = site.disks_of("db")
    # A copy of one disk made before a pause in which the other went on: what a bad point would look like.
    site.exec(["qemu-img", "convert", "-U", "-O", "qcow2", second, EARLY])
    held = site.diary("db").last
    wait_until(lambda: site.diary("db").last > held + 5, "more records", timeout_s=20)
    report = site.diary([first, EARLY])
    assert not report.one_moment
    assert not report.sound
    site.path(EARLY).unlink()


@pytest.mark.parametrize("mode", ["agent", "acpi"])
def test_graceful_shutdown_and_next_boot(guests: Lab, mode: str) -> None:
    site = guests.sites["a"]
    wait_for_agent(site, "web")
    seen = len(site.serial("web"))
    site.virsh("shutdown", "web", "--mode", mode)
    stopped = site.wait_serial("web", r"VAPOR-DIARY stopped last=\d+", after=seen, timeout_s=ON_CONSOLE)
    wait_until(lambda: site.virsh("domstate", "web") == "shut off", "the shutdown", timeout_s=30)
    report = site.diary("web")
    assert report.sound
    assert report.last == int(stopped.rpartition("=")[2])
    seen = len(site.serial("web"))
    site.virsh("start", "web")
    verdict = site.wait_boot("web", after=seen, timeout_s=ON_CONSOLE)
    assert (verdict.last, verdict.gaps, verdict.torn) == (report.last, 0, 0)
