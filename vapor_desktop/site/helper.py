"""``vapor-site helper``: the only part of a site that runs as root.

A unix socket, one JSON line in, one out; only the account ``vapor`` (and root) is heard, by the kernel's
word (SO_PEERCRED). Fixed verbs, allow-listed roots (``helper_paths``). An offline export is a ``qemu-nbd -r``
that lives as long as its caller's connection: when the caller dies, it ends.
"""

from __future__ import annotations

import json
import logging
import os
import pwd
import secrets
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import click

from vapor_desktop.model.errors import ImageToolFailed, InvalidRequest, NotAllowed, Unexpected, VaporError
from vapor_desktop.site import helper_tpm as tpm
from vapor_desktop.site import helper_verbs as verbs
from vapor_desktop.site.settings import SiteSettings, load_settings

_log = logging.getLogger("vapor.helper")

LINE_LIMIT_BYTES = 100 << 20  # a varstore in base64
FIRST_LINE_S = 10.0
EXPORT_CLIENTS = "16"
END_S = 5.0
GREETING_S = 10.0


class Helper:
    """The server. ``allowed_uids``: who is heard."""

    def __init__(self, settings: SiteSettings, allowed_uids: frozenset[int]) -> None:
        self._settings = settings
        self._allowed = allowed_uids

    def serve(self, listener: socket.socket, stop: threading.Event) -> None:
        """Accept until ``stop``; one thread per connection."""
        listener.settimeout(0.5)
        while not stop.is_set():
            try:
                link, _ = listener.accept()
            except TimeoutError:
                continue
            threading.Thread(target=self._connection, args=(link,), name="helper-call", daemon=True).start()

    def _connection(self, link: socket.socket) -> None:
        with link:
            try:
                self._require_peer(link)
                request = _read_line(link)
                if request.get("verb") == "offline-export":
                    self._export(link, request)
                else:
                    _send(link, {"ok": self._run(request)})
            except VaporError as error:
                _send(link, {"error": error.to_wire()})
            except OSError as error:
                trouble = Unexpected("The root helper failed", why=error.strerror or str(error), errno=error.errno)
                _send(link, {"error": trouble.to_wire()})

    def _require_peer(self, link: socket.socket) -> None:
        raw = link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, uid, _gid = struct.unpack("3i", raw)
        if uid not in self._allowed:
            _log.warning("refused: pid %d of uid %d", pid, uid)
            raise NotAllowed("The root helper does not serve this account", uid=uid)

    def _run(self, request: dict[str, Any]) -> dict[str, Any]:
        known: dict[str, Callable[..., dict[str, Any]]] = {
            "ping": dict,
            "read-nvram": lambda vm, path: verbs.read_nvram(self._settings, path),
            "place-nvram": lambda path, data: verbs.place_nvram(self._settings, path, data),
            "read-tpm": lambda vm: tpm.read_tpm(self._settings, vm),
            "place-tpm": lambda vm, data: tpm.place_tpm(self._settings, vm, data),
            "image-info": lambda image: verbs.image_info(self._settings, image),
            "image-bitmap-add": lambda image, name: verbs.bitmap(self._settings, image, name, add=True),
            "image-adopt": lambda image: verbs.image_adopt(self._settings, image),
            "image-stamp": lambda image: verbs.image_stamp(self._settings, image),
            "image-bitmap-clear": lambda image, name, expect_stamp: verbs.bitmap_clear(
                self._settings, image, name, expect_stamp
            ),
            "image-bitmap-remove": lambda image, name: verbs.bitmap(self._settings, image, name, add=False),
        }
        params = {key: value for key, value in request.items() if key != "verb"}
        verb = known.get(str(request.get("verb")))
        if verb is None or not all(isinstance(value, str) for value in params.values()):
            raise InvalidRequest("The root helper does not know this request", verb=str(request.get("verb")))
        try:
            return verb(**params)
        except (TypeError, ValueError) as error:
            raise InvalidRequest("The request does not fit its verb", why=str(error)) from error

    def _export(self, link: socket.socket, request: dict[str, Any]) -> None:
        """Run qemu-nbd on a socket we bound ourselves, until the caller hangs up or qemu-nbd ends."""
        image, fmt = str(request.get("image")), str(request.get("format"))
        bitmap, export = str(request.get("bitmap", "-")), str(request.get("export", ""))
        verbs.check_export(self._settings, image, fmt, bitmap)
        path = verbs.export_socket_dir(self._settings) / f"{secrets.token_hex(6)}.sock"
        listener = _bind(path, _ids_of(self._settings.user)[1])
        try:
            child = _start_nbd(listener, path, image, fmt, bitmap, export)
            try:
                _send(link, {"ok": {"socket": str(path)}})
                _wait_end(link, child)
            finally:
                _end(child)
        finally:
            listener.close()
            path.unlink(missing_ok=True)


