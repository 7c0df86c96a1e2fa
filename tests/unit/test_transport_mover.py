"""The mover's channel through a real sshd: many requests on one channel, cancel, death, and a new one."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from memory_secrets import MemorySecrets
from sshd_server import RECORD, Sshd, sshd
from tls_server import make_certificate

from vapor_desktop.engine.ports import Cleared, Hypervisor, ImageInfo, Mover, SiteGateway
from vapor_desktop.model.errors import (
    ApiVersionMismatch,
    HostKeyChanged,
    InvalidRequest,
    ProtocolError,
    ReplicaFull,
    SiteUnreachable,
    TransferCancelled,
    TransferInterrupted,
)
from vapor_desktop.model.manifest import Consistency, Epoch
from vapor_desktop.model.wire import PointDraft, Progress, ScrubSlice, Transfer, WriteGrant
from vapor_desktop.store import SqlRepository
from vapor_desktop.transport import mover_client
from vapor_desktop.transport.gateway import Gateway
from vapor_desktop.transport.mover_client import SshMover
from vapor_desktop.transport.ssh import SshSession
from vapor_desktop.transport.ssh_key import console_private_key, console_public_key

SITE = "11111111-2222-3333-4444-555555555555"
GRANT = WriteGrant(fence=1, epoch=Epoch(number=1, owner=SITE), source_site=SITE, parent_seq=None)

# Speaks the mover's protocol; what it does with a transfer is told by the VM's name.
MOVER = (
    RECORD
    + """
import json, sys, threading
lock = threading.Lock()
cancelled = {}
def say(**message):
    with lock:
        sys.stdout.write(json.dumps(message) + "\\n"); sys.stdout.flush()
def done(seq, data):
    return dict(published=True, seq=seq, data_bytes=data, zero_bytes=0, wire_bytes=1, read_bytes=1, duration_s=0.1,
                manifest=None)
def transfer(number, params):
    kind, steps = params["vm_uuid"], 3
    if kind == "die":
        sys.stderr.write("Killed\\n"); sys.stderr.flush(); os._exit(137)
    if kind == "garbage":
        with lock: sys.stdout.write("Traceback (most recent call last)\\n"); sys.stdout.flush()
        return
    if kind == "full":
        return say(id=number, error={"code": "REPLICA-FULL", "what": "full", "details": {"free_bytes": 5}})
    step = 0
    while step < steps or kind in ("slow", "deaf"):
        step += 1
        say(id=number, event="progress",
            data=dict(done_bytes=step, total_bytes=5 * 2**40, rate_bytes_s=1.0, disk="vda", wire_bytes=0))
        if cancelled[number].wait(0.02) and kind != "deaf":
            return say(id=number, error={"code": "TRANSFER-CANCELLED", "what": "Cancelled on request"})
    say(id=number, event="news-of-a-newer-mover", data={})
    say(id=number, result=done(params["seq"], step))
@HELLO@
for line in sys.stdin:
    asked = json.loads(line)
    number, verb, params = asked["id"], asked["verb"], asked["params"]
    if verb == "transfer":
        cancelled[number] = threading.Event()
        threading.Thread(target=transfer, args=(number, params), daemon=True).start()
    elif verb == "cancel":
        cancelled[params["id"]].set(); say(id=number, result=None)
    elif verb == "scrub":
        say(id=number, result=dict(checked_bytes=params["budget_bytes"], source_mismatch={"vda": [7]},
                                   target_mismatch={}, wrapped=True))
    elif verb == "image-info":
        say(id=number, result=dict(virtual_size_bytes=2**40, format="qcow2", bitmaps={"b": False}, stamp="1:2:3"))
    elif verb == "add-bitmap":
        say(id=number, result=None)
    elif verb == "clear-bitmap":
        say(id=number, result={"cleared": params["expect_stamp"] == "1:2:3", "stamp": "1:2:4"})
