"""The relay between two real sites that cannot reach each other: two sshds, two forced commands, real transfers."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from memory_secrets import MemorySecrets
from sshd_server import Sshd, make_key, sshd

from tests.unit.mover_rig import MIB, Rig, SourceDisk, disk, export
from vapor_desktop.engine.ports import Hypervisor, Mover
from vapor_desktop.model.errors import (
    HostKeyChanged,
    NotAllowed,
    NotFound,
    SiteUnreachable,
    TransferCancelled,
    TransferInterrupted,
    VaporError,
)
from vapor_desktop.model.manifest import DiskMode
from vapor_desktop.model.sites import Site
from vapor_desktop.model.wire import EnrolPeer, Transfer, Transferred
from vapor_desktop.site.enrolments import Enrolments
from vapor_desktop.site.identity import user_public_key
from vapor_desktop.site.settings import SiteSettings
from vapor_desktop.store import SqlRepository
from vapor_desktop.transport.gateway import Gateway
from vapor_desktop.transport.ssh_key import console_public_key

SIZE = 48 * MIB
DATA = 24 * MIB
NOWHERE = ("127.0.0.1", 1)  # the address by which each site knows the other: nothing listens there


@dataclass
class Pair:
    """Two sites with their sshds, and a console whose database says how they are joined."""

    rig: Rig
    gateway: Gateway
    repository: SqlRepository
    a: Site
    b: Site
    sshd_b: ExitStack
    home_b: Path

    def mover(self) -> Mover:
        return self.gateway.mover(self.a, self.b)

    def send(self, request: Transfer) -> Transferred:
        return self.mover().transfer(request, lambda _progress: None, lambda: False)

    def held(self) -> list[int]:
        """Processes of our own relays: ssh with this console's files."""
        words = (b"relay-source", b"relay-receive")
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    line = (entry / "cmdline").read_bytes()
                except OSError:
                    continue
                ours = b"StrictHostKeyChecking=yes" in line and os.fsencode(self.gateway._files.directory) in line
                if ours and any(word in line for word in words):
                    found.append(int(entry.name))
        return sorted(found)


def console_site(settings: SiteSettings, site_id: str, server: Sshd) -> Site:
    return server.site().model_copy(update={"site_id": site_id, "name": settings.name})


def let_console_in(server: Sshd, config: Path, key: str) -> None:
    """As enrolment does it, for this checkout."""
    command = f"env VAPOR_SITE_CONFIG={config} {sys.executable} -W error -m vapor_desktop.site.dispatch console"
    (server.home / "authorized_keys").write_text(f'restrict,command="{command}" {key}\n')


def enrol(here: SiteSettings, own: str, there: SiteSettings, other: str, host_key: str) -> None:
    Enrolments(here).add_peer(
        EnrolPeer(
            site_id=other,
            name=there.name,
            public_key=user_public_key(there),
            host_keys=(host_key,),
            address=NOWHERE[0],
            port=NOWHERE[1],
            user="vapor",
        ),
        own,
    )


@pytest.fixture
def pair() -> Iterator[Pair]:
    secrets = MemorySecrets()
    with tempfile.TemporaryDirectory(prefix="vr-") as root, ExitStack() as stack, ExitStack() as sshd_b:
        home = Path(root)
        rig = Rig(home / "rig")
        stack.callback(rig.close)
        server_a = stack.enter_context(sshd(home / "sshd-a"))
        server_b = sshd_b.enter_context(sshd(home / "sshd-b"))
        key = console_public_key(secrets)
        let_console_in(server_a, rig.root / "a/site.toml", key)
        let_console_in(server_b, rig.root / "b/site.toml", key)
        enrol(rig.source, rig.source_id, rig.target, rig.target_id, server_b.host_key())
        enrol(rig.target, rig.target_id, rig.source, rig.source_id, server_a.host_key())

        def no_hypervisor(uri: str) -> Hypervisor:
            raise AssertionError(uri)

        repository = SqlRepository(f"sqlite:///{home}/vapor.db")
        stack.callback(repository.close)
        gateway = Gateway(repository, secrets, no_hypervisor, Path(stack.enter_context(short_directory())))
        stack.callback(gateway.close)
        a, b = console_site(rig.source, rig.source_id, server_a), console_site(rig.target, rig.target_id, server_b)
        for site in (a, b):
            repository.save_site(site)
        repository.save_pair(a.site_id, b.site_id, "relay")
        yield Pair(rig, gateway, repository, a, b, sshd_b, home / "sshd-b")


def short_directory() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="vc-", ignore_cleanup_errors=True)


@pytest.fixture
def vda(pair: Pair) -> SourceDisk:
    source = SourceDisk(pair.rig.root / "vda.qcow2", SIZE)
    source.write((0, DATA, 1))
    return source


def until(condition: object, what: str, timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def io_bytes() -> int:
    """What this process has read and written, by any means."""
    counters = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counters["rchar"]) + int(counters["wchar"])


def test_points_arrive_whole_and_no_byte_goes_through_this_process(pair: Pair, vda: SourceDisk) -> None:
    rig = pair.rig
    vda.bitmap("cp1")
    with export(vda.path) as socket:
        request, before = rig.transfer([disk("vda", SIZE, socket)], checkpoint="cp1"), io_bytes()
        done = pair.send(request)
        assert io_bytes() - before < MIB
        assert done.published
        assert done.wire_bytes > DATA
        assert rig.identical(1, "vda", socket)
    relays = pair.held()
    assert len(relays) == 2
    vda.write((5 * MIB, MIB, 7), (40 * MIB, MIB, 8))
    with export(vda.path, bitmap="cp1") as socket:
        delta = rig.transfer([disk("vda", SIZE, socket, DiskMode.DELTA, "cp1")], checkpoint="cp2")
        assert pair.send(delta).data_bytes == 2 * MIB
        assert rig.identical(2, "vda", socket)
    assert pair.held() == relays  # kept between cycles
    pair.gateway.drop(pair.a.site_id)
    until(lambda: pair.held() == [], "the end of the relay's processes")


