"""No guest stays frozen or paused by us, whatever dies between freeze and thaw, or at the job's end (DESIGN §8.5)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest

from vapor_desktop.engine.ports import Hypervisor, SiteApi
from vapor_desktop.engine.source_job import FREEZE_DEADLINE_S, SourceJob, socket_name
from vapor_desktop.hypervisor import backup
from vapor_desktop.lab import guests
from vapor_desktop.lab.guests import GuestSpec
from vapor_desktop.lab.host import answers
from vapor_desktop.lab.keyring_session import KeyringSession
from vapor_desktop.lab.lab import Lab, Site
from vapor_desktop.lab.layout import SSH_PORT
from vapor_desktop.lab.processes import LabFailed, kill, wait_until
from vapor_desktop.lab.stage import Stage
from vapor_desktop.model.domains import BackupDisk
from vapor_desktop.model.policy import Quiesce
from vapor_desktop.model.wire import ScratchSpace

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]
NAME = "free"
TINY = "/var/lib/libvirt/images/tiny-scratch"


@pytest.fixture(scope="module")
def stage(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """One protected guest whose every point is frozen for; cycles run when a test says so."""
    home = tmp_path_factory.mktemp("free")
    a = lab.sites["a"]
    a.exec(["mkdir", "-p", TINY])
    a.exec(["mount", "-t", "tmpfs", "-o", "size=2M,mode=777", "tmpfs", TINY])  # a QEMU sees the mounts of its start
    guests.add(a, GuestSpec(NAME), lab.cache)
    guests.wait_for(a, NAME, "VAPOR-DIARY ", timeout_s=120)
    with KeyringSession(home):
        made = Stage(lab, home)
        made.open(run_engine=False)
        try:
            made.protect(*made.pair(), [NAME])
            assert made.row(NAME).protection.policy.quiesce is Quiesce.TRY
            yield made
        finally:
            made.close()
            a.exec(["umount", "-l", TINY])


def frozen(site: Site) -> str:
    return str(guests.agent(site, NAME, "guest-fsfreeze-status"))


def agent_answers(site: Site) -> bool:
    try:
        guests.agent(site, NAME, "guest-ping")
    except LabFailed:
        return False
    return True


def kill_sshd(site: Site) -> None:
    """The listener and every session, at once."""
    ssh = [pid for pid in site.processes() if Path(f"/proc/{pid}/comm").read_text().startswith("sshd")]
    for pid in ssh:
        kill(pid)
    wait_until(lambda: not set(ssh) & set(site.processes()), "the end of sshd", timeout_s=10)


def test_sshd_dies_inside_the_freeze_and_the_guest_is_thawed_in_time(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stage.program is not None
    a, worker = stage.lab.sites["a"], stage.program.engine.worker
    row = stage.row(NAME)
    wait_until(lambda: agent_answers(a), "the guest agent", timeout_s=60, every_s=0.5)
    assert worker.run(row.key) is not None
    seen: list[tuple[str, float]] = []
    freeze = backup.freeze

    def freeze_and_die(dom: Any) -> bool:
        done = freeze(dom)
        kill_sshd(a)
        seen.append((frozen(a), time.monotonic()))
        return done

    monkeypatch.setattr(backup, "freeze", freeze_and_die)
    assert worker.run(row.key) is None
    [(state, began)] = seen
    assert state == "frozen"
    wait_until(lambda: frozen(a) == "thawed", "the thaw", timeout_s=FREEZE_DEADLINE_S + 5, every_s=0.2)
    assert time.monotonic() - began < FREEZE_DEADLINE_S + 5
    api = stage.program.engine.gateway.api(stage.backend._site(row.protection.source_site))
    assert [e.what for e in api.guardian_events(None) if e.vm_uuid == row.protection.vm_uuid] == ["thawed"]
    monkeypatch.undo()
    a.run(["/usr/sbin/sshd", "-f", "/etc/ssh/sshd_config", "-E", "/var/log/libvirt/sshd.log"])
    wait_until(lambda: answers(a.layout.address, SSH_PORT), "sshd's answer", timeout_s=20)
    said = len(a.serial(NAME))
    guests.guest_shell(a, NAME, "echo VAPOR-WRITES > /dev/console; sync")
    a.wait_serial(NAME, "VAPOR-WRITES", after=said)

    def again() -> bool:
        return worker.run(row.key) is not None

    wait_until(again, "a cycle that needs no hand", timeout_s=90, every_s=1)
    assert frozen(a) == "thawed"


class NoGuardian:
    """The scratch as it is; the guardian has not looked yet: it looks once a second."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def scratch(self) -> ScratchSpace:
        words = self._site.exec(["df", "--output=avail", "-B1", TINY]).stdout.split()
        return ScratchSpace(path=TINY, free_bytes=int(words[-1]), reserve_bytes=0, at=datetime.now(UTC))

    def unwatch_job(self, vm_uuid: str) -> None:
        """Nothing is watched."""


def test_the_engine_ends_a_job_that_has_just_paused_the_guest_and_the_guest_runs_on(stage: Stage) -> None:
    assert stage.program is not None
    a, p = stage.lab.sites["a"], stage.row(NAME).protection
    hypervisor = stage.program.engine.gateway.hypervisor(stage.backend._site(p.source_site))
    fill = "disk=$(ls /dev/[vs]d?3 | head -n 1); dd if=/dev/urandom of=$disk bs=64k count=96 conv=fsync"
    guests.set_rate(a, NAME, scratch=0, discard=0, zero=0)
    guests.guest_shell(a, NAME, fill)  # allocates what is overwritten during the job
    hypervisor.begin_backup(
        p.vm_uuid, [BackupDisk("vda", f"{TINY}/vda", None, False, "vda")], None, socket_name(p.protection_id), False
    )
    guests.guest_shell(a, NAME, f"({fill}) >/dev/null 2>&1 </dev/null &")
    paused = "paused (I/O error)"
    wait_until(
        lambda: a.virsh("domstate", "--reason", NAME) == paused, "the scratch to run full", timeout_s=40, every_s=0.2
    )
    job = SourceJob(
        cast("SiteApi", NoGuardian(a)),
        cast("Hypervisor", hypervisor),
        p.vm_uuid,
        NAME,
        p.protection_id,
        "test",
        TINY,
        0,
    )
    job.end()
    assert a.virsh("domstate", NAME) == "running"
    said = len(a.serial(NAME))
    guests.guest_shell(a, NAME, "echo VAPOR-ALIVE > /dev/console")
    a.wait_serial(NAME, "VAPOR-ALIVE", after=said)
