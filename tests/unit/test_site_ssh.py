"""Forced commands and the check of a peer, through a real sshd on loopback."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from site_server import free_port

from vapor_desktop.model.errors import HostKeyChanged, NotAllowed, NotAVaporSite, SiteUnreachable, Unexpected
from vapor_desktop.model.manifest import Epoch
from vapor_desktop.model.wire import EnrolConsole, EnrolPeer, GuardRequest, GuardState, LeaseRequest, OwnerWord
from vapor_desktop.site import leases
from vapor_desktop.site.audit import AuditLog
from vapor_desktop.site.enrolments import Enrolments
from vapor_desktop.site.guard_book import GuardBook
from vapor_desktop.site.identity import ensure_identity, user_public_key
from vapor_desktop.site.peers import OWNERS_AT_ONCE, ask_owners, check_peer
from vapor_desktop.site.settings import SiteSettings
from vapor_desktop.site.ssh_options import peer_ssh_argv

LEASE = LeaseRequest(holder="engine", holder_name="desk", purpose="guard")
CONSOLE = "11111111-1111-4111-8111-111111111111"


def make_key(path: Path) -> str:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", path], check=True)
    return path.with_suffix(".pub").read_text().strip()


def make_site(directory: Path) -> SiteSettings:
    """A site whose forced commands call this very checkout."""
    config = directory / "site.toml"
    directory.mkdir()
    (directory / "replicas").mkdir()
    command = f"env VAPOR_SITE_CONFIG={config} {sys.executable} -m vapor_desktop.site.dispatch"
    values = {
        "state_dir": str(directory / "state"),
        "replica_roots": [str(directory / "replicas")],
        "site_command": command,
        "libvirt_uri": "test:///default",  # libvirt's own test driver: one running VM, without a daemon
    }
    config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))
    settings = SiteSettings(
        state_dir=directory / "state", replica_roots=(directory / "replicas",), site_command=command
    )
    ensure_identity(settings)
    return settings


@contextmanager
def sshd(directory: Path, authorized_keys: Path, port: int) -> Iterator[str]:
    """A real sshd for the calling account; yields its host key."""
    key = make_key(directory / f"host-{port}")
    config = directory / f"sshd-{port}.conf"
    config.write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {directory}/host-{port}\nPidFile none\nUsePAM no\n"
        f"AuthorizedKeysFile {authorized_keys}\nStrictModes no\nPasswordAuthentication no\nPermitRootLogin yes\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    with (directory / f"sshd-{port}.log").open("w+") as log:
        path = shutil.which("sshd", path="/usr/sbin:/usr/bin")
        assert path is not None
        server = subprocess.Popen([path, "-D", "-e", "-f", config], stderr=subprocess.PIPE, text=True)
        assert server.stderr is not None
        assert "Server listening" in server.stderr.readline()
        try:
            yield key
        finally:
            server.terminate()
            log.write(server.communicate(timeout=10)[1])


@pytest.fixture
def here(tmp_path: Path) -> SiteSettings:
    return make_site(tmp_path / "a")


@pytest.fixture
def there(tmp_path: Path) -> SiteSettings:
    return make_site(tmp_path / "b")


def pair(here: SiteSettings, there: SiteSettings, host_key: str, port: int) -> EnrolPeer:
    """Each knows the other; returns the far one as seen from here."""
    near_id, far_id = ensure_identity(here), ensure_identity(there)
    near = EnrolPeer(
        site_id=near_id, name="A", public_key=user_public_key(here), host_keys=(host_key,),
        address="127.0.0.1", port=port, user=getpass.getuser(),
    )  # fmt: skip
    far = near.model_copy(update={"site_id": far_id, "name": "B", "public_key": user_public_key(there)})
    Enrolments(there).add_peer(near, far_id)
    Enrolments(here).add_peer(far, near_id)
    return far


def test_a_peer_is_reached_checked_and_recognised(here: SiteSettings, there: SiteSettings, tmp_path: Path) -> None:
    port = free_port()
    with sshd(tmp_path, there.authorized_keys, port) as host_key:
        far = pair(here, there, host_key, port)
        assert 0 < check_peer(here, far) < 30

        asked = subprocess.run([*peer_ssh_argv(here, far), "id; echo owned"], capture_output=True, text=True)
        assert asked.returncode == 77
        assert asked.stdout == ""
        assert "may only run: receive, ping, owner, owners, digest" in asked.stderr

        owner = [*peer_ssh_argv(here, far), "owner 8f1d6f0e-2c0b-4f7a-9d52-0a3b6f1f2a11"]
        told = subprocess.run(owner, capture_output=True, text=True)
        assert json.loads(told.stdout)["error"]["code"] == "NOT-FOUND"

        with pytest.raises(NotAVaporSite, match="Another site answers"):
            _expect_other(here, far)

        Enrolments(there).remove_peer(ensure_identity(here))
        with pytest.raises(NotAllowed, match="refused this site's SSH key"):
            check_peer(here, far)
    with pytest.raises(SiteUnreachable):
        check_peer(here, far)


def test_a_peer_tells_who_owns_vms_and_whether_they_run(
    here: SiteSettings, there: SiteSettings, tmp_path: Path
) -> None:
    port = free_port()
    guarded, unknown, running = (str(uuid4()), str(uuid4()), "6695eb01-f6a4-8304-79aa-97f2502e193f")
    many = [str(uuid4()) for _ in range(OWNERS_AT_ONCE)]
    with sshd(tmp_path, there.authorized_keys, port) as host_key:
        far = pair(here, there, host_key, port)
        request = GuardRequest(
            fence=leases.acquire(there.leases_dir, guarded, LEASE, lambda *_a, **_f: None).fence,
            epoch=Epoch(number=4, owner=far.site_id),
            state=GuardState.OWN,
            vm_name="web01",
            peer_site=ensure_identity(here),
            reason="protected",
            by="test",
        )
        GuardBook(there, AuditLog(there.audit_log)).arm(guarded, request)
        damaged = there.guard_dir / f"{many[0]}.json"
        damaged.write_text("{")
        words = ask_owners(here, far, [guarded, unknown, running, *many])
        assert words[guarded] == OwnerWord(epoch=request.epoch, runs=False)
        assert words[unknown] == OwnerWord(epoch=None, runs=False)
        assert words[running] == OwnerWord(epoch=None, runs=True)
        assert isinstance(words[many[0]], Unexpected)  # damaged: no answer, least of all "nobody's"
        assert words[many[-1]] == OwnerWord(epoch=None, runs=False)
        Enrolments(there).remove_peer(ensure_identity(here))
        with pytest.raises(NotAllowed):
            ask_owners(here, far, [guarded])
    with pytest.raises(SiteUnreachable):
        ask_owners(here, far, [guarded])


def _expect_other(here: SiteSettings, far: EnrolPeer) -> None:
    """The same sshd enrolled under another site's UUID."""
    other = far.model_copy(update={"site_id": "99999999-9999-4999-8999-999999999999"})
    Enrolments(here).add_peer(other, ensure_identity(here))
    check_peer(here, other)


