"""SSH against a real sshd: pinned host keys for paramiko, for OpenSSH, and for libvirt through the wrapper."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from memory_secrets import MemorySecrets
from sshd_server import RECORD, Sshd, free_port, make_key, sshd
from tls_server import raw_server

from vapor_desktop.model.errors import HostKeyChanged, InvalidRequest, NotAllowed, NotAVaporSite, SiteUnreachable
from vapor_desktop.site import dispatch
from vapor_desktop.transport.ssh import SshSession, check_host_key
from vapor_desktop.transport.ssh_files import SshFiles
from vapor_desktop.transport.ssh_key import console_private_key, console_public_key

ECHO = RECORD + "import sys\nfor line in sys.stdin:\n    sys.stdout.write(line); sys.stdout.flush()\n"


@pytest.fixture
def secrets() -> MemorySecrets:
    return MemorySecrets()


@pytest.fixture
def server(tmp_path: Path, secrets: MemorySecrets) -> Iterator[Sshd]:
    with sshd(tmp_path / "sshd") as running:
        running.authorize(console_public_key(secrets), ECHO)
        yield running


@pytest.fixture
def files(secrets: MemorySecrets) -> Iterator[SshFiles]:
    base = Path(tempfile.mkdtemp(prefix="vapor-test-"))
    made = SshFiles(secrets, base)
    yield made
    made.close()
    assert list(base.iterdir()) == []
    base.rmdir()


def test_a_channel_speaks_lines(server: Sshd, secrets: MemorySecrets) -> None:
    session = SshSession(server.site(), console_private_key(secrets))
    channel = session.run("mover")
    sent = [{"id": 1, "text": "grün"}, {"big": "x" * 300_000}, []]
    for value in sent:
        channel.send(value)
    lines = channel.lines()
    assert [next(lines) for _ in sent] == sent
    assert server.commands() == ["mover"]
    assert session.alive
    channel.close()
    session.close()
    assert not session.alive
    with pytest.raises(SiteUnreachable):
        session.run("mover")


def test_the_last_words_of_a_command_that_fails(server: Sshd, secrets: MemorySecrets) -> None:
    server.authorize(console_public_key(secrets), "import sys; sys.exit('vapor-site: not installed')")
    session = SshSession(server.site(), console_private_key(secrets))
    channel = session.run("mover")
    assert list(channel.lines()) == []
    assert channel.last_words() == "vapor-site: not installed"
    session.close()


def test_a_key_that_is_not_enrolled(server: Sshd) -> None:
    with pytest.raises(NotAllowed):
        SshSession(server.site(), console_private_key(MemorySecrets()))


def test_a_changed_host_key_is_refused_before_anything_is_sent(
    server: Sshd, secrets: MemorySecrets, tmp_path: Path
) -> None:
    site = server.site()
    check_host_key(site)
    make_key(server.home, "other")
    with pytest.raises(HostKeyChanged):
        check_host_key(server.site(server.host_key("other")))
    with pytest.raises(HostKeyChanged):
        SshSession(server.site(server.host_key("other")), console_private_key(secrets))
    with sshd(server.home, "other", free_port()) as second:
        with pytest.raises(HostKeyChanged):
            SshSession(second.site(server.host_key("host")), console_private_key(secrets))
        assert "Accepted" not in (server.home / "other.log").read_text()
        assert "Connection from" in (server.home / "other.log").read_text()
    assert server.commands() == []


def test_a_host_key_of_another_kind_is_a_changed_one_and_a_second_pin_counts(server: Sshd) -> None:
    make_key(server.home, "ecdsa", "ecdsa")
    with pytest.raises(HostKeyChanged):
        check_host_key(server.site(server.host_key("ecdsa")))
    check_host_key(server.site(server.host_key("ecdsa"), server.host_key()))
    make_key(server.home, "rsa", "rsa")
    with sshd(server.home, "rsa", free_port()) as with_rsa:
        check_host_key(with_rsa.site(server.host_key("rsa")))
        with pytest.raises(HostKeyChanged):
            check_host_key(with_rsa.site(server.host_key()))


def test_nothing_there_and_something_else_there(server: Sshd) -> None:
    gone = server.site().model_copy(update={"ssh_port": free_port()})
    with pytest.raises(SiteUnreachable, match="refused"):
        check_host_key(gone)
    done = threading.Event()

    def talk(connection: object) -> None:
        connection.sendall(b"220 mail.example ESMTP\r\n" * 200)  # type: ignore[attr-defined]
        done.wait(5)

    with raw_server(talk) as port:
        with pytest.raises(NotAVaporSite):
            check_host_key(server.site().model_copy(update={"ssh_port": port}))
        done.set()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_private_key_is_on_disk_only_while_needed(server: Sshd, files: SshFiles, secrets: MemorySecrets) -> None:
    wrapper = files.wrapper(server.site())
    directory = files.directory
    assert mode(directory) == 0o700
    assert (directory / "key").read_text() == secrets.kept["console-ssh-key"]
    assert mode(directory / "key") == 0o600
    assert mode(wrapper) == 0o700
    files.close()
    assert not directory.exists()


def test_a_master_that_takes_its_socket_away_at_that_moment_disturbs_no_close(
    server: Sshd, files: SshFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapper = files.wrapper(server.site())
    real, tries = os.unlink, []

    def racing(name: str, *, dir_fd: int | None = None) -> None:
        real(name, dir_fd=dir_fd)
        if dir_fd is not None and not tries:  # the tree's removal
            tries.append(name)
            raise FileNotFoundError(name)

    monkeypatch.setattr(os, "unlink", racing)
    files.close()
    assert tries
    assert not wrapper.parent.exists()


def test_what_a_crashed_process_left_is_swept_and_what_a_living_one_has_is_not(secrets: MemorySecrets) -> None:
    base = Path(tempfile.mkdtemp(prefix="vapor-test-"))
    ended = subprocess.Popen(["true"])
    ended.wait()
    for pid in (ended.pid, os.getppid()):
        (base / f"{pid}-left").mkdir()
        (base / f"{pid}-left" / "key").write_text("secret")
    made = SshFiles(secrets, base)
    assert made.directory.parent == base
    assert not (base / f"{ended.pid}-left").exists()
    assert (base / f"{os.getppid()}-left" / "key").exists()
    made.close()
    shutil.rmtree(base)


def test_a_runtime_directory_others_can_read_is_not_used(secrets: MemorySecrets, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o755)
    made = SshFiles(secrets, tmp_path / "run")
    assert made.directory.parent != tmp_path / "run"
    assert mode(made.directory) == 0o700
    made.close()


def run(files: SshFiles, server: Sshd, *host_keys: str, text: str = "hello\n") -> subprocess.CompletedProcess[str]:
    argv = files.argv(server.site(*host_keys), "words", "with space")
    return subprocess.run(argv, input=text, capture_output=True, text=True, timeout=30)


def test_openssh_through_the_wrapper_knows_only_our_pins(
    server: Sshd, files: SshFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user's own configuration would accept anything; it is not read."""
    (tmp_path / ".ssh").mkdir(mode=0o700)
    (tmp_path / ".ssh" / "config").write_text("Host *\n  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    good = run(files, server)
    assert (good.returncode, good.stdout) == (0, "hello\n"), good.stderr
    assert server.commands() == ["words with space"]
    make_key(server.home, "other")
    for pins in ((server.host_key("other"),), (f"@cert-authority {server.host_key()}",)):
        if pins[0].startswith("@"):
            with pytest.raises(InvalidRequest):
                run(files, server, *pins)
            continue
        bad = run(files, server, *pins)
        assert bad.returncode == 255
        assert bad.stdout == ""
    assert server.commands() == ["words with space"]
    assert "other" not in (tmp_path / ".ssh" / "config").read_text()


def test_the_connection_is_shared_and_survives_its_first_user(server: Sshd, files: SshFiles) -> None:
    assert run(files, server).returncode == 0
    slow = subprocess.Popen(
        files.argv(server.site(), "second"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert slow.stdin is not None
    assert slow.stdout is not None
    slow.stdin.write("still here\n")
    slow.stdin.flush()
    assert slow.stdout.readline() == "still here\n"
    assert run(files, server).returncode == 0
    slow.stdin.close()
    assert slow.wait(10) == 0
    slow.stdout.close()
    log = (server.home / "host.log").read_text()
    assert log.count("Accepted publickey") == 1
    files.end_master(server.site())
    assert run(files, server).returncode == 0
    assert (server.home / "host.log").read_text().count("Accepted publickey") == 2


# --- libvirt through the wrapper -----------------------------------------------------------------------
LIBVIRTD_RELAY = (
    RECORD
    + """
import socket, threading
far = socket.socket(socket.AF_UNIX)
far.connect("@SOCKET@")
def out():
    while data := far.recv(65536):
        os.write(1, data)
    os._exit(0)
threading.Thread(target=out).start()
while data := os.read(0, 65536):
    far.sendall(data)
far.shutdown(socket.SHUT_WR)
"""
)


@pytest.fixture
def libvirtd() -> Iterator[Path]:
    """A session libvirtd of its own (its built-in test driver); never as root, so it touches no system state."""
    home = Path(tempfile.mkdtemp(prefix="vapor-virt-", dir="/tmp"))
    as_user: list[str] = []
    if os.geteuid() == 0:
        shutil.chown(home, "nobody", "nogroup")
        as_user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
    env = {"PATH": os.environ["PATH"] + ":/usr/sbin", "HOME": str(home), "XDG_RUNTIME_DIR": str(home)}
    log = (home / "log").open("w")
    process = subprocess.Popen([*as_user, "libvirtd", "--timeout", "60"], env=env, stdout=log, stderr=log, cwd="/")
    try:
        path = home / "libvirt" / "libvirt-sock"
        deadline = time.monotonic() + 20
        pause = threading.Event()
        while not path.exists():
            assert process.poll() is None, (home / "log").read_text()
            assert time.monotonic() < deadline, (home / "log").read_text()
            pause.wait(0.05)
        yield path
    finally:
        process.terminate()
        process.wait()
        log.close()
        shutil.rmtree(home)


def virsh(uri: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["virsh", "-c", uri, "list", "--name"], capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
    )


def test_libvirt_refuses_a_changed_host_key(
    server: Sshd, files: SshFiles, secrets: MemorySecrets, libvirtd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same URI works, then the host's key changes, then it does not; and we can say why."""
    server.authorize(console_public_key(secrets), LIBVIRTD_RELAY.replace("@SOCKET@", str(libvirtd)))

    def uri_of(running: Sshd) -> str:
        uri = files.libvirt_uri(running.site(server.host_key("host")))
        assert uri.startswith(f"qemu+ssh://{server.user}@127.0.0.1:{running.port}/system?command=/")
        assert uri.endswith("&proxy=native&no_tty=1")
        # The far libvirtd has no system QEMU here; everything but the driver is as in the product.
        return uri.replace("qemu+ssh", "test+ssh", 1).replace("/system?", "/default?", 1)

    good = virsh(uri_of(server))
    assert (good.returncode, good.stdout.strip()) == (0, "test"), good.stderr
    asked = server.commands()
    # What this libvirt really asks for is what the site's dispatcher lets through.
    monkeypatch.setenv("SSH_ORIGINAL_COMMAND", asked[0].replace("test:///default", "qemu:///system"))
    assert dispatch._asked() in dispatch.SSH_HELPER_CALLS

    make_key(server.home, "other")
    with sshd(server.home, "other", free_port()) as changed:
        refused = virsh(uri_of(changed))
        assert refused.returncode == 1
        assert refused.stdout.strip() == ""
        assert "Accepted" not in (server.home / "other.log").read_text()
        with pytest.raises(HostKeyChanged):
            check_host_key(changed.site(server.host_key("host")))
    assert server.commands() == asked


def test_an_ipv6_site_in_the_uri(files: SshFiles, server: Sshd) -> None:
    site = server.site().model_copy(update={"ssh_host": "2001:db8::1", "ssh_port": 2222, "ssh_user": "vapor"})
    assert files.libvirt_uri(site).startswith("qemu+ssh://vapor@[2001:db8::1]:2222/system?command=")
