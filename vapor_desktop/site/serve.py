"""``vapor-site serve``: the API over TLS, the guardian and the alarm, in one process."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from typing import NoReturn

import click
import uvicorn

from vapor_desktop.model.errors import InvalidRequest, VaporError
from vapor_desktop.site.api.app import PREFIX, create_app
from vapor_desktop.site.identity import fingerprint_text
from vapor_desktop.site.services import Services, build
from vapor_desktop.site.settings import SiteSettings, load_settings

_log = logging.getLogger("vapor.site")

KEEP_ALIVE_S = 120  # consoles keep their connection between cycles
GRACE_S = 5


class _Announcing(uvicorn.Server):
    """Says when it really listens: to the log, and to systemd."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or []:
            host, port = listener.getsockname()[:2]
            _log.info("listening on https://%s:%d%s", f"[{host}]" if ":" in host else host, port, PREFIX)
        _notify("READY=1")


def make_server(services: Services) -> uvicorn.Server:
    """The HTTPS server over these services; ``run(sockets=[listen(…)])`` runs it."""
    settings = services.settings
    config = uvicorn.Config(
        create_app(services),
        ssl_certfile=str(settings.tls_cert),
        ssl_keyfile=str(settings.tls_key),
        lifespan="off",
        ws="none",
        http="h11",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S,
        limit_concurrency=512,
    )
    return _Announcing(config)


def listen(settings: SiteSettings) -> socket.socket:
    """The API's listening socket. Raises InvalidRequest when the address or port cannot be had."""
    family = socket.AF_INET6 if ":" in settings.listen else socket.AF_INET
    try:
        listener = socket.create_server((settings.listen, settings.port), family=family, backlog=256)
    except OSError as error:
        raise InvalidRequest(
            f"Cannot listen on {settings.listen} port {settings.port}",
            why=error.strerror or str(error),
            fix="Is another vapor-site running? Else change listen or port in site.toml",
        ) from error
    # Accepted sockets inherit it. asyncio sets it only where the socket's protocol is spelt out, which
    # create_server leaves 0; without it every answer waits 40 ms for the client's delayed acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def serve(settings: SiteSettings) -> None:
    """Run until SIGTERM or SIGINT."""
    services = build(settings)
    # uvicorn stops on these and then raises them again; without handlers of ours that would end the
    # process before the guardian's threads are stopped in order.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda got, _frame: _log.info("stopping on %s", signal.Signals(got).name))
    with listen(settings) as listener:
        services.start()
        try:
            _log.info("site %s, certificate %s", services.site_id, fingerprint_text(services.certificate_sha256))
            make_server(services).run(sockets=[listener])
        finally:
            services.stop()


def _notify(state: str) -> None:
    """systemd's sd_notify, when it listens."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as link:
        try:
            link.connect("\0" + address[1:] if address.startswith("@") else address)
            link.sendall(state.encode())
        except OSError as error:
            _log.warning("systemd was not told %s: %s", state, error)


@click.command("serve")
def _command() -> None:
    """Run the site service."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    os.umask(0o007)  # QEMU's group reads and writes what we make in the replica roots
    try:
        serve(load_settings())
    except VaporError as error:
        raise click.ClickException(str(error)) from error


def main(args: Sequence[str]) -> NoReturn:
    """The verb ``serve``."""
    _command.main(args=list(args), prog_name="vapor-site serve")
