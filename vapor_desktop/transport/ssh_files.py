"""What OpenSSH needs as files, ours and libvirt's: the key, the pinned host keys, one wrapper per site.

libvirt ignores ``known_hosts=`` for ``qemu+ssh`` [facts/lab], so the wrapper named in its URI is what
enforces ours. It puts its options first, and OpenSSH takes the first value it sees of each.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import shutil
import stat
import subprocess
import tempfile
import threading
from pathlib import Path
from urllib.parse import urlencode

from vapor_desktop.engine.ports import Secrets
from vapor_desktop.model.errors import InvalidRequest
from vapor_desktop.model.sites import Site
from vapor_desktop.transport.ssh_key import console_private_key

# Fastest first where the CPU has AES [facts/libvirt 3.3].
CIPHERS = "aes128-gcm@openssh.com,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com,aes256-ctr,aes128-ctr"
CONNECT_TIMEOUT_S = 10
PERSIST_S = 60
_SOCKET_PATH_LONGEST = 107 - 18  # ssh adds a random suffix while it makes the socket


class SshFiles:
    """One process's SSH files, below ``$XDG_RUNTIME_DIR/vapor-desktop/`` (or a private temporary directory).

    Made on first use, 0700; the private key is 0600 and gone after ``close()``. What a crashed process left
    behind is removed by the next. Thread-safe. Raises KeyringMissing, KeyringLocked.
    """

    def __init__(self, secrets: Secrets, runtime_dir: Path | None = None) -> None:
        self._secrets = secrets
        self._wanted = runtime_dir
        self._dir: Path | None = None
        self._lock = threading.Lock()

    @property
    def directory(self) -> Path:
        """This process's own directory, with the key in it."""
        with self._lock:
            if self._dir is None:
                key = console_private_key(self._secrets)
                directory = _own_directory(self._wanted)
                _write(directory / "key", key if key.endswith("\n") else key + "\n", 0o600)
                self._dir = directory
            return self._dir

    def wrapper(self, site: Site) -> Path:
        """A program that is ``ssh`` with our options for this site; give it port, user, key, ``--``, host, words."""
        directory, name = self.directory, _short(site)
        known_hosts = directory / f"{name}.known"
        alias = host_key_alias(site)
        pins = "".join(f"{alias} {_pin(key)}\n" for key in site.ssh_host_keys)
        options = _options(known_hosts, alias, directory / f"{name}.ctl")
        words = [shutil.which("ssh") or "/usr/bin/ssh", "-F", "none"]
        for key, value in options.items():
            words += ["-o", f"{key}={value}"]
        wrapper = directory / f"{name}.ssh"
        with self._lock:
            _write(known_hosts, pins, 0o600)
            _write(wrapper, f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n', 0o700)
        return wrapper

    def argv(self, site: Site, *words: str, shared: bool = True) -> list[str]:
        """The argument list that runs ``words`` at the site, as our own processes do.

        ``shared`` False: not on the shared connection. ``-S`` wins over the wrapper's ControlPath [ssh(1)].
        """
        target = [
            *([] if shared else ["-S", "none"]),
            "-T",
            "-i",
            str(self.directory / "key"),
            "-p",
            str(site.ssh_port),
            "-l",
            site.ssh_user,
            "--",
        ]
        return [str(self.wrapper(site)), *target, site.ssh_host, *words]

    def libvirt_uri(self, site: Site) -> str:
        """``qemu+ssh://…`` through the wrapper. ``proxy=native``: what a forced command can tell apart."""
        query = urlencode(
            {
                "command": str(self.wrapper(site)),
                "keyfile": str(self.directory / "key"),
                "proxy": "native",
                "no_tty": "1",
            },
            safe="/",
        )
        host = f"[{site.ssh_host}]" if ":" in site.ssh_host else site.ssh_host
        return f"qemu+ssh://{site.ssh_user}@{host}:{site.ssh_port}/system?{query}"

    def end_master(self, site: Site) -> None:
        """End the shared connection to the site, if there is one: the next begins with the host key again."""
        if self._dir is not None:
            _end_master(self._dir / f"{_short(site)}.ctl")

    def close(self) -> None:
        """End the shared connections and delete everything, the private key first."""
        with self._lock:
            directory, self._dir = self._dir, None
        if directory is not None:
            (directory / "key").unlink(missing_ok=True)
            for control in directory.glob("*.ctl"):
                _end_master(control)
            while directory.exists():  # a master that ends takes its socket away itself, maybe just now
                with contextlib.suppress(FileNotFoundError):
                    shutil.rmtree(directory)


def host_key_alias(site: Site) -> str:
    """The name under which a site's host keys are pinned: its identity, never its address."""
    return f"vapor-{site.site_id}"


def _options(known_hosts: Path, alias: str, control: Path) -> dict[str, str]:
    return {
        "UserKnownHostsFile": str(known_hosts),
        "GlobalKnownHostsFile": "/dev/null",
        "HostKeyAlias": alias,
        "CheckHostIP": "no",
        "StrictHostKeyChecking": "yes",
        "UpdateHostKeys": "no",
        "VerifyHostKeyDNS": "no",
        "BatchMode": "yes",
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "PreferredAuthentications": "publickey",
        "ControlMaster": "auto",
        "ControlPath": str(control),
        # The shared connection is a process of its own: ending one user of it does not end the others.
        "ControlPersist": str(PERSIST_S),
        "ForwardAgent": "no",
        "ForwardX11": "no",
        "ClearAllForwardings": "yes",
        "PermitLocalCommand": "no",
        "RequestTTY": "no",
        "EscapeChar": "none",
        "ConnectTimeout": str(CONNECT_TIMEOUT_S),
        "ConnectionAttempts": "1",
        "ServerAliveInterval": "15",
        "ServerAliveCountMax": "4",
        "TCPKeepAlive": "yes",
        "Ciphers": CIPHERS,
        "Compression": "no",
        "IPQoS": "throughput",
        "LogLevel": "ERROR",
    }


def _pin(key: str) -> str:
    """ "TYPE BASE64" and nothing else: a site's word must not become another line or a marker."""
    parts = key.split()
    if len(parts) < 2 or "\n" in key or parts[0].startswith(("@", "#")):
        raise InvalidRequest("A pinned SSH host key is not one", fix="Pair the site again")
    return f"{parts[0]} {parts[1]}"


def _short(site: Site) -> str:
    """Short, for the socket's path, and another one when the site's pins or address changed."""
    text = f"{site.site_id} {site.ssh_host} {site.ssh_port} {site.ssh_user} {' '.join(site.ssh_host_keys)}"
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _own_directory(wanted: Path | None) -> Path:
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    base = wanted or (Path(runtime) / "vapor-desktop" if runtime else None)
    if base is not None:
        base.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _fits(base):
            _sweep(base)
            return Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=base))
    return Path(tempfile.mkdtemp(prefix="vapor-ssh-"))