def _bind(path: Path, group: int) -> socket.socket:
    """A listening unix socket at ``path``, for root and ``group`` only."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    os.chown(path, -1, group, follow_symlinks=False)
    path.chmod(0o660)
    listener.listen(16)
    return listener


# systemd's activation protocol, spoken by qemu-nbd: the listener is descriptor 3, LISTEN_PID its own pid.
_LAUNCH = (
    "import os,sys;os.dup2(int(sys.argv[1]),3);"
    "os.environ.update(LISTEN_PID=str(os.getpid()),LISTEN_FDS='1');os.execvp(sys.argv[2],sys.argv[2:])"
)


def _start_nbd(
    listener: socket.socket, path: Path, image: str, fmt: str, bitmap: str, export: str
) -> subprocess.Popen[bytes]:
    """qemu-nbd on the socket we bound. Raises ImageToolFailed when it does not greet (no such bitmap, …)."""
    argv = ["qemu-nbd", "-r", "-t", "-e", EXPORT_CLIENTS, "-x", export]
    argv += [] if bitmap == "-" else ["-B", bitmap]
    # Without force-share its lock would keep a VM that is started meanwhile from opening its own disk. Who reads
    # asks afterwards whether that happened (mover/stopped.py). A comma in an option's value is doubled.
    protocol = "host_device" if Path(image).is_block_device() else "file"
    options = f"driver={fmt},file.driver={protocol},file.filename={image.replace(',', ',,')},force-share=on"
    with tempfile.TemporaryFile() as stderr:  # not a pipe: nobody would empty it during a long export
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _LAUNCH, str(listener.fileno()), *argv, "--image-opts", options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
            pass_fds=(listener.fileno(),),
        )
        listener.close()  # only qemu-nbd listens now: when it dies, connecting fails at once
        if _greets(path):
            return child
        _end(child)
        stderr.seek(0)
        words = stderr.read().decode(errors="replace").strip()
    raise ImageToolFailed("qemu-nbd did not export the image", why=words, stderr=words, image=image)


def _greets(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(GREETING_S)
        try:
            probe.connect(str(path))
            return probe.recv(8, socket.MSG_WAITALL) == b"NBDMAGIC"
        except OSError:
            return False


def _wait_end(link: socket.socket, child: subprocess.Popen[bytes]) -> None:
    """Until the caller hangs up or qemu-nbd ends by itself."""
    with open_pidfd(child.pid) as ended:
        select.select([link.fileno(), ended], [], [])


@contextmanager
def open_pidfd(pid: int) -> Iterator[int]:
    """A descriptor that becomes readable when the process ends."""
    descriptor = os.pidfd_open(pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(END_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _read_line(link: socket.socket) -> dict[str, Any]:
    """The request. Raises InvalidRequest when it is too long, not JSON, or does not come in time."""
    link.settimeout(FIRST_LINE_S)
    raw = bytearray()
    while not raw.endswith(b"\n"):
        try:
            chunk = link.recv(1 << 20)
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


def _ids_of(user: str) -> tuple[int, int]:
    """The account's uid and gid; our own where the account does not exist (a test's helper)."""
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        return os.geteuid(), os.getegid()
    return entry.pw_uid, entry.pw_gid


def listen_at(path: Path, uid: int, gid: int) -> socket.socket:
    """The helper's own socket where systemd does not make it; a left-over one is replaced."""
    if not path.parent.is_dir():
        path.parent.mkdir(mode=0o750, parents=True)
        os.chown(path.parent, uid, gid)
    path.unlink(missing_ok=True)
    return _bind(path, gid)


def inherited() -> socket.socket | None:
    """The socket systemd handed over, if any."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or os.environ.get("LISTEN_FDS") != "1":
        return None
    return socket.socket(fileno=3)


@click.command("helper")
@click.option("--socket", "socket_path", type=click.Path(path_type=Path), help="Listen here (no systemd).")
def _command(socket_path: Path | None) -> None:
    """Run the root helper."""
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    settings = load_settings()
    uid, gid = _ids_of(settings.user)
    listener = inherited() or listen_at(socket_path or settings.helper_socket, uid, gid)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with listener:
        Helper(settings, frozenset({0, uid})).serve(listener, stop)


def main(args: Sequence[str]) -> NoReturn:
    """The verb ``helper``."""
    _command.main(args=list(args), prog_name="vapor-site helper")