"""
)
HELLO = f'say(hello={{"mover_protocol": 1, "site_id": "{SITE}"}})'


def transfer_of(kind: str, seq: int = 1) -> Transfer:
    return Transfer(
        vm_uuid=kind,
        peer_site="b",
        grant=GRANT,
        seq=seq,
        disks=(),
        draft=PointDraft(
            protection_id="p",
            vm_name="web",
            checkpoint=None,
            taken_at=datetime(2026, 11, 22, tzinfo=UTC),
            consistency=Consistency.CRASH,
            domain_xml="<domain/>",
        ),
    )


@pytest.fixture
def secrets() -> MemorySecrets:
    return MemorySecrets()


@pytest.fixture
def server(tmp_path: Path, secrets: MemorySecrets) -> Iterator[Sshd]:
    with sshd(tmp_path / "sshd") as running:
        serve(running, secrets)
        yield running


def serve(server: Sshd, secrets: MemorySecrets, hello: str = HELLO) -> None:
    server.authorize(console_public_key(secrets), MOVER.replace("@HELLO@", hello))


@pytest.fixture
def session(server: Sshd, secrets: MemorySecrets) -> Iterator[SshSession]:
    opened = SshSession(server.site(), console_private_key(secrets))
    yield opened
    opened.close()


@pytest.fixture
def mover(session: SshSession) -> Iterator[SshMover]:
    made = SshMover(lambda: session.run("mover"), SITE)
    yield made
    made.close()


def never() -> bool:
    return False


def test_a_transfer_reports_and_ends(mover: SshMover, server: Sshd) -> None:
    port: Mover = mover
    seen: list[Progress] = []
    answer = port.transfer(transfer_of("vm", seq=41), seen.append, never)
    assert (answer.published, answer.seq, answer.data_bytes) == (True, 41, 3)
    assert [(p.done_bytes, p.total_bytes) for p in seen] == [(n, 5 * 2**40) for n in (1, 2, 3)]
    scrubbed = port.scrub(ScrubSlice(vm_uuid="v", peer_site="b", grant=GRANT, disks=(), budget_bytes=9), never)
    assert (scrubbed.checked_bytes, scrubbed.source_mismatch) == (9, {"vda": (7,)})
    assert port.image_info("/x.qcow2") == ImageInfo(2**40, "qcow2", {"b": False}, "1:2:3")
    port.add_bitmap("/x.qcow2", "b")
    assert port.clear_bitmap("/x.qcow2", "b", "1:2:3") == Cleared(True, "1:2:4")
    assert not port.clear_bitmap("/x.qcow2", "b", "1").cleared
    assert server.commands() == ["mover"]  # all of it on one channel


def test_several_vms_at_once_each_get_their_own_answer(mover: SshMover) -> None:
    found: dict[int, tuple[int, int]] = {}

    def work(seq: int) -> None:
        seen: list[Progress] = []
        answer = mover.transfer(transfer_of(f"vm{seq}", seq), seen.append, never)
        found[seq] = (answer.seq, len(seen))

    threads = [threading.Thread(target=work, args=(seq,)) for seq in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {seq: (seq, 3) for seq in range(1, 9)}


def test_the_receivers_error_comes_back_whole(mover: SshMover) -> None:
    with pytest.raises(ReplicaFull) as caught:
        mover.transfer(transfer_of("full"), lambda progress: None, never)
    assert caught.value.details == {"free_bytes": 5}


def test_a_cancel_reaches_the_mover_and_the_channel_stays(mover: SshMover, server: Sshd) -> None:
    seen: list[Progress] = []
    with pytest.raises(TransferCancelled, match="on request"):
        mover.transfer(transfer_of("slow"), seen.append, lambda: len(seen) > 3)
    assert mover.transfer(transfer_of("vm", 2), seen.append, never).seq == 2
    assert server.commands() == ["mover"]


def test_a_mover_that_ignores_a_cancel_is_ended(
    mover: SshMover, server: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mover_client, "CANCEL_TIMEOUT_S", 0.3)
    with pytest.raises(TransferCancelled, match="closed"):
        mover.transfer(transfer_of("deaf"), lambda progress: None, lambda: True)
    assert mover.transfer(transfer_of("vm", 2), lambda progress: None, never).seq == 2
    assert server.commands() == ["mover", "mover"]


def test_a_mover_that_dies_interrupts_everybody_and_the_next_call_starts_anew(mover: SshMover, server: Sshd) -> None:
    errors: list[BaseException] = []
    started = threading.Event()

    def work() -> None:
        try:
            mover.transfer(transfer_of("slow"), lambda progress: started.set(), never)
        except TransferInterrupted as error:
            errors.append(error)

    other = threading.Thread(target=work)
    other.start()
    assert started.wait(20)
    with pytest.raises(TransferInterrupted) as caught:
        mover.transfer(transfer_of("die"), lambda progress: None, never)
    assert caught.value.details["stderr"] == "Killed"
    other.join(20)
    assert len(errors) == 1
    assert mover.transfer(transfer_of("vm", 3), lambda progress: None, never).seq == 3
    assert server.commands() == ["mover", "mover"]


def test_a_cut_connection_interrupts(mover: SshMover, session: SshSession) -> None:
    with pytest.raises(TransferInterrupted):
        mover.transfer(transfer_of("slow"), lambda progress: session.close(), never)


def test_what_is_no_answer_ends_the_channel(mover: SshMover) -> None:
    with pytest.raises(TransferInterrupted):
        mover.transfer(transfer_of("garbage"), lambda progress: None, never)
    assert mover.transfer(transfer_of("vm", 3), lambda progress: None, never).seq == 3


@pytest.mark.parametrize(
    ("hello", "error"),
    [
        (f'say(hello={{"mover_protocol": 2, "site_id": "{SITE}"}})', ApiVersionMismatch),
        ('say(hello={"mover_protocol": 1, "site_id": "another"})', ProtocolError),
        ("say(id=1, result=None)", ProtocolError),
        ("print('Welcome to Debian', flush=True)", ProtocolError),
        ("sys.exit('vapor-site: this host is no site yet')", TransferInterrupted),
    ],
)
def test_a_greeting_that_does_not_fit(
    mover: SshMover, server: Sshd, secrets: MemorySecrets, hello: str, error: type[Exception]
) -> None:
    serve(server, secrets, hello)
    with pytest.raises(error) as caught:
        mover.transfer(transfer_of("vm"), lambda progress: None, never)
    if error is TransferInterrupted:
        assert caught.value.details["stderr"] == "vapor-site: this host is no site yet"  # type: ignore[attr-defined]


# --- the gateway ---------------------------------------------------------------------------------------
class Connected:
    """Stands where a hypervisor would: remembers its URI and that it was closed."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.closed = False

    def close(self) -> None:
        self.closed = True