def _fits(base: Path) -> bool:
    """Ours alone, programs may run in it, and a socket's path fits."""
    found = base.stat()
    private = found.st_uid == os.geteuid() and not stat.S_IMODE(found.st_mode) & 0o077
    runs = not os.statvfs(base).f_flag & os.ST_NOEXEC
    longest = len(os.fsencode(base / "4194304-abcdefgh" / "0123456789ab.ctl"))
    return private and runs and longest <= _SOCKET_PATH_LONGEST


def _sweep(base: Path) -> None:
    """Remove what processes that no longer exist left behind."""
    for left in base.iterdir():
        pid = left.name.partition("-")[0]
        if pid.isdecimal() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(left, ignore_errors=True)  # another console may be removing the same


def _write(path: Path, text: str, mode: int) -> None:
    """Never readable by others, not even for a moment; replaced whole, so a running ssh sees old or new."""
    aside = path.with_name(path.name + ".new")
    aside.unlink(missing_ok=True)
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
        file.write(text)
    aside.replace(path)


def _end_master(control: Path) -> None:
    """No such connection (any more) is as good."""
    if control.exists():
        ask = ["-F", "none", "-o", f"ControlPath={control}", "-O", "exit", "--", "whoever"]
        command = [shutil.which("ssh") or "/usr/bin/ssh", *ask]
        subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=10, check=False)
