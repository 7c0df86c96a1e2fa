"""A desktop session of the tests' own: bus, home and keyring. A missing tool fails, it does not skip."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

PASSWORD = "a password of the tests"


def tool(name: str) -> str:
    """The program's path."""
    found = shutil.which(name)
    if found is None:
        pytest.fail(f"{name} is not installed; the desktop tests need it", pytrace=False)
    return found


@dataclass(frozen=True)
class Session:
    """A private session: its environment, to start programs in."""

    env: dict[str, str]
    home: Path

    def runs(self, bus_name: str) -> bool:
        """Does somebody own that name on this bus?"""
        return "true" in self._ask_bus("NameHasOwner", bus_name)

    def end_owner(self, bus_name: str, timeout_s: float = 15) -> None:
        """End whoever owns that name: a process of this private session, started by its bus."""
        os.kill(int(self._ask_bus("GetConnectionUnixProcessID", bus_name).split()[-1]), signal.SIGTERM)
        deadline = time.monotonic() + timeout_s
        while self.runs(bus_name):
            assert time.monotonic() < deadline, f"{bus_name} did not end"

    def _ask_bus(self, method: str, bus_name: str) -> str:
        call = [tool("dbus-send"), "--session", "--print-reply=literal", "--dest=org.freedesktop.DBus", "/"]
        call += [f"org.freedesktop.DBus.{method}", f"string:{bus_name}"]
        return subprocess.run(call, env=self.env, capture_output=True, text=True, check=True).stdout

    def wait_for(self, bus_name: str, timeout_s: float = 15) -> None:
        """Returns once somebody owns that name."""
        deadline = time.monotonic() + timeout_s
        pause = threading.Event()
        while not self.runs(bus_name):
            assert time.monotonic() < deadline, f"nothing took the name {bus_name}"
            pause.wait(0.05)


@contextmanager
def running(command: list[str], **options: object) -> Iterator[subprocess.Popen[str]]:
    """The program, ended at the end."""
    process = subprocess.Popen(command, text=True, **options)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()


@contextmanager
def private_session(home: Path) -> Iterator[Session]:
    """A bus of one's own; what it activates by itself sees the same private home."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    kept = {key: os.environ[key] for key in ("PATH", "LANG") if key in os.environ}
    env = {**kept, "HOME": str(home)}
    for key, name in (("XDG_RUNTIME_DIR", "run"), ("XDG_DATA_HOME", "data"), ("XDG_CONFIG_HOME", "config")):
        (home / name).mkdir(mode=0o700, exist_ok=True)
        env[key] = str(home / name)
    command = [tool("dbus-daemon"), "--session", "--nofork", "--nopidfile", "--print-address"]
    with running(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as bus:
        assert bus.stdout is not None
        env["DBUS_SESSION_BUS_ADDRESS"] = bus.stdout.readline().strip()
        yield Session(env, home)


@contextmanager
def unlocked_keyring(session: Session) -> Iterator[subprocess.Popen[str]]:
    """gnome-keyring on that bus, its login keyring open."""
    command = [tool("gnome-keyring-daemon"), "--foreground", "--unlock", "--components=secrets"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with running(command, env=session.env, stdin=subprocess.PIPE, **quiet) as daemon:
        assert daemon.stdin is not None
        daemon.stdin.write(PASSWORD)
        daemon.stdin.close()
        session.wait_for("org.freedesktop.secrets")
        yield daemon


@pytest.fixture(scope="session")
def desktop_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """The session of the whole run; this process's environment points at it meanwhile."""
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        session = stack.enter_context(private_session(tmp_path_factory.mktemp("session") / "home"))
        for key in ("DBUS_SESSION_BUS_ADDRESS", "XDG_RUNTIME_DIR", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "HOME"):
            patch.setenv(key, session.env[key])
        yield session


@pytest.fixture(scope="session")
def keyring_session(desktop_session: Session) -> Iterator[Session]:
    """The session with an unlocked keyring in it."""
    with unlocked_keyring(desktop_session):
        yield desktop_session