def test_two_vms_at_once_have_a_relay_each(pair: Pair, vda: SourceDisk) -> None:
    rig = pair.rig
    with export(vda.path) as socket, ThreadPoolExecutor(2) as pool:
        first = rig.transfer([disk("vda", SIZE, socket)], checkpoint=None, bandwidth_bytes_s=16 * MIB)
        rig.renew_vm()
        second = rig.transfer([disk("vda", SIZE, socket)], checkpoint=None, bandwidth_bytes_s=16 * MIB)
        for future in [pool.submit(pair.send, request) for request in (first, second)]:
            assert future.result(60).published
        assert len(pair.held()) == 4
        for vm in (first.vm_uuid, second.vm_uuid):
            rig.vm = vm
            assert rig.identical(1, "vda", socket)


def test_without_the_relay_the_error_says_which_way_was_tried(pair: Pair, vda: SourceDisk) -> None:
    pair.repository.save_pair(pair.a.site_id, pair.b.site_id, "direct")
    with export(vda.path) as socket:
        request = pair.rig.transfer([disk("vda", SIZE, socket)], checkpoint="cp1")
        direct = pair.mover()
        with pytest.raises(SiteUnreachable, match="pair them again") as caught:
            pair.send(request)
        assert caught.value.details["route"] == "direct"
        # Paired again: the next cycle takes the other route, by itself.
        pair.repository.save_pair(pair.a.site_id, pair.b.site_id, "relay")
        assert pair.mover() is not direct
        assert pair.send(request).published


def refused(pair: Pair, vda: SourceDisk, error: type[VaporError]) -> VaporError:
    with export(vda.path) as socket:
        request = pair.rig.transfer([disk("vda", SIZE, socket)], checkpoint="cp1")
        with pytest.raises(error) as caught:
            pair.send(request)
    assert pair.held() == []
    return caught.value


def test_a_target_that_is_gone_is_named(pair: Pair, vda: SourceDisk) -> None:
    pair.sshd_b.close()
    error = refused(pair, vda, SiteUnreachable)
    assert str(pair.b.ssh_port) in error.what
    assert error.details["route"] == "relay"


def test_a_changed_host_key_of_the_target_is_refused(pair: Pair, vda: SourceDisk) -> None:
    pair.sshd_b.close()
    make_key(pair.home_b, "another")
    with sshd(pair.home_b, "another", pair.b.ssh_port):
        refused(pair, vda, HostKeyChanged)


def test_sites_that_are_no_pair_any_more_relay_nothing(pair: Pair, vda: SourceDisk) -> None:
    Enrolments(pair.rig.target).remove_peer(pair.rig.source_id)
    refused(pair, vda, NotAllowed)
    Enrolments(pair.rig.source).remove_peer(pair.rig.target_id)
    refused(pair, vda, NotFound)


def slow(pair: Pair, socket: Path) -> Transfer:
    return pair.rig.transfer([disk("vda", SIZE, socket)], checkpoint="cp1", bandwidth_bytes_s=4 * MIB)


@pytest.mark.parametrize("end", ["relay-source", "relay-receive", "drop target", "drop source"])
def test_a_relay_that_breaks_is_tried_again(pair: Pair, vda: SourceDisk, end: str) -> None:
    begun = threading.Event()
    errors: list[VaporError] = []

    def work(request: Transfer) -> None:
        try:
            pair.mover().transfer(request, lambda p: begun.set() if p.done_bytes else None, lambda: False)
        except VaporError as error:
            errors.append(error)

    with export(vda.path) as socket:
        thread = threading.Thread(target=work, args=(slow(pair, socket),))
        thread.start()
        assert begun.wait(30), errors
        if end.startswith("drop"):
            pair.gateway.drop(pair.a.site_id if end.endswith("source") else pair.b.site_id)
        else:
            for pid in pair.held():
                if end.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, 9)
        thread.join(30)
        assert not thread.is_alive()
        assert [type(error) for error in errors] in ([TransferInterrupted], [SiteUnreachable])
        until(lambda: pair.held() == [], "the end of the other process too")
        pair.rig.lease()
        again = pair.rig.transfer([disk("vda", SIZE, socket)], checkpoint="cp1")
        assert pair.send(again).published
        assert pair.rig.identical(again.seq, "vda", socket)  # sequence numbers are never reused


def test_cancel_ends_within_moments(pair: Pair, vda: SourceDisk) -> None:
    begun = threading.Event()
    with export(vda.path) as socket:
        started = 0.0

        def cancelled() -> bool:
            nonlocal started
            if begun.is_set() and not started:
                started = time.monotonic()
            return begun.is_set()

        with pytest.raises(TransferCancelled):
            pair.mover().transfer(slow(pair, socket), lambda p: begun.set() if p.done_bytes else None, cancelled)
        assert time.monotonic() - started < 3


def test_who_holds_a_dropped_mover_is_told_to_try_again(pair: Pair, vda: SourceDisk) -> None:
    with export(vda.path) as socket:
        request = pair.rig.transfer([disk("vda", SIZE, socket)], checkpoint="cp1")
        held = pair.mover()
        pair.gateway.drop(pair.a.site_id)
        with pytest.raises(SiteUnreachable, match="given up meanwhile"):
            held.transfer(request, lambda _progress: None, lambda: False)
        assert pair.send(request).published
