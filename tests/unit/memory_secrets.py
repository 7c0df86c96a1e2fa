"""Secrets in memory, for tests about what is put into a keyring and when."""

from __future__ import annotations

from vapor_desktop.model.errors import KeyringLocked


class MemorySecrets:
    """``locked`` True: every call fails as a locked keyring does."""

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}
        self.locked = False

    def get(self, name: str) -> str | None:
        self._open()
        return self.kept.get(name)

    def put(self, name: str, value: str) -> None:
        self._open()
        self.kept[name] = value

    def forget(self, name: str) -> None:
        self._open()
        self.kept.pop(name, None)

    def _open(self) -> None:
        if self.locked:
            raise KeyringLocked("The keyring is locked")