def test_the_gateway_opens_once_keeps_and_forgets(server: Sshd, secrets: MemorySecrets, tmp_path: Path) -> None:
    made: list[Connected] = []

    def factory(uri: str) -> Hypervisor:
        made.append(Connected(uri))
        return made[-1]  # type: ignore[return-value]

    repository = SqlRepository(f"sqlite:///{tmp_path}/vapor.db")
    runtime = Path(tempfile.mkdtemp(prefix="vapor-test-"))
    gateway = Gateway(repository, secrets, factory, runtime)
    port: SiteGateway = gateway
    certificate = make_certificate(tmp_path, "site")
    site = server.site().model_copy(update={"cert_pem": certificate.pem})
    with pytest.raises(InvalidRequest, match="cannot be read"):
        port.api(server.site())
    target = site.model_copy(update={"site_id": "b"})
    assert port.api(site) is port.api(site)
    mover = port.mover(site, target)
    assert mover is port.mover(site, target)
    assert mover.transfer(transfer_of("vm", 2), lambda progress: None, never).seq == 2

    results: list[Hypervisor] = []
    threads = [threading.Thread(target=lambda: results.append(port.hypervisor(site))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert all(result is made[0] for result in results)  # type: ignore[comparison-overlap]
    assert made[0].uri.startswith(f"qemu+ssh://{server.user}@127.0.0.1:{server.port}/system?command=/")

    port.drop(site.site_id)
    assert made[0].closed
    assert port.mover(site, target) is not mover
    assert port.mover(site, target).transfer(transfer_of("vm", 3), lambda progress: None, never).seq == 3

    changed = site.model_copy(update={"ssh_host_keys": ("ssh-ed25519 " + "A" * 68,)})
    with pytest.raises(HostKeyChanged):
        port.hypervisor(changed)
    with pytest.raises(HostKeyChanged):
        port.mover(changed, target).transfer(transfer_of("vm"), lambda progress: None, never)
    assert len(made) == 1

    port.hypervisor(site)
    assert any(runtime.rglob("key"))
    port.close()
    assert made[1].closed
    assert not any(runtime.rglob("key"))
    with pytest.raises(SiteUnreachable, match="ending"):
        port.api(site)  # a thread that is late: what it opened, nobody would close
    repository.close()
    runtime.rmdir()
