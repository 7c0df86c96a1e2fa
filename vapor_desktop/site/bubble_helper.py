"""``vapor-site bubble``: the second and last part of a site that runs as root; it makes the probes of drills.

Apart from ``vapor-site helper``, which has no network at all (its unit says so). A unix socket; only the account
``vapor`` (and root) is heard. One verb: ``probe``, whose connection becomes the probe's own and whose end is its end.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Sequence
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any, NoReturn

import click

from vapor_desktop.model.errors import InvalidRequest, NotAllowed, Unexpected, VaporError
from vapor_desktop.site.helper import inherited, listen_at
from vapor_desktop.site.settings import load_settings

_log = logging.getLogger("vapor.bubble")

BRIDGE, PORT = re.compile(r"vdb[0-9a-f]{8}[0-9a-z]"), re.compile(r"vdp[0-9a-f]{8}[0-9a-z]")
_DRILL_VM = re.compile(r"[^/\0]+-drill-[0-9a-f]{8}")
LOGS = ((Path("/var/log/libvirt/qemu"), ".log"), (Path("/var/log/swtpm/libvirt/qemu"), "-swtpm.log"))
LINE_LIMIT_BYTES = 1 << 16
FIRST_LINE_S = 10.0


class BubbleHelper:
    """The server. ``allowed_uids``: who is heard."""

    def __init__(self, allowed_uids: frozenset[int]) -> None:
        self._allowed = allowed_uids

    def serve(self, listener: socket.socket, stop: threading.Event) -> None:
        """Accept until ``stop``; one thread and one process per probe."""
        listener.settimeout(0.5)
        while not stop.is_set():
            try:
                link, _ = listener.accept()
            except TimeoutError:
                continue
            threading.Thread(target=self._connection, args=(link,), name="probe", daemon=True).start()

    def _connection(self, link: socket.socket) -> None:
        with link:
            try:
                words = self._words(link)
                if words is None:
                    _send(link, {"ok": {}})
                    return
                child = self._start(link, words)
            except VaporError as error:
                _send(link, {"error": error.to_wire()})
                return
            except OSError as error:
                trouble = Unexpected("The bubble helper failed", why=error.strerror or str(error))
                _send(link, {"error": trouble.to_wire()})
                return
        child.wait()  # it ends when its connection does

    def _words(self, link: socket.socket) -> list[str] | None:
        """The probe's arguments; None when the request is done already."""
        _pid, uid, _gid = struct.unpack("3i", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        request = _read_line(link)  # read whoever it is: hung up on too early, it would not hear why
        if uid not in self._allowed:
            raise NotAllowed("The bubble helper does not serve this account", uid=uid)
        if request.get("verb") == "ping":
            return None
        if request.get("verb") == "forget-logs":
            _forget_logs([str(name) for name in request.get("names", ())])
            return None
        bridge, port, gateway = (str(request.get(key)) for key in ("bridge", "port", "gateway"))
        if request.get("verb") != "probe" or not BRIDGE.fullmatch(bridge) or not PORT.fullmatch(port):
            raise InvalidRequest("The bubble helper does not know this request")
        try:
            IPv4Interface(gateway)
        except ValueError as error:
            raise InvalidRequest("The gateway is no address with a prefix", why=str(error)) from error
        return [bridge, port, gateway]

    def _start(self, link: socket.socket, words: Sequence[str]) -> subprocess.Popen[bytes]:
        link.settimeout(None)
        # -P: nothing of the directory we happen to be in is imported.
        argv = [sys.executable, "-P", "-m", "vapor_desktop.site.bubble_probe", *words]
        kept = {
            key: os.environ[key] for key in ("PATH", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE") if key in os.environ
        }
        return subprocess.Popen(argv, stdin=link.fileno(), stdout=link.fileno(), env={**kept, "LC_ALL": "C.UTF-8"})


def _forget_logs(names: Sequence[str]) -> None:
    """libvirt leaves a log of every VM that ever ran. Only those of drills' VMs are touched, by their whole names."""
    for name in names:
        if "/" in name or not _DRILL_VM.fullmatch(name):
            raise NotAllowed("Only logs of drills' VMs are ours to remove", name=name)
        for directory, end in LOGS:
            (directory / f"{name}{end}").unlink(missing_ok=True)


def _read_line(link: socket.socket) -> dict[str, Any]:
    link.settimeout(FIRST_LINE_S)
    raw = bytearray()
    while not raw.endswith(b"\n"):
        try:
            chunk = link.recv(1)  # what follows the line is the probe's
        except TimeoutError as error:
            raise InvalidRequest("The request did not come in time") from error
        raw += chunk
        if not chunk or len(raw) > LINE_LIMIT_BYTES:
            raise InvalidRequest("The request is not one line of JSON")
    try:
        value = json.loads(raw)
    except ValueError as error:
        raise InvalidRequest("The request is not one line of JSON") from error
    if not isinstance(value, dict):
        raise InvalidRequest("The request is not a JSON object")
    return value


def _send(link: socket.socket, value: dict[str, Any]) -> None:
    try:
        link.sendall(json.dumps(value).encode() + b"\n")
    except OSError as error:
        _log.info("the caller hung up before the answer: %s", error)


@click.command("bubble")
@click.option("--socket", "socket_path", type=click.Path(path_type=Path), help="Listen here (no systemd).")
def _command(socket_path: Path | None) -> None:
    """Run the bubble helper."""
    import pwd

    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    settings = load_settings()
    account = pwd.getpwnam(settings.user)
    listener = inherited() or listen_at(socket_path or settings.bubble_socket, account.pw_uid, account.pw_gid)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with listener:
        BubbleHelper(frozenset({0, account.pw_uid})).serve(listener, stop)


def main(args: Sequence[str]) -> NoReturn:
    """The verb ``bubble``."""
    _command.main(args=list(args), prog_name="vapor-site bubble")
