"""Control over SSH: paramiko with pinned host keys, and channels that speak lines of JSON.

Never disk data: paramiko dies at its 512 MiB re-key [facts/libvirt 3.3].
"""

from __future__ import annotations

import io
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import paramiko

from vapor_desktop.engine.ports import Secrets
from vapor_desktop.model.errors import (
    HostKeyChanged,
    NotAllowed,
    NotAVaporSite,
    ProtocolError,
    SiteUnreachable,
    VaporError,
)
from vapor_desktop.model.sites import Site
from vapor_desktop.transport.causes import chain, why
from vapor_desktop.transport.ssh_key import console_private_key

CONNECT_TIMEOUT_S = 10.0
BANNER_TIMEOUT_S = 15.0
KEEPALIVE_S = 15
DEAD_AFTER_MS = 60_000  # unacknowledged data for that long ends the connection [tcp(7) TCP_USER_TIMEOUT]
_LONGEST_LINE = 64 << 20
_STDERR_KEPT = 4096
_KINDS_OF_RSA = ("rsa-sha2-512", "rsa-sha2-256")


class LineChannel:
    """One command at the site. One thread reads ``lines()``, any thread may ``send()``."""

    def __init__(self, channel: paramiko.Channel, command: str, place: str) -> None:
        self.command = command
        self._place = place
        self._channel = channel
        self._writing = threading.Lock()
        self._errors = bytearray()
        self._drain = threading.Thread(target=self._keep_stderr, name=f"ssh-stderr {command}", daemon=True)
        self._drain.start()

    def send(self, value: Any) -> None:
        """One line of JSON. Raises SiteUnreachable when the channel is dead."""
        line = json.dumps(value, separators=(",", ":")).encode() + b"\n"
        try:
            with self._writing:
                self._channel.sendall(line)
        except (OSError, EOFError) as error:
            raise SiteUnreachable(f"The SSH channel to {self._place} broke off", why=why(error)) from error

    def lines(self) -> Iterator[Any]:
        """The values as they come, until the channel ends. Raises ProtocolError for what is no JSON line."""
        held = bytearray()
        while True:
            try:
                received = self._channel.recv(65536)
            except OSError:
                return
            if not received:
                return
            held += received
            while (end := held.find(b"\n")) >= 0:
                line = bytes(held[:end])
                del held[: end + 1]
                yield self._value(line)
            if len(held) > _LONGEST_LINE:
                raise ProtocolError(f"{self._place} sent a line without an end", command=self.command)

    def _value(self, line: bytes) -> Any:
        try:
            return json.loads(line)
        except ValueError as error:
            shown = line[:200].decode(errors="replace")
            raise ProtocolError(f"{self._place} sent a line that is no JSON", line=shown) from error

    def _keep_stderr(self) -> None:
        """The last words; also so that a talkative command does not block on a full window."""
        while True:
            try:
                received = self._channel.recv_stderr(4096)
            except OSError:
                return
            if not received:
                return
            self._errors += received
            del self._errors[:-_STDERR_KEPT]

    def last_words(self) -> str:
        """What it wrote on its error stream, at most 4 KiB. Waits for its end if it has ended."""
        if self._channel.closed or self._channel.eof_received:
            self._drain.join(5)
        return self._errors.decode(errors="replace").strip()

    def close(self) -> None:
        """The command sees the end of its input. The connection may have ended already."""
        with suppress(OSError, EOFError):
            self._channel.close()


class SshSession:
    """One authenticated connection to a site. Thread-safe.

    Raises SiteUnreachable, HostKeyChanged (before anything is sent), NotAllowed, NotAVaporSite.
    """

    def __init__(self, site: Site, private_key: str) -> None:
        self.site = site
        self._place = place(site)
        self._transport = _connected(site)
        try:
            key = paramiko.Ed25519Key.from_private_key(io.StringIO(private_key))
            self._transport.auth_publickey(site.ssh_user, key)
        except paramiko.AuthenticationException as error:
            self._transport.close()
            raise NotAllowed(
                f"{self._place} does not accept this console's SSH key",
                fix="Pair the site again: that enrols this console's key anew",
            ) from error
        except (paramiko.SSHException, OSError, EOFError) as error:
            self._transport.close()
            raise SiteUnreachable(f"The SSH connection to {self._place} broke off", why=why(error)) from error
        self._transport.set_keepalive(KEEPALIVE_S)

    @property
    def alive(self) -> bool:
        """False once the connection has ended; True is no promise."""
        return self._transport.is_active()

    def run(self, command: str) -> LineChannel:
        """Start a command (the site's forced command decides what it may be)."""
        try:
            channel = self._transport.open_session(timeout=CONNECT_TIMEOUT_S)
            channel.exec_command(command)
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise SiteUnreachable(f"The SSH connection to {self._place} broke off", why=why(error)) from error
        return LineChannel(channel, command, self._place)

    def close(self) -> None:
        """End the connection and all its channels."""
        self._transport.close()


