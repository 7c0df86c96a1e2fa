"""A real TLS server in this process, with answers a test gives it and a record of what it was sent."""

from __future__ import annotations

import hashlib
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Certificate:
    """A self-signed leaf on disk."""

    path: Path
    pem: str
    sha256: bytes


def make_certificate(
    directory: Path, name: str, *, days: tuple[int, int] = (-1, 3650), names: tuple[str, ...] = ()
) -> Certificate:
    """Key and certificate in one file; valid from/to in days from now. ``names``: of the host, in DNS."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days=days[0]))
        .not_valid_after(now + timedelta(days=days[1]))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    )
    if names:
        alternative = x509.SubjectAlternativeName([x509.DNSName(host) for host in names])
        builder = builder.add_extension(alternative, critical=False)
    certificate = builder.sign(key, hashes.SHA256())
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = directory / f"{name}.pem"
    path.write_bytes(private + pem)
    der = certificate.public_bytes(serialization.Encoding.DER)
    return Certificate(path, pem.decode(), hashlib.sha256(der).digest())


@dataclass
class Request:
    """One request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any
    client: tuple[str, int]


@dataclass
class TlsServer:
    """``answers``: (method, path without query) -> (status, JSON) or a function of the request to that."""

    port: int
    answers: dict[tuple[str, str], Any] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)

    @property
    def url(self) -> str:
        """As a console would write it."""
        return f"https://127.0.0.1:{self.port}/api/v1"

    def problem(self, method: str, path: str, status: int, **body: Any) -> None:
        """Answer with problem+json."""
        self.answers[method, path] = (status, {"problem": True, **body})


@contextmanager
def tls_server(certificate: Certificate, port: int = 0) -> Iterator[TlsServer]:
    """Serves until the end of the block."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.path)
    record = TlsServer(0)

    open_now: set[ssl.SSLSocket] = set()

    class Server(ThreadingHTTPServer):
        daemon_threads = False  # server_close() waits for them

        def finish_request(self, request: Any, client_address: Any) -> None:
            request.settimeout(10)
            try:
                secured = context.wrap_socket(request, server_side=True)
            except OSError:
                return  # the client did not like our certificate
            open_now.add(secured)
            try:
                super().finish_request(secured, client_address)
            except OSError:
                return  # the connection broke, or the test is over
            finally:
                open_now.discard(secured)
                secured.close()

    server = Server(("127.0.0.1", port), handler(record))
    record.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield record
    finally:
        server.shutdown()
        thread.join()
        for connection in tuple(open_now):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        server.server_close()


def handler(record: TlsServer) -> type[BaseHTTPRequestHandler]:
    """Looks answers up in ``record``."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            raw = self.rfile.read(length)
            request = Request(
                self.command,
                self.path,
                {key.lower(): value for key, value in self.headers.items()},
                json.loads(raw) if raw else None,
                self.client_address,
            )
            record.requests.append(request)
            path = self.path.partition("?")[0].removeprefix("/api/v1")
            answer = record.answers.get((self.command, path), (404, {"detail": "Not Found"}))
            status, body = answer(request) if callable(answer) else answer
            self._reply(status, body)

        def _reply(self, status: int, body: Any) -> None:
            kind = "application/json"
            if isinstance(body, dict) and body.pop("problem", False):
                kind = "application/problem+json"
            raw = body if isinstance(body, bytes) else b"" if status == 204 else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        do_GET = do_POST = do_PUT = do_DELETE = _serve

        def log_message(self, *args: object) -> None:
            """Quiet."""

    return Handler


@contextmanager
def raw_server(talk: Callable[[socket.socket], None]) -> Iterator[int]:
    """A TCP server that lets ``talk`` have each connection. Yields the port."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.05)
    over = threading.Event()

    def serve() -> None:
        while not over.is_set():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            with connection:
                connection.settimeout(5)
                try:
                    talk(connection)
                except OSError:
                    continue

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        over.set()
        thread.join()
        listener.close()
