"""A real sshd on loopback with its own keys, port and forced command; runs as whoever runs the tests."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from vapor_desktop.model.sites import Site


@dataclass
class Sshd:
    """``authorize`` a key, then connect to ``port`` as ``user``."""

    home: Path
    port: int
    user: str

    def host_key(self, name: str = "host") -> str:
        """ "TYPE BASE64" of the key ``make_key`` made."""
        return " ".join((self.home / f"{name}.pub").read_text().split()[:2])

    def authorize(self, public_key: str, program: str) -> None:
        """Let that key in, for this Python program only; it sees SSH_ORIGINAL_COMMAND."""
        script = self.home / "forced.py"
        script.write_text(program)
        line = f'restrict,command="{sys.executable} {script}" {public_key}\n'
        (self.home / "authorized_keys").write_text(line)

    def commands(self) -> list[str]:
        """What clients asked for, if the program writes it down with ``RECORD``."""
        record = self.home / "commands"
        return record.read_text().splitlines() if record.exists() else []

    def site(self, *host_keys: str) -> Site:
        """As the console would have it after pairing."""
        return Site(
            site_id="11111111-2222-3333-4444-555555555555",
            name="alpha",
            api_url="https://127.0.0.1:7770/api/v1",
            cert_pem="PEM",
            cert_sha256="00",
            ssh_host="127.0.0.1",
            ssh_port=self.port,
            ssh_user=self.user,
            ssh_host_keys=host_keys or (self.host_key(),),
            replica_root="/r",
            paired_at=datetime.now(UTC),
        )


RECORD = """
import os, pathlib
asked = os.environ.get("SSH_ORIGINAL_COMMAND", "")
with (pathlib.Path(__file__).parent / "commands").open("a") as record:
    record.write(asked + "\\n")
"""


def make_key(home: Path, name: str, kind: str = "ed25519") -> None:
    """A host key pair."""
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", "", "-f", str(home / name)], check=True)


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        return int(held.getsockname()[1])


@contextmanager
def sshd(home: Path, key: str = "host", port: int | None = None) -> Iterator[Sshd]:
    """``key``: the name of the host key in ``home``, made if it is not there."""
    program = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin")
    if program is None:
        raise RuntimeError("sshd is not installed (Debian: apt install openssh-server)")
    home.mkdir(exist_ok=True)
    if not (home / key).exists():
        make_key(home, key)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    running = Sshd(home, port or free_port(), getpass.getuser())
    config = home / f"sshd_config.{key}"
    config.write_text(
        f"Port {running.port}\nListenAddress 127.0.0.1\nHostKey {home / key}\nPidFile none\nUsePAM no\n"
        f"AuthorizedKeysFile {home / 'authorized_keys'}\nStrictModes no\nPasswordAuthentication no\n"
        "KbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\nMaxStartups 100\nLogLevel VERBOSE\n"
    )
    log = home / f"{key}.log"
    process = subprocess.Popen([program, "-D", "-f", str(config), "-E", str(log)])
    try:
        deadline = time.monotonic() + 15
        pause = threading.Event()
        while True:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            try:
                socket.create_connection(("127.0.0.1", running.port), 1).close()
                break
            except ConnectionRefusedError:
                pause.wait(0.02)
        yield running
    finally:
        process.terminate()
        process.wait()
