"""A real ``vapor-site serve`` on loopback with a state directory of its own, for tests."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from vapor_desktop.model.wire import Scope
from vapor_desktop.site.audit import AuditLog
from vapor_desktop.site.tokens import TokenBook

START_S = 30
CONSOLE = "11111111-1111-4111-8111-111111111111"


def free_port() -> int:
    """A port nobody listens on right now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@dataclass
class SiteServer:
    """The running service and its administrator."""

    directory: Path
    config: Path
    port: int
    process: subprocess.Popen[str]
    log: list[str]

    @property
    def url(self) -> str:
        """The API's base."""
        return f"https://127.0.0.1:{self.port}/api/v1"

    @property
    def state(self) -> Path:
        """The state directory."""
        return self.directory / "state"

    def admin(self, *args: str, code: int = 0) -> str:
        """``vapor-site ARGS`` on the host; its output."""
        done = subprocess.run(
            [sys.executable, "-m", "vapor_desktop.site.dispatch", *args],
            env={**os.environ, "VAPOR_SITE_CONFIG": str(self.config)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == code, done.stderr + done.stdout
        return done.stdout

    def one_time(self, scope: str = "admin", ttl_s: float = 900) -> str:
        """A new one-time token's text, as ``vapor-site token new`` makes it (in this process: a second faster)."""
        digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert((self.state / "tls" / "cert.pem").read_text())).digest()
        book = TokenBook(self.state / "tokens.json", AuditLog(self.state / "audit.log"))
        return book.new_one_time(digest, Scope(scope), ttl_s)[0]

    def client(self, token: str | None = None) -> httpx2.Client:
        """Trusts exactly this site's certificate, as a console does, by OpenSSL's strict rules."""
        pem = (self.state / "tls" / "cert.pem").read_text()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.load_verify_locations(cadata=pem)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx2.Client(base_url=self.url, verify=context, headers=headers, timeout=30, trust_env=False)

    def paired(self, scope: str = "admin", console_id: str = CONSOLE) -> tuple[httpx2.Client, dict[str, Any]]:
        """A console's client after the exchange, and the exchange's answer."""
        with self.client(self.one_time(scope)) as once:
            answer = once.post("/tokens/exchange", json={"console_name": "test", "console_id": console_id})
        assert answer.status_code == 200, answer.text
        return self.client(answer.json()["token"]), answer.json()


@contextmanager
def running_site(directory: Path, name: str = "alpha", **settings: object) -> Iterator[SiteServer]:
    """Start it, wait until it listens, end it by SIGTERM and insist on a clean exit."""
    port = free_port()
    for part in ("replicas", "scratch", "run"):
        (directory / part).mkdir(parents=True, exist_ok=True)
    values: dict[str, object] = {
        "name": name,
        "listen": "127.0.0.1",
        "port": port,
        "advertised_address": "127.0.0.1",
        "state_dir": str(directory / "state"),
        "run_dir": str(directory / "run"),
        "replica_roots": [str(directory / "replicas")],
        "replica_reserve_bytes": 0,
        "scratch_dir": str(directory / "scratch"),
        "helper_socket": str(directory / "run" / "helper.sock"),
        "libvirt_uri": "test:///default",  # libvirt's own test driver: answers without a daemon
        **settings,
    }
    config = directory / "site.toml"
    config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))
    process = subprocess.Popen(
        [sys.executable, "-m", "vapor_desktop.site.dispatch", "serve"],
        env={**os.environ, "VAPOR_SITE_CONFIG": str(config)},
        stderr=subprocess.PIPE,
        text=True,
    )
    listening = threading.Event()
    log: list[str] = []

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            log.append(line)
            if "listening on" in line:
                listening.set()
        listening.set()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert listening.wait(START_S), "the site service did not start in time"
        assert process.poll() is None, "".join(log)
        yield SiteServer(directory, config, port, process, log)
    finally:
        process.terminate()
        code = process.wait(30)
        reader.join()
        assert process.stderr is not None
        process.stderr.close()
    assert code == 0, "".join(log)