def place(site: Site) -> str:
    """ "alpha (192.0.2.1:22)" for messages."""
    return f"{site.name} ({site.ssh_host}:{site.ssh_port})"


def open_session(site: Site, secrets: Secrets) -> SshSession:
    """With the console's own key."""
    return SshSession(site, console_private_key(secrets))


def check_host_key(site: Site) -> None:
    """Key exchange and no more: returns when the site shows a pinned host key.

    Raises HostKeyChanged, SiteUnreachable, NotAVaporSite. Tells why an ``ssh`` of somebody else's (libvirt's)
    failed, without reading its words.
    """
    _connected(site).close()


def _connected(site: Site) -> paramiko.Transport:
    pins = {tuple(key.split()[:2]) for key in site.ssh_host_keys}
    kinds = {kind for kind, _ in pins}
    try:
        transport = _exchanged(site, kinds)
    except paramiko.ssh_exception.IncompatiblePeer:
        # Perhaps it has only keys of kinds that we did not pin: look at the one it would rather show.
        transport = _exchanged_any(site)
    key = transport.get_remote_server_key()
    if (key.get_name(), key.get_base64()) not in pins:
        transport.close()
        raise HostKeyChanged(
            f"The SSH host key of {place(site)} is not the one that was pinned",
            why="nothing was sent",
            shown=key.fingerprint,
        )
    return transport


def _exchanged_any(site: Site) -> paramiko.Transport:
    try:
        return _exchanged(site, set())
    except paramiko.ssh_exception.IncompatiblePeer as error:
        raise NotAVaporSite(
            f"The SSH server of {place(site)} shares no algorithm with this program",
            fix="Upgrade its OpenSSH",
        ) from error


def _exchanged(site: Site, kinds: set[str]) -> paramiko.Transport:
    """Key exchange done, host key not yet compared. ``kinds`` of keys to ask for; empty: any."""
    try:
        sock = socket.create_connection((site.ssh_host, site.ssh_port), timeout=CONNECT_TIMEOUT_S)
    except OSError as error:
        raise SiteUnreachable(f"{place(site)} cannot be reached over SSH", why=why(error)) from error
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_AFTER_MS)
    transport = paramiko.Transport(sock)
    transport.banner_timeout = BANNER_TIMEOUT_S
    options = transport.get_security_options()
    ciphers = [c for c in options.ciphers if "gcm" in c or "ctr" in c]
    options.ciphers = tuple(sorted(ciphers, key=lambda cipher: "gcm" not in cipher))
    if kinds:
        options.key_types = tuple(
            kind for kind in options.key_types if kind in kinds or (kind in _KINDS_OF_RSA and "ssh-rsa" in kinds)
        )
    try:
        transport.start_client(timeout=BANNER_TIMEOUT_S)
    except paramiko.ssh_exception.IncompatiblePeer:
        transport.close()
        raise
    except (paramiko.SSHException, OSError, EOFError) as error:
        transport.close()
        raise _no_ssh(site, error) from error
    return transport


def _no_ssh(site: Site, error: BaseException) -> VaporError:
    broke_off = any(isinstance(cause, (OSError, EOFError)) for cause in chain(error))
    if isinstance(error, paramiko.SSHException) and not broke_off:
        return NotAVaporSite(
            f"What answers at {place(site)} is no SSH server",
            why="it does not speak SSH",
            fix="Check the site's SSH port; pair the site again if it changed",
        )
    return SiteUnreachable(f"{place(site)} cannot be reached over SSH", why=why(error))
