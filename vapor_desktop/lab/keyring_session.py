"""A private D-Bus session with a real, unlocked Secret Service: for demos and tests on machines without one.

The keyring's files live below the given home and go with it; the password is random and never written.
"""

from __future__ import annotations

import os
import secrets
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from vapor_desktop.lab.processes import LabFailed

_VARIABLES = ("DBUS_SESSION_BUS_ADDRESS", "XDG_DATA_HOME", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")


class KeyringSession:
    """Changes this process's environment for its lifetime. Needs ``dbus-daemon`` and ``gnome-keyring-daemon``."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._before: dict[str, str | None] = {}
        self._bus: subprocess.Popen[str] | None = None
        self._daemon: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._before = {name: os.environ.get(name) for name in _VARIABLES}
        for name in ("data", "run", "config", "cache"):
            (self._home / name).mkdir(parents=True, exist_ok=True)
            (self._home / name).chmod(0o700)
        os.environ["XDG_DATA_HOME"] = str(self._home / "data")
        os.environ["XDG_RUNTIME_DIR"] = str(self._home / "run")
        os.environ["XDG_CONFIG_HOME"] = str(self._home / "config")
        os.environ["XDG_CACHE_HOME"] = str(self._home / "cache")
        try:
            self._start()
        except FileNotFoundError as error:
            self.__exit__(None, None, None)
            raise LabFailed(f"{error.filename} is missing", fix="Install dbus-daemon and gnome-keyring") from error
        return self

    def _start(self) -> None:
        words = ["dbus-daemon", "--session", "--nofork", "--nopidfile", "--print-address=1"]
        self._bus = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self._bus.stdout is not None  # noqa: S101  it is a pipe
        os.environ["DBUS_SESSION_BUS_ADDRESS"] = self._bus.stdout.readline().strip()
        words = ["gnome-keyring-daemon", "--foreground", "--unlock", "--components=secrets"]
        self._daemon = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        assert self._daemon.stdin is not None  # noqa: S101  it is a pipe
        self._daemon.stdin.write(secrets.token_hex(16).encode())
        self._daemon.stdin.close()
        self._wait_for_name()

    def _wait_for_name(self) -> None:
        """Until the Secret Service owns its name: an activated second daemon would be locked."""
        from jeepney import DBusAddress, new_method_call
        from jeepney.io.blocking import open_dbus_connection

        from vapor_desktop.lab.processes import wait_until

        bus = DBusAddress("/org/freedesktop/DBus", "org.freedesktop.DBus", "org.freedesktop.DBus")
        with open_dbus_connection(os.environ["DBUS_SESSION_BUS_ADDRESS"]) as connection:

            def owned() -> bool:
                call = new_method_call(bus, "NameHasOwner", "s", ("org.freedesktop.secrets",))
                return bool(connection.send_and_get_reply(call).body[0])

            wait_until(owned, "The keyring daemon", timeout_s=10, every_s=0.05)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in (self._daemon, self._bus):
            if process is not None:
                process.terminate()
                process.wait(timeout=10)
                for stream in (process.stdout, process.stdin):
                    if stream is not None:
                        stream.close()
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
