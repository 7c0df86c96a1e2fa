"""Secrets: the OS keyring, or systemd credentials on a server. Never a file of ours, never plain text."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

import keyring.core
import keyring.errors
import secretstorage.exceptions
from jeepney.wrappers import DBusErrorResponse
from keyring.backend import KeyringBackend
from keyring.backends import SecretService, chainer, kwallet, libsecret

from vapor_desktop.model.errors import KeyringLocked, KeyringMissing, NotAllowed

SERVICE = "vapor-desktop"
FOLDER_PREFIX = "vapor_"
_T = TypeVar("_T")

# Those that encrypt at rest. An allow-list: installing keyrings.alt makes a plain-text file eligible
# [facts/desktop 0.5], and a misconfigured user session offers "null".
_TRUSTED: tuple[type[KeyringBackend], ...] = (SecretService.Keyring, kwallet.DBusKeyring, libsecret.Keyring)


class KeyringSecrets:
    """``engine.ports.Secrets`` on the user's keyring.

    A keyring may show a prompt and then block for ever [facts/desktop 0.4], so every call runs in a thread
    of its own and is given up after ``timeout_s``. While the prompt is open further calls wait their turn
    and are given up alike. Raises KeyringMissing (none, or one that would write plain text) and
    KeyringLocked (not opened in time, or its prompt dismissed).
    """

    def __init__(self, timeout_s: float = 10, service: str = SERVICE) -> None:
        self._timeout_s = timeout_s
        self._service = service
        self._turn = threading.Lock()

    def get(self, name: str) -> str | None:
        """The secret, None when there is none of that name."""
        return self._ask(lambda: _backend().get_password(self._service, name))

    def put(self, name: str, value: str) -> None:
        """Add or overwrite."""
        self._ask(lambda: _backend().set_password(self._service, name, value))

    def forget(self, name: str) -> None:
        """Delete. Idempotent."""

        def delete() -> None:
            backend = _backend()
            if backend.get_password(self._service, name) is not None:
                backend.delete_password(self._service, name)

        self._ask(delete)

    def _ask(self, question: Callable[[], _T]) -> _T:
        if not self._turn.acquire(timeout=self._timeout_s):
            raise _not_in_time(self._timeout_s)
        call = _Call(question, self._turn)
        return call.result(self._timeout_s)


class _Call(Generic[_T]):
    """One question in a daemon thread: one that never ends must not keep the program from ending."""

    def __init__(self, question: Callable[[], _T], turn: threading.Lock) -> None:
        self._question = question
        self._turn = turn
        self._done = threading.Event()
        self._value: list[_T] = []
        self._error: BaseException | None = None
        threading.Thread(target=self._run, name="keyring", daemon=True).start()

    def result(self, timeout_s: float) -> _T:
        if not self._done.wait(timeout_s):
            raise _not_in_time(timeout_s)
        if self._error is not None:
            raise self._error
        return self._value[0]

    def _run(self) -> None:
        try:
            self._value.append(_translated(self._question))
        except BaseException as error:  # noqa: BLE001 - handed to the asking thread, which raises it
            self._error = error
        finally:
            self._turn.release()
            self._done.set()


def _not_in_time(timeout_s: float) -> KeyringLocked:
    return KeyringLocked(f"The keyring did not open within {timeout_s:g} s", why="it is waiting for its password")


def _translated(question: Callable[[], _T]) -> _T:
    try:
        return question()
    except keyring.errors.NoKeyringError as error:
        raise KeyringMissing("There is no keyring", why=str(error)) from error
    except keyring.errors.InitError as error:
        # Said both when nothing serves the bus name and when the prompt was dismissed: its cause tells.
        if isinstance(error.__cause__, secretstorage.exceptions.PromptDismissedException):
            raise KeyringLocked("The keyring's prompt was dismissed") from error
        raise KeyringMissing("The keyring cannot be opened", why=str(error)) from error
    except (
        keyring.errors.KeyringLocked,
        secretstorage.exceptions.LockedException,
        secretstorage.exceptions.PromptDismissedException,
    ) as error:
        raise KeyringLocked("The keyring is locked", why=str(error)) from error
    except (
        keyring.errors.KeyringError,
        secretstorage.exceptions.SecretStorageException,
        DBusErrorResponse,
        OSError,
        EOFError,
    ) as error:
        raise KeyringMissing("The keyring does not answer", why=f"{type(error).__name__}: {error}") from error


def _backend() -> KeyringBackend:
    """The user's choice if it is one we trust, else the best that works now.

    Not ``keyring.get_keyring()``: that remembers for the life of the process that there was none.
    """
    try:
        chosen = keyring.core.load_env() or keyring.core.load_config()
    except (ImportError, AttributeError, RuntimeError) as error:
        raise KeyringMissing("The configured keyring cannot be loaded", why=str(error)) from error
    if chosen is not None and not isinstance(chosen, chainer.ChainerBackend):
        if not isinstance(chosen, _TRUSTED):
            kind = f"{type(chosen).__module__}.{type(chosen).__qualname__}"
            raise KeyringMissing("The configured keyring is not a safe place", why=f"it is {kind}", backend=kind)
        return chosen
    usable = [kind for kind in _TRUSTED if kind.viable]
    if not usable:
        raise KeyringMissing("There is no keyring", why="nothing offers the Secret Service on the session bus")
    return max(usable, key=lambda kind: kind.priority)()


class FileSecrets:
    """``engine.ports.Secrets`` for a system unit: systemd's credentials (``LoadCredentialEncrypted=``), read-only.

    Those of a folder (``LoadCredentialEncrypted=vapor:FOLDER``) are called ``vapor_NAME`` there [systemd.exec(5)].

    ``directory`` None: ``$CREDENTIALS_DIRECTORY``. Raises KeyringMissing when systemd gave none.
    """

    def __init__(self, directory: Path | None = None) -> None:
        given = directory or os.environ.get("CREDENTIALS_DIRECTORY")
        if not given or not Path(given).is_dir():
            raise KeyringMissing(
                "There are no systemd credentials",
                why="CREDENTIALS_DIRECTORY names no directory",
                fix="Start the engine as a systemd unit with LoadCredentialEncrypted=",
            )
        self._directory = Path(given)

    def get(self, name: str) -> str | None:
        """The credential of that name, None when the unit has none. Raises NotAllowed for a path."""
        if "/" in name or name in ("", ".", ".."):
            raise NotAllowed(f"“{name}” is not the name of a credential")
        for file in (name, FOLDER_PREFIX + name):
            try:
                return (self._directory / file).read_text(encoding="utf-8").rstrip("\n")
            except FileNotFoundError:
                continue
            except OSError as error:
                raise KeyringMissing(f"The credential “{name}” cannot be read", why=str(error.strerror)) from error
        return None

    def put(self, name: str, value: str) -> None:
        """Always NotAllowed."""
        raise self._read_only(name)

    def forget(self, name: str) -> None:
        """Always NotAllowed."""
        raise self._read_only(name)

    @staticmethod
    def _read_only(name: str) -> NotAllowed:
        return NotAllowed(
            f"The credential “{name}” cannot be changed from here",
            why="systemd credentials are read-only",
            fix="Use `vaporctl --credentials FOLDER …` on that machine, then restart the engine",
        )
