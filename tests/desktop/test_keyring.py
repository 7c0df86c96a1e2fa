"""Secrets in a real gnome-keyring on a bus of the tests' own, and every way in which there is none."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
from conftest import Session, private_session, tool, unlocked_keyring

from vapor_desktop.model.errors import KeyringLocked, KeyringMissing
from vapor_desktop.store.secrets import KeyringSecrets

pytestmark = pytest.mark.desktop

ASK = """
import json, sys, time
from vapor_desktop.model.errors import VaporError
from vapor_desktop.store.secrets import KeyringSecrets
secrets = KeyringSecrets(timeout_s=float(sys.argv[1]))
began = time.monotonic()
try:
    said = {"value": getattr(secrets, sys.argv[2])(*sys.argv[3:])}
except VaporError as error:
    said = error.to_wire()
print(json.dumps({**said, "seconds": time.monotonic() - began}))
"""


def ask(env: dict[str, str], *words: str, timeout_s: float = 10) -> dict[str, object]:
    """In a process of that session; it must also *end*, whatever its keyring does."""
    command = [sys.executable, "-c", ASK, str(timeout_s), *words]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=True)
    said: dict[str, object] = json.loads(done.stdout)
    return said


def test_round_trip_through_the_real_keyring(keyring_session: Session) -> None:
    secrets = KeyringSecrets()
    assert secrets.get("site-token.a") is None
    secrets.put("site-token.a", "first")
    secrets.put("site-token.a", "vapor1.süß\nzweite Zeile")
    secrets.put("site-token.b", "other")
    assert secrets.get("site-token.a") == "vapor1.süß\nzweite Zeile"
    command = [tool("secret-tool"), "lookup", "service", "vapor-desktop", "username", "site-token.b"]
    seen = subprocess.run(command, env=keyring_session.env, capture_output=True, text=True, check=True)
    assert seen.stdout == "other"
    on_disk = (keyring_session.home / "data" / "keyrings" / "login.keyring").read_bytes()
    assert on_disk
    assert b"zweite" not in on_disk
    secrets.forget("site-token.a")
    secrets.forget("site-token.a")
    assert secrets.get("site-token.a") is None
    assert secrets.get("site-token.b") == "other"


def test_several_threads_ask_at_once(keyring_session: Session) -> None:
    secrets = KeyringSecrets()
    found: dict[int, str | None] = {}

    def work(number: int) -> None:
        secrets.put(f"n{number}", f"value {number}")
        found[number] = secrets.get(f"n{number}")

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: f"value {n}" for n in range(6)}


def test_no_bus_is_a_clear_error(tmp_path: Path) -> None:
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)}
    said = ask(env, "put", "a", "secret")
    assert said["code"] == KeyringMissing.code
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_keyring_whose_prompt_cannot_be_shown_is_locked_not_missing(tmp_path: Path) -> None:
    """The daemon is started by the bus, has no keyring yet and no display to ask on."""
    with private_session(tmp_path / "home") as session:
        said = ask(session.env, "put", "a", "secret")
        assert said["code"] == KeyringLocked.code


def test_a_prompt_that_nobody_answers_is_given_up(tmp_path: Path) -> None:
    with private_session(tmp_path / "home") as session:
        command = [tool("Xvfb"), "-displayfd", "1", "-nolisten", "tcp"]
        screen = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            assert screen.stdout is not None
            session.env["DISPLAY"] = f":{screen.stdout.readline().strip()}"
            update = [tool("dbus-update-activation-environment"), "DISPLAY"]
            subprocess.run(update, env=session.env, check=True)
            said = ask(session.env, "put", "a", "secret", timeout_s=4)
        finally:
            screen.terminate()
            screen.wait()
            screen.stdout.close()
    assert said["code"] == KeyringLocked.code
    assert said["what"] == "The keyring did not open within 4 s"
    assert 3.5 < float(str(said["seconds"])) < 8


@pytest.mark.parametrize("backend", ["keyring.backends.null.Keyring", "keyring.backends.fail.Keyring", "plain.Text"])
def test_a_keyring_that_would_not_encrypt_is_refused(keyring_session: Session, tmp_path: Path, backend: str) -> None:
    """Also one a package brings along, which writes plain text and says it is the best."""
    (tmp_path / "plain.py").write_text(
        "from keyring.backend import KeyringBackend\n"
        "class Text(KeyringBackend):\n"
        "    priority = 99\n"
        "    def get_password(self, s, u): return None\n"
        f"    def set_password(self, s, u, p): open({str(tmp_path / 'leak')!r}, 'w').write(p)\n"
        "    def delete_password(self, s, u): pass\n"
    )
    env = {**keyring_session.env, "PYTHON_KEYRING_BACKEND": backend, "PYTHONPATH": str(tmp_path)}
    said = ask(env, "put", "a", "secret")
    assert said["code"] == KeyringMissing.code
    assert said["details"] == {"backend": backend}
    assert not (tmp_path / "leak").exists()


def test_a_keyring_that_dies_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with private_session(tmp_path / "home") as session:
        for key, value in session.env.items():
            monkeypatch.setenv(key, value)
        secrets = KeyringSecrets()
        with unlocked_keyring(session):
            secrets.put("a", "kept")
        with warnings.catch_warnings():
            # keyring does not close its bus connection when the keyring does not open.
            warnings.simplefilter("ignore", ResourceWarning)
            with pytest.raises(KeyringLocked):  # the bus starts one that is locked and cannot ask
                secrets.get("a")
            gc.collect()
        session.end_owner("org.freedesktop.secrets")
        with unlocked_keyring(session):
            assert secrets.get("a") == "kept"
