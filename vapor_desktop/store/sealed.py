"""Secrets in a folder, sealed by ``systemd-creds``: what a system unit loads as its credentials.

Written by root while an engine is being enrolled. A file can be opened on this machine only (by its own key or TPM).
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from vapor_desktop.model.errors import KeyringMissing, NotAllowed
from vapor_desktop.store.secrets import FOLDER_PREFIX


class SealedSecrets:
    """``engine.ports.Secrets``. Raises KeyringMissing where systemd-creds is missing or refuses."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise KeyringMissing(f"The folder {folder} cannot be used", why=str(error.strerror)) from error

    def get(self, name: str) -> str | None:
        """The secret, None when there is none of that name."""
        path = self._path(name)
        if not path.exists():
            return None
        return _run(["decrypt", f"--name={FOLDER_PREFIX}{name}", str(path), "-"], b"").decode()

    def put(self, name: str, value: str) -> None:
        """Add or overwrite; through standard input, never an argument."""
        path = self._path(name)
        sealed = _run(["encrypt", f"--name={FOLDER_PREFIX}{name}", "-", "-"], value.encode())
        made, aside = tempfile.mkstemp(dir=self._folder.parent, prefix=".sealed-")  # systemd loads all in the folder
        with os.fdopen(made, "wb") as file:
            file.write(sealed)
            file.flush()
            os.fsync(file.fileno())
        Path(aside).replace(path)

    def forget(self, name: str) -> None:
        """Delete. Idempotent."""
        self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        if "/" in name or name.startswith(".") or not name:
            raise NotAllowed(f"“{name}” is not the name of a credential")
        return self._folder / name


def _run(words: list[str], given: bytes) -> bytes:
    try:
        done = subprocess.run(["systemd-creds", *words], input=given, capture_output=True, check=False)
    except FileNotFoundError as error:
        raise KeyringMissing("There is no systemd-creds on this machine", fix="It comes with systemd 250") from error
    if done.returncode:
        why = done.stderr.decode(errors="replace").strip().splitlines()
        raise KeyringMissing(
            f"systemd-creds could not {words[0]} a secret", why=why[-1] if why else "", fix="Run it as root"
        )
    return done.stdout
