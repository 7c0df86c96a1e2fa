"""A real sshd, started by hand on a free port, with two keys: one for the mover, one to forward.

On loopback, or at another address of this machine's network namespaces (``enter``: the words that get there).
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.unit.mover_rig import Rig, run
from vapor_desktop.model.wire import EnrolPeer
from vapor_desktop.site.enrolments import Enrolments
from vapor_desktop.site.ssh_options import CIPHERS

START_S = 10.0


class Sshd:
    """Accepts the rig's source site as peer (forced command), and a free key for a forwarded socket."""

    def __init__(self, rig: Rig, address: str = "127.0.0.1", enter: Sequence[str] = ()) -> None:
        self.address = address
        self.root = rig.root / "ssh"
        self.root.mkdir(mode=0o700)
        self.port = _free_port()
        for name in ("host", "free"):
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.root / name)
        site_key = (rig.source.ssh_key.with_suffix(".pub")).read_text().strip()
        forced = (
            f"env VAPOR_SITE_CONFIG={rig.root}/b/site.toml "
            f"{sys.executable} -m vapor_desktop.site.dispatch peer {rig.source_id}"
        )
        free_key = (self.root / "free.pub").read_text().strip()
        keys = self.root / "keys"
        keys.write_text(f'restrict,command="{forced}" {site_key}\n{free_key}\n')
        config = self.root / "sshd_config"
        config.write_text(
            f"Port {self.port}\nListenAddress {address}\nHostKey {self.root}/host\nAuthorizedKeysFile {keys}\n"
            f"StrictModes no\nUsePAM no\nPidFile {self.root}/pid\nPermitRootLogin prohibit-password\n"
            "PasswordAuthentication no\nLogLevel ERROR\n"
        )
        Path("/run/sshd").mkdir(exist_ok=True)
        self._process = subprocess.Popen([*enter, "/usr/sbin/sshd", "-D", "-e", "-f", str(config)])
        _wait_for_port(address, self.port)
        host_key = " ".join((self.root / "host.pub").read_text().split()[:2])
        (self.root / "known").write_text(f"[{address}]:{self.port} {host_key}\n")
        user = run("id", "-un").strip()
        Enrolments(rig.source).add_peer(
            EnrolPeer(
                site_id=rig.target_id,
                name="b",
                public_key=site_key,
                host_keys=(host_key,),
                address=address,
                port=self.port,
                user=user,
            ),
            rig.source_id,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def forward(self, here: Path, there: Path) -> subprocess.Popen[bytes]:
        """An ssh that forwards a unix socket; its end is the caller's."""
        process = subprocess.Popen(
            [
                *("ssh", "-F", "none", "-N", "-T", "-i", str(self.root / "free"), "-p", str(self.port)),
                *("-o", f"UserKnownHostsFile={self.root}/known", "-o", "BatchMode=yes", "-o", f"Ciphers={CIPHERS}"),
                *("-o", "Compression=no", "-o", "IPQoS=throughput", "-o", "ExitOnForwardFailure=yes"),
                *("-L", f"{here}:{there}", self.address),
            ]
        )
        deadline = time.monotonic() + START_S
        while not here.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("ssh does not forward")
            time.sleep(0.01)
        return process

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _wait_for_port(address: str, port: int) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            socket.create_connection((address, port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