def test_a_changed_host_key_is_refused(here: SiteSettings, there: SiteSettings, tmp_path: Path) -> None:
    port = free_port()
    with sshd(tmp_path, there.authorized_keys, port) as host_key:
        far = pair(here, there, host_key, port)
        check_peer(here, far)
    for name in (f"host-{port}", f"host-{port}.pub"):
        (tmp_path / name).unlink()
    with sshd(tmp_path, there.authorized_keys, port), pytest.raises(HostKeyChanged):
        check_peer(here, far)


def test_a_console_may_run_virt_ssh_helper_and_no_shell(there: SiteSettings, tmp_path: Path) -> None:
    port = free_port()
    key = make_key(tmp_path / "console")
    Enrolments(there).add_console(EnrolConsole(console_id=CONSOLE, console_name="c", public_key=key), "t")
    with sshd(tmp_path, there.authorized_keys, port) as host_key:
        (tmp_path / "known").write_text(f"[127.0.0.1]:{port} {host_key}\n")
        ssh = [
            "ssh", "-F", "none", "-i", str(tmp_path / "console"), "-o", f"UserKnownHostsFile={tmp_path / 'known'}",
            "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-p", str(port), "127.0.0.1", "--",
        ]  # fmt: skip
        refusals = (
            "sh", "", "sh -c id", "sh -c 'sh -c id'", "virt-ssh-helper qemu:///session",
            "virt-ssh-helper 'qemu:///system'; id", "sh -c 'virt-ssh-helper 'qemu:///system'; id'",
            "mover --receive-command sh", "relay-source", "relay-source ../x", f"relay-receive {CONSOLE} sh",
            f"relay-receive {CONSOLE}",  # no peer of this site
        )  # fmt: skip
        for refused in refusals:
            done = subprocess.run([*ssh, *([refused] if refused else [])], capture_output=True, text=True, input="")
            assert (done.returncode, done.stdout) == (77, ""), done.stderr
        for allowed in ("virt-ssh-helper 'qemu:///system'", "sh -c 'virt-ssh-helper 'qemu:///system''"):
            done = subprocess.run([*ssh, allowed], capture_output=True, text=True, input="")
            assert "may only run" not in done.stderr
            assert done.returncode != 77


def test_the_dispatcher_loads_nothing_but_the_standard_library() -> None:
    code = (
        "import sys, vapor_desktop.site.dispatch\n"
        "foreign = ('pydantic', 'click', 'fastapi', 'libvirt', 'cryptography', 'blake3', 'zstandard')\n"
        "print([m for m in sys.modules if m.split('.')[0] in foreign]"
        " + [m for m in sys.modules if m.startswith('vapor_desktop.') and m not in"
        " ('vapor_desktop.site', 'vapor_desktop.site.dispatch')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
